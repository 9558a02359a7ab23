"""Resume points that are written while the next local epoch is trained: what comes of them, and when it is known."""

import threading
import time
from collections import OrderedDict

import pytest
import pytorch_lightning as pl
import torch
from test_resume_points import points
from test_single_fits import Net, summary, trained

from colearn_hpc import CoLearning
from colearn_hpc.trainer import point_writer
from colearn_hpc.trainer.state_copy import StateCopy

FIRST = "resume-round000000-epoch000001.ckpt"  # of three local epochs, which make one round
PATIENCE = 60  # s, where a test would wait for ever if it failed


class Seen(pl.Callback):
    """Lets a test act at the beginning of a batch of the run, counted from 0: two make a local epoch."""

    def __init__(self, batch, act):
        self.batch, self.act, self.seen = batch, act, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += 1
        if self.seen == self.batch + 1:
            self.act()


def run(folder, *callbacks, **arguments):
    torch.manual_seed(1)
    colearning = CoLearning(rounds=2, local_epochs=3, local_epochs_rule="fle", run_dir=folder, **arguments)
    model = Net()
    trained(colearning, model, before=callbacks)
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@pytest.fixture
def undisturbed(tmp_path):
    return run(tmp_path / "undisturbed")


def writes(monkeypatch, around):
    """Have the thread call ``around(write, path)`` for each point that is left to it."""
    put = point_writer.put_point

    def put_point(checkpoint, path, *rest):
        assert threading.current_thread() is not threading.main_thread()
        around(lambda: put(checkpoint, path, *rest), path)

    monkeypatch.setattr(point_writer, "put_point", put_point)


def test_the_next_epoch_trains_meanwhile(tmp_path, monkeypatch, undisturbed):
    """... and what it trains is not in the point."""
    trains, there, files, point = threading.Event(), threading.Event(), [], {}

    def slowly(write, path):
        if path.name == FIRST:
            assert trains.wait(PATIENCE), "training waited for its resume point"
        write()
        if path.name == FIRST:
            point.update(torch.load(path, weights_only=True))
            there.set()

    def look():
        files.extend(path.name for path in points(tmp_path / "run"))

    class Weights(pl.Callback):
        seen = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen += (pl_module.layer.weight.detach().clone(),)
            if len(self.seen) == 3:  # one step into the second epoch
                trains.set()
                assert there.wait(PATIENCE)

    weights = Weights()
    writes(monkeypatch, slowly)
    assert torch.equal(run(tmp_path / "run", Seen(2, look), weights), undisturbed)
    assert FIRST not in files and files, "the first batch of the second epoch came before its point"
    after, later = weights.seen[1:3]
    assert torch.equal(point["state_dict"]["layer.weight"], after) and not torch.equal(after, later)
    assert point["global_step"] == 2


def test_two_points_come_in_order_and_before_the_next_mean(tmp_path, monkeypatch):
    order = []

    def slowly(write, path):
        order.append(f"begins {path.name}")
        time.sleep(0.05)
        write()
        order.append(f"ends {path.name}")

    class Means(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.is_last_batch:
                order.append("last batch")

    writes(monkeypatch, slowly)
    colearning = CoLearning(rounds=2, local_epochs=1, local_epochs_rule="fle", run_dir=tmp_path / "run")
    trained(colearning, Net(), after=[Means()])
    first, second = "resume-round000001-epoch000001.ckpt", "resume-round000002-epoch000002.ckpt"
    ours = ["last batch", f"begins {first}", f"ends {first}", "last batch", f"begins {second}", f"ends {second}"]
    assert order == ours
    assert [path.name for path in points(tmp_path / "run")] == [first, second]


def test_a_disk_that_refuses_is_said_later_and_ends_nothing(tmp_path, monkeypatch, undisturbed, caplog):
    def full(write, path):
        if path.name == FIRST:
            raise OSError(28, "No space left on device")
        assert looked.wait(PATIENCE), "or the next point would be there, and none but it"
        write()

    def look():
        seen.extend(path.name for path in points(tmp_path / "run"))
        looked.set()

    seen, looked = [], threading.Event()
    writes(monkeypatch, full)
    assert torch.equal(run(tmp_path / "run", Seen(4, look)), undisturbed)
    said = [record.getMessage() for record in caplog.records if "could not be written" in record.getMessage()]
    assert len(said) == 1 and FIRST in said[0] and "No space left" in said[0]
    assert "the resume point before it stays" in said[0]
    assert "resume-round000000-epoch000000.ckpt" in seen and FIRST not in seen
    assert summary(tmp_path / "run")["status"] == "finished"


def test_another_error_of_the_thread_is_raised_in_the_run(tmp_path, monkeypatch, undisturbed):
    struck = []

    def breaks(write, path):
        if path.name == FIRST and not struck:
            struck.append(path)
            raise ValueError("not the disk")
        write()

    writes(monkeypatch, breaks)
    assert torch.equal(run(tmp_path / "restarted", restarts=1), undisturbed)
    struck.clear()
    with pytest.raises(ValueError, match="not the disk"):
        run(tmp_path / "run", restarts=0)
    assert summary(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_while_a_point_is_written(tmp_path, monkeypatch, undisturbed, there):
    """The restart waits for the point, and begins there if it is written; otherwise at the one before."""
    failed, begun = threading.Event(), []

    def slowly(write, path):
        if path.name == FIRST and not begun:
            begun.append(path)
            assert failed.wait(PATIENCE)
            time.sleep(0.1)
            if not there:
                raise OSError(28, "No space left on device")
        write()

    def fail():
        failed.set()
        raise RuntimeError("of the user's own")

    writes(monkeypatch, slowly)
    seen = Seen(2, fail)
    assert torch.equal(run(tmp_path / "run", seen, restarts=1), undisturbed)
    assert begun and seen.seen == 12 + (1 if there else 3), "batches that were trained twice"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_who_leaves_waits_for_the_point(tmp_path, monkeypatch, error):
    def slowly(write, path):
        time.sleep(0.2)
        write()

    def fail():
        raise error("of the user's own")

    writes(monkeypatch, slowly)
    with pytest.raises(BaseException, match="user's own") if error is RuntimeError else pytest.raises(BaseException):
        run(tmp_path / "run", Seen(2, fail), restarts=0)
    assert [path.name for path in points(tmp_path / "run")] == [FIRST]
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_a_copy_is_what_was_there():
    weight, buffers = torch.randn(4, 3), torch.arange(6).reshape(2, 3).t()
    module = torch.nn.Linear(3, 4)
    checkpoint = {
        "state_dict": module.state_dict(),
        "tied": OrderedDict(one=weight, other=weight.view(4, 3)),
        "list": [1, "two", (buffers, None)],
        "parameter": torch.nn.Parameter(weight.clone()),
        "wide": torch.ones(3, dtype=torch.bfloat16),
    }
    before = torch.randn(4, 3).copy_(weight)
    copied = StateCopy().take(checkpoint)
    with torch.no_grad():
        weight.zero_(), buffers.zero_(), module.weight.zero_(), checkpoint["parameter"].zero_()
    checkpoint["list"].append("more")
    assert torch.equal(copied["tied"]["one"], before) and copied["tied"]["one"] is copied["tied"]["other"]
    assert copied["list"][:2] == [1, "two"] and len(copied["list"]) == 3
    assert torch.equal(copied["list"][2][0], torch.arange(6).reshape(2, 3).t())
    assert copied["list"][2][0].stride() == buffers.stride() and copied["list"][2][1] is None
    assert copied["state_dict"]._metadata == module.state_dict()._metadata and copied["state_dict"]["weight"].any()
    assert torch.equal(copied["parameter"], before) and isinstance(copied["parameter"], torch.nn.Parameter)
    assert copied["wide"].dtype == torch.bfloat16


def test_a_copy_uses_the_memory_of_the_one_before():
    copy, tensors = StateCopy(), [torch.randn(5), torch.randn(5), torch.randn(2, 2)]
    first = copy.take({"kept": tensors})
    places = {tensor.data_ptr() for tensor in first["kept"]}
    second = copy.take({"other": tensors[::-1]})
    assert {tensor.data_ptr() for tensor in second["other"]} == places
    assert all(torch.equal(a, b) for a, b in zip(second["other"], tensors[::-1], strict=True))
    assert len(copy.take({"less": tensors[:1]})["less"]) == 1
    assert sum(map(len, copy._kept.values())) == 1, "memory that nothing needs is given back"
