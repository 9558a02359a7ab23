"""Who takes which GPU, and what MPI says of GPU memory: with GPUs and libraries that are not there."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.mpi.cuda_aware import ask, cuda_aware, loaded_libraries
from colearn_hpc.trainer import devices, gpus
from colearn_hpc.trainer.devices import OwnGPU, trainer_devices, unused_gpus
from colearn_hpc.trainer.gpus import choose

ALL = ("uuid-a", "uuid-b")


@pytest.mark.parametrize(
    ("seen", "places", "expected"),
    [
        ([ALL, ALL], [0, 1], [0, 1]),
        ([ALL, ALL], [2, 3], [0, 1]),  # a second data center on the host
        ([ALL], [1], [1]),
        ([("uuid-a",), ("uuid-b",)], [0, 1], [0, 0]),  # one per task
        ([("uuid-a", "uuid-b"), ("uuid-c", "uuid-d")], [0, 1], [0, 0]),
    ],
)
def test_choices(seen, places, expected):
    assert choose(seen, places) == expected


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ([ALL, ALL, ALL], "3 ranks see 2 GPUs"),
        ([("uuid-a",), ("uuid-a",)], "2 ranks see 1 GPUs"),
        ([("uuid-a",), ("uuid-a", "uuid-b")], "2 ranks see uuid-a; uuid-a uuid-b GPUs"),
        ([("uuid-a",), ()], "1 of 2 ranks see no GPU"),
    ],
)
def test_no_choice(seen, says):
    with pytest.raises(ConfigurationError, match=says):
        choose(seen, range(len(seen)))


def center(seen):
    """Rank 0 of a data center on one host, whose ranks see these GPUs."""
    everyone = [("n1", place, one) for place, one in enumerate(seen)]
    comm = SimpleNamespace(allgather=lambda mine: [mine, *everyone[1:]])
    return SimpleNamespace(comm=comm, host="n1", host_rank=0, local_size=len(seen), name="dc0")


@pytest.fixture
def machine(monkeypatch):
    """A machine with GPUs of these names."""

    def see(names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=names[i]))

    return see


def test_what_the_trainer_gets(machine):
    machine(ALL)
    assert trainer_devices(center([ALL, ALL]), "gpu") == {"devices": [0, 1]}
    assert trainer_devices(center([ALL, ALL]), "cpu") == {"devices": 2}
    machine(("uuid-a",))
    chosen = trainer_devices(center([("uuid-a",), ("uuid-b",)]), "auto")
    assert chosen["devices"] == 2 and isinstance(chosen["accelerator"], OwnGPU)
    with pytest.raises(
        ConfigurationError, match=r"dc0 has 2 ranks on n1, and 2 ranks see 1 GPUs; start one rank per GPU"
    ):
        trainer_devices(center([("uuid-a",), ("uuid-a",)]), "auto")
    machine(())
    assert trainer_devices(center([(), ()]), "auto") == {"devices": 2}


def test_lightning_takes_a_gpu_of_its_own_for_every_rank(monkeypatch):
    """Two ranks on a host, each with one GPU, which both call cuda:0."""
    monkeypatch.setattr(OwnGPU, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(OwnGPU, "setup_device", lambda *_: None)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator=OwnGPU(), devices=2, strategy="ddp", **quiet)
    assert trainer.strategy.parallel_devices == [torch.device("cuda", 0)] * 2
    assert trainer.world_size == 2
    trainer.strategy._local_rank = 1
    assert trainer.strategy.root_device == torch.device("cuda", 0)


def test_names_without_uuids(machine, monkeypatch):
    machine(("", ""))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpus.visible_gpus() == ("2", "3")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.visible_gpus() == ("0", "1")
    machine(())
    assert devices.visible_gpus() == ()


def library(**functions):
    return lambda path: SimpleNamespace(**functions)


def says_yes(kind, found):
    found._obj.value = 1
    return 0


def test_asking_a_library():
    paths = [Path("/x/libmpi.so.40")]
    assert ask(paths, library(MPIX_Query_cuda_support=lambda: 1)) is True
    assert ask(paths, library(MPIX_Query_cuda_support=lambda: 0)) is False
    assert ask(paths, library(MPIX_GPU_query_support=says_yes)) is True
    assert ask(paths, library()) is None
    assert ask([]) is None


def test_loaded_libraries(tmp_path):
    maps = tmp_path / "maps"
    line = "7f00-7f10 r-xp 00000000 08:01 42                         "
    files = ["/opt/a b/libmpi.so.40.40.7"] * 2 + ["/lib/libm.so.6", "", "/opt/cray/libmpi_gnu_91.so.12"]
    maps.write_text("".join(f"{line}{file}".strip() + "\n" for file in files))
    assert loaded_libraries(maps) == [Path("/opt/a b/libmpi.so.40.40.7"), Path("/opt/cray/libmpi_gnu_91.so.12")]
    assert loaded_libraries(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("vendor", "library", "known", "environment", "expected"),
    [
        ("Open MPI 4.1.4", "libmpi.so.40", "yes", {}, "yes"),
        ("Open MPI 4.1.4", "libmpi.so.40", "no", {}, "no"),
        ("MPICH 3.3", "libmpi.so.12", "unknown", {}, "unknown (this MPI does not say"),
        ("MPICH 8.1", "libmpi_gnu_91.so.12", "unknown", {}, "no (MPICH_GPU_SUPPORT_ENABLED is not set"),
        ("MPICH 8.1", "libmpi_gnu_91.so.12", "unknown", {"MPICH_GPU_SUPPORT_ENABLED": "1"}, "yes"),
        ("Intel MPI 2021", "libmpi.so.12", "unknown", {"I_MPI_OFFLOAD": "0"}, "no (I_MPI_OFFLOAD is not set"),
        ("MVAPICH2 2.3", "libmpi.so.12", "unknown", {"MV2_USE_CUDA": "1"}, "yes"),
    ],
)
def test_an_mpi_that_does_not_answer(monkeypatch, vendor, library, known, environment, expected):
    monkeypatch.setattr("colearn_hpc.mpi.cuda_aware.loaded_libraries", lambda: [Path("/nowhere") / library])
    assert cuda_aware(vendor, known, environment).startswith(expected)


@pytest.mark.parametrize(
    ("accelerator", "seen", "says"),
    [
        ("cpu", ALL, "2 GPUs, which"),
        ("cpu", ALL[:1], "1 GPU, which"),
        ("cpu", (), ""),
        ("auto", ALL, ""),
        ("gpu", ALL, ""),
    ],
)
def test_idle_gpus_are_told(accelerator, seen, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    text = unused_gpus(accelerator)
    assert says in text and bool(text) == bool(says)
