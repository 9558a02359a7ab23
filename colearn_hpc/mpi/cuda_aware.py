"""Can the MPI of this process send GPU memory? The standard has no question for it; vendors have some."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

_LIBRARY = re.compile(r"/lib(pmpi|mpi|mpich|mpi_[a-z\d_]+)\.so[.\d]*$")
# Switches that must be on for a build that could: variable -> whose it is.
_SWITCHES = {"MPICH_GPU_SUPPORT_ENABLED": "Cray", "I_MPI_OFFLOAD": "Intel", "MV2_USE_CUDA": "MVAPICH"}


def mpi_name() -> str:
    """Vendor of the MPI, with its version. Starts MPI."""
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    return f"{vendor} {'.'.join(map(str, version))}"


def cuda_aware(vendor: str, known: str, environ: Mapping[str, str] = os.environ) -> str:
    """A word (yes, no, unknown), and what to do about it. MPI must have been started.

    Args:
        vendor: of the MPI, with its version.
        known: what is known already, for an MPI that answers nothing.
        environ: the rank's environment.
    """
    libraries = loaded_libraries()
    answer = ask(libraries)
    switch = _switch(vendor, libraries)
    if switch and environ.get(switch, "0") in ("", "0"):
        return f"no ({switch} is not set; {switch}=1 turns it on, where the build has it)"
    if answer is None and known == "unknown":
        answer = None if switch is None else True
    if answer is None:
        return known if known != "unknown" else "unknown (this MPI does not say; your site's documentation does)"
    return "yes" if answer else "no (this MPI was built without it, or finds no CUDA here)"


def loaded_libraries(maps: Path = Path("/proc/self/maps")) -> list[Path]:
    """The MPI libraries that this process has loaded."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:  # not Linux
        return []
    found = [Path(line.split(maxsplit=5)[5]) for line in lines if _LIBRARY.search(line)]
    return list(dict.fromkeys(found))


def ask(libraries: list[Path], load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> bool | None:
    """What the library says of itself at run time; None if it has no such question.

    Open MPI, MPICH and MVAPICH have ``MPIX_Query_cuda_support``; Cray and MPICH ``MPIX_GPU_query_support``.
    """
    for path in libraries:
        try:
            library = load(str(path))
        except OSError:
            continue
        if (query := getattr(library, "MPIX_Query_cuda_support", None)) is not None:
            return bool(query())
        if (query := getattr(library, "MPIX_GPU_query_support", None)) is not None:
            found = ctypes.c_int(0)
            if query(0, ctypes.byref(found)) == 0:  # 0: CUDA
                return bool(found.value)
    return None


def _switch(vendor: str, libraries: list[Path]) -> str | None:
    if any(path.name.startswith("libmpi_") for path in libraries) and "MPICH" in vendor:
        return "MPICH_GPU_SUPPORT_ENABLED"  # Cray names its library by the compiler: libmpi_gnu_91.so
    return next((name for name, whose in _SWITCHES.items() if whose in vendor), None)
