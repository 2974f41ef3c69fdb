#!/usr/bin/env bash
# A run is a function of its flags: killed at random moments and inside a save, stopped by signals, with other thread
# counts, other budgets and other logging, it ends with the same adapter, byte for byte.
. "$(dirname "$0")/check.bash"
tools=${TOOLS:-build/examples/demo}
export OMP_NUM_THREADS=2

"$tools/make_data" "$work/data" >"$work/.log" && "$tools/make_tokenizer" "$work/tok" 600 "$work/data/corpus.txt" >>"$work/.log" 2>&1 ||
    { cat "$work/.log"; failed=1; finish; }
ids=$(printf '{"text":"<empty_output>"}\n{"text":"<eod>"}\n' | "$QLORA" tokenize --model_name_or_path "$work/tok" --file - --quiet | tr -dc '0-9\n')
last=${ids%%$'\n'*} eod=${ids##*$'\n'}
"$QLORA" new --config yuan2-tiny --tokenizer "$work/tok" --output_dir "$work/m" --override vocab_size=$((last + 1)) \
    --override eod_token="$eod" --override pad_token_id="$eod" --quiet

common="--do_train --stage sft --template yuan --model_name_or_path $work/m --dataset_dir $work/data --dataset questions
    --max_samples 96 --cutoff_len 64 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --num_train_epochs 1
    --learning_rate 2e-3 --logging_steps 5 --save_steps 4 --save_total_limit 2 --resume_from_checkpoint true --quiet"
lora="$common --lora_target q_proj,k_proj,v_proj,down_proj --lora_rank 4 --lora_dropout 0.1 --quantization_bit 4"
full="$common --finetuning_type full --optim paged_adamw_8bit"
train() { # OUT FLAGS..
    local out=$1
    shift
    # shellcheck disable=SC2086
    "$QLORA" train "$@" --output_dir "$out" >"$out.log" 2>&1
}
same() { cmp "$1/adapter_model.safetensors" "$2/adapter_model.safetensors"; }

start=$EPOCHREALTIME
# shellcheck disable=SC2086
ok "undisturbed run" train "$work/a" $lora
took_us=$((${EPOCHREALTIME/./} - ${start/./}))
ok "loss falls" awk -F'"loss": ' 'NR == 1 {split($2, a, ","); first = a[1]} {split($2, a, ","); if (a[1] + 0 > 0) last = a[1]} END {exit !(last < first)}' "$work/a/trainer_log.jsonl"
# shellcheck disable=SC2086
{
    ok "the same again" train "$work/b" $lora
    ok "same bytes" same "$work/a" "$work/b"
    ok "one thread" env OMP_NUM_THREADS=1 "$QLORA" train $lora --output_dir "$work/t1"
    ok "same bytes with one thread" same "$work/a" "$work/t1"
    ok "other logging, saving and evaluation" "$QLORA" train $lora --output_dir "$work/l" --logging_steps 3 --save_steps 7 --val_size 0 --save_total_limit 5
    ok "same bytes with other logging" same "$work/a" "$work/l"
    ok "weights streamed, state and layer inputs paged" "$QLORA" train $lora --output_dir "$work/v" --vram 20500KiB --optim paged_adamw_32bit
    ok "same bytes paged" same "$work/a" "$work/v"
}

# SIGKILL at random moments: ten kills that hit, each followed by a start that resumes.
# shellcheck disable=SC2086
kills=0 tries=0
while ((tries++ < 60 && kills < 10)); do
    "$QLORA" train $lora --output_dir "$work/k" >"$work/k.log" 2>&1 &
    pid=$!
    sleep "$(awk -v us=$took_us -v r=$RANDOM 'BEGIN { print us / 1e6 * (0.05 + 0.85 * r / 32768) }')"
    if kill -9 $pid 2>/dev/null; then kills=$((kills + 1)); fi
    wait $pid 2>/dev/null
    [[ -f $work/k/train_results.json ]] && rm -rf "$work/k"
done
# shellcheck disable=SC2086
ok "ten kills" test $kills -ge 10
# shellcheck disable=SC2086
ok "after the last kill" train "$work/k" $lora
ok "same bytes after ten kills" same "$work/a" "$work/k"
ok "nothing temporary is left" test -z "$(find "$work/k" -name '.tmp-*' -newer "$work/k.log")"

# Killed at system call number n of the saves.
for n in 1 2 3 5 8 13 21 34 55 89; do
    # shellcheck disable=SC2086
    (QLORA_FAULT="wsnum:$n:KILL" "$QLORA" train $lora --output_dir "$work/s$n") >"$work/s.log" 2>&1
    # shellcheck disable=SC2086
    ok "after a kill in system call $n" train "$work/s$n" $lora
    ok "same bytes after a kill in system call $n" same "$work/a" "$work/s$n"
done

# Signals: the step is finished, saved, and the exit status says which.
for signal in INT TERM; do
    # shellcheck disable=SC2086
    "$QLORA" train $lora --output_dir "$work/$signal" --num_train_epochs 60 >"$work/$signal.log" 2>&1 &
    pid=$!
    for ((i = 0; i < 1200; i++)); do
        grep -q '"current_steps"' "$work/$signal/trainer_log.jsonl" 2>/dev/null && break
        sleep 0.1
    done
    kill -$signal $pid
    wait $pid
    ok "exit status of SIG$signal" test $? = $(($(kill -l $signal) + 128))
    ok "a checkpoint after SIG$signal" test -n "$(ls -d "$work/$signal"/checkpoint-*)"
done

# Full fine-tuning, 8-bit state: stop and go.
# shellcheck disable=SC2086
{
    ok "full" train "$work/f" $full
    (QLORA_FAULT="wsnum:60:KILL" "$QLORA" train $full --output_dir "$work/g") >"$work/g.log" 2>&1
    ok "full, resumed" train "$work/g" $full
}
ok "same model bytes" cmp "$work/f/model.safetensors" "$work/g/model.safetensors"

# Checkpoints are written beside the run; one that cannot be written ends it at a step boundary with one sentence, and what was
# saved before is whole. (A file size limit does it: injected faults would be met on the spot, in the run's own thread.)
# shellcheck disable=SC2086
ok "saves beside the run" "$QLORA" train ${lora/--quiet/} --output_dir "$work/beside"
cp "$work/.log" "$work/beside.log"
ok "it says so" test "$(grep -c 'checkpoint-.* is on the disk: .* beside the run' "$work/beside.log")" -ge 5
ok "same bytes" same "$work/a" "$work/beside"
limit=$(($(stat -c %s "$work"/beside/checkpoint-*/optimizer.safetensors | tail -n 1) / 1024 - 1))
# shellcheck disable=SC2086
ok "a run for its first checkpoints" train "$work/full" $lora --num_train_epochs 0.5
kept=$(ls -d "$work/full"/checkpoint-* | sort -t- -k2n | tail -n 1)
# shellcheck disable=SC2086
(trap '' XFSZ && ulimit -f $limit && "$QLORA" train $lora --output_dir "$work/full") >"$work/full.log" 2>&1
ok "a save that fails ends the run" test $? = 1
ok "with one sentence" test "$(grep -c '^error: .*cannot write.*optimizer.safetensors' "$work/full.log")" = 1
ok "what was saved is kept" test -f "$kept/MANIFEST"
ok "nothing half written" test -z "$(find "$work/full" -name '.tmp-*')"
# shellcheck disable=SC2086
ok "with room again" train "$work/full" $lora
# shellcheck disable=SC2086
ok "in two parts without a failure" train "$work/parts" $lora --num_train_epochs 0.5
# shellcheck disable=SC2086
ok "in two parts without a failure" train "$work/parts" $lora
ok "same bytes after a save that failed" same "$work/parts" "$work/full"

# A damaged checkpoint is skipped by name, an older one used.
newest=$(ls -d "$work"/a/checkpoint-* | sort -t- -k2n | tail -n 1)
printf 'x' | dd of="$newest/optimizer.safetensors" bs=1 seek=5000 conv=notrunc status=none
# shellcheck disable=SC2086
ok "with a damaged checkpoint" train "$work/a" $lora
ok "it is named" grep -q "skipping a checkpoint that is not whole.*$(basename "$newest")" "$work/a.log"
ok "same bytes from an older checkpoint" same "$work/a" "$work/b"
# A checkpoint of a longer run: nothing is left to do, and the adapter is that of the checkpoint.
cp -r "$work/b" "$work/shorter"
# shellcheck disable=SC2086
ok "a shorter run in the folder of a longer one" train "$work/shorter" $lora --max_steps 3
ok "has nothing left to do" same "$work/b" "$work/shorter"
finish
