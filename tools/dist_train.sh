#!/usr/bin/env bash
# Train on several GPUs, and several machines with NNODES, NODE_RANK, MASTER_ADDR, PORT:
#   bash tools/dist_train.sh CONFIG GPUS [options of train.py]
set -euo pipefail
config=${1:?usage: dist_train.sh CONFIG GPUS [options of train.py]}
gpus=${2:?usage: dist_train.sh CONFIG GPUS [options of train.py]}

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}"
