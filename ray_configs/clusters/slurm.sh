#!/bin/bash
# sbatch ray_configs/clusters/slurm.sh cluster [key=value ...]
# Starts Ray on every node of the job, and the sweep on the first. Submitted again after its time is over, the sweep goes on.
#SBATCH --job-name=cl-ovq
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${SHARED:=$SLURM_SUBMIT_DIR}"  # a folder that all nodes mount, with the environment in .venv
source "$SHARED/.venv/bin/activate"
export RAY_USAGE_STATS_ENABLED=0

sweep=${1:?name a sweep: sbatch ray_configs/clusters/slurm.sh cluster}
shift
directory="$SHARED/runs/sweeps/$(basename "$sweep" .yaml)"
resume=()
[ -e "$directory/sweep.json" ] && resume=(--resume)

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The sweep runs on the node whose address is given; the others serve until it is over.
exec srun --kill-on-bad-exit=1 ray symmetric-run \
    --address "$head:6379" --min-nodes "$SLURM_NNODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_PER_TASK:-0}" -- \
    cl-ovq sweep "$sweep" --directory "$directory" "${resume[@]}" cluster.address=auto "$@"
