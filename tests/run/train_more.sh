#!/usr/bin/env bash
# Training beside the straight road: evaluation, continuing an adapter, NaN, SIGUSR1, dry runs, output folders, base formats.
. "$(dirname "$0")/check.bash"
tools=${TOOLS:-build/examples/demo}
export OMP_NUM_THREADS=2
"$tools/make_data" "$work/data" >"$work/.log" && "$tools/make_tokenizer" "$work/tok" 600 "$work/data/corpus.txt" >>"$work/.log" 2>&1 ||
    { cat "$work/.log"; failed=1; finish; }
ids=$(printf '{"text":"<empty_output>"}\n{"text":"<eod>"}\n' | "$QLORA" tokenize --model_name_or_path "$work/tok" --file - --quiet | tr -dc '0-9\n')
last=${ids%%$'\n'*} eod=${ids##*$'\n'}
"$QLORA" new --config yuan2-tiny --tokenizer "$work/tok" --output_dir "$work/m" --override vocab_size=$((last + 1)) \
    --override eod_token="$eod" --override pad_token_id="$eod" --quiet
base="--stage sft --template yuan --model_name_or_path $work/m --dataset_dir $work/data --dataset questions
    --max_samples 64 --cutoff_len 64 --per_device_train_batch_size 4 --num_train_epochs 1 --learning_rate 2e-3 --quiet --save_strategy no --logging_steps 4"
common="--do_train $base --lora_target all --lora_rank 4"
# shellcheck disable=SC2086
train() { local out=$1; shift; "$QLORA" train $common --output_dir "$work/$out" "$@" >"$work/$out.log" 2>&1; }
status() { local want=$1; shift; "$@"; local rc=$?; [[ $rc == "$want" ]] || { echo "exit status $rc, wanted $want"; return 1; }; }
# mean loss of the data's first questions under a model and flags
loss() { "$QLORA" score --file "$work/q.jsonl" --quiet "$@" | sed 's/.*"loss":\([0-9.]*\).*/\1/' | awk '{s += $1} END {print s / NR}'; }
less() { awk "BEGIN {exit !($1 < $2)}"; }
near() { awk "BEGIN {d = $1 - $2; exit !(d < $3 && -d < $3)}"; }

# every base format learns, and score sees it
# shellcheck disable=SC2086
"$QLORA" preview $base --limit 20 --disable_shuffling true | sed 's/"input_ids"/"ids"/' >"$work/q.jsonl"
before=$(loss --model_name_or_path "$work/m")
"$QLORA" quantize --model_name_or_path "$work/m" --output_dir "$work/m4" --quantization_bit 4 --quiet
for how in "plain" "nf4 --quantization_bit 4" "fp4 --quantization_bit 4 --quantization_type fp4" "single --quantization_bit 4 --double_quantization false" "int8 --quantization_bit 8" "stored --model_name_or_path $work/m4"; do
    # shellcheck disable=SC2086
    set -- $how
    name=$1
    shift
    ok "train over $name" train "$name" "$@"
    ok "$name: the loss of score fell" less "$(loss --model_name_or_path "$work/m" "$@" --adapter_name_or_path "$work/$name")" "$before - 0.2"
done
ok "train over nf4 with a filter in 4 bits" train filter4 --quantization_bit 4 --lfa_bits 4
ok "the loss fell there, too" less "$(loss --model_name_or_path "$work/m" --quantization_bit 4 --lfa_bits 4 --adapter_name_or_path "$work/filter4")" "$before - 0.2"
ok "another adapter than over a filter as it is stored" bash -c '! cmp -s "$1/nf4/adapter_model.safetensors" "$1/filter4/adapter_model.safetensors"' - "$work"
# shellcheck disable=SC2086
refused "full with a filter in 4 bits" "lfa_bits 4 is only compatible with the LoRA method" train --do_train $base --finetuning_type full --lfa_bits 4 --output_dir "$work/x"
ok "quantised on load or before: the same adapter" cmp "$work/nf4/adapter_model.safetensors" "$work/stored/adapter_model.safetensors"
ok "score of a stored NF4 model equals one quantised on load" test "$(loss --model_name_or_path "$work/m4")" = "$(loss --model_name_or_path "$work/m" --quantization_bit 4)"
refused "two kinds of quantisation" "already quantised to 4 bits" train --do_train --model_name_or_path "$work/m4" --quantization_bit 8 --dataset_dir "$work/data" --dataset questions --template yuan --lora_target all --output_dir "$work/x" --quiet
# shellcheck disable=SC2086
refused "full over a quantised model" "cannot be trained" train --do_train $base --model_name_or_path "$work/m4" --finetuning_type full --output_dir "$work/x"

# evaluation: the loss of the log is that of score over the same records
ok "with evaluation" train e --val_size 16 --evaluation_strategy steps --eval_steps 4 --per_device_eval_batch_size 3
ok "eval_loss in the log" grep -q '"eval_loss": [0-9]' "$work/e/trainer_log.jsonl"
ok "eval_results.json" grep -q '"eval_loss"' "$work/e/eval_results.json"

# adapters go on, from where they were
ok "continue an adapter" train c --adapter_name_or_path "$work/plain" --num_train_epochs 2
ok "it got better" less "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/c")" "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/plain")"
ok "it starts at its loss" near "$(sed -n '1s/.*"loss": \([0-9.]*\).*/\1/p' "$work/c/trainer_log.jsonl")" "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/plain")" 0.3

# sequences longer than a chunk may be go through in windows: the same losses, to the digits of the log
for how in "lora --quantization_bit 4 --lora_dropout 0.1" "full --finetuning_type full"; do
    # shellcheck disable=SC2086
    set -- $how
    name=$1
    shift
    ok "$name, sequences whole" train "whole-$name" "$@" --packing true --cutoff_len 128
    ok "$name, in windows" train "windows-$name" "$@" --packing true --cutoff_len 128 --chunk_tokens 48 --log_level info
    ok "$name: the same losses" test "$(grep -o '"loss": [0-9.]*' "$work/whole-$name/trainer_log.jsonl")" = "$(grep -o '"loss": [0-9.]*' "$work/windows-$name/trainer_log.jsonl")"
done

# one mean over all tokens against the mean of means: another number, both learn
ok "loss per token" train n --loss_norm token --gradient_accumulation_steps 4
ok "mean of means" train o --gradient_accumulation_steps 4
ok "they differ" bash -c '! cmp -s "$0" "$1"' "$work/n/adapter_model.safetensors" "$work/o/adapter_model.safetensors"
for optim in adamw_torch paged_adamw_32bit; do ok "$optim" train "$optim" --optim $optim; done
ok "paged is the same" cmp "$work/adamw_torch/adapter_model.safetensors" "$work/paged_adamw_32bit/adapter_model.safetensors"
for optim in adamw_bnb_8bit paged_adamw_8bit; do ok "$optim" train "$optim" --optim $optim --lora_rank 64; done
ok "paged is the same in 8 bits" cmp "$work/adamw_bnb_8bit/adapter_model.safetensors" "$work/paged_adamw_8bit/adapter_model.safetensors"

# numbers that are not: the step is not applied, after three in a row the run ends with 70 and a checkpoint
cp -r "$work/plain" "$work/wild"
size=$(stat -c %s "$work/wild/adapter_model.safetensors")
for ((i = 1; i <= 64; i++)); do printf '\x99\x76\x96\x7e'; done | # 1e38, 64 times
    dd of="$work/wild/adapter_model.safetensors" bs=1 seek=$((size - 256)) conv=notrunc status=none
# shellcheck disable=SC2086
ok "NaN ends with 70" status 70 "$QLORA" train $common --output_dir "$work/nan" --adapter_name_or_path "$work/wild"
ok "with the state saved" test -n "$(ls -d "$work"/nan/checkpoint-* 2>/dev/null)"
# shellcheck disable=SC2086
ok "no weight was touched" bash -c 'cmp <(tail -c 4096 "$0") <(tail -c 4096 "$1")' "$work/wild/adapter_model.safetensors" "$(ls -d "$work"/nan/checkpoint-*)/adapter_model.safetensors"
# shellcheck disable=SC2086
ok "--nan skip goes on" status 0 "$QLORA" train $common --output_dir "$work/skip" --adapter_name_or_path "$work/wild" --nan skip

# SIGUSR1 saves and goes on
# shellcheck disable=SC2086
"$QLORA" train $common --output_dir "$work/u" --num_train_epochs 20 >"$work/u.log" 2>&1 &
pid=$!
for ((i = 0; i < 1200; i++)); do [[ -s $work/u/trainer_log.jsonl ]] && break; sleep 0.05; done
kill -USR1 $pid
ok "SIGUSR1 does not end the run" wait $pid
ok "SIGUSR1 saves" test -n "$(ls -d "$work"/u/checkpoint-* 2>/dev/null)"

# a dry run loads and writes nothing
# shellcheck disable=SC2086
ok "dry run" "$QLORA" train $common --output_dir "$work/dry" --dry_run
ok "nothing is written" test ! -e "$work/dry"
# shellcheck disable=SC2086
# the least that does: everything on the host, the embedding too; the same bits
low=0 least=$((1 << 30))
while ((least - low > 1)); do
    # shellcheck disable=SC2086
    if "$QLORA" train $common --output_dir "$work/none" --optim paged_adamw_32bit --dry_run --vram $(((low + least) / 2)) >/dev/null 2>&1; then least=$(((low + least) / 2)); else low=$(((low + least) / 2)); fi
done
ok "in a large budget" train large --optim paged_adamw_32bit --vram 4GiB
ok "in $least bytes" train least --optim paged_adamw_32bit --vram $least --quiet false
ok "the embedding lives on the host" grep -q "plan: .*; embedding and head fetched when needed" "$work/least.log"
ok "the same adapter" cmp "$work/large/adapter_model.safetensors" "$work/least/adapter_model.safetensors"
ok "a budget that is too small ends with 1" status 1 "$QLORA" train $common --output_dir "$work/tiny" --vram 1MiB
# shellcheck disable=SC2086
refused "an output folder in use" "Please set overwrite_output_dir" train $common --output_dir "$work/plain"
ok "overwrite_output_dir" train plain --overwrite_output_dir

# conversations
ok "chat with ids" bash -c '"$0" chat --model_name_or_path "$1" --ids "300 301 302" --max_new_tokens 5 --do_sample false --json --quiet | grep -q "\"ids\":\["' "$QLORA" "$work/m"
ok "chat repeats with a seed" bash -c 'a=$("$0" chat --model_name_or_path "$1" --prompt hello --max_new_tokens 9 --seed 5 --quiet); b=$("$0" chat --model_name_or_path "$1" --prompt hello --max_new_tokens 9 --seed 5 --quiet); c=$("$0" chat --model_name_or_path "$1" --prompt hello --max_new_tokens 9 --seed 6 --quiet); [[ $a == "$b" && $a != "$c" ]]' "$QLORA" "$work/m"
ok "a dialogue" bash -c 'printf "hello\nhow\nclear\nhello\nexit\n" | "$0" chat --model_name_or_path "$1" --do_sample false --max_new_tokens 5 --quiet 2>/dev/null | awk "{a[NR] = \$0} END {exit !(NR == 3 && a[1] == a[3])}"' "$QLORA" "$work/m"
refused "a prompt and ids" "one of --prompt, --ids and --file" chat --model_name_or_path "$work/m" --prompt a --ids 1
refused "an id that is none" "is not a token id" score --model_name_or_path "$work/m" --ids "1 99999"
refused "score of nothing" "needs one of" score --model_name_or_path "$work/m"
printf '{"txt":"a"}\n' >"$work/bad.jsonl"
refused "an unknown key" "text" score --model_name_or_path "$work/m" --file "$work/bad.jsonl" --quiet
finish
