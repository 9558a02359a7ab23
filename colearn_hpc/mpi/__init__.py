"""Where the method runs. The only room that imports mpi4py, and only when a rank joins."""

import os

# Open MPI over TCP asks the receiver before it sends more than 64 KiB. On a slow link the answer waits in the
# receiver's own full send buffers behind slices of the mean, for a second or more: slices must go without asking.
# Read when MPI starts; whoever has set these has other reasons.
for _limit in ("eager_limit", "max_send_size"):
    os.environ.setdefault(f"OMPI_MCA_btl_tcp_{_limit}", str((1 << 19) + 4096))  # a slice of float64, and headers
