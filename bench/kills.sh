#!/usr/bin/env bash
# bench/kills.sh [CONFIG [KILLS]] - a QLoRA run on random weights, killed at random moments and started again, beside one that nobody disturbs.
#
# Defaults: yuan2-2b, 10. $STEPS steps (40) of 4 x 1024 tokens, saved at every third; $FLAGS are more flags of `qlora train`. A run that
# comes to its end between two kills is compared and another begins. Prints one JSON line; 0 if every adapter has the same bytes.
# Needs the checkpoint's size below $TMPDIR (2B: 2 GB) and what a few checkpoints take.
set -eu
cd "$(dirname "$0")/.."
qlora=$(realpath "${QLORA:-./qlora}") tools=${TOOLS:-build/examples/demo} config=${1:-yuan2-2b} kills=${2:-10} steps=${STEPS:-40}
flags=${FLAGS---lora_rank 64 --lora_target all --optim paged_adamw_32bit --vram 2500MB}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$qlora" new --config "$config" --quantization_bit 4 --output_dir "$work/m" --quiet
awk 'BEGIN { srand(1); for (r = 0; r < 64; r++) { printf "{\"input_ids\": [";
    for (i = 0; i < 1025; i++) printf "%s%d", i ? ", " : "", int(rand() * 500); print "]}" } }' >"$work/d.jsonl"
cat ./*.md docs/*.md >"$work/text"
"$tools/make_tokenizer" "$work/m" 600 "$work/text" >/dev/null 2>&1
# run OUT: goes on with what lies there
run() {
    # shellcheck disable=SC2086
    exec "$qlora" train --do_train --stage sft --template yuan --finetuning_type lora $flags --model_name_or_path "$work/m" --dataset "$work/d.jsonl" \
        --cutoff_len 1025 --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --max_steps "$steps" --learning_rate 1e-4 \
        --logging_steps 1 --save_steps 3 --save_total_limit 2 --resume_from_checkpoint true --output_dir "$1" >>"$1.log" 2>&1
}
milliseconds() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }
began=$(milliseconds)
(run "$work/a") || { tail -n 3 "$work/a.log" >&2; exit 1; }
took=$(($(milliseconds) - began))
killed=0 ended=0 same=0 out=$work/b0
while ((killed < kills)); do
    run "$out" &
    sleep "$(awk -v t=$took -v r=$RANDOM 'BEGIN { printf "%.3f", t / 1000 * r / 32768 }')"
    if kill -9 $! 2>/dev/null; then
        wait $! 2>/dev/null || killed=$((killed + 1))
        ((killed < kills)) && [[ ! -f $out/adapter_model.safetensors ]] && continue
    fi
    (run "$out") || { tail -n 3 "$out.log" >&2; exit 1; } # to the end
    ended=$((ended + 1))
    cmp -s "$work/a/adapter_model.safetensors" "$out/adapter_model.safetensors" && same=$((same + 1))
    rm -rf "$out"
    out=$work/b$ended
done
echo "{\"bench\":\"kills\",\"config\":\"$config\",\"steps\":$steps,\"undisturbed_seconds\":$(awk -v t=$took 'BEGIN { printf "%.1f", t / 1000 }'),\"kills\":$killed,\"runs\":$ended,\"runs_with_the_same_bytes\":$same}"
((same == ended))
