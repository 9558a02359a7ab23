"""torchft over gloo: LocalSGD (an allreduce per parameter), or DiLoCo (buckets; outer steps of plain SGD at rate 1).

The program starts a lighthouse, a store and its own participants. Arguments 4 to 7: "local_sgd" or "diloco",
participant, the lighthouse's address, the store's port. Everybody takes part in every quorum.
"""

import subprocess
import sys
import time
from datetime import timedelta
from importlib.metadata import version

STARTED = time.time()
import job  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torchft import Manager, ProcessGroupGloo  # noqa: E402
from torchft._torchft import LighthouseServer  # noqa: E402
from torchft.local_sgd import DiLoCo, LocalSGD  # noqa: E402


def barrier(store, name):
    store.add(name, 1)
    while store.add(name, 0) < job.PARTICIPANTS:
        time.sleep(0.001)


def take_part(how, number, lighthouse, port):
    meeting = dist.TCPStore("localhost", int(port))
    own = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # a manager wants one
    net = job.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)  # its step says when to average; job.train has its own
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(minutes=5)),
        min_replica_size=job.PARTICIPANTS,
        load_state_dict=net.load_state_dict,
        state_dict=net.state_dict,
        use_async_quorum=how == "local_sgd",  # DiLoCo refuses it
        init_sync=False,  # all have the same weights, and the first step counts
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=own.port,
        lighthouse_addr=lighthouse,
        replica_id=f"participant_{number}",
        timeout=timedelta(minutes=5),
        quorum_timeout=timedelta(minutes=5),
    )
    if how == "diloco":
        outer = torch.optim.SGD(net.parameters(), lr=1.0)
        averaging = DiLoCo(manager, [net], optimizer, outer, sync_every=1, use_bucketization=True)
    else:
        averaging = LocalSGD(manager, net, optimizer, sync_every=1)
    seconds = []
    with averaging:
        for index in range(job.ROUNDS):
            job.train(net, number, index)
            barrier(meeting, f"begin {index}")
            start = time.perf_counter()
            optimizer.step()
            barrier(meeting, f"end {index}")
            seconds.append(time.perf_counter() - start)
    if number == 0:
        job.finished(seconds, net, f"torchft {version('torchft')}", STARTED)
    barrier(meeting, "done")
    manager.shutdown(wait=False)


if len(sys.argv) > 5:
    take_part(sys.argv[4], int(sys.argv[5]), *sys.argv[6:])
else:
    center = LighthouseServer(bind="[::]:0", min_replicas=job.PARTICIPANTS)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    more = [center.address(), str(store.port)]
    everyone = [subprocess.Popen([sys.executable, *sys.argv, str(k), *more]) for k in range(job.PARTICIPANTS)]
    if any([p.wait() for p in everyone]):  # noqa: C419 - wait for all
        sys.exit("a participant failed")
