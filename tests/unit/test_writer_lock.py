"""One writer per run folder: who may take it over, and that a crash locks nobody out."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.trainer import writer_lock
from colearn_hpc.trainer.writer_lock import NAME, Judgement, Writer, hold, is_held_by, judge
from colearn_hpc.trainer.writing import opened_new, private_folder, remove_leftovers, temporary, write_atomically

ME = Writer.this_process("mine", {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
HERE = replace(ME, start="theirs", pid=ME.pid + 1)
ELSEWHERE = replace(HERE, machine="another", slurm_job="8")


def judged(theirs, lives=True, age=5.0, renewed=False):
    return judge(theirs, ME, lambda writer: lives, age, renewed)


@pytest.mark.parametrize(
    ("theirs", "known", "then"),
    [
        (HERE, {"lives": True, "age": 900.0}, Judgement.REFUSE),  # on one machine the process decides, not the clock
        (HERE, {"lives": False, "age": 0.0}, Judgement.TAKE),
        (replace(HERE, pid=ME.pid), {"age": 0.0}, Judgement.TAKE),  # this process's own, from a fit before
        (replace(HERE, pid=ME.pid, began=ME.began + 1), {"lives": False}, Judgement.TAKE),  # its number, used again
        (replace(ELSEWHERE, slurm_job="7", slurm_restarts=0), {"age": 0.0}, Judgement.TAKE),  # requeued: at once
        (replace(ELSEWHERE, slurm_job="7", slurm_restarts=1), {"age": 0.0}, Judgement.WAIT),  # the same start
        (ELSEWHERE, {"age": 59.0}, Judgement.WAIT),
        (ELSEWHERE, {"age": 3.0, "renewed": True}, Judgement.REFUSE),
        (ELSEWHERE, {"age": 61.0}, Judgement.TAKE),
        (None, {"age": 59.0, "renewed": True}, Judgement.WAIT),  # it is being written, or somebody was killed at that
        (None, {"age": 61.0}, Judgement.TAKE),
    ],
)
def test_who_may_write(theirs, known, then):
    assert judged(theirs, **known) == then


@pytest.fixture
def others():
    """``others(folder)``: a process of its own that holds the lock."""
    started = []

    def start(folder):
        code = "import sys, pathlib; from colearn_hpc.trainer.writer_lock import hold; "
        code += "hold(pathlib.Path(sys.argv[1]), 'theirs'); print('held', flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_start_is_refused_while_the_first_lives(tmp_path, others):
    process = others(tmp_path / "run")
    with pytest.raises(ConfigurationError, match=rf"another start of this run \(process {process.pid} on "):
        hold(tmp_path / "run", "mine")
    process.communicate("")  # it ends in order, and gives the lock back
    assert not (tmp_path / "run" / NAME).exists()
    hold(tmp_path / "run", "mine").release()


def test_a_killed_owner_locks_nobody_out(tmp_path, others):
    process = others(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = hold(tmp_path, "mine")
    assert Writer.read(tmp_path / NAME).pid == os.getpid() and is_held_by(tmp_path, "mine")
    lock.note_run("abc")
    assert Writer.read(tmp_path / NAME).run_id == "abc"
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_on_another_machine_the_servers_clock_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "LOOK", 0.01)
    path, said = tmp_path / NAME, []
    path.write_text(json.dumps(asdict(ELSEWHERE)))

    def renew(text):
        said.append(text)
        os.utime(path, (0, path.stat().st_mtime + 1))

    with pytest.raises(
        ConfigurationError, match=rf"process {ELSEWHERE.pid} on {ELSEWHERE.host}, since .*, Slurm job 8"
    ):
        hold(tmp_path, "mine", renew)
    assert "waiting for a sign of life" in said[0]
    os.utime(path, (0, path.stat().st_mtime - 100))
    lock = hold(tmp_path, "mine")
    assert is_held_by(tmp_path, "mine")
    # The first owner was frozen, and sees that it has lost.
    monkeypatch.setattr(writer_lock, "BEAT", 0.01)
    frozen = writer_lock.WriterLock(tmp_path, ELSEWHERE)
    frozen._thread.join(5)
    with pytest.raises(ConfigurationError, match="has been taken over by process"):
        frozen.check()
    lock.check()
    lock.release()


def test_another_process_of_the_same_start_holds_it(tmp_path, others):
    others(tmp_path)
    assert hold(tmp_path, "theirs") is None  # a data center that shares this file system with another, not the first


def test_of_many_who_see_a_dead_owner_one_takes_over(tmp_path, monkeypatch):
    path = tmp_path / NAME
    path.write_text(json.dumps(asdict(replace(HERE, pid=2**22 + 1))))
    writers = [replace(ME, start=f"start {n}", began=ME.began + 1 + n) for n in range(8)]
    taken, ready = [], threading.Barrier(8)

    def take(writer):
        theirs = Writer.read(path)
        ready.wait()
        if writer_lock._take_over(path, theirs, writer):
            taken.append(writer)

    threads = [threading.Thread(target=take, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and Writer.read(path) == taken[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"start": 3}', json.dumps(asdict(ME) | {"pid": "1"})])
def test_a_damaged_lock_is_nobodys(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    assert Writer.read(tmp_path / NAME) is None
    os.utime(tmp_path / NAME, (0, 0))
    hold(tmp_path, "mine").release()


def test_temporary_files_are_made_anew_and_follow_no_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    new = temporary(tmp_path / "summary.json", "0123456789abcdef")
    assert new.name.startswith(".summary.json.01234567-") and new != temporary(tmp_path / "summary.json", "0" * 32)
    new.symlink_to(victim)
    with pytest.raises(FileExistsError), opened_new(new):
        pass
    assert victim.read_text() == "kept"


def test_modes(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "open.json", "{}", mode=0o644)
    finally:
        os.umask(before)
    write_atomically(tmp_path / "own.json", "{}", mode=0o600)
    private_folder(tmp_path / "own")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert modes == {"open.json": "0o644", "own.json": "0o600", "own": "0o700"}


def test_leftovers_of_killed_starts_are_removed_and_nobody_elses(tmp_path):
    ours = [temporary(tmp_path / name, "ab" * 16) for name in ("resume-round000001-epoch000002.ckpt", "shared.ckpt")]
    ours += [tmp_path / ".summary.json.tmp"]  # as 0.1.0 named them
    others = [tmp_path / ".report.md.0123456789abcdef.tmp", tmp_path / "shared.ckpt"]
    for path in [*ours, *others]:
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)
