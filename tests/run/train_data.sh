#!/usr/bin/env bash
# What data flags do to a run: records that are packed and yet apart, sampling strategies.
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
tiny_model
data="--model_name_or_path $work/m --dataset_dir $work/data --dataset questions --template yuan --compat new --max_samples 32 --quiet"
common="--do_train $data --learning_rate 2e-3 --logging_steps 1 --save_strategy no --lora_rank 4 --output_dir"
# shellcheck disable=SC2086
run() { local out=$1; shift; "$QLORA" train $common "$work/$out" "$@" >"$work/$out.log" 2>&1; }
losses() { sed -n 's/.*"loss": \([0-9.]*\).*/\1/p' "$work/$1/trainer_log.jsonl"; }
near() { awk "BEGIN {d = $1 - $2; exit !(d < $3 && -d < $3)}"; }
same() { cmp "$work/$1/adapter_model.safetensors" "$work/$2/adapter_model.safetensors"; }

# ---- neat_packing: the loss of a row is that of its records alone; plain packing lets them see each other ----
# shellcheck disable=SC2086
"$QLORA" preview $data --cutoff_len 64 --disable_shuffling true | sed 's/"input_ids"/"ids"/' >"$work/alone.jsonl"
alone=$("$QLORA" score --model_name_or_path "$work/m" --file "$work/alone.jsonl" --quiet |
    sed 's/.*"loss":\([0-9.]*\),"tokens":\([0-9]*\).*/\1 \2/' | awk '{s += $1 * $2; n += $2} END {printf "%.5f", s / n}')
one="--cutoff_len 128 --max_steps 1 --per_device_train_batch_size 64 --loss_norm token"
# shellcheck disable=SC2086
{
    ok "packed neatly" run neat $one --neat_packing
    ok "packed" run packed $one --packing true
    ok "apart" run apart $one
}
ok "neat: the loss of the records alone" near "$(losses neat)" "$alone" 1e-4
ok "neat: the loss of an unpacked run" near "$(losses neat)" "$(losses apart)" 1e-4
ok "packed: another loss" awk "BEGIN {d = $(losses packed) - $alone; exit !(d > 3e-4 || d < -3e-4)}"
ok "neat in full, with evaluation" run neat_full --cutoff_len 128 --neat_packing --finetuning_type full --val_size 8 --do_eval --compute_accuracy
ok "neat, in chunks smaller than a row" run neat_chunks --cutoff_len 128 --neat_packing --num_train_epochs 2 --chunk_tokens 40
ok "neat, in large chunks" run neat_whole --cutoff_len 128 --neat_packing --num_train_epochs 2
ok "the same losses" diff <(losses neat_chunks) <(losses neat_whole)

# ---- memory: 12 MiB of text are 50 MiB of sequences, of which 16 are in memory at a time ----
if grep -q __asan_init "$QLORA"; then skip "memory, under a sanitizer"; else
    mib=$(QLORA=$QLORA MODEL=$work/m WORK=$work/memory FLAGS="--data_memory 2MiB" bench/train_memory.sh 12 2>"$work/.log" | sed 's/.*"mib": \([0-9]*\),.*/\1/')
    ok "a run on a large file takes ${mib:-no figure} MiB more than one on 64 records" test "${mib:-1000}" -lt 36
fi
finish
