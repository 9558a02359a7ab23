"""A mean's time from GPU memory to GPU memory: ours through host memory; ours from device to device, where there is a
way; and by hand: `.cpu()`, a blocking Allreduce, back.

usage: python -m mpi4py exchange.py FILE DEVICE PARAMETERS ROUNDS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from common import Participant, repeated, replica

import torch
from mpi4py import MPI
from torch import Tensor

from colearn_hpc.errors import ConfigurationError


def main() -> None:
    """Both in turn; the first rank writes medians in seconds."""
    file, device, parameters, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    world = MPI.COMM_WORLD
    if device == "cuda":
        torch.cuda.set_device(world.rank % torch.cuda.device_count())
    module = replica(parameters, seed=0).to(device)
    participant = Participant("fp32")
    participant.start_from(module)
    ways = {"ours": participant.average}
    try:
        at = next(module.parameters()).device
        direct = Participant("fp32", device=at)
        direct.start_from(module)
        ways["from device to device"] = direct.average
    except ConfigurationError as why:  # on all ranks alike
        print(why)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * (1 + world.rank))

    def by_hand() -> None:
        tensors: list[Tensor] = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        with torch.no_grad():
            for tensor in tensors:
                copy = tensor.cpu().contiguous()
                world.Allreduce(MPI.IN_PLACE, copy.numpy())
                tensor.copy_(copy.div_(world.size))
        if device == "cuda":
            torch.cuda.synchronize()

    # The same start averaged by each way: the same bits, at this size with many messages under way.
    found = []
    for way in ways.values():
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), replica(parameters, seed=0).parameters(), strict=True):
                parameter.copy_(value * (1 + 0.01 * world.rank))
        way()
        found.append(torch.cat([p.detach().cpu().reshape(-1) for p in module.parameters()]))
    assert all(torch.equal(found[0], other) for other in found), "another way, another mean"

    seconds = repeated(rounds, ways | {"by hand": by_hand}, world.Barrier)
    if world.rank == 0:
        file.write_text(json.dumps({name: median(values) for name, values in seconds.items()}))


main()
