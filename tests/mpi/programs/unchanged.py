"""Modules that know nothing of the package take the callback. Run on 2 ranks = 2 data centers.

Prints "passed NAME" per scenario; a scenario that fails ends the program. usage: unchanged.py OUT
"""

import toy  # first: makes torchvision importable
import json
import sys
from hashlib import sha256
from pathlib import Path

import torch
from mpi4py import MPI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from importlib import import_module

pl = toy.pl
demos, transformer = (import_module(f"{toy.LIGHTNING}.demos.{name}") for name in ("boring_classes", "transformer"))
BoringModel, ManualOptimBoringModel = demos.BoringModel, demos.ManualOptimBoringModel
LightningTransformer = transformer.LightningTransformer
EarlyStopping, ModelCheckpoint = pl.callbacks.EarlyStopping, pl.callbacks.ModelCheckpoint
CSVLogger, TensorBoardLogger = pl.loggers.CSVLogger, pl.loggers.TensorBoardLogger

from colearn_hpc import CoLearning, ConstantLR, DataCenter, FixedEpochs

OUT = Path(sys.argv[1])
CENTER = DataCenter.join(2)
SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def fit(module, *loaders, callbacks=(), run=None, **settings):
    """Train by co-learning; returns (trainer, callback, lines of rounds.jsonl)."""
    own = {k: settings.pop(k) for k in list(settings) if k in CoLearning.__init__.__code__.co_varnames}
    folder = OUT / (run or sys._getframe(1).f_code.co_name)
    colearning = CoLearning(run_dir=folder, **{"rounds": 2, "local_epochs": 2, "learning_rate": 0.05} | own)
    trainer = toy.trainer(CENTER, colearning, *callbacks, **settings)
    trainer.fit(module, *loaders)
    MPI.COMM_WORLD.Barrier()  # the first leader writes the lines
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return trainer, colearning, lines


def same_everywhere(module) -> bool:
    state = b"".join(tensor.float().numpy().tobytes() for tensor in module.state_dict().values())
    return len(set(MPI.COMM_WORLD.allgather(sha256(state).digest()))) == 1


def toy_fit(**settings):
    module = settings.pop("module", None) or toy.Toy(toy.network(CENTER.index))
    run = settings.pop("run", None) or sys._getframe(1).f_code.co_name
    return module, *fit(module, toy.loader(CENTER.index), toy.loader(CENTER.index), run=run, **settings)


@scenario
def boring_model():
    module = BoringModel()  # brings a scheduler of its own
    fit(module, schedule="none", learning_rate=None)
    assert same_everywhere(module)


@scenario
def transformer():
    class Offline(LightningTransformer):
        def prepare_data(self):
            """The demo would download its text; ours comes from a loader."""

    module = Offline(vocab_size=64)
    generator = torch.Generator().manual_seed(CENTER.index)
    rows = [torch.randint(0, 64, (2, 12), generator=generator) for _ in range(8)]
    fit(module, DataLoader([(a, b) for a, b in rows], batch_size=4), rounds=1)
    assert same_everywhere(module)


class TwoOptimizers(toy.Toy):
    """Manual optimization: two optimizers, one with two parameter groups of different rates."""

    def __init__(self):
        super().__init__(toy.network(CENTER.index))
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()
        self.seen.append([g["lr"] for o in self.optimizers() for g in o.param_groups])

    def configure_optimizers(self):
        first, last = self.net[0], self.net[2]
        groups = [{"params": [first.weight], "lr": 0.2}, {"params": [first.bias], "lr": 0.02}]
        return torch.optim.SGD(groups), torch.optim.Adam(last.parameters(), lr=0.001)


@scenario
def two_optimizers():
    module = TwoOptimizers()
    fit(module, toy.loader(CENTER.index), learning_rate=None, rounds=1)
    assert same_everywhere(module)
    # r^(1/2) = 1/2, then r = 1/4, of each group's own rate
    rates = torch.tensor(module.seen[:: len(toy.loader(0))])
    torch.testing.assert_close(rates, torch.tensor([[0.1, 0.01, 0.0005], [0.05, 0.005, 0.00025]]))


@scenario
def manual_optimization():
    module = ManualOptimBoringModel()
    fit(module, schedule="none", learning_rate=None)
    assert same_everywhere(module)


@scenario
def gradient_accumulation():
    module, trainer, _, lines = toy_fit(accumulate_grad_batches=3)  # 4 batches an epoch: a step of 3, one of 1
    assert trainer.global_step == 2 * 4 and len(lines) == 2 and same_everywhere(module)


@scenario
def limited_batches():
    module, trainer, _, lines = toy_fit(limit_train_batches=3)
    assert trainer.global_step == 3 * 4 and same_everywhere(module)
    assert lines[0]["centers"][0]["examples"] == 2 * 3 * toy.BATCH


@scenario
def validation_in_mid_epoch():
    module, _, _, lines = toy_fit(val_check_interval=0.5, validation="lightning")
    assert same_everywhere(module) and "val_loss" in lines[0]["centers"][0]["shared_metrics"]


@scenario
def mixed_precision():
    module, _, _, lines = toy_fit(precision="bf16-mixed")
    assert len(lines) == 2 and same_everywhere(module)


@scenario
def half_precision_weights():
    module, _, _, _ = toy_fit(precision="bf16-true")
    assert next(module.parameters()).dtype == torch.bfloat16 and same_everywhere(module)


@scenario
def compiled_module():
    module = toy.Toy(toy.network(CENTER.index))
    module.net = torch.compile(module.net, backend="eager")
    toy_fit(module=module, run="compiled_module")
    assert same_everywhere(module)


@scenario
def tied_and_frozen():
    class Tied(toy.Toy):
        def __init__(self):
            super().__init__(toy.network(CENTER.index))
            self.net.append(nn.Linear(toy.CLASSES, toy.CLASSES))
            self.net.append(nn.Linear(toy.CLASSES, toy.CLASSES))
            self.net[4].weight = self.net[3].weight
            self.frozen = nn.Parameter(torch.full((1000,), float(CENTER.index)), requires_grad=False)
            self.register_buffer("counter", torch.tensor(7 + CENTER.index))

        def on_train_batch_end(self, *args):
            self.counter += 1 + CENTER.index  # a counter goes its own way, and is never averaged

    module, _, _, lines = toy_fit(module=Tied())
    assert module.net[4].weight is module.net[3].weight
    assert (module.frozen == 0).all()  # from w⁰ of the first data center, and never sent again
    assert int(module.counter) == 7 + 16 * (1 + CENTER.index)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert lines[0]["centers"][0]["bytes_sent"] == trainable * 4  # 2 (K-1)/K n float32 with K = 2


@scenario
def optimizer_state_average():
    def rate_of_momentum(state):
        module = toy.Toy(toy.network(0))
        trainer, *_ = fit(
            module, toy.loader(CENTER.index), run=f"state-{state}", optimizer_state=state, rounds=1, local_epochs=1
        )
        buffers = [s["momentum_buffer"] for s in trainer.optimizers[0].state.values()]
        return torch.cat([b.reshape(-1) for b in buffers]).numpy() if buffers else None

    assert rate_of_momentum("reset") is None
    kept, averaged = rate_of_momentum("keep"), rate_of_momentum("average")
    mean = sum(MPI.COMM_WORLD.allgather(kept)) / 2
    assert abs(mean - averaged).max() < 1e-6 < abs(kept - averaged).max()


@scenario
def weighted_by_examples():
    few = toy.data(CENTER.index, examples=8 if CENTER.index else 24)
    module = toy.Toy(nn.Linear(toy.FEATURES, toy.CLASSES), momentum=0.0)
    before = [p.detach().clone() for p in module.parameters()]
    *_, lines = fit(module, DataLoader(few, 8), rounds=1, local_epochs=1, weighting="examples")
    assert [c["examples"] for c in lines[0]["centers"]] == [24, 8]
    # Each data center's own step, from the same start, in a plain loop: the mean must be 3 : 1.
    start = MPI.COMM_WORLD.bcast(before)
    own = nn.Linear(toy.FEATURES, toy.CLASSES)
    for p, w in zip(own.parameters(), start, strict=True):
        p.data.copy_(w)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.05 * 0.25)
    for x, y in DataLoader(few, 8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(own(x), y).backward()
        optimizer.step()
    both = MPI.COMM_WORLD.allgather([p.detach() for p in own.parameters()])
    for p, a, b in zip(module.parameters(), *both, strict=True):
        torch.testing.assert_close(p.detach(), 0.75 * a + 0.25 * b)


@scenario
def max_epochs_shortens_the_last_round():
    module, trainer, _, lines = toy_fit(rounds=None, max_epochs=5, local_epochs=3)
    assert trainer.current_epoch == 5 and same_everywhere(module)
    assert [line["local_epochs"] for line in lines] == [3, 2]
    assert abs(lines[1]["learning_rates"][-1] - 0.05 / 4) < 1e-9  # the short round goes through the whole cycle


@scenario
def max_steps_ends_in_mid_round():
    module, trainer, _, lines = toy_fit(rounds=None, max_steps=10, local_epochs=2)
    assert trainer.global_step == 10 and len(lines) == 2 and same_everywhere(module)


def stopped_by(colearning):
    return json.loads((colearning.standing().folder / "summary.json").read_text())["stopped_by"]


@scenario
def early_stopping_in_one_center():
    """One data center stops by itself in mid-round: the round is averaged, and all end."""
    stopper = EarlyStopping("val_loss", patience=0, min_delta=1e9) if CENTER.index == 1 else None
    module, trainer, colearning, lines = toy_fit(
        rounds=None, max_epochs=50, local_epochs=7, validation="lightning", callbacks=[stopper] if stopper else []
    )
    assert len(lines) == 1 and same_everywhere(module), lines
    assert trainer.current_epoch == (2 if CENTER.index else 7)
    assert colearning.standing().stopping and "Trainer ended" in stopped_by(colearning)


@scenario
def rules_as_objects():
    class Odd:
        def factor(self, position):
            return 1.0 + position.epoch_in_round

    class Countdown:
        def first(self):
            return 3

        def next(self, outcome):
            return max(1, outcome.local_epochs - 1)

    _, _, _, lines = toy_fit(schedule=Odd(), local_epochs_rule=Countdown(), rounds=3)
    assert [line["local_epochs"] for line in lines] == [3, 2, 1]
    assert [round(r, 6) for r in lines[0]["learning_rates"]] == [0.05, 0.1, 0.15]
    _, _, _, lines = toy_fit(schedule=ConstantLR(), local_epochs_rule=FixedEpochs(2), run="fedavg")
    assert lines[1]["learning_rates"] == [0.05, 0.05]


@scenario
def own_scheduler_with_schedule_none():
    class Scheduled(toy.Toy):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    *_, lines = toy_fit(module=Scheduled(toy.network(0)), schedule="none", learning_rate=None)
    assert lines[0]["learning_rates"] == [0.1, 0.05] and lines[1]["learning_rates"] == [0.025, 0.0125]


@scenario
def loggers_and_checkpoints_do_not_collide():
    root = OUT / "logs"
    logger = CSVLogger(root, name="mine")
    checkpoint = ModelCheckpoint(dirpath=root / "kept", save_last=True)
    board = TensorBoardLogger(root, name="board")
    toy_fit(logger=[logger, board], callbacks=[checkpoint], enable_checkpointing=True, log_every_n_steps=1)
    MPI.COMM_WORLD.Barrier()
    for log_dir in (logger.log_dir, board.log_dir):
        # Both have one number, that of the first data center: 1 where the other had made its folder before.
        number, _, center = Path(log_dir).name.removeprefix("version_").partition("-")
        assert center == CENTER.name and len({*MPI.COMM_WORLD.allgather(number)}) == 1, log_dir
    events = EventAccumulator(board.log_dir).Reload()
    assert [event.step for event in events.Scalars("rounds/relative_change")] == [0, 1]
    assert len(events.Scalars("rounds/val_loss")) == 2 and len(events.Scalars("colearn/round")) == 2
    folders = MPI.COMM_WORLD.allgather(str(logger.log_dir))
    assert len(set(folders)) == 2, folders
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "colearn/relative_change" in text.splitlines()[0]
    assert len({*MPI.COMM_WORLD.allgather(checkpoint.last_model_path)}) == 2
    assert Path(checkpoint.last_model_path).exists()


@scenario
def shared_checkpoint_is_plain_lightning():
    module, *_ = toy_fit(module=toy.Toy(nn.Sequential(nn.Linear(toy.FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))))
    MPI.COMM_WORLD.Barrier()
    path = OUT / "shared_checkpoint_is_plain_lightning" / "shared.ckpt"
    net = nn.Sequential(nn.Linear(toy.FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    loaded = toy.Toy.load_from_checkpoint(path, net=net, weights_only=True)
    for key, value in module.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(loaded.state_dict()[key], value), key


toy.quiet()
for function in SCENARIOS:
    if len(sys.argv) > 2 and function.__name__ not in sys.argv[2:]:
        continue
    pl.seed_everything(1, verbose=False)
    function()
    MPI.COMM_WORLD.Barrier()
    if CENTER.is_first:
        print("passed", function.__name__, flush=True)
