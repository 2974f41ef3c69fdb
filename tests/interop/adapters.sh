#!/usr/bin/env bash
# tests/interop/adapters.sh OUT - a small model in fp32 and adapters of every kind on it, with what `qlora score` says of them:
# input of tests/interop/peft_adapters.py. Some are merged into checkpoints of each type as well. Needs ./qlora and the demo's tools.
set -eu
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=2
out=$1 tools=build/examples/demo
mkdir -p "$out"
"$tools/make_data" "$out/data" >/dev/null
"$tools/make_tokenizer" "$out/tok" 1000 "$out/data/corpus.txt" >/dev/null 2>&1
ids=$(printf '{"text":"<empty_output>"}\n{"text":"<eod>"}\n' | ./qlora tokenize --model_name_or_path "$out/tok" --file - --quiet | tr -dc '0-9\n')
last=${ids%%$'\n'*} eod=${ids##*$'\n'}
for tied in true false; do
    ./qlora new --config yuan2-tiny --tokenizer "$out/tok" --output_dir "$out/tied-$tied" --quiet --override hidden_size=128 --override num_hidden_layers=2 --override torch_dtype=float32 \
        --override num_attention_heads=4 --override intermediate_size=384 --override tie_word_embeddings=$tied --override vocab_size=$((last + 1)) --override eod_token="$eod" --override pad_token_id="$eod"
done
awk -v n="$last" 'BEGIN { srand(3); for (r = 0; r < 4; r++) { printf "{\"ids\": ["; for (i = 0; i < 40 + r; i++) printf "%s%d", i ? ", " : "", 300 + int(rand() * (n - 300)); print "]}" } }' >"$out/ids.jsonl"
train() { # NAME MODEL FLAGS..
    local name=$1 model=$2
    shift 2
    ./qlora train --do_train --stage sft --template yuan --model_name_or_path "$out/$model" --dataset_dir "$out/data" --dataset questions --lora_target all --lora_rank 8 --max_samples 64 \
        --cutoff_len 64 --output_dir "$out/$name" --overwrite_output_dir --per_device_train_batch_size 8 --num_train_epochs 2 --learning_rate 1e-2 --save_strategy no --quiet "$@" >/dev/null
    ./qlora score --model_name_or_path "$out/$model" --adapter_name_or_path "$out/$name" --file "$out/ids.jsonl" --quiet >"$out/$name.jsonl"
    echo "$name $model" >>"$out/cases"
}
# merged NAME MODEL: the adapter merged into the model, written in three types and scored
merged() {
    local type to
    for type in fp32 bf16 fp16; do
        to=merged-$1-$type
        ./qlora export --model_name_or_path "$out/$2" --adapter_name_or_path "$out/$1" --export_dir "$out/$to" --export_dtype $type --export_size 0.001 --quiet
        ./qlora score --model_name_or_path "$out/$to" --file "$out/ids.jsonl" --quiet >"$out/$to.jsonl"
        echo "$to $1 $2" >>"$out/merged"
    done
}
: >"$out/cases"
: >"$out/merged"
train lora tied-true
train rslora tied-true --use_rslora true
train dora tied-true --use_dora true
train dora-some tied-true --use_dora true --use_rslora true --lora_target q_proj,v_proj,down_proj --lora_dropout 0.1
train dora-start tied-true --use_dora true --learning_rate 0
train whole-head tied-true --additional_target embed_tokens,lm_head,norm
train whole-embed tied-true --additional_target embed_tokens --use_dora true
train whole-untied tied-false --additional_target embed_tokens,lm_head
for name in lora rslora dora dora-some whole-head; do merged $name tied-true; done
merged whole-untied tied-false
