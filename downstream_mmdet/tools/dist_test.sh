#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CHECKPOINT GPUS [any flag of tools/test.py]     NNODES, NODE_RANK, MASTER_ADDR and PORT as in dist_train.sh
set -eu
config=$1 checkpoint=$2 gpus=$3
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --nproc_per_node="$gpus" \
    "$(dirname "${BASH_SOURCE[0]}")/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
