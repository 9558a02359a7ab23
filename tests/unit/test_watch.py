"""``colearn-hpc watch`` on run folders made by hand, and on one that a real run has left."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc import CoLearning
from colearn_hpc.cli import main
from colearn_hpc.cli.watch import Page, view
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


def fitted(run, now, history, columns, lines):
    console = Console(width=columns, height=lines, color_system=None, highlight=False, file=io.StringIO())
    with console.capture() as captured:
        console.print(Page(run, now, history).fitted(columns, lines))
    return captured.get()


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
    assert Page(run, NOW, 10).over
    assert "silent" not in page


def test_a_resumed_job_is_not_what_its_last_start_was(run):
    summary(run, status="interrupted", error="stopped by SIGUSR1")
    assert view(run, NOW).startswith(f"{run}: running")


def test_a_requeue_is_no_end(run):
    summary(run, status="interrupted", error="stopped by SIGUSR1")
    for name in ("dc0", "dc2", "dc10"):
        status(run, name, state="interrupted", seconds_left=None)
    said = "interrupted, 0 rounds done (stopped by SIGUSR1); waiting for it to be started again"
    assert said in view(run, NOW) and not Page(run, NOW, 10).over


def test_history(run):
    times = [{"train_seconds": t, "wait_seconds": 9.0 - t, "exchange_seconds": None} for t in (4.0, 6.0)]
    centers = [one | {"name": "dc0", "shared_metrics": {"val_acc": 0.5}} for one in times]
    record = {"local_epochs": 5, "epochs_done": 5, "relative_change": None, "centers": centers}
    records = [json.dumps(record | {"round": index}) for index in range(12)]
    records[4] = "\x00" * 20
    (run / "rounds.jsonl").write_text("\n".join([*records, '{"round": 12, "loc']))
    page = view(run, NOW, history=3)
    assert "11 rounds done" in page
    assert "rounds.jsonl: line 5 of 13 is damaged; its round is missing here" in page
    assert "rounds.jsonl: line 13 of 13 is cut off or damaged; its round is missing here" in page
    table = page[page.index("round  T") :].splitlines()
    assert table[0].split() == ["round", "T", "epochs", "change", "val_acc", "train", "s", "wait", "s", "exchange", "s"]
    assert [line.split() for line in table[1:]] == [
        [str(index), "5", "5", "-", "0.5000", "6.0", "5.0", "0.00"] for index in (9, 10, 11)
    ]


def test_no_run_there(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "nothing")]) == 2
    assert "is no run folder: it is not there; give runs/NAME" in capsys.readouterr().err
    assert main(["watch", str(tmp_path)]) == 2
    assert "is no run folder: it has no centers/" in capsys.readouterr().err


def test_every_data_center_that_is_known(run):
    """Those of the summary too, whose folders may lie where nobody else may look; and statuses that lie apart."""
    summary(run, centers=["dc0", "dc2", "dc10", "lyon"], status="running")
    (run / "status").mkdir()
    (run / "status" / "graz.json").write_text(json.dumps(STATUS | {"host": "apart"}))
    (run / "status" / "dc0.json").write_text(json.dumps(STATUS | {"host": "apart"}))
    shown = rows(view(run, NOW).replace("graz", "dc-graz").replace("lyon", "dc-lyon"))
    assert set(shown) == {"dc0", "dc2", "dc10", "dc-lyon", "dc-graz"}
    assert shown["dc0"].endswith("apart") and shown["dc-graz"].endswith("apart") and "no sign" in shown["dc-lyon"]


EVIL = "\x1b[2J\x1b]0;owned\x07[red]\u202e"


def test_no_file_steers_the_terminal(run):
    shown = r"\x1b[2J\x1b]0;owned\x07[red]\u202e"
    (run / "centers" / f"dc{EVIL}").mkdir()
    status(run, f"dc{EVIL}", state=EVIL, host=EVIL)
    center = {"name": EVIL, "shared_metrics": {EVIL: 0.5}}
    record = {"round": 0, "local_epochs": 5, "epochs_done": 5, "centers": [center]}
    (run / "rounds.jsonl").write_text(json.dumps(record) + "\n")
    for ended in ("failed", "running"):
        summary(run, status=ended, error=f"ValueError: {EVIL}", centers=[EVIL, 3])
        for page in (view(run, NOW + 100), fitted(run, NOW + 100, 5, 200, 40), fitted(run, NOW + 100, 5, 40, 6)):
            assert not {"\x1b", "\x07", "\u202e"} & set(page)
        assert view(run, NOW + 100).count(shown) >= 5
    assert view(run, NOW, 0).count(shown) >= 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"time": "now"}', '{"time": 1e999}', '{"time": 1, "round": [1]}'])
def test_a_damaged_status_is_no_sign_of_life(run, content):
    (run / "centers" / "dc0" / "status.json").write_text(content)
    assert "no sign of life yet" in rows(view(run, NOW))["dc0"]


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
    one = {"name": "dc0", "shared_metrics": {"val_acc": 0.5}, "train_seconds": 1.0, "wait_seconds": 1.0}
    record = {"local_epochs": 5, "epochs_done": 5, "relative_change": None, "centers": [one]}
    (run / "rounds.jsonl").write_text("".join(json.dumps(record | {"round": r}) + "\n" for r in range(40)))
    page = fitted(run, NOW, 100, columns, lines).splitlines()
    assert len(page) < lines or lines == 6, "\n".join(page)
    assert max(map(len, page)) <= columns
    said = " ".join(" ".join(page).split())
    if columns >= 80:
        assert "this round's end in about 2 min" in said
        assert all(f"dc{index} " in said for index in range(centers)), "every data center, if only with its state"
        assert page[-1].split()[0] == "39", "the last round"
    if (centers, lines) == (3, 24):
        assert len(page) == 23
    if (centers, lines) == (30, 6):
        assert "... 29 more data ce" in said


def test_the_silent_ones_are_shown_first_where_only_states_fit(tmp_path):
    for index in range(30):
        (tmp_path / "centers" / f"dc{index}").mkdir(parents=True)
        status(tmp_path, f"dc{index}", time=NOW - 3600 * (index == 17))
    page = fitted(tmp_path, NOW, 0, 80, 12).splitlines()
    assert page[page.index("") + 1].startswith("dc17 silent (training)")


class Terminal:
    """``watch`` on a terminal of 80 x 24, and what it has written there."""

    def __init__(self, run):
        script = f"from colearn_hpc.cli import main; raise SystemExit(main(['watch', {str(run)!r}, '--interval=0.1']))"
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment, start_new_session=True, **streams
        )
        os.close(slave)
        self.said = b""

    def wait_for(self, text, times=1):
        """Read until the text has come so often since the last call."""
        start = len(self.said)
        while re.sub(rb"\s+", b" ", self.said[start:]).count(text.encode()) < times:
            self.said += os.read(self.master, 4096)

    def end(self) -> str:
        with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
            while more := os.read(self.master, 4096):
                self.said += more
        os.close(self.master)
        assert self.process.wait() == 0
        return self.said.decode()


def test_on_a_terminal(run):
    """Refreshed in place until Ctrl-C; a page never scrolls."""
    status(run, "dc0", time=time.time() + 3600)
    terminal = Terminal(run)
    terminal.wait_for("running", times=4)
    terminal.process.send_signal(signal.SIGINT)
    said = terminal.end()
    frames = said.split("running")
    assert all(frame.count("\n") < 24 for frame in frames[:4])
    assert "Traceback" not in said


def test_it_waits_for_a_run_and_through_its_requeue_until_the_end(tmp_path):
    folder = tmp_path / "r"
    terminal = Terminal(folder)
    terminal.wait_for("not there yet; waiting for the run to begin", times=2)
    (folder / "centers" / "dc0").mkdir(parents=True)
    status(folder, "dc0", time=time.time())
    terminal.wait_for("running, 0 rounds done", times=2)
    status(folder, "dc0", state="interrupted", time=time.time())
    summary(folder, status="interrupted", error="stopped by SIGUSR1")
    terminal.wait_for("waiting for it to be started again", times=2)
    status(folder, "dc0", time=time.time())
    terminal.wait_for("running, 0 rounds done", times=2)
    status(folder, "dc0", state="finished", time=time.time())
    summary(folder, status="finished", stopped_by="rounds=8")
    assert "finished, 0 rounds done (rounds=8)" in " ".join(terminal.end().split())


def test_a_terminal_that_can_do_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert main(["watch", str(run)]) == 0
    assert "\033" not in capsys.readouterr().out
