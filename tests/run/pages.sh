#!/usr/bin/env bash
# Weights with three homes: on the "card" (--vram), beside it (--host_memory), and in a file (--page_dir). The same bits whatever
# the homes, nothing left behind, and one sentence when the disk fails in the midst of a run, which is then resumed.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
tiny_model
small=(--override vocab_size=620 --override num_hidden_layers=8 --override hidden_size=256 --override intermediate_size=700 --override eod_token=5 --override pad_token_id=5)
rm -rf "$work/m"
ok "a model whose layers are worth a file" "$QLORA" new --config yuan2-tiny --tokenizer "$work/tok" --output_dir "$work/m" "${small[@]}" --quiet
lora="$lora --optim paged_adamw_32bit"
tight=(--vram 25MiB --host_memory 4MiB)
planned() { grep -qE "plan: .*; $1" "$work/$2.log"; }
empty() { [[ -d $1 && -z $(ls -A "$1") ]]; }

ok "all on the card" train "$work/a"
ok "some in host memory" train "$work/b" --vram 25MiB
ok "as planned" planned "[0-9]* of 8 layers streamed" b
ok "the same bits" same "$work/a" "$work/b"
ok "some in a file" train "$work/c" "${tight[@]}"
ok "as planned" planned "[78] of 8 layers streamed, [1-8] of them from a file of " c
ok "the same bits" same "$work/a" "$work/c"
ok "the file is gone" test -z "$(find "$work/c" -name '.tmp-*')"
mkdir "$work/pages"
ok "layers in 8 bits, in a file elsewhere" train "$work/d" --vram 29MiB --host_memory 7MiB --page_dir "$work/pages" --quantization_bit 8
ok "as planned" planned "[0-9]* of 8 layers streamed, [0-9]* of them from a file" d
ok "layers in 8 bits on the card" train "$work/e" --quantization_bit 8
ok "the same bits" same "$work/d" "$work/e"
ok "the folder is empty again" empty "$work/pages"
ok "evaluated between steps" train "$work/f" --vram 25MiB --host_memory 4500KiB --val_size 0.2 --evaluation_strategy steps --eval_steps 3
ok "and without a file" train "$work/g" --val_size 0.2 --evaluation_strategy steps --eval_steps 3
ok "the same bits" same "$work/f" "$work/g"
ok "the same losses" diff <(grep -o '"eval_loss": [^,]*' "$work/f/trainer_log.jsonl") <(grep -o '"eval_loss": [^,]*' "$work/g/trainer_log.jsonl")

# the estimate adds up, and is the run's
# shellcheck disable=SC2086
ok "an estimate" bash -c '"$0" estimate "${@:2}" --json >"$1/x.json"' "$QLORA" "$work" --model_name_or_path "$work/m" --backend cpu --vram 27MiB --host_memory 9MiB --quantization_bit 4 --lora_rank 4 --cutoff_len 64 --optim paged_adamw_32bit
items() { grep -o "\"place\":\"$1\",\"bytes\":[0-9]*" "$work/x.json" | awk -F: '{s += $NF} END {printf "%.0f", s}'; }
ok "names the disk" grep -q '"layer weights","place":"disk","bytes":[1-9]' "$work/x.json"
for place in device host disk; do ok "$place adds up" test "$(grep -o "\"${place}_bytes\":[0-9]*" "$work/x.json" | cut -d: -f2)" == "$(items $place)"; done

# the disk fails
says() { [[ $(grep -c '^error: ' "$work/$1.log") == 1 ]] && grep -qE "^error: .*$2" "$work/$1.log"; }
fails() { ! train "$@"; }
ok "a folder that cannot be made" fails "$work/n" "${tight[@]}" --page_dir /proc/none
ok "is named" says n "/proc/none"
ok "no room" env QLORA_FAULT=w:1:ENOSPC bash -c '! "$@"' - "$QLORA" train $lora --output_dir "$work/w" "${tight[@]}"
failed_once=0
for ((n = 160; n < 1600; n += 40)); do # the first that hits the page file when something was saved already
    rm -rf "$work/r"
    # shellcheck disable=SC2086
    QLORA_FAULT=r:$n:EIO:sticky "$QLORA" train $lora --output_dir "$work/r" "${tight[@]}" >"$work/r.log" 2>&1 && break
    { grep -q "cannot read the page file" "$work/r.log" && ls -d "$work"/r/checkpoint-* >"$work/.log" 2>&1; } || continue
    failed_once=1
    ok "read $n fails: one sentence" says r "after step [0-9]*: cannot read the page file in .*Input/output error.*is whole"
    ok "resumed" train "$work/r" "${tight[@]}"
    ok "the same bits" same "$work/a" "$work/r"
    break
done
ok "a read failed in the midst of a run" test $failed_once == 1
finish
