"""``python -m colearn_hpc``: the ``colearn-hpc`` command without its script on PATH."""

import sys

from colearn_hpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
