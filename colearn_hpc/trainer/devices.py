"""What a data center's Trainer gets as devices."""

from __future__ import annotations

from typing import Any

import torch

from colearn_hpc._lightning import CUDAAccelerator
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.join import DataCenter
from colearn_hpc.protocol.messages import plural
from colearn_hpc.trainer.gpus import choose, visible_gpus


class OwnGPU(CUDAAccelerator):
    """The first GPU that a process sees, for each of the ranks on a host: a launcher has given each of them another.

    Lightning takes a device's number to mean the same on all ranks of a host, and cannot be told otherwise by numbers.
    """

    @staticmethod
    def parse_devices(devices: int | str | list[int]) -> list[int]:
        return [0] * int(devices) if isinstance(devices, int | str) else [0] * len(devices)

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("cuda", index) for index in devices]


def trainer_devices(center: DataCenter, accelerator: str) -> dict[str, Any]:
    """``devices``, and ``accelerator`` where it must differ, for this rank's Trainer. Collective over the data center.

    On GPUs: the data center's own on this host, dealt out over all ranks of the host, so that two data centers
    on one machine do not take the same. Data centers of one rank may share a GPU.

    Raises:
        ConfigurationError: several ranks of one data center would have to share a GPU.
    """
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    places = center.comm.allgather((center.host, center.host_rank, visible_gpus() if cuda else ()))
    if not cuda:
        return {"devices": center.local_size}
    here = [(place, gpus) for host, place, gpus in places if host == center.host]
    seen = [gpus for _, gpus in here]
    try:
        indices = choose(seen, [place for place, _ in here])
    except ConfigurationError as error:
        raise ConfigurationError(
            f"data center {center.name} has {center.local_size} ranks on {center.host}, and {error}; start one rank "
            "per GPU, each seeing all GPUs of its host (--gpus-per-node) or one of its own (--gpus-per-task)"
        ) from error
    if len(set(seen)) > 1:
        return {"devices": center.local_size, "accelerator": OwnGPU()}
    return {"devices": indices}


def unused_gpus(accelerator: str) -> str:
    """What to say where this process sees GPUs and trains on CPUs all the same; nothing where it does not."""
    # Not asked by name: that starts CUDA, and fails where the driver is too old for this torch.
    if accelerator != "cpu" or not (gpus := torch.cuda.device_count()):
        return ""
    return (
        f"trainer.accelerator=cpu, and this rank sees {plural(gpus, 'GPU')}, which will stand idle; "
        "take them with --trainer.accelerator gpu"
    )
