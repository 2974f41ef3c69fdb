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

# ---- tokenized_path: saved once, then read in place of the data; the same bits ----
set_of="--cutoff_len 64 --neat_packing --val_size 8 --do_eval --num_train_epochs 1 --per_device_train_batch_size 2"
# shellcheck disable=SC2086
{
    ok "from the data" run direct $set_of
    ok "tokenised" run never $set_of --tokenized_path "$work/rows" --quiet false
    ok "it says so" grep -q "Tokenized dataset is saved at $work/rows" "$work/never.log"
    ok "and trains nothing" test ! -e "$work/never"
    ok "train, eval and MANIFEST" test "$(ls "$work/rows/sequences" | tr '\n' ' ')" = "MANIFEST eval.rows train.rows "
    ok "from the rows" run saved $set_of --tokenized_path "$work/rows" --dataset nowhere
    ok "the warning" grep -q "Loading dataset from disk will ignore other data arguments." "$work/saved.log"
    ok "the same adapter" same direct saved
    ok "the same evaluation" test "$(grep -o '"eval_loss": [0-9.]*' "$work/direct/eval_results.json")" = "$(grep -o '"eval_loss": [0-9.]*' "$work/saved/eval_results.json")"
    ok "half of it from the rows" run mixed $set_of --max_steps 2 --lr_scheduler_type constant --save_strategy steps --save_steps 2 --tokenized_path "$work/rows"
    ok "the rest from the data" run mixed $set_of --max_steps 4 --lr_scheduler_type constant --resume_from_checkpoint true
    ok "in one go" run one_go $set_of --max_steps 4 --lr_scheduler_type constant
    ok "the same adapter" same mixed one_go
    ok "the evaluation alone" "$QLORA" train $data $set_of --do_train false --output_dir "$work/ev" --tokenized_path "$work/rows" --adapter_name_or_path "$work/direct"
    ok "its loss" test "$(grep -o '"eval_loss": [0-9.]*' "$work/ev/eval_results.json")" = "$(grep -o '"eval_loss": [0-9.]*' "$work/direct/eval_results.json")"
    ok "preview of it" cmp <("$QLORA" preview $data $set_of --tokenized_path "$work/rows") <("$QLORA" preview $data $set_of)
    ok "a dry run of it" "$QLORA" train $common "$work/never" $set_of --tokenized_path "$work/rows" --dry_run
    ok "a dry run saves nothing" "$QLORA" train $common "$work/never" $set_of --tokenized_path "$work/rows2" --dry_run
    ok "nothing" test ! -e "$work/rows2/sequences"
}

# ---- streaming: in the order of the file it is the same run; in two halves it ends as in one go ----
data=${data/--max_samples 32 /}
common=${common/--max_samples 32 /}
steps="--cutoff_len 64 --max_steps 6 --lr_scheduler_type constant --lora_dropout 0.1 --gradient_accumulation_steps 2"
# shellcheck disable=SC2086
{
    ok "in order" run order $steps --disable_shuffling true
    ok "streaming in order" run stream_order $steps --disable_shuffling true --streaming
    ok "the same adapter" same order stream_order
    ok "streaming" run stream $steps --streaming --buffer_size 50 --val_size 8 --do_eval
    ok "another order" bash -c '! cmp -s "$1/order/adapter_model.safetensors" "$1/stream/adapter_model.safetensors"' - "$work"
    ok "an evaluation" grep -q '"eval_loss"' "$work/stream/eval_results.json"
    ok "half of it" run half $steps --max_steps 3 --streaming --buffer_size 50 --val_size 8 --save_strategy steps --save_steps 3
    ok "the other half" run half $steps --streaming --buffer_size 50 --val_size 8 --resume_from_checkpoint true
    ok "as in one go" same stream half
    ok "neat packing in a stream, in full" run stream_neat $steps --streaming --neat_packing --finetuning_type full
    ok "interleaved" run stream_mix $steps --streaming --dataset questions,held_out --mix_strategy interleave_under --interleave_probs 0.7,0.3
    ok "interleaved, in two halves" run half_mix $steps --max_steps 3 --streaming --dataset questions,held_out --mix_strategy interleave_under --interleave_probs 0.7,0.3 --save_strategy steps --save_steps 3
    ok "the other half" run half_mix $steps --streaming --dataset questions,held_out --mix_strategy interleave_under --interleave_probs 0.7,0.3 --resume_from_checkpoint true
    ok "as in one go" same stream_mix half_mix
    gzip -c "$work/data/questions.json" >"$work/data/packed.json.gz"
    ok "a packed file in a stream" run stream_gz $steps --disable_shuffling true --streaming --dataset packed.json.gz
    ok "the same adapter" same order stream_gz
    ok "preview of a stream in order" cmp <("$QLORA" preview $data --cutoff_len 64 --streaming --disable_shuffling true) <("$QLORA" preview $data --cutoff_len 64 --disable_shuffling true)
    ok "preview of a stream: every sequence once" cmp <("$QLORA" preview $data --cutoff_len 64 --streaming | sort) <("$QLORA" preview $data --cutoff_len 64 | sort)
    refused "streaming without max_steps" 'Please specify `max_steps` in streaming mode.' train $common "$work/x" --streaming

    # ---- train_sampling_strategy: other names for flags ----
    ok "sequential" run sequential $steps --train_sampling_strategy sequential
    ok "the same adapter" same order sequential
    ok "by length" run by_length $steps --group_by_length
    ok "under its other name" run by_strategy $steps --train_sampling_strategy group_by_length
    ok "the same adapter" same by_length by_strategy
}

# ---- memory: 12 MiB of text are 50 MiB of sequences, of which 16 are in memory at a time ----
if grep -q __asan_init "$QLORA"; then skip "memory, under a sanitizer"; else
    mib=$(QLORA=$QLORA MODEL=$work/m WORK=$work/memory FLAGS="--data_memory 2MiB" bench/train_memory.sh 12 2>"$work/.log" | sed 's/.*"mib": \([0-9]*\),.*/\1/')
    ok "a run on a large file takes ${mib:-no figure} MiB more than one on 64 records" test "${mib:-1000}" -lt 36
fi
finish
