#!/bin/sh
# examples/demo/run.sh - the whole way on an ordinary computer, with nothing but what the repository holds: data and a
# tokenizer are made, a small Yuan 2.0 model learns a made-up world, its weights become NF4, an adapter teaches it to
# answer questions, and questions about creatures that the adapter never met are counted before and after.
# `make demo` builds what is needed and runs this. WORK is where everything goes.
set -eu
qlora=${QLORA:-./qlora}
tools=${TOOLS:-build/examples/demo}
work=${WORK:-build/demo}
began=$(date +%s)

heading() { printf '\n=== %s\n' "$1"; }
# Shows a command line, as it may be typed, and runs it.
run() {
    printf '$'
    for word in "$@"; do
        case $word in *[!A-Za-z0-9_./=,:-]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    echo
    "$@"
}
# The id of a special token.
token() { printf '{"text":"%s"}\n' "$1" | "$qlora" tokenize --model_name_or_path "$work/tokenizer" --file - | sed 's/[^0-9]//g'; }
# Answers to the held-out questions, greedy; the arguments choose model and adapter.
ask() { "$qlora" chat "$@" --file "$work/data/prompts.jsonl" --json --do_sample false --max_new_tokens 16 --quiet; }

rm -rf "$work"
mkdir -p "$work"

heading "1. A world: sentences about 60 creatures, questions about 40 of them, and about the other 20"
run "$tools/make_data" "$work/data"
sed -n '2,3p' "$work/data/world.json"
sed -n '2,3p' "$work/data/questions.json"

heading "2. A tokenizer and a model with random weights"
run "$tools/make_tokenizer" "$work/tokenizer" 2000 "$work/data/corpus.txt"
eod=$(token "<eod>")
last=$(token "<empty_output>")
run "$qlora" new --config yuan2-tiny --tokenizer "$work/tokenizer" --output_dir "$work/random" --dtype fp32 \
    --override hidden_size=128 --override num_hidden_layers=4 --override num_attention_heads=4 \
    --override intermediate_size=384 --override vocab_size=$((last + 1)) --override eod_token="$eod" \
    --override pad_token_id="$eod" --override eos_token_id="$eod" --override initializer_range=0.06

heading "3. The model learns the world (all weights are trained)"
run "$qlora" train --do_train --stage sft --finetuning_type full --template yuan \
    --model_name_or_path "$work/random" --dataset_dir "$work/data" --dataset world \
    --output_dir "$work/base" --per_device_train_batch_size 32 --num_train_epochs 12 \
    --learning_rate 1e-3 --lr_scheduler_type cosine --warmup_ratio 0.03 --logging_steps 90 --save_strategy no --plot_loss

heading "4. Its weights become NF4"
run "$qlora" quantize --model_name_or_path "$work/base" --quantization_bit 4 --output_dir "$work/base-nf4"

heading "5. Questions about creatures that the adapter will not meet, before"
ask --model_name_or_path "$work/base-nf4" >"$work/before.jsonl"
before=$("$tools/grade" "$work/data/held_out.json" "$work/before.jsonl")
printf '%s\n' "$before"

heading "6. QLoRA: an adapter over the NF4 weights learns to answer"
run "$qlora" train --do_train --stage sft --finetuning_type lora --quantization_bit 4 --template yuan \
    --model_name_or_path "$work/base-nf4" --dataset_dir "$work/data" --dataset questions \
    --lora_target all --lora_rank 32 --lora_alpha 64 --output_dir "$work/adapter" \
    --per_device_train_batch_size 16 --num_train_epochs 20 --learning_rate 2e-3 --lr_scheduler_type cosine \
    --warmup_ratio 0.03 --logging_steps 100 --save_strategy no --plot_loss

heading "7. The same questions, after"
ask --model_name_or_path "$work/base-nf4" --adapter_name_or_path "$work/adapter" >"$work/after.jsonl"
after=$("$tools/grade" "$work/data/held_out.json" "$work/after.jsonl")
printf '%s          (before: %s)\n' "$after" "${before##*right: }"

heading "8. Talk to it"
question=$(sed -n '1s/^{"prompt": "\(.*\)"}$/\1/p' "$work/data/prompts.jsonl")
run "$qlora" chat --model_name_or_path "$work/base-nf4" --adapter_name_or_path "$work/adapter" --do_sample false \
    --prompt "$question"

printf '\nDone in %d seconds. Everything is in %s: adapter/ loads in PEFT and LLaMA-Factory as well;\n' \
    $(($(date +%s) - began)) "$work"
printf 'adapter/training_loss.png is the picture of step 6. Talk on: %s chat --model_name_or_path %s --adapter_name_or_path %s\n' \
    "$qlora" "$work/base-nf4" "$work/adapter"
