"""Runs colearn-hpc on every rank, for each case of a file, one after the other in the same processes.

Of each case and rank it writes CASES/NAME/RANK.code, RANK.err and RANK.term (what TERM would do from there on).
``extra`` adds arguments, ``centers`` sets COLEARN_CENTER, ``versions`` the protocol's version, on one rank only. Exits
with the last case's code.

usage: exit_codes.py CASES.json
"""

import json
import os
import signal
import sys
from pathlib import Path

from colearn_hpc._version import PROTOCOL
from colearn_hpc.cli import main
from colearn_hpc.mpi.startup import launched_as, leave_together

rank, _ = launched_as()
path = Path(sys.argv[1])
sys.path.insert(0, str(Path(__file__).parent))
for name, case in json.loads(path.read_text()).items():
    folder = path.parent / name
    folder.mkdir(exist_ok=True)
    os.environ.pop("COLEARN_CENTER", None)
    if name_of_center := case.get("centers", {}).get(str(rank)):
        os.environ["COLEARN_CENTER"] = name_of_center
    if fingerprint := sys.modules.get("colearn_hpc.trainer.fingerprint"):  # from the first case on
        fingerprint.PROTOCOL = case.get("versions", {}).get(str(rank), PROTOCOL)
    sys.stderr.flush()
    terminal = os.dup(2)
    with (folder / f"{rank}.err").open("w") as file:
        os.dup2(file.fileno(), 2)
        code = main([*case["arguments"], *case.get("extra", {}).get(str(rank), [])])
        sys.stderr.flush()
    os.dup2(terminal, 2)
    (folder / f"{rank}.code").write_text(str(code))
    (folder / f"{rank}.term").write_text(str(signal.getsignal(signal.SIGTERM)))
    leave_together()
sys.exit(code)
