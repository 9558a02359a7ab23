"""The small parts of trainer/ that need no MPI: files, rules, fingerprints, optimizers, tables."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn

from colearn_hpc import CoLearning, ConstantLR, CyclicalLR, FixedEpochs, IncreasingEpochs
from colearn_hpc.algorithm.local_epochs import checked_epochs
from colearn_hpc.errors import ColearnError, ConfigurationError, DataError
from colearn_hpc.protocol.reports import CenterReport, RoundReport
from colearn_hpc.protocol.run import RunState
from colearn_hpc.protocol.settings import describe
from colearn_hpc.trainer.fingerprint import fingerprint
from colearn_hpc.trainer.generators import generators, set_generators
from colearn_hpc.trainer.lightning_gaps import pass_over_empty_hooks
from colearn_hpc.trainer.metrics import batch_size, check_weight
from colearn_hpc.trainer.optimizers import BaseRates, averaged_state, first_rate, reset_state
from colearn_hpc.trainer.progress import table
from colearn_hpc.trainer.resume_points import list_resume_points, obsolete
from colearn_hpc.trainer.run_folder import RunFolder
from colearn_hpc.trainer.writing import write_atomically


def record(index, change=0.5, **shared):
    center = CenterReport("dc0", examples=10, shared_metrics=shared)
    return RoundReport(index, 5, [0.1, 0.05], change, 5 * index + 5, 5, [center])


# --- the run folder -----------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    log = RunFolder(tmp_path / "run", "dc0", writes_run=True, writes_center=True)
    yield log
    log.close()


def test_a_round_is_a_line(log):
    log.append(record(0, val_acc=0.5))
    log.append(record(1, change=math.inf, val_acc=math.nan))
    first, second = (json.loads(line) for line in (log.folder / "rounds.jsonl").read_text().splitlines())
    assert (first["round"], first["centers"][0]["shared_metrics"]) == (0, {"val_acc": 0.5})
    # JSON has no infinity and no NaN: strict readers must be able to read it.
    assert second["relative_change"] is None and second["centers"][0]["shared_metrics"]["val_acc"] is None


BAD_LINES = [
    '{"round": 1, "local_ep',
    "",
    "[" * 100_000,
    "4711",
    '{"round": "one"}',
    "\x00",
    b"\xff\xfe".decode("latin1"),
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=["cut", "empty", "deep", "number", "text", "nul", "latin1"])
@pytest.mark.parametrize("place", [1, 3])
def test_a_bad_line_of_the_record_is_said_and_kept(log, caplog, bad, place):
    """Be it the last one, cut off by a kill, or one in the middle: the rounds after it stay in the record."""
    for index in range(3):
        log.append(record(index))
    path = log.folder / "rounds.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines.insert(place, bad.encode("latin1"))
    path.write_bytes(b"\n".join(lines))
    log.rewind(3)
    log.append(record(3))
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    (said,) = caplog.messages
    assert said.startswith(f"{path}: line {place + 1} of 4 cannot be read") and said.endswith("rounds.damaged.jsonl")
    kept = (log.folder / "rounds.damaged.jsonl").read_text()
    assert kept == bad.encode("latin1").decode(errors="backslashreplace") + "\n"


def test_rewind_drops_the_rounds_that_come_again(log):
    for index in range(4):
        log.append(record(index))
    log.rewind(2)
    log.append(record(2, change=0.1))
    changes = [json.loads(line)["relative_change"] for line in (log.folder / "rounds.jsonl").read_text().splitlines()]
    assert changes == [0.5, 0.5, 0.1]


def test_only_the_first_leader_writes_the_run(tmp_path):
    log = RunFolder(tmp_path / "run", "dc1", writes_run=False, writes_center=True)
    log.append(record(0))
    log.summarize(RunState.new("dc1", 5), ["dc1"], 1, status="finished")
    log.rewind(0)
    log.close()
    assert {p.name for p in (tmp_path / "run").rglob("*") if p.is_file()} == {"log.txt"}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_resume_points_to_keep(tmp_path):
    """The newest, and the newest from before the last averaging: another data center may have only that."""
    for name in (
        "round000000-epoch000001",
        "round000001-epoch000002",
        "round000001-epoch000003",
        "round000001-epoch000003-batch000007",
        "x",
    ):
        (tmp_path / f"resume-{name}.ckpt").touch()
    (tmp_path / ".resume-round000002-epoch000004.ckpt.tmp").touch()
    points = list_resume_points(tmp_path)
    assert sorted(points) == [(0, 1, 0), (1, 2, 0), (1, 3, 0), (1, 3, 7)]  # the last one in mid-epoch
    gone = sorted(path.name for path in obsolete(points))
    assert gone == ["resume-round000001-epoch000002.ckpt", "resume-round000001-epoch000003.ckpt"]
    assert obsolete({}) == [] and obsolete({(3, 1, 0): Path("a")}) == []


def test_generators_come_back():
    import random

    import numpy as np

    state = generators()
    torch.save(state, path := Path("/dev/shm") / f"generators-{id(state)}")
    try:
        loaded = torch.load(path, weights_only=True)  # plain types only
    finally:
        path.unlink()
    drawn = random.random(), np.random.rand(), float(torch.rand(1))
    set_generators(loaded)
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == drawn


# --- arguments ----------------------------------------------------------------------------------------


def test_lightning_passes_over_empty_hooks(tmp_path):
    """... and still calls what a subclass has, with what its super() means."""

    class Counts(pl.Callback):
        seen = 0

        def on_after_backward(self, trainer, pl_module):
            super().on_after_backward(trainer, pl_module)
            self.seen += 1

    counts = Counts()
    pass_over_empty_hooks(counts)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        limit_val_batches=1,
        callbacks=[counts],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(BoringModel())
    assert counts.seen == 3 and counts.on_before_backward is None


def test_names_mean_rules():
    settings = CoLearning(local_epochs=3, epsilon=0.2, decay=0.5, max_local_epochs=9).settings
    assert settings.schedule == CyclicalLR(0.5) and settings.rule == IncreasingEpochs(3, 0.2, 9)
    settings = CoLearning(local_epochs=3, schedule="constant", local_epochs_rule="fle").settings
    assert settings.schedule == ConstantLR() and settings.rule == FixedEpochs(3)
    assert CoLearning(schedule="none").settings.schedule is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rounds": 0}, "rounds must be"),
        ({"rounds": 2.5}, "rounds must be"),
        ({"local_epochs": 0}, "local_epochs (T_0)"),
        ({"epsilon": -1}, "epsilon"),
        ({"decay": 0}, "decay (r of eq. 3)"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"learning_rate": 0.1, "schedule": "none"}, "drop one of the two"),
        ({"schedule": "cosine"}, "schedule must be one of clr, elr"),
        ({"schedule": object()}, "has no `factor(position)`"),
        ({"local_epochs_rule": "double"}, "local_epochs_rule must be one of"),
        ({"local_epochs_rule": object()}, "has no `first()` and `next(outcome)`"),
        ({"max_local_epochs": 2, "local_epochs": 5}, "below local_epochs=5"),
        ({"optimizer_state": "forget"}, "optimizer_state must be one of"),
        ({"weighting": "size"}, "weighting must be one of"),
        ({"round_timeout": 0}, "round_timeout must be"),
        ({"restarts": -1}, "restarts must be"),
        ({"on_failure": "pray"}, "on_failure must be one of"),
        ({"on_failure": "continue_without", "optimizer_state": "average"}, "left out has no part of it"),
    ],
)
def test_impossible_arguments(arguments, says):
    with pytest.raises(ConfigurationError) as raised:
        CoLearning(**arguments)
    assert says in str(raised.value)
    assert isinstance(raised.value, ColearnError) and isinstance(raised.value, ValueError)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
def test_a_users_rule_may_return_nonsense(value):
    with pytest.raises(ConfigurationError, match="must return an int"):
        checked_epochs(value)


def test_rules_are_described_without_addresses():
    class Mine:
        def __init__(self):
            self.power = 2

    assert describe(Mine()) == "Mine({'power': 2})" and describe(CyclicalLR()) == repr(CyclicalLR())


# --- fingerprint, optimizers, metrics -----------------------------------------------------------------


def test_fingerprint_names_everything_that_must_be_equal():
    module = BoringModel()
    module.register_buffer("counter", torch.tensor(0))
    module.layer.bias.requires_grad = False
    items = fingerprint(pl.Trainer(max_epochs=3, logger=False, accelerator="cpu"), module, {"rounds": "5"})
    assert items["parameter layer.weight"] == "(2, 32) float32 trainable"
    assert items["parameter layer.bias"] == "(2,) float32 frozen"
    assert items["buffer counter"] == "() int64"
    assert items["CoLearning(rounds)"] == "5" and items["Trainer(max_epochs)"] == "3"
    assert "torch version" in items and "+" not in items["torch version"]


def test_lazy_parameters_are_refused():
    module = BoringModel()
    module.layer = nn.LazyLinear(2)
    with pytest.raises(ConfigurationError, match=r"parameter layer\.weight is lazy"):
        fingerprint(pl.Trainer(logger=False, accelerator="cpu"), module, {})


def trained(optimizer_class, **arguments):
    layer = nn.Linear(3, 2)
    scale = nn.Parameter(torch.tensor(1.0))
    optimizer = optimizer_class([*layer.parameters(), scale], **arguments)
    (layer(torch.ones(1, 3)).sum() * scale).backward()
    optimizer.step()
    return optimizer


def test_momenta_are_averaged_and_counters_not():
    names = [name for name, _ in averaged_state([trained(torch.optim.Adam, lr=0.1)])]
    assert names == [f"optimizer 0, parameter {j}, {key}" for j in range(3) for key in ("exp_avg", "exp_avg_sq")]


def test_reset_forgets():
    optimizer = trained(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert optimizer.state
    reset_state([optimizer])
    assert not optimizer.state


def test_rates_of_groups_keep_their_ratio():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.4, 0.1)]
    optimizers = [torch.optim.SGD(groups), trained(torch.optim.Adam, lr=torch.tensor(0.2), capturable=False)]
    BaseRates(optimizers, None).apply(0.5)
    assert [g["lr"] for g in optimizers[0].param_groups] == [0.2, 0.05]
    assert isinstance(optimizers[1].param_groups[0]["lr"], torch.Tensor)
    assert float(optimizers[1].param_groups[0]["lr"]) == pytest.approx(0.1)
    BaseRates(optimizers, 1.0).apply(0.5)
    assert [g["lr"] for g in optimizers[0].param_groups] == [0.5, 0.5] and first_rate(optimizers) == 0.5
    assert first_rate([]) == 0.0


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(4, 2), 4),
        ([torch.zeros(3), 1], 3),
        ({"name": "x", "image": (torch.zeros(7, 1),)}, 7),
        ([torch.zeros(0, 3), torch.zeros(5)], 5),
        (torch.tensor(1.0), 1),
        ("text", 0),
        ([], 0),
        ({"temperature": torch.tensor(0.7), "x": torch.zeros(8, 2), "y": torch.zeros(8)}, 8),
        ({"class_weights": torch.ones(3), "x": torch.zeros(8, 2), "y": torch.zeros(8)}, 8),
        ({"ids": ["a"] * 8, "x": torch.zeros(8, 2)}, 8),
        ({"x": [torch.zeros(6)] * 8, "y": torch.zeros(8)}, 8),
        ({"labelled": [torch.zeros(8, 2), torch.zeros(8)], "unlabelled": [torch.zeros(16, 2), torch.zeros(16)]}, 8),
        (SimpleNamespace(batch_size=8, x=torch.zeros(90, 3)), 8),
        (SimpleNamespace(num_graphs=5), 5),
    ],
)
def test_examples_in_a_batch(batch, size):
    assert batch_size(batch) == size
    if size:
        check_weight(batch, size)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"tokens": torch.zeros(512), "label": torch.zeros(8)}, "have the leading lengths 512, 8"),
        ([torch.zeros(90, 3), torch.zeros(5, 2)], "have the leading lengths 90, 5"),
        ("text", "no tensor"),
        ({}, "no tensor"),
    ],
)
def test_examples_that_cannot_be_counted_weigh_nothing(batch, says):
    with pytest.raises(DataError, match=says):
        check_weight(batch, batch_size(batch))


def test_table_has_a_line_a_round():
    lines = table([record(0, val_acc=0.9), record(1, val_acc=0.95, val_loss=0.2)]).strip().splitlines()
    assert len(lines) == 4 and lines[0].split()[:6] == ["round", "T", "epochs", "rate", "change", "val_acc"]
    assert "0.9000" in lines[2] and " - " in lines[2], "a metric that a round has not is a dash"
