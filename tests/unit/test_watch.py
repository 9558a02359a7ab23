"""``colearn-hpc watch`` on run folders made by hand, and on one that a real run has left."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning
from colearn_hpc.cli import main
from colearn_hpc.cli.watch import fitted, view
from colearn_hpc.protocol.conversation import Conversation

NOW = 1_000_000.0
STATUS = {
    "state": "training",
    "round": 3,
    "local_epoch": 2,
    "local_epochs": 4,
    "batch": 10,
    "batches": 50,
    "samples_per_second": 512.25,
    "loss": 0.6931,
    "seconds_left": 100.0,
    "host": "n1",
    "time": NOW - 2,
}


@pytest.fixture
def run(tmp_path):
    """A run of three data centers: one trains, one waits, one has not begun."""
    for name, changes in {"dc0": {}, "dc10": None, "dc2": {"state": "waiting", "seconds_left": None}}.items():
        (tmp_path / "centers" / name).mkdir(parents=True)
        if changes is not None:
            (tmp_path / "centers" / name / "status.json").write_text(json.dumps(STATUS | changes))
    return tmp_path


def rows(page):
    return {line.split()[0]: line for line in page.splitlines() if line.startswith("dc")}


def summary(run, **content):
    (run / "summary.json").write_text(json.dumps(content))


def status(run, name, **changes):
    (run / "centers" / name / "status.json").write_text(json.dumps(STATUS | changes))


def test_a_running_job(run):
    page = view(run, NOW)
    assert page.splitlines()[0] == f"{run}: running, 0 rounds done; this round's end in about 2 min"
    shown = rows(page)
    assert list(shown) == ["dc0", "dc2", "dc10"], "in the order of their numbers"
    assert shown["dc0"].split() == ["dc0", "training", "3", "2/4", "10/50", "512.2", "0.6931", "2", "s", "ago", "n1"]
    assert "waiting" in shown["dc2"]
    assert "no sign of life yet" in shown["dc10"]


def test_the_slowest_center_ends_the_round(run):
    status(run, "dc2", seconds_left=30.0)
    assert "in about 2 min" in view(run, NOW)
    status(run, "dc2", seconds_left=3602.0)
    assert "in about 60 min" in view(run, NOW)


def test_a_silent_center(run):
    status(run, "dc2", time=NOW - 3600, state="training")
    shown = rows(view(run, NOW))
    assert "silent (training)" in shown["dc2"] and "60 min ago" in shown["dc2"]
    assert "silent" not in shown["dc0"]
    status(run, "dc0", time=NOW - 3600)
    assert f"{run}: silent" in view(run, NOW), "killed without a word"


@pytest.mark.parametrize(("ended", "said"), [("finished", "(rounds=8)"), ("failed", "(out of luck)")])
def test_a_job_that_has_ended(run, ended, said):
    for name in ("dc0", "dc2", "dc10"):
        status(run, name, state=ended, time=NOW - 7200, seconds_left=None)
    summary(run, status=ended, stopped_by="rounds=8" if ended == "finished" else "", error="Error:\nout of luck")
    page = view(run, NOW)
    assert page.splitlines()[0] == f"{run}: {ended}, 0 rounds done {said}"
    assert "silent" not in page


def test_a_resumed_job_is_not_what_its_last_start_was(run):
    summary(run, status="interrupted", error="stopped by SIGUSR1")
    assert view(run, NOW).startswith(f"{run}: running")


def test_history(run):
    centers = [
        {"shared_metrics": {"val_acc": 0.5}, "train_seconds": t, "wait_seconds": 9.0 - t, "exchange_seconds": None}
        for t in (4.0, 6.0)
    ]
    record = {"local_epochs": 5, "epochs_done": 5, "relative_change": None, "centers": centers}
    records = [json.dumps(record | {"round": index}) for index in range(12)]
    (run / "rounds.jsonl").write_text("\n".join([*records, '{"round": 12, "loc']))
    page = view(run, NOW, history=3)
    assert "12 rounds done" in page
    table = page[page.index("round  T") :].splitlines()
    assert table[0].split() == ["round", "T", "epochs", "change", "val_acc", "train", "s", "wait", "s", "exchange", "s"]
    assert [line.split() for line in table[2:]] == [
        [str(index), "5", "5", "-", "0.5000", "6.0", "5.0", "0.00"] for index in (9, 10, 11)
    ]


def test_no_run_there(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "nothing")]) == 2
    assert "is no run folder" in capsys.readouterr().err


class Tiny(pl.LightningModule):
    def __init__(self, fails=False):
        super().__init__()
        self.layer, self.fails = torch.nn.Linear(2, 1), fails

    def training_step(self, batch, batch_idx):
        if self.fails and self.current_epoch == 1:
            raise RuntimeError("in mid-run")
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_real_run_leaves(tmp_path, capsys, fails):
    colearning = CoLearning(rounds=2, local_epochs=1, local_epochs_rule="fle", run_dir=tmp_path)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", callbacks=[colearning], enable_model_summary=False, **quiet)
    loader = DataLoader(TensorDataset(torch.ones(12, 2)), batch_size=4)
    if fails:
        with pytest.raises(RuntimeError, match="in mid-run"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Conversation, "fail", lambda *_: None)  # it would abort this process
            trainer.fit(Tiny(fails), loader)
    else:
        trainer.fit(Tiny(), loader)
    left = json.loads((tmp_path / "centers" / "dc0" / "status.json").read_text())
    assert left["state"] == ("failed" if fails else "finished")
    assert left["batches"] == 3 and left["loss"] is not None
    assert main(["watch", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"{tmp_path}: {'failed' if fails else 'finished'}, {1 if fails else 2} round")
    assert rows(page)["dc0"].split()[1] == left["state"]


@pytest.mark.parametrize(("columns", "lines"), [(160, 50), (80, 24), (40, 12), (20, 6)])
@pytest.mark.parametrize("centers", [3, 30])
def test_it_fits_the_terminal(tmp_path, columns, lines, centers):
    run = tmp_path / "a-run-with-a-name-of-some-length"
    for index in range(centers):
        (run / "centers" / f"dc{index}").mkdir(parents=True)
        status(run, f"dc{index}", host="a-node-with-a-long-name.of.a.cluster.example.org")
    one = {"shared_metrics": {"val_acc": 0.5}, "train_seconds": 1.0, "wait_seconds": 1.0, "exchange_seconds": None}
    record = {"local_epochs": 5, "epochs_done": 5, "relative_change": None, "centers": [one]}
    (run / "rounds.jsonl").write_text("".join(json.dumps(record | {"round": r}) + "\n" for r in range(40)))
    page = fitted(run, NOW, 100, columns, lines).splitlines()
    assert len(page) < lines or lines == 6, "\n".join(page)
    assert max(map(len, page)) <= columns
    if columns >= 80:
        assert "this round's end in about 2 min" in " ".join(page)
    if (centers, lines) == (3, 24):
        assert page[-1].startswith("39 "), "the last round"
        assert len(page) == 23
    if (centers, lines) == (30, 24):
        assert "more data centers" in page[-1]


def test_on_a_terminal(run):
    """Refreshed in place until Ctrl-C; a page never scrolls."""
    script = f"from colearn_hpc.cli import main; raise SystemExit(main(['watch', {str(run)!r}, '--interval=0.1']))"
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    status(run, "dc0", time=time.time() + 3600)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    said = b""
    while said.count(b"\033[H") < 4:
        said += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
        while more := os.read(master, 4096):
            said += more
    os.close(master)
    assert process.wait() == 0
    frames = said.decode().split("\033[H")[1:]
    assert all(frame.count("\n") < 24 and "running" in frame for frame in frames[:3])
    assert "Traceback" not in said.decode()


def test_a_terminal_that_can_do_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert main(["watch", str(run)]) == 0
    assert "\033" not in capsys.readouterr().out
