#!/usr/bin/env bash
# Some nodes train, others sample by vLLM servers that follow the policy; a judge may have a node of its own.
# From a folder that all nodes see:
#     POLICY=Qwen/Qwen3-4B TRAINER_NODES=1 sbatch --nodes=3 examples/slurm/servers.sh my.yaml run_dir=/shared/runs/mine
#
#     POLICY            the policy's model, which servers read the configuration of; its weights come from the trainer
#     TRAINER_NODES     nodes that train, the first ones (1); all others sample
#     JUDGE             the judge's model, on the last node; without it the config's judge stays as it is
#     CARDS_PER_NODE    (8)   CARDS_PER_SERVER, CARDS_PER_JUDGE: tensor parallel (1 each)
#     DTYPE             in which servers compute (bfloat16)   SERVER_ARGUMENTS: further ones of vLLM's API server, for an
#                       adapter (lora.rank=16): "--enable-lora --max-loras 2 --max-cpu-loras 2 --max-lora-rank 16"
#                       with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in the environment
#     MAX_MODEL_LEN     longest prompt and rollout of a server (24576)   START_SECONDS that servers may take (1800)
#
# What takes weights (/pause, /update_weights, ...) asks for no key: only nodes that you trust may reach the servers.
# At the end of the time, or when it is preempted, the trainer saves; the same command goes on from there.
#SBATCH --job-name=exprl
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
set -euo pipefail

fail() {
    echo "servers.sh: $1" >&2
    exit 2
}

: "${SLURM_JOB_NODELIST:?start it by sbatch}" "${POLICY:?name the model of the policy}"
cards=${CARDS_PER_NODE:-8} per_server=${CARDS_PER_SERVER:-1} per_judge=${CARDS_PER_JUDGE:-1}
training=${TRAINER_NODES:-1} judging=$([[ -n ${JUDGE:-} ]] && echo 1 || echo 0)
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
sampling=$((${#nodes[@]} - training - judging))
((training > 0 && sampling > 0)) ||
    fail "of ${#nodes[@]} nodes $training train and $judging judge: none is left to sample. Ask for more by --nodes"
((cards % per_server == 0 && cards % per_judge == 0)) ||
    fail "CARDS_PER_SERVER=$per_server and CARDS_PER_JUDGE=$per_judge must divide the $cards cards of a node"
trainers=("${nodes[@]:0:training}") samplers=("${nodes[@]:training:sampling}") judge=${nodes[training + sampling]:-}

key=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
export VLLM_API_KEY=$key OPENAI_API_KEY=$key

# Run on each node: a server for every so many cards, on ports that follow each other, until all have ended.
# shellcheck disable=SC2016 # the nodes expand it
serve='
cards=$1 per=$2 port=$3; shift 3
trap "kill \$(jobs -p) 2>/dev/null" EXIT
trap "exit 143" TERM
for ((first = 0; first < cards; first += per)); do
    CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + per - 1))) python -m vllm.entrypoints.openai.api_server \
        --host "$SLURMD_NODENAME" --port $((port + first / per)) --generation-config vllm "$@" &
done
wait'

joined() { (IFS=, && echo "$*"); }

started=()
start() { # nodes, how many, cards of a server, first port, arguments of vLLM
    srun --nodelist="$1" --nodes="$2" --ntasks="$2" --cpu-bind=none --output="$logs/servers-%N-%j.log" \
        bash -c "$serve" serve "$cards" "${@:3}" &
    started+=("$!")
}

wait_for() { # URLs
    local url one deadline=$((SECONDS + ${START_SECONDS:-1800}))
    for url in "$@"; do
        until curl --fail --silent --max-time 5 --output /dev/null "$url/health"; do
            ((SECONDS < deadline)) || fail "no answer from $url; see $logs/servers-*.log"
            for one in "${started[@]}"; do
                kill -0 "$one" 2>/dev/null || fail "servers have ended; see $logs/servers-*.log"
            done
            sleep "${POLL_SECONDS:-5}"
        done
    done
}

logs=${LOGS:-.} longest=${MAX_MODEL_LEN:-24576} dtype=${DTYPE:-bfloat16}
read -ra further <<<"${SERVER_ARGUMENTS:-}"
trap 'kill "${started[@]}" 2>/dev/null || true' EXIT
trap 'exit 143' TERM
VLLM_SERVER_DEV_MODE=1 start "$(joined "${samplers[@]}")" "$sampling" "$per_server" 8000 \
    --model "$POLICY" --served-model-name policy --load-format dummy --dtype "$dtype" \
    --max-model-len "$longest" --tensor-parallel-size "$per_server" \
    --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs ${further[@]+"${further[@]}"}
urls=()
for node in "${samplers[@]}"; do
    for ((server = 0; server < cards / per_server; server++)); do urls+=("http://$node:$((8000 + server))"); done
done
options=(rollout.name=vllm_server "rollout.urls=[$(joined "${urls[@]}")]" rollout.transfer=nccl)
options+=("rollout.dtype=$dtype" "rollout.max_model_len=$longest" rollout.lookahead=1)
if [[ -n $judge ]]; then # one URL for all of its cards
    start "$judge" 1 "$cards" 8100 \
        --model "$JUDGE" --tensor-parallel-size "$per_judge" --data-parallel-size $((cards / per_judge))
    urls+=("http://$judge:8100")
    options+=(reward.judge.backend.{name=server,url="http://$judge:8100/v1",model="$JUDGE"})
fi
wait_for "${urls[@]}"

srun --nodelist="$(joined "${trainers[@]}")" --nodes="$training" --ntasks="$training" --cpu-bind=none \
    --kill-on-bad-exit=1 torchrun --nnodes "$training" --nproc-per-node "$cards" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${trainers[0]}:${PORT:-29500}" \
    -m exprl train "$1" "${options[@]}" "${@:2}" --resume &
trainer=$!
trap 'kill -TERM "$trainer"' TERM # servers go on while the trainer saves
status=0
wait "$trainer" || status=$?
while kill -0 "$trainer" 2>/dev/null; do # a signal ended the wait
    status=0
    wait "$trainer" || status=$?
done
exit "$status"
