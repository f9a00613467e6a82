#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [any flag of tools/train.py]     NNODES, NODE_RANK, MASTER_ADDR and PORT for several machines
set -eu
config=$1 gpus=$2
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --nproc_per_node="$gpus" \
    "$(dirname "${BASH_SOURCE[0]}")/train.py" "$config" --launcher pytorch "${@:3}"
