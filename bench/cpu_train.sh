#!/usr/bin/env bash
# bench/cpu_train.sh [PEER.py] - LoRA training on the CPU beside PyTorch, in one run: same shape, same threads, by turns.
# hidden 512, 6 layers, 8 heads, ffn 2048, vocabulary 8192, sequence 256, batch 1, rank 8 on all seven projections, fp32.
# Prints one JSON line. PEER.py is a script that takes --threads and prints {"tokens_per_s": ..}; without one, ours alone.
set -eu
cd "$(dirname "$0")/.."
qlora=${QLORA:-./qlora} tools=${TOOLS:-build/examples/demo}
threads=${THREADS:-2} rounds=${ROUNDS:-3} peer=${1-} python=${PYTHON:-/usr/bin/python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$qlora" new --config yuan2-tiny --output_dir "$work/m" --dtype fp32 --override hidden_size=512 --override num_hidden_layers=6 \
    --override num_attention_heads=8 --override intermediate_size=2048 --override vocab_size=8192 --override eod_token=8191 --override pad_token_id=8191 --quiet
# 257 tokens make 256 that predict
awk 'BEGIN { srand(1); for (r = 0; r < 12; r++) { printf "{\"input_ids\": [";
    for (i = 0; i < 257; i++) printf "%s%d", i ? ", " : "", int(rand() * 600); print "]}" } }' >"$work/d.jsonl"
cat ./*.md docs/*.md >"$work/text"
"$tools/make_tokenizer" "$work/m" 600 "$work/text" >/dev/null 2>&1
ours() {
    OMP_NUM_THREADS=$threads "$qlora" train --do_train --stage sft --template yuan --finetuning_type lora --lora_target all --lora_rank 8 \
        --model_name_or_path "$work/m" --dataset "$work/d.jsonl" --cutoff_len 257 --per_device_train_batch_size 1 --gradient_accumulation_steps 1 \
        --num_train_epochs 1 --learning_rate 1e-3 --max_grad_norm 0.5 --logging_steps 1 --save_strategy no --output_dir "$work/o" --overwrite_output_dir \
        --include_num_input_tokens_seen --quiet >"$work/log" 2>&1 || { tail -3 "$work/log" >&2; exit 1; }
    tail -n 1 "$work/o/trainer_log.jsonl" | sed 's/.*"throughput": \([0-9.]*\).*/\1/'
}
best() { sort -n | tail -n 1; }
for ((i = 0; i < rounds; i++)); do
    ours >>"$work/ours"
    [[ -z $peer ]] || "$python" "$peer" --threads "$threads" --steps 5 | sed 's/.*"tokens_per_s": \([0-9.]*\).*/\1/' >>"$work/peer"
done
a=$(best <"$work/ours") b=$([[ -z $peer ]] || best <"$work/peer")
printf '{"what": "LoRA training, CPU, fp32", "date": "%s", "commit": "%s", "cpu": "%s", "threads": %s, "tokens_per_s": %s, "peer_tokens_per_s": %s, "ratio": %s, "command": "bench/cpu_train.sh"}\n' \
    "$(date +%F)" "$(git rev-parse --short HEAD 2>/dev/null)" "$(sed -n 's/^model name.*: //p;T;q' /proc/cpuinfo)" "$threads" "$a" "${b:-null}" "$([[ -z $b ]] && echo null || awk "BEGIN {printf \"%.2f\", $a / $b}")"
