#!/bin/bash
# A long run as a chain of jobs with a time limit each: every job continues where the one before it stopped, whatever
# stopped it, and what is left of the chain is cancelled when the run is finished.
#
#   slurm/chain.sh JOBS SCRIPT [sbatch options]      e.g. slurm/chain.sh 10 slurm/colearn.sbatch --time=4:00:00
#
# Prints the jobs' ids, the first one first. To end the chain cancel all of them: scancel ID...
set -euo pipefail
if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '5,5s/^# *//p' "$0" >&2
  exit 2
fi
jobs=$1 script=$2
shift 2

earlier=''
for ((i = 0; i < jobs; i++)); do
  # afternotok: code 85, a time limit, a lost node. On all earlier ones: a job that is removed because the run was
  # finished counts as "not ok" too.
  after=()
  [ -z "$earlier" ] || after=("--dependency=afternotok$earlier" --kill-on-invalid-dep=yes)
  job=$(sbatch --parsable --no-requeue "${after[@]}" "$@" "$script")
  job=${job%%;*}
  earlier+=":$job"
  echo "$job"
done
