#!/usr/bin/env bash
# Every card of every node samples, judges and trains in turn (rollout.name=vllm). From a folder that all nodes see:
#     sbatch --nodes=2 examples/slurm/colocated.sh my.yaml run_dir=/shared/runs/mine trainer.strategy=fsdp2
# A job that is preempted or out of time ends with the step under way saved; the same command goes on from there.
#SBATCH --job-name=exprl
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
set -euo pipefail

: "${SLURM_JOB_NODELIST:?start it by sbatch}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

exec srun --cpu-bind=none --kill-on-bad-exit=1 \
    torchrun --nnodes "${#nodes[@]}" --nproc-per-node "${CARDS_PER_NODE:-8}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${nodes[0]}:${PORT:-29500}" \
    -m exprl train "$@" --resume
