#!/usr/bin/env bash
#SBATCH --job-name=spark
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.out
#
# sbatch pretrain/slurm.sh my_run --data_path=/data/imagenet --model=resnet50 [any option of pretrain/main.sh]
#
# From the root of the clone; adapt the lines above to your cluster. Five minutes before the time is up SLURM sends SIGUSR1:
# the run saves and exits with 75, and the job is put into the queue again, where it goes on. Any other end is left as it is.
set -eu
cd "$SLURM_SUBMIT_DIR"
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
code=0
# main.sh takes the number of each node from SLURM_NODEID.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" bash pretrain/main.sh "$@" --num_nodes="$SLURM_NNODES" \
  --ngpu_per_node="$SLURM_GPUS_ON_NODE" --master_address="$MASTER" || code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
