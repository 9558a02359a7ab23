"""What the tests on a Slurm share: submitting, waiting, and the bits that a job left."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from run_folders import shared_bits

REPOSITORY = Path(__file__).parents[2]
SLURM = REPOSITORY / "slurm"
PROGRAMS = REPOSITORY / "tests" / "mpi" / "programs"
NODES = 5
_ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")
NOISY = ["--model", "noisy.Noisy", "--colearning.local_epochs=2", "--colearning.epsilon=0.3"]
NOISY += ["--colearning.optimizer_state=keep", "--trainer.accelerator=cpu", "--trainer.logger=false"]


@dataclass
class Cluster:
    """Commands on a Slurm, and what its jobs left."""

    folder: Path  # of the tests' run folders and job outputs
    environment: dict[str, str]
    up: list[str] = field(default_factory=list)  # brings it up, and a lost node back; empty if it is not ours
    power_cut: list[str] = field(default_factory=list)  # followed by a node's name
    jobs: list[str] = field(default_factory=list)

    def __call__(self, *command: object, check: bool = True) -> str:
        done = subprocess.run(
            list(map(str, command)), env=self.environment, cwd=REPOSITORY, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if check is False else "")

    def power_on(self) -> None:
        """Bring lost nodes back."""
        subprocess.run(self.up, check=True, capture_output=True)

    def submit(self, script: Path, *options: object) -> str:
        output = f"--output={self.folder}/%x-%j.out"
        job = self("sbatch", "--parsable", output, *options, script).strip().split(";")[0]
        self.jobs.append(job)
        return job

    def state(self, job: str) -> dict[str, str]:
        """``scontrol show job`` as a dictionary (of a heterogeneous job: its first component)."""
        shown = self("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait(self, job: str, seconds: float = 240) -> dict[str, str]:
        """Wait until a job has ended for good; requeued is not ended."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job))["JobState"] not in _ENDED or state.get("Requeue") == "2":
            if time.monotonic() > deadline:
                pytest.fail(f"job {job} is still {state['JobState']} after {seconds} s\n{self.output(job)}")
            time.sleep(0.2)
        return state

    def finish(self, job: str, seconds: float = 240) -> None:
        """Wait for a job that must succeed."""
        state = self.wait(job, seconds)
        assert state["JobState"] == "COMPLETED" and state["ExitCode"] == "0:0", f"{state}\n{self.output(job)}"

    def output(self, job: str) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"*-{job}.out")))


def edited(script: Path, folder: Path, **variables: str) -> Path:
    """A copy of a script as a user edits it: variables of its marked block set, its #SBATCH sizes cut to a laptop's."""
    text = script.read_text()
    block = text[text.index("# ===== edit") : text.index("# ===== to here")]
    changed = re.sub(r"^(#SBATCH --(gpus-per-node|cpus-per-task|signal|time)=\S+)", r"# \1", block, flags=re.MULTILINE)
    for name, value in ({"PYTHON": sys.executable} | variables).items():
        changed, count = re.subn(rf"^{name}=.*$", f"{name}={value}", changed, flags=re.MULTILINE)
        assert count == 1, f"{script.name}: {name} is {count} times in the block"
    copy = folder / script.name
    copy.write_text(text.replace(block, changed))
    return copy


def fit(folder: Path, name: str, rounds: int, pause: float = 0.0, batches: int = 6) -> list[str]:
    """Arguments of a run of the noisy toy in ``folder``."""
    size = [f"--colearning.rounds={rounds}", f"--model.pause={pause}", f"--model.batches={batches}"]
    return [*NOISY, *size, "--runs", str(folder), "--name", name]


def array(words: list[str]) -> str:
    """As a bash array."""
    return "(" + " ".join(f"'{word}'" for word in words) + ")"


def bits(run: Path) -> str:
    """Digest of a finished run's shared model."""
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    return shared_bits(run)
