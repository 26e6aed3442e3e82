#!/usr/bin/env bash
# Train under Slurm; GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS from the environment:
#   GPUS=16 bash tools/slurm_train.sh PARTITION JOB CONFIG [options of train.py]
set -euo pipefail
usage="usage: slurm_train.sh PARTITION JOB CONFIG [options of train.py]"
partition=${1:?$usage}
job=${2:?$usage}
config=${3:?$usage}
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}

# SRUN_ARGS holds several words on purpose.
# shellcheck disable=SC2086
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "${@:4}"
