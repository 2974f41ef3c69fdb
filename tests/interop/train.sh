#!/usr/bin/env bash
# tests/interop/train.sh DATA TOKENIZER PROGRAM [BACKEND] - 100 steps of QLoRA on a model of 6 layers, here and with transformers,
# bitsandbytes and PEFT: tests/interop/train_bnb.py compares the losses. DATA: JSON lines of 513 input_ids, at least 800.
set -eu
here=$(cd "$(dirname "$0")" && pwd) data=$1 tokenizer=$2 program=$3 backend=${4:-cuda} micro=4 accumulate=2 rate=1e-3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$program" new --config yuan2-2b --tokenizer "$tokenizer" --output_dir "$work/model" --quiet --override hidden_size=1024 --override num_hidden_layers=6 \
    --override num_attention_heads=16 --override intermediate_size=4096
head -n 800 "$data" >"$work/data.jsonl"
run() { # OUT FLAGS..
    local out=$1
    shift
    "$program" train --do_train --stage sft --template yuan --finetuning_type lora --lora_target all --lora_rank 16 --lora_alpha 32 --quantization_bit 4 \
        --model_name_or_path "$work/model" --dataset "$work/data.jsonl" --cutoff_len 513 --disable_shuffling true --per_device_train_batch_size $micro \
        --gradient_accumulation_steps $accumulate --num_train_epochs 1 --lr_scheduler_type constant --max_grad_norm 0.5 --logging_steps 1 \
        --save_strategy no --bf16 --backend "$backend" --output_dir "$out" --quiet "$@" >/dev/null
}
run "$work/start" --learning_rate 0 --max_steps 1 # the adapter as it starts
run "$work/ours" --learning_rate $rate
python3 "$here/train_bnb.py" "$work/model" "$work/start" "$work/data.jsonl" "$work/ours/trainer_log.jsonl" $micro $accumulate $rate
