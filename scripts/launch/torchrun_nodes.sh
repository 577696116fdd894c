#!/usr/bin/env bash
# Train on several nodes: run this on each of them, with the same HEAD, RUN_ID and arguments.
#
#   NODES=2 GPUS=8 HEAD=node01 bash scripts/launch/torchrun_nodes.sh --instruction_data ... --run_name runs/two-nodes
#
# All arguments go to train.py. HEAD is one of the nodes, PORT free on it. When a rank fails, all are started again, at
# most three times: with --continue_training they go on from the run's last checkpoint.
set -euo pipefail

: "${HEAD:?set HEAD to the name of the node at which all nodes meet}"

exec torchrun \
    --nnodes="${NODES:-2}" \
    --nproc_per_node="${GPUS:-8}" \
    --max_restarts=3 \
    --rdzv_backend=c10d \
    --rdzv_id="${RUN_ID:-flamingo}" \
    --rdzv_endpoint="$HEAD:${PORT:-29502}" \
    open_flamingo/instruction_tuning/train.py "$@"
