#!/usr/bin/env bash
# bash main.sh <experiment_name> [--num_nodes=1 --ngpu_per_node=8 --node_rank=0 --master_address=... --master_port=...
#              --max_restarts=0] --data_path=DIR --model=resnet50 --finetune_from=FILE [any option of python -m downstream_ade20k.main --help]
#
# Starts segmentation training through torchrun, from any folder: on all GPUs of this machine by default, on the CPU where
# there is none (--ngpu_per_node then is the number of CPU processes). Signals and exit codes are handed on.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../common/launch.sh" downstream_ade20k.main "$@"
