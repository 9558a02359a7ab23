"""``launch(fn, centers=5)``: call a function in several data centers of this machine, from a script or a notebook.

The function, and what it returns, travel as files between processes of one user on one machine. The ranks are started
by ``colearn-hpc launch``, with the mpirun of the installed wheel.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from colearn_hpc.errors import LaunchError

T = TypeVar("T")


def launch(
    function: Callable[..., T],
    *arguments: Any,
    centers: int,
    ranks_per_center: int = 1,
    options: Sequence[str] = (),
    **keywords: Any,
) -> list[T]:
    """Call ``function(*arguments, **keywords)`` on every rank of several data centers on this machine.

    In the function, ``DataCenter.join()`` says which data center a rank is in, and ``CoLearning(...)`` co-trains over
    all data centers. What the ranks print is printed here.

    Args:
        function: any function that cloudpickle takes; it may be defined in a notebook's cell.
        arguments: the function's arguments.
        centers: the number of data centers.
        ranks_per_center: the number of processes in each data center.
        options: more options of ``colearn-hpc launch``, such as ``["--threads", "2"]``.
        keywords: the function's keyword arguments.

    Returns:
        What the function returned on rank 0 of each data center, in the order of the data centers.

    Raises:
        LaunchError: the function failed on some rank, whose traceback the message has; or the ranks could not be
            started.
    """
    import cloudpickle

    with tempfile.TemporaryDirectory(prefix="colearn-call-") as folder:
        call = Path(folder, "call.pickle")
        call.write_bytes(cloudpickle.dumps((function, arguments, keywords)))
        sizes = ["--centers", str(centers), "--ranks-per-center", str(ranks_per_center)]
        command = [sys.executable, "-m", "colearn_hpc", "launch", *sizes, *options, "--"]
        command += [sys.executable, "-m", "colearn_hpc.launching", folder, str(centers)]
        # A notebook's own standard output is no file that a process could write to.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=_environment()
        )
        said: list[str] = []
        try:
            assert process.stdout is not None, "a pipe"
            for line in process.stdout:
                said.append(line)
                print(line, end="", flush=True)
            code = process.wait()
        except BaseException:  # interrupted in a notebook
            process.terminate()
            process.wait()
            raise
        failed = sorted(Path(folder).glob("failed-*"), key=lambda path: path.stat().st_mtime_ns)
        if failed:
            raise LaunchError(f"{failed[0].name.removeprefix('failed-')}: {failed[0].read_text()}")
        results = [Path(folder, f"result-{index}") for index in range(centers)]
        if code or not all(path.exists() for path in results):
            raise LaunchError(f"the ranks ended with exit code {code}:\n{''.join(said[-20:])}")
        return [pickle.loads(path.read_bytes()) for path in results]  # our own processes wrote them


def _environment() -> dict[str, str]:
    """Of the ranks: modules beside the caller's script or notebook are found there too."""
    path = os.pathsep.join([*(entry for entry in sys.path if entry), str(Path.cwd())])
    without = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_", "PMI_"))}
    without.pop("COLEARN_CENTER", None)  # of a caller that has joined by itself
    return without | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _call(folder: Path, centers: int) -> None:
    """What a rank does."""
    import cloudpickle

    from colearn_hpc.join import DataCenter

    center = DataCenter.join(centers)
    place = f"data center {center.name}, rank {center.rank}"
    try:
        function, arguments, keywords = pickle.loads((folder / "call.pickle").read_bytes())
        result = function(*arguments, **keywords)
        if center.is_leader:
            (folder / f"result-{center.index}").write_bytes(cloudpickle.dumps(result))
    except BaseException as error:
        temporary = folder / f".{center.world_rank}"
        temporary.write_text("".join(traceback.format_exception(error)))
        temporary.rename(folder / f"failed-{place}")
        raise


if __name__ == "__main__":
    _call(Path(sys.argv[1]), int(sys.argv[2]))
