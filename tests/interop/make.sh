#!/usr/bin/env bash
# tests/interop/make.sh OUT - a small trained model, its NF4, FP4 and int8 checkpoints and an adapter, with what
# `qlora score` says of them: input of tests/interop/peft_bnb.py. Needs ./qlora and the demo's tools.
set -eu
cd "$(dirname "$0")/../.."
out=$1 tools=build/examples/demo
mkdir -p "$out"
"$tools/make_data" "$out/data" >/dev/null
"$tools/make_tokenizer" "$out/tok" 1000 "$out/data/corpus.txt" >/dev/null 2>&1
ids=$(printf '{"text":"<empty_output>"}\n{"text":"<eod>"}\n' | ./qlora tokenize --model_name_or_path "$out/tok" --file - --quiet | tr -dc '0-9\n')
last=${ids%%$'\n'*} eod=${ids##*$'\n'}
./qlora new --config yuan2-tiny --tokenizer "$out/tok" --output_dir "$out/random" --quiet --override hidden_size=256 --override num_hidden_layers=4 \
    --override num_attention_heads=4 --override intermediate_size=768 --override vocab_size=$((last + 1)) --override eod_token="$eod" --override pad_token_id="$eod"
# Trained a little, so that probabilities are far from uniform.
./qlora train --do_train --finetuning_type full --stage sft --template yuan --model_name_or_path "$out/random" --dataset_dir "$out/data" --dataset questions \
    --max_samples 400 --cutoff_len 96 --output_dir "$out/bf16" --per_device_train_batch_size 16 --num_train_epochs 2 --learning_rate 2e-3 --save_strategy no --quiet >/dev/null
./qlora train --do_train --stage sft --template yuan --model_name_or_path "$out/bf16" --dataset_dir "$out/data" --dataset questions --lora_target all --lora_rank 8 \
    --quantization_bit 4 --max_samples 200 --cutoff_len 96 --output_dir "$out/adapter" --per_device_train_batch_size 16 --num_train_epochs 2 --learning_rate 5e-3 --save_strategy no --quiet >/dev/null
./qlora quantize --model_name_or_path "$out/bf16" --output_dir "$out/nf4" --quantization_bit 4 --quiet
./qlora quantize --model_name_or_path "$out/bf16" --output_dir "$out/nf4-single" --quantization_bit 4 --double_quantization false --quiet
./qlora quantize --model_name_or_path "$out/bf16" --output_dir "$out/fp4" --quantization_bit 4 --quantization_type fp4 --quiet
./qlora quantize --model_name_or_path "$out/bf16" --output_dir "$out/int8" --quantization_bit 8 --quiet
awk -v n="$last" 'BEGIN { srand(3); for (r = 0; r < 8; r++) { printf "{\"ids\": ["; for (i = 0; i < 40 + r; i++) printf "%s%d", i ? ", " : "", 300 + int(rand() * (n - 300)); print "]}" } }' >"$out/ids.jsonl"
printf '[' >"$out/cases.json"
first=1
for model in bf16 nf4 nf4-single fp4 int8; do
    for adapter in "" adapter; do
        ./qlora score --model_name_or_path "$out/$model" ${adapter:+--adapter_name_or_path "$out/$adapter"} --file "$out/ids.jsonl" --quiet >"$out/$model-${adapter:-none}.jsonl"
        ((first)) || printf ',' >>"$out/cases.json"
        first=0
        printf '\n {"model": "%s", "adapter": %s, "expected": "%s"}' "$model" "$([[ $adapter ]] && echo '"adapter"' || echo null)" "$model-${adapter:-none}.jsonl" >>"$out/cases.json"
    done
done
# What is merged here against what PEFT adds there, and the merged files themselves.
./qlora export --model_name_or_path "$out/bf16" --adapter_name_or_path "$out/adapter" --export_dir "$out/merged" --export_size 0.002 --quiet
./qlora export --model_name_or_path "$out/bf16" --adapter_name_or_path "$out/adapter" --export_dir "$out/merged-nf4" --export_quantization_bit 4 --quiet
for model in merged merged-nf4; do
    ./qlora score --model_name_or_path "$out/$model" --file "$out/ids.jsonl" --quiet >"$out/$model-none.jsonl"
    printf ',\n {"model": "%s", "adapter": null, "expected": "%s"}' "$model" "$model-none.jsonl" >>"$out/cases.json"
done
printf ',\n {"model": "bf16", "adapter": "adapter", "expected": "merged-none.jsonl"}' >>"$out/cases.json"
printf '\n]\n' >>"$out/cases.json"
rm -rf "$out/random" "$out/data"
