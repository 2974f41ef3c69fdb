#!/usr/bin/env bash
# The guide's QLoRA command line on real data with the real tokenizer and a small model of the real vocabulary: the loss
# falls, an adapter appears, chat answers; killed ten times and resumed, and on one thread, the adapter has the same bytes.
# FULL=1: all of alpaca_zh_demo with the guide's length and epochs (some minutes); else a part of it.
. "$(dirname "$0")/check.bash"
[[ $shared ]] || { skip "no shared data and tokenizer"; finish; }
part="--max_samples 60 --cutoff_len 256 --preprocessing_num_workers 1 --gradient_accumulation_steps 4 --num_train_epochs 1"
[[ ${FULL-} ]] && part=""
export MODEL=$work/m DATASET=alpaca_zh_demo DATASET_DIR=$shared/data/llamafactory QLORA OMP_NUM_THREADS=2
"$QLORA" new --config yuan2-2b --override hidden_size=64 --override num_hidden_layers=2 --override num_attention_heads=2 \
    --override intermediate_size=128 --tokenizer "$shared/data/yuan2-tokenizer" --output_dir "$MODEL" --quiet
train() { # OUT FLAGS..
    local out=$1
    shift
    # A model of random weights wants a higher rate than the guide's.
    # shellcheck disable=SC2086
    OUTPUT=$out examples/qlora.sh $part --learning_rate 1e-2 --logging_steps 1 --save_steps 1 "$@" >"$out.log" 2>&1
}
same() { cmp "$1/adapter_model.safetensors" "$2/adapter_model.safetensors"; }

ok "the guide's run" train "$work/a"
ok "the loss falls" awk -F'"loss": ' '/"loss": [0-9]/ {split($2, a, ","); if (!n++) first = a[1]; last = a[1]} END {exit !(n > 3 && last < first - 0.05)}' "$work/a/trainer_log.jsonl"
for f in adapter_model.safetensors adapter_config.json trainer_log.jsonl trainer_state.json train_results.json all_results.json training_loss.png README.md tokenizer.model; do
    ok "$f is there" test -s "$work/a/$f"
done
again() { train "$work/k" --overwrite_output_dir false --resume_from_checkpoint true; }
kills=0
for ((i = 0; i < 80 && kills < 10; i++)); do
    again &
    pid=$!
    sleep "$([[ ${FULL-} ]] && echo $((RANDOM % 20 + 2)) || echo "0.$((RANDOM % 90 + 9))")"
    child=$(pgrep -P $pid | head -n 1)
    [[ $child ]] && kill -9 "$child" 2>/dev/null && kills=$((kills + 1))
    wait $pid 2>/dev/null
    [[ -f $work/k/train_results.json ]] && { rm -rf "$work/k"; }
done 2>/dev/null
ok "ten kills" test $kills = 10
ok "resumed to the end" again
ok "same bytes after ten kills" same "$work/a" "$work/k"
export OMP_NUM_THREADS=1
ok "on one thread" train "$work/t"
ok "same bytes on one thread" same "$work/a" "$work/t"
ok "chat answers" bash -c '[[ $("$0" chat --model_name_or_path "$1" --adapter_name_or_path "$2" --prompt 你好 --max_new_tokens 8 --do_sample false --json --quiet) == *answer* ]]' "$QLORA" "$MODEL" "$work/a"
[[ ${FULL-} ]] && cp "$work/a/trainer_log.jsonl" "$FULL"
finish
