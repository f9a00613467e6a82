#!/usr/bin/env bash
# What the main.sh of each program does: start a module through torchrun, from any folder.
#   launch.sh <module> <experiment_name> [--num_nodes=1 --ngpu_per_node=8 --node_rank=0 --master_address=... --master_port=...]
#             [--max_restarts=0] [any option of the module]
# The options are checked first, by a process that does not load torch.
# Exits with the module's code (common/reliability/stopping.py), and hands on SIGTERM, SIGINT, SIGHUP and SIGUSR1.
set -eu

module=$1; shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(command -v python || command -v python3)}

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

for word in "$@"; do
  case "$word" in
    -h|--help)
      printf 'usage: bash %s/main.sh EXPERIMENT [options]\n' "${module%.main}"
      cat <<'TEXT'

options of the launcher; all others are those of the program, below:
  EXPERIMENT            the name of the experiment, which is the first argument; its folder is output_EXPERIMENT
  --ngpu_per_node=N     processes on this machine; one for each GPU if not given, or one on the CPU where there is none
  --num_nodes=N         machines (default: 1)
  --node_rank=N         which of them this is, from 0 on; SLURM_NODEID if not given
  --master_address=HOST the host of node 0
  --master_port=N       a free port there (default: 29500)
  --max_restarts=N      how often the processes are started again after one of them has failed (default: 0)

TEXT
      exec "$python" -m "$module" "$@" ;;
  esac
done
case "${1:-}" in
  ''|-*) echo 'error: the first argument is the name of the experiment: bash main.sh my_run --data_path=DIR ...' >&2; exit 2 ;;
esac
name=$1; shift

nodes=1 processes='' node_rank=${SLURM_NODEID:-} address='' port=29500 restarts=0
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --num_nodes|--ngpu_per_node|--node_rank|--master_address|--master_port|--max_restarts)  # --flag value
      [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }
      set -- "$1=$2" "${@:3}"; continue ;;
    --num_nodes=*) nodes=${1#*=} ;;
    --ngpu_per_node=*) processes=${1#*=} ;;
    --node_rank=*) node_rank=${1#*=} ;;
    --master_address=*) address=${1#*=} ;;
    --master_port=*) port=${1#*=} ;;
    --max_restarts=*) restarts=${1#*=} ;;
    --name|--name=*|--exp_name|--exp_name=*)
      echo "error: the name is the first argument, $name; leave out $1" >&2; exit 2 ;;
    *) options+=("$1") ;;
  esac
  shift
done

if [ "$processes" = 0 ] || [ "$nodes" = 0 ]; then
  echo 'error: --num_nodes and --ngpu_per_node must be 1 or more' >&2; exit 2
fi
for number in "$nodes" "${processes:-1}" "$port" "${node_rank:-0}" "$restarts"; do
  case "$number" in
    ''|*[!0-9]*) echo "error: --num_nodes, --ngpu_per_node, --node_rank, --master_port and --max_restarts are numbers, not '$number'" >&2; exit 2 ;;
  esac
done
if [ "$nodes" -gt 1 ]; then
  if [ -z "$node_rank" ] || [ -z "$address" ]; then
    echo 'error: on several nodes give each of them --node_rank (0, 1, ...) and --master_address (the host of node 0)' >&2; exit 2
  fi
  meet=(--nnodes="$nodes" --node_rank="$node_rank" --master_addr="$address" --master_port="$port")
else
  meet=(--standalone --nnodes=1)
fi

check='import sys; from importlib import import_module; import_module(sys.argv[1]).check(sys.argv[2:])'
"$python" -c "$check" "$module" --name="$name" ${options[@]+"${options[@]}"} || exit
if [ -z "$processes" ]; then
  processes=$("$python" -m common.gpus)
fi

# torchrun would give each CPU process one thread: share the cores instead.
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores / processes > 1 ? cores / processes : 1 ))}
if [ "$nodes" -eq 1 ] && [ "$processes" -eq 1 ] && [ "$restarts" -eq 0 ]; then  # needs no torchrun
  exec "$python" -m "$module" --name="$name" ${options[@]+"${options[@]}"}
fi

# torchrun ends with 1 whatever its processes end with, and kills them 30 seconds after a signal, in the middle of a save perhaps.
# So it runs in a process group of its own (set -m), where signals to this one do not reach it; they are handed to its processes,
# as the one that means no harm, and what these end with is read from a file.
case "$processes" in 1) echo 'Starting 1 process through torchrun ...' ;; *) echo "Starting $processes processes through torchrun ..." ;; esac
told=$(mktemp)
trap 'rm -f "$told"' EXIT
torchrun=''
hand_on() {
  local one handed=''
  [ -n "$torchrun" ] || exit 143
  for one in $(pgrep -P "$torchrun" 2>/dev/null || cat "/proc/$torchrun/task/$torchrun/children" 2>/dev/null); do
    if kill -USR1 "$one" 2>/dev/null; then handed=yes; fi
  done
  if [ -z "$handed" ]; then kill "$torchrun" 2>/dev/null || true; fi
}
trap hand_on TERM INT HUP USR1
set -m
(
  trap '' USR1  # some clusters signal every process of a job; those that train take this one all the same
  RUN_EXIT_CODE_FILE=$told exec "$python" -m common.torchrun "${meet[@]}" --nproc_per_node="$processes" \
    --max_restarts="$restarts" -m "$module" --name="$name" ${options[@]+"${options[@]}"}
) &
torchrun=$!
while true; do  # a signal ends `wait`, not torchrun
  code=0
  wait "$torchrun" || code=$?
  kill -0 "$torchrun" 2>/dev/null || break
done
if [ "$code" -gt 128 ]; then  # a signal came while torchrun was ending: ask again
  code=0
  wait "$torchrun" || code=$?
fi
if [ -s "$told" ]; then code=$(cat "$told"); fi
exit "$code"
