"""What one data center of one rank keeps in its resume points, and what it makes of files that are none."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from test_single_fits import Net, fit, summary, trained

from colearn_hpc import CoLearning
from colearn_hpc.errors import CheckpointError, ConfigurationError, ParticipantError


class Keeps(Net):
    """With something of the user's own in each checkpoint."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = {"kept": self.kept}


def points(run):
    return sorted(run.glob("centers/dc0/resume-*.ckpt"))


@pytest.mark.parametrize("number", [np.float64(0.5), np.int32(3), np.float16(0.5), np.bool_(True)])
def test_numpy_numbers_in_a_resume_point(tmp_path, number):
    fit(tmp_path / "run", Keeps(number), rounds=1)
    assert fit(tmp_path / "run", Keeps(number), resume=True).global_step == 4


def test_what_torch_would_not_load_is_named_at_the_start(tmp_path):
    with pytest.raises(CheckpointError, match=r"\['mine'\]\['kept'\] \(pathlib\.PosixPath\).*weights_only=False"):
        fit(tmp_path / "run", Keeps(Path("x")), restarts=0)
    assert summary(tmp_path / "run")["status"] == "failed"
    everything = {"weights_only": False}
    fit(tmp_path / "other", Keeps(Path("x")), rounds=1, **everything)
    assert fit(tmp_path / "other", Keeps(Path("x")), resume=True, **everything).global_step == 4


def test_nothing_is_written_through_the_systems_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    fit(tmp_path / "run", Net())
    assert (tmp_path / "run" / "shared.ckpt").exists() and len(points(tmp_path / "run")) == 2


def foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "no checkpoint")


DAMAGES = {
    "another program's zip": foreign_zip,
    "no zip": lambda path: path.write_bytes(b"x" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "a flipped bit": lambda path: path.write_bytes(bytes(b ^ (k == 700) for k, b in enumerate(path.read_bytes()))),
    "weights alone": lambda path: torch.save({"state_dict": {}}, path),
    "no state of ours": lambda path: torch.save(torch.load(path, weights_only=False) | {"callbacks": {}}, path),
    "a list": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_point_is_passed_over(tmp_path, caplog, damage):
    run = tmp_path / "run"
    fit(run, Net())
    newest = points(run)[-1]
    DAMAGES[damage](newest)
    assert fit(run, Net(), resume=True).global_step == 4
    assert newest.name in caplog.text and summary(run)["status"] == "finished"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_points_alone_are_one_sentence(tmp_path, damage):
    run = tmp_path / "run"
    fit(run, Net())
    for point in points(run):
        DAMAGES[damage](point)
    with pytest.raises(CheckpointError, match=r"no resume point in .* can be read"):
        fit(run, Net(), resume=True)
    assert summary(run)["status"] == "finished"


@pytest.mark.parametrize("damage", ["another program's zip", "no zip", "a list", "no state of ours"])
def test_a_foreign_checkpoint_that_is_named(tmp_path, damage):
    run = tmp_path / "run"
    fit(run, Net())
    path = points(run)[-1]
    DAMAGES[damage](path)
    with pytest.raises(CheckpointError, match=rf"{path.name} is nothing from which a run can go on: "):
        fit(run, Net(), path=path)


def test_a_plain_checkpoint_in_trainer_fit(tmp_path):
    fit(tmp_path / "run", Net())
    path = points(tmp_path / "run")[-1]
    DAMAGES["no state of ours"](path)
    with pytest.raises(CheckpointError, match=rf"{path.name} is nothing from which a run can go on: "):
        trained(CoLearning(rounds=1, run_dir=tmp_path / "other"), Net(), path, supervised=False)


class Breaks(Net):
    def __init__(self, what):
        super().__init__()
        self.what = what
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("mask", torch.full((2,), -torch.inf))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        state = next(iter(self.optimizers().optimizer.state.values()))
        if self.what == "buffer":
            self.seen[1] = torch.nan
        if self.what == "momentum" and batch_idx == 1:
            state["momentum_buffer"][0] = torch.inf
        if self.what == "rows" and batch_idx == 1:  # of another shape than the parameter's
            state["rows"] = torch.tensor([1.0, torch.inf])


@pytest.mark.parametrize("what", ["buffer", "momentum", "rows", "nothing"])
@pytest.mark.parametrize("keeps", ["keep", "average"])
def test_what_is_not_finite_never_enters_a_resume_point(tmp_path, what, keeps):
    run = tmp_path / "run"
    if what == "nothing":
        fit(run, Breaks(what), optimizer_state=keeps)
        return
    with pytest.raises(ParticipantError, match="seen" if what == "buffer" else what):
        fit(run, Breaks(what), restarts=0, optimizer_state=keeps)
    (point,) = points(run)  # of the start
    assert point.name == "resume-round000000-epoch000000.ckpt"


def test_the_same_callback_in_a_second_fit_is_a_new_run(tmp_path):
    colearning = CoLearning(rounds=2, local_epochs=1, run_dir=tmp_path / "run")
    assert [trained(colearning, Net()).global_step for _ in range(2)] == [4, 4]


def test_a_monitor_of_rates_sees_those_of_its_epoch_wherever_it_stands_in_the_list(tmp_path):
    class Monitor(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    first, last = Monitor(), Monitor()
    colearning = CoLearning(rounds=2, local_epochs=2, local_epochs_rule="fle", decay=0.25, run_dir=tmp_path / "run")
    trained(colearning, Net(), before=[first], after=[last])
    assert first.seen == last.seen == pytest.approx([0.05, 0.025, 0.05, 0.025])  # eq. 3: r^(j/T)


def test_rounds_and_schedule_may_be_set_until_the_fit_begins(tmp_path):
    class Looks(Net):
        def on_train_epoch_end(self):
            with pytest.raises(ConfigurationError, match="rounds can be set until `fit` begins"):
                colearning.rounds = 7
            self.rates = [*getattr(self, "rates", []), self.optimizers().param_groups[0]["lr"]]

    colearning, model = CoLearning(rounds=9, local_epochs=1, run_dir=tmp_path / "run"), Looks()
    colearning.rounds, colearning.schedule = 3, None
    trained(colearning, model)
    assert model.rates == [0.1, 0.1, 0.1]
    with pytest.raises(ConfigurationError, match="rounds must be a whole number"):
        colearning.rounds = 0
