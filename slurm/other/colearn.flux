#!/bin/bash
# Flux: one allocation, its nodes dealt to the data centers in equal runs. Submit from the project's folder:
#
#   flux batch slurm/other/colearn.flux
#
# A line that begins with ## flux: is off; remove one # to turn it on.
# ===== edit from here ================================================================================
# flux: --job-name=colearn
## flux: --bank=PROJECT --queue=QUEUE
# flux: --nodes=5 --nslots=5 --cores-per-slot=4 --exclusive
# flux: --time-limit=24h
# flux: --output=colearn-{{id}}.out

LIMIT=1435m                        # of the ranks: a little less than the time limit
WARNING=300s                       # before it: room for one batch, or one validation, and a checkpoint
CENTERS=5                          # data centers; the nodes must be a multiple, or a divisor
FIT=(--config configs/quickstart.yaml --name colearn --centers "$CENTERS")
THREADS=4                          # of a rank
RUN=(--nodes=5 --ntasks=5 --cores-per-task=4)   # and for Open MPI 5: -o pmi=pmix; with GPUs: --gpus-per-task=1
PYTHON=(python)                    # e.g. (apptainer exec --nv colearn.sif python)
SCRIPT=slurm/other/colearn.flux    # this file, to submit it again
# module load openmpi              # the MPI that mpi4py was built for
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# ===== to here =======================================================================================
set -euo pipefail
export OMP_NUM_THREADS=$THREADS

# Flux starts the ranks itself and warns them. --resume is harmless where there is nothing to resume. Cancelling the job
# ends this shell too: then nothing is started again.
code=0
flux run "${RUN[@]}" --time-limit="$LIMIT" --signal="SIGUSR1@$WARNING" \
  "${PYTHON[@]}" -m colearn_hpc fit "${FIT[@]}" --resume || code=$?

# Again after 85 (every data center has written its resume point) and after the death of a rank, as long as the run gets
# on.
if "${PYTHON[@]}" -m colearn_hpc again "$code" -- "${FIT[@]}"; then
  flux --parent batch "$SCRIPT"
fi
exit "$code"
