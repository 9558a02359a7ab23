"""Runs of quick sites with a real coordinator, that are killed and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = Path(__file__).parent / "mpi" / "programs"


class Walk:
    """A run of sites without a Trainer, each of which is started again when it has died.

    Args:
        consortium: which sites, and their coordinator.
        program: of tests/mpi/programs.
        arguments: (site, its folder) -> the program's arguments.
    """

    def __init__(self, consortium, program, arguments):
        self.consortium, self.program, self.arguments = consortium, PROGRAMS / program, arguments
        self.processes = {}
        for name in consortium.names:
            self.start(name)

    def start(self, name):
        folder = self.consortium.folder / f"at-{name}"
        folder.mkdir(exist_ok=True)
        with (folder / "said").open("a") as said:
            self.processes[name] = subprocess.Popen(
                [sys.executable, str(self.program), *map(str, self.arguments(name, folder))],
                env=dict(os.environ, OMP_NUM_THREADS="1"),
                stdout=said,
                stderr=said,
            )

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def done(self, *names):
        return all((self.consortium.folder / f"at-{name}" / "done").exists() for name in names or self.consortium.names)

    def lines(self, name):
        path = self.consortium.folder / f"at-{name}" / "rounds"
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, until, patience=150, restart=True):
        end = time.monotonic() + patience
        while not until():
            assert time.monotonic() < end, self.said()
            for name, process in self.processes.items():
                if restart and process.poll() not in (None, 0):
                    self.start(name)
            time.sleep(0.05)

    def said(self):
        texts = [(self.consortium.folder / f"at-{n}" / "said").read_text()[-2000:] for n in self.consortium.names]
        return "\n---\n".join([*texts, self.consortium.said()[-4000:]])

    def end(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def bits(self, *names):
        names = names or self.consortium.names
        return {(self.consortium.folder / f"at-{name}" / "done").read_text() for name in names}
