"""torch.distributed with gloo: an all_reduce per parameter, or PyTorch's PeriodicModelAverager (one flattened copy).

The program starts its own participants. Arguments 4 to 6: "parameter" or "periodic", participant, rendezvous file.
"""

import os
import subprocess
import sys
import tempfile
import time

STARTED = time.time()
import job  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager  # noqa: E402


def take_part(how, number, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=job.PARTICIPANTS)
    net = job.network()
    if not job.EPOCHS:
        for parameter in net.parameters():
            parameter.grad = parameter.detach()  # the averager leaves out what has no gradient
    periodic = PeriodicModelAverager(period=1)
    seconds = []
    for index in range(job.ROUNDS):
        job.train(net, number, index)
        dist.barrier()
        start = time.perf_counter()
        if how == "periodic":
            periodic.average_parameters(net.parameters())
        else:
            with torch.no_grad():
                for parameter in net.parameters():
                    dist.all_reduce(parameter.data)
                    parameter.div_(job.PARTICIPANTS)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    if number == 0:
        job.finished(seconds, net, f"gloo of torch {torch.__version__}", STARTED)
    dist.destroy_process_group()


if len(sys.argv) > 5:
    take_part(sys.argv[4], int(sys.argv[5]), sys.argv[6])
else:
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")  # noqa: PTH118
        everyone = [subprocess.Popen([sys.executable, *sys.argv, str(k), meeting]) for k in range(job.PARTICIPANTS)]
        if any([p.wait() for p in everyone]):  # noqa: C419 - wait for all
            sys.exit("a participant failed")
