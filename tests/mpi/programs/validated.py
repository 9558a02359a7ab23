"""What sees which model, when, and what monitors compare. Run on 2 ranks = 2 data centers.

Prints "passed NAME" per scenario; a scenario that fails ends the program. usage: validated.py OUT [NAME ...]
"""

import toy  # first: makes torchvision importable
import json
import sys
from hashlib import sha256
from pathlib import Path

import torch
from mpi4py import MPI
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from colearn_hpc import CoLearning, DataCenter

pl = toy.pl
OUT = Path(sys.argv[1])
WORLD = MPI.COMM_WORLD
CENTER = DataCenter.join(2)
SCENARIOS = []
# The second data center's validation set is three times as large, and another.
VALIDATION = DataLoader(toy.data(50 + CENTER.index, 24 if CENTER.index else 8), batch_size=8)


def scenario(function):
    SCENARIOS.append(function)
    return function


def digest(module) -> str:
    return sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())).hexdigest()[:16]


class Saw(pl.Callback):
    """What this data center's callbacks saw: which model was validated in which epoch, and metrics at epochs' ends."""

    def __init__(self):
        self.validated, self.metrics = [], []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append((trainer.current_epoch, digest(pl_module)))

    def on_train_epoch_end(self, trainer, pl_module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(*callbacks, module=None, data=VALIDATION, resume=False, **settings):
    """Train; returns (trainer, what was seen, lines of rounds.jsonl)."""
    own = {k: settings.pop(k) for k in list(settings) if k in CoLearning.__init__.__code__.co_varnames}
    folder = OUT / settings.pop("run", sys._getframe(1).f_code.co_name)
    rules = {"rounds": 3, "local_epochs": 2, "local_epochs_rule": "fle", "learning_rate": 0.05}
    colearning = CoLearning(run_dir=folder, centers=CENTER, **rules | own)
    saw = Saw()
    trainer = toy.trainer(CENTER, colearning, *callbacks, saw, **settings)
    path = colearning.resume_path() if resume else None
    trainer.fit(module or toy.Toy(toy.network(CENTER.index)), toy.loader(CENTER.index), data, ckpt_path=path)
    WORLD.Barrier()
    return trainer, saw, [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def alike(value) -> bool:
    found = WORLD.allgather(value)
    return all(one == found[0] for one in found)


@scenario
def rounds_are_validated_and_nothing_else():
    trainer, saw, lines = fit()
    assert [epoch for epoch, _ in saw.validated] == [1, 3, 5] and alike(saw.validated)
    assert trainer.check_val_every_n_epoch == 1, "the Trainer is as it was"
    assert "val_loss" not in saw.metrics[0], "there was no shared model yet"
    for line, metrics in zip(lines, saw.metrics[1::2], strict=True):
        mine = [center["shared_metrics"]["val_loss"] for center in line["centers"]]
        assert mine[0] != mine[1] and set(line["centers"][0]["local_metrics"]) == {"train_loss"}
        # saw comes after CoLearning: it finds what all have agreed on.
        assert abs(metrics["val_loss"] - (8 * mine[0] + 24 * mine[1]) / 32) < 1e-6
    assert alike(float(trainer.callback_metrics["val_loss"]))


@scenario
def the_best_model_is_a_shared_one():
    best = pl.callbacks.ModelCheckpoint(
        OUT / f"best{CENTER.index}", monitor="val_loss", filename="{epoch}-{val_loss:.4f}"
    )
    every = pl.callbacks.ModelCheckpoint(OUT / f"every{CENTER.index}", monitor="train_loss", save_top_k=-1)
    every.filename = "{epoch}"
    _, saw, _ = fit(best, every, enable_checkpointing=True)
    assert alike(Path(best.best_model_path).name) and best.best_model_path
    kept = sorted(path.name for path in Path(every.dirpath).iterdir())
    assert kept == ["epoch=1.ckpt", "epoch=3.ckpt", "epoch=5.ckpt"], kept
    weights = torch.load(best.best_model_path, weights_only=False)
    holder = toy.Toy(toy.network(0))
    holder.load_state_dict(weights["state_dict"])
    assert (weights["epoch"], digest(holder)) in saw.validated


@scenario
def all_stop_together():
    """... after so many rounds without a gain, though only one data center has seen a loss."""
    stop = pl.callbacks.EarlyStopping("val_loss", patience=2, min_delta=1e9)
    trainer, _, lines = fit(stop, rounds=None, max_epochs=50)
    assert len(lines) == 3 and trainer.current_epoch == 6 and alike(stop.stopped_epoch)


@scenario
def training_metrics_are_agreed_on():
    stop = pl.callbacks.EarlyStopping("train_loss", patience=1, min_delta=1e9)
    trainer, saw, lines = fit(stop, rounds=None, max_epochs=50, data=None)
    assert len(lines) == 2 and trainer.current_epoch == 4
    assert alike(float(stop.best_score)) and not saw.validated
    assert not alike(lines[0]["centers"][CENTER.index]["local_metrics"]["train_loss"])


class Plateau(toy.Toy):
    """Lowers the rate whenever the metric has not fallen by much."""

    monitor = "val_loss"

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.02)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor}}


@scenario
def rates_do_not_drift_apart():
    settings = {"schedule": "none", "learning_rate": None, "rounds": 6}
    _, _, lines = fit(module=Plateau(toy.network(0)), **settings)
    rates = [rate for line in lines for rate in line["learning_rates"]]
    assert rates[0] == 0.1 and rates[-1] < 0.1, rates
    trainer, _, _ = fit(module=Plateau(toy.network(0)), run="plateau", **settings | {"rounds": 3})
    trainer, _, again = fit(module=Plateau(toy.network(0)), run="plateau", resume=True, **settings)
    assert [rate for line in again for rate in line["learning_rates"]] == rates, "a resumed run has stepped as often"
    assert alike(trainer.optimizers[0].param_groups[0]["lr"])


@scenario
def epochs_between_are_local():
    logger = pl.loggers.CSVLogger(OUT / f"csv{CENTER.index}")
    _, saw, lines = fit(validation="epoch", logger=logger, log_every_n_steps=1)
    assert [epoch for epoch, _ in saw.validated] == [0, 1, 2, 3, 4, 5]
    assert alike(saw.validated[1::2]) and not alike(saw.validated[0])
    assert "val_loss" not in saw.metrics[0] and "local/val_loss" in saw.metrics[0]
    assert saw.metrics[2]["val_loss"] == saw.metrics[1]["val_loss"], "of the last shared model until there is another"
    assert set(lines[0]["centers"][0]["local_metrics"]) == {"train_loss", "val_loss"}
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = {name: number for number, name in enumerate(header.split(","))}
    count = {name: sum(bool(row.split(",")[column[name]]) for row in rows) for name in ("val_loss", "local/val_loss")}
    assert count == {"val_loss": 3, "local/val_loss": 3}, count


@scenario
def overlapping_means_are_validated_where_they_come():
    for local_epochs, expected in ((2, [2, 4, 5]), (1, [1, 2])):
        _, saw, lines = fit(run=f"overlap{local_epochs}", local_epochs=local_epochs, exchange={"overlap": True})
        assert [epoch for epoch, _ in saw.validated] == expected and alike(saw.validated), saw.validated
        assert len(lines) == 3


@scenario
def one_without_validation_data_decides_with_the_others():
    stop = pl.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    data = VALIDATION if CENTER.index == 0 else None
    _, saw, lines = fit(stop, rounds=None, max_epochs=50, data=data)
    assert len(lines) == 2 and alike(float(stop.best_score)) and bool(saw.validated) == (CENTER.index == 0)


@scenario
def a_trainer_may_end_in_mid_round():
    trainer, saw, lines = fit(rounds=None, max_steps=10)
    assert trainer.global_step == 10 and [epoch for epoch, _ in saw.validated] == [1] and len(lines) == 2
    # In one data center alone, while the other comes to a round's end.
    trainer, _, lines = fit(rounds=None, run="alone", max_epochs=50, max_steps=-1 if CENTER.index else 6)
    assert len(lines) == 1 and trainer.global_step == (8 if CENTER.index else 6)


class FailsOnce(pl.Callback):
    """In one data center, when all have agreed on a round's metrics."""

    failed = False

    def on_train_epoch_end(self, trainer, pl_module):
        if CENTER.index == 1 and trainer.current_epoch == 3 and not self.failed:
            self.failed = True
            raise RuntimeError("this is a failure")


@scenario
def a_data_center_may_begin_again():
    """... after it has agreed with the others on the metrics of a round; they do not agree again."""
    ends = []
    for name, failing in (("undisturbed", ()), ("disturbed", (FailsOnce(),))):
        stop = pl.callbacks.EarlyStopping("val_loss", patience=9)
        rules = {"rounds": 3, "local_epochs": 2, "local_epochs_rule": "fle"}
        colearning = CoLearning(run_dir=OUT / name, centers=CENTER, **rules)
        trainer = toy.trainer(CENTER, colearning, stop, *failing)
        pl.seed_everything(1, verbose=False)
        module = toy.Toy(toy.network(0))
        colearning.fit(trainer, module, train_dataloaders=toy.loader(CENTER.index), val_dataloaders=VALIDATION)
        ends.append((digest(module), float(stop.best_score), stop.wait_count))
    assert ends[0] == ends[1] and alike(ends), ends
    assert failing[0].failed == (CENTER.index == 1)


class Cycle(toy.Toy):
    """OneCycle over all steps of the run."""

    steps = None

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.steps = self.steps or self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=self.steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_train_start(self):
        assert self.trainer.estimated_stepping_batches == 24 or self.trainer.max_epochs == 4, "known later, too"


class Rates(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@scenario
def a_scheduler_of_ones_own_goes_on_over_rounds():
    settings = {"schedule": "none", "learning_rate": None}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=24)
    expected = []
    for _ in range(24):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    whole, rest = Rates(), Rates()
    trainer, *_ = fit(whole, module=(module := Cycle(toy.network(0))), run="cycle", **settings)
    assert module.steps == 24, module.steps
    assert whole.rates == expected, (whole.rates, expected)
    assert trainer.max_epochs == -1, "as it was"
    for rounds, callbacks in ((2, ()), (3, (rest,))):
        module = Cycle(toy.network(0))
        module.steps = 24
        fit(*callbacks, module=module, run="cycle2", resume=rounds == 3, **settings | {"rounds": rounds})
    assert rest.rates == expected[16:]


@scenario
def warming_up():
    rates = Rates()
    fit(rates, warmup_steps=9, run="steps")
    # CLR with T = 2: 1/2 and 1/4 of 0.05; four batches an epoch.
    clr = [0.05 * (0.5 if step // 4 % 2 == 0 else 0.25) for step in range(24)]
    expected = [rate * min((step + 1) / 10, 1.0) for step, rate in enumerate(clr)]
    assert all(abs(one - other) < 1e-9 for one, other in zip(rates.rates, expected, strict=True)), rates.rates
    _, _, lines = fit(warmup_epochs=3, run="epochs")
    found = [rate for line in lines for rate in line["learning_rates"]]
    expected = [rate * min((epoch + 1) / 4, 1.0) for epoch, rate in enumerate(clr[::4])]
    assert all(abs(one - other) < 1e-9 for one, other in zip(found, expected, strict=True)), found


@scenario
def lightning_is_left_alone():
    _, saw, _ = fit(validation="lightning")
    assert [epoch for epoch, _ in saw.validated] == [0, 1, 2, 3, 4, 5]


toy.quiet()
for function in SCENARIOS:
    if len(sys.argv) > 2 and function.__name__ not in sys.argv[2:]:
        continue
    pl.seed_everything(1, verbose=False)
    function()
    WORLD.Barrier()
    if CENTER.is_first:
        print("passed", function.__name__, flush=True)
