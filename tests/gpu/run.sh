#!/bin/sh
# The check of everything that needs a GPU, on a bare machine with one or more, in less than 8 minutes:
#
#   sh tests/gpu/run.sh                    # or `make gpu-check`; JSON in build/gpu-check/result.json
#   sh tests/gpu/run.sh --device cpu       # the rehearsal: the same steps, as far as they need no GPU
#
# It needs a Python with a CUDA torch and this project's requirements; tests/gpu/wheels.sh says what to carry to a
# machine without a network. PYTHON names the Python; otherwise it is that of .venv-dev or .venv, or python3.
set -eu
cd "$(dirname "$0")/../.."
for candidate in .venv-dev/bin/python .venv/bin/python python3; do
  if [ -z "${PYTHON:-}" ] && command -v "$candidate" >/dev/null; then PYTHON=$candidate; fi
done
exec "$PYTHON" tests/gpu/check.py "$@"
