"""An environment that links this one's packages, but for those that are to be absent."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from colearn_hpc.cli.launch import find_mpirun

SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def make_environment(home: Path, absent: Sequence[str], further: Sequence[Path] = ()) -> dict[str, str]:
    """Make a virtual environment ``home/venv``; returns the variables with which its programs are run.

    Args:
        home: an empty folder.
        absent: parts of names of what is not linked.
        further: folders of other packages that can be imported too.
    """
    venv.create(home / "venv", symlinks=True)
    ours = Path(subprocess.run([sys.executable, "-c", SITE], capture_output=True, text=True, check=True).stdout.strip())
    theirs = Path(
        subprocess.run(
            [home / "venv/bin/python", "-c", SITE], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    (home / "others").mkdir()
    for path in ours.iterdir():
        if not any(name in path.name for name in absent):
            (home / "others" / path.name).symlink_to(path)
    (theirs / "others.pth").write_text("\n".join(map(str, [home / "others", *further])))
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COLEARN_CENTER")}
    # The MPI of this environment, by its place: mpi4py and mpirun look beside the Python.
    mpirun = find_mpirun()
    assert mpirun is not None, "asked before"
    libraries = [str(Path(mpirun).resolve().parents[1] / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    return variables | {
        "PATH": f"{home}/venv/bin:{Path(mpirun).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "OMP_NUM_THREADS": "1",
    }
