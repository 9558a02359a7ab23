"""Three hospitals on one laptop: a federation from nothing to a trained model, with one site killed on the way.

    python examples/federation/demo.py [FOLDER]        (or: make federation-demo)

Certificates are made on the spot, as the organiser and the sites would make them (docs/federation.md). A coordinator is
started, and three sites, each with an mpirun of its own. After two rounds one site is killed with SIGKILL, and started
again. Then the same training runs as one MPI world, and the models are compared bit for bit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("lyon", "kiel", "oslo")
CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
COLEARN = [sys.executable, "-m", "colearn_hpc"]
FIT = ["--config", str(CONFIG), "--centers", "null", "--colearning.rounds", "5", "--data.train", "data/{center}.h5"]
FIT += ["--data.test", "data/test.h5", "--trainer.enable_progress_bar", "false"]


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/federation-demo").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    call("data", "digits", "--out", "data", "--names", ",".join(NAMES))
    agreement = certificates()
    coordinator = subprocess.Popen([*COLEARN, "serve", str(agreement)], start_new_session=True)
    running: list[subprocess.Popen[bytes]] = [coordinator]
    try:
        sites = {name: site(agreement, name) for name in NAMES}
        running += sites.values()
        rounds = Path("kiel/runs/demo/rounds.jsonl")
        wait_for(lambda: rounds.exists() and len(rounds.read_text().splitlines()) >= 2, sites["kiel"])
        say("killing site kiel (SIGKILL)")
        kill(sites["kiel"])
        time.sleep(2)
        say("kiel comes back")
        sites["kiel"] = site(agreement, "kiel")
        running.append(sites["kiel"])
        codes = {name: process.wait() for name, process in sites.items()}
        if any(codes.values()):
            print(f"exit codes {codes}", file=sys.stderr)
            return 1
        coordinator.wait(30)
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    say("the same as one MPI world")
    choose = f'names=({" ".join(NAMES)}); COLEARN_CENTER=${{names[$OMPI_COMM_WORLD_RANK]}} exec "$@"'
    call("launch", "--centers", "3", "--", "bash", "-c", choose, "-", *COLEARN, "fit", *FIT, "--name", "one-world")
    call("report", "lyon/runs/demo")
    equal = all(found(f"{name}/runs/demo") == found("runs/one-world") for name in NAMES)
    print(f"report of the run: {folder}/lyon/runs/demo/report.html")
    print(f"same bits as one MPI world: {'yes' if equal else 'NO'}")
    return 0 if equal else 1


def certificates() -> Path:
    """What organiser and sites do before a run; returns ``federation.yaml``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call("federation", "init", "demo", "--coordinator", f"127.0.0.1:{port}")
    for name in NAMES:
        call("federation", "invite", name, where="demo")
        said = call("federation", "accept", f"{name}.invitation.yaml", where="demo")
        code = re.search(r"\b[0-9a-f]{4}(?: [0-9a-f]{4})+\b", said)
        assert code is not None, said
        call("federation", "sign", f"{name}.request.pem", "--code", code[0], where="demo")
        call("federation", "accept", f"{name}.certificate.pem", where="demo")
    return Path("demo/federation.yaml").resolve()


def site(agreement: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a site, for the first time or again: an mpirun of its own, a run folder of its own."""
    fit = ["fit", *FIT, "--federation", str(agreement), "--site", name, "--runs", f"{name}/runs", "--name", "demo"]
    return subprocess.Popen([*COLEARN, "launch", "--centers", "1", "--", *fit, "--resume"], start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to all that belongs to a site, its ranks first: nobody has time for a last word."""
    session = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid:
            session.append(int(folder.name))
    for pid in sorted(session, reverse=True):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def found(run: str) -> tuple[bytes, list[tuple[int, int, float]]]:
    """The shared model's bits, and what was decided in each round."""
    import torch

    state = torch.load(f"{run}/shared.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    lines = [json.loads(line) for line in Path(run, "rounds.jsonl").read_text().splitlines()]
    bits = b"".join(state[key].numpy().tobytes() for key in sorted(state))
    return bits, [(line["round"], line["local_epochs"], line["relative_change"]) for line in lines]


def call(*arguments: str, where: str = ".") -> str:
    """Run a command of colearn-hpc; returns what it printed."""
    done = subprocess.run(
        [*COLEARN, *arguments], cwd=where, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"colearn-hpc {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def wait_for(holds, process: subprocess.Popen[bytes]) -> None:
    while not holds():
        if process.poll() is not None:
            sys.exit("a site has ended before it was to be killed")
        time.sleep(0.1)


def say(text: str) -> None:
    print(f"--- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
