#!/usr/bin/env bash
# Evaluate on several GPUs, and several machines with NNODES, NODE_RANK, MASTER_ADDR, PORT:
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
set -euo pipefail
config=${1:?usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]}
checkpoint=${2:?usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]}
gpus=${3:?usage: dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]}

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
