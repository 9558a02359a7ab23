"""``python -m colearn_hpc``: the ``colearn-hpc`` command without its script on PATH."""

import sys

from colearn_hpc.cli import main
from colearn_hpc.cli.launch import note_ending


def run() -> int:
    """The command, whose end in order `launch` can tell from a death."""
    code = 1  # of an exception that nobody catches
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    finally:
        note_ending(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
