#!/usr/bin/env bash
# qlora export and several adapters: two are trained, merged, stacked, switched in chat and trained on; what is merged scores
# as what stands beside the weights; signals leave nothing; what cannot be done is refused.
. "$(dirname "$0")/check.bash"
tools=${TOOLS:-build/examples/demo}
export OMP_NUM_THREADS=2
"$tools/make_data" "$work/data" >"$work/.log" && "$tools/make_tokenizer" "$work/tok" 600 "$work/data/corpus.txt" >>"$work/.log" 2>&1 ||
    { cat "$work/.log"; failed=1; finish; }
ids=$(printf '{"text":"<empty_output>"}\n{"text":"<eod>"}\n' | "$QLORA" tokenize --model_name_or_path "$work/tok" --file - --quiet | tr -dc '0-9\n')
last=${ids%%$'\n'*} eod=${ids##*$'\n'} m=$work/m
"$QLORA" new --config yuan2-tiny --tokenizer "$work/tok" --output_dir "$m" --override vocab_size=$((last + 1)) \
    --override eod_token="$eod" --override pad_token_id="$eod" --override initializer_range=0.06 --dtype fp32 --quiet
printf '{"tokenizer_class": "YuanTokenizer"}' >"$m/tokenizer_config.json"
base="--do_train --stage sft --template yuan --dataset_dir $work/data --dataset questions --lora_target all --lora_rank 4
    --max_samples 64 --cutoff_len 64 --per_device_train_batch_size 4 --num_train_epochs 3 --learning_rate 1e-2 --quiet --save_strategy no --logging_steps 4"
# shellcheck disable=SC2086
train() { local out=$1; shift; "$QLORA" train $base --output_dir "$work/$out" "$@" >"$work/$out.log" 2>&1; }
export_() { "$QLORA" export --template yuan --quiet "$@"; }
loss() { "$QLORA" score --text "What does it eat? It eats bread and honey." --quiet "$@" | sed 's/.*"loss":\([0-9.]*\).*/\1/'; }
near() { awk "BEGIN {d = $1 - $2; exit !(d < $3 && -d < $3)}"; }
differs() { ! near "$@"; }

ok "an adapter" train a --model_name_or_path "$m"
ok "another, with LoRA+" train b --model_name_or_path "$m" --lora_rank 2 --loraplus_lr_ratio 4 --learning_rate 3e-3 --use_rslora --seed 7
ok "LoRA+ with ratio 1 is LoRA" train a1 --model_name_or_path "$m" --loraplus_lr_ratio 1
ok "to the bit" cmp "$work/a/adapter_model.safetensors" "$work/a1/adapter_model.safetensors"
both=$work/a,$work/b

# merging; fp32 rounding alone lies between merged and beside the weights
ok "merge" export_ --model_name_or_path "$m" --adapter_name_or_path "$work/a" --export_dir "$work/ma" --export_device cpu
ok "merged scores as base and adapter" near "$(loss --model_name_or_path "$work/ma")" "$(loss --model_name_or_path "$m" --adapter_name_or_path "$work/a")" 2e-5
ok "and not as the base" differs "$(loss --model_name_or_path "$work/ma")" "$(loss --model_name_or_path "$m")" 1e-2
ok "merge two" export_ --model_name_or_path "$m" --adapter_name_or_path "$both" --export_dir "$work/mab"
ok "two merged score as two beside the weights" near "$(loss --model_name_or_path "$work/mab")" "$(loss --model_name_or_path "$m" --adapter_name_or_path "$both")" 2e-5
ok "merged one by one" export_ --model_name_or_path "$work/ma" --adapter_name_or_path "$work/b" --export_dir "$work/ma_b"
ok "is the same model" near "$(loss --model_name_or_path "$work/ma_b")" "$(loss --model_name_or_path "$work/mab")" 2e-5
for f in config.json tokenizer.model README.md model.safetensors chat_template.jinja; do ok "$f is there" test -s "$work/ma/$f"; done
ok "the card names the adapters" grep -qF "| $work/b | 2 |" "$work/mab/README.md"
ok "nothing else" test "$(find "$work/ma" -name '.tmp*' | wc -l)" = 0

# types, shards, 4 and 8 bits
ok "to bf16, in shards" export_ --model_name_or_path "$work/ma" --export_dir "$work/ma16" --export_dtype bf16 --export_size 0.0001
ok "several" test "$(find "$work/ma16" -name 'model-*.safetensors' | wc -l)" -gt 2
ok "an index" grep -q '"weight_map"' "$work/ma16/model.safetensors.index.json"
ok "config.json says bfloat16" grep -q '"torch_dtype": "bfloat16"' "$work/ma16/config.json"
ok "bf16 scores like fp32" near "$(loss --model_name_or_path "$work/ma16")" "$(loss --model_name_or_path "$work/ma")" 0.02
ok "joined again" export_ --model_name_or_path "$work/ma16" --export_dir "$work/one"
ok "merged straight to bf16" export_ --model_name_or_path "$m" --adapter_name_or_path "$work/a" --export_dir "$work/direct" --infer_dtype bfloat16
ok "is the same file: rounded once" cmp "$work/one/model.safetensors" "$work/direct/model.safetensors"
for bits in 4 8; do
    ok "merged to $bits bits" export_ --model_name_or_path "$m" --adapter_name_or_path "$work/a" --export_dtype bf16 --export_dir "$work/q$bits" --export_quantization_bit $bits
    ok "or quantised afterwards" "$QLORA" quantize --model_name_or_path "$work/direct" --output_dir "$work/r$bits" --quantization_bit $bits --quiet
    ok "the same file" cmp "$work/q$bits/model.safetensors" "$work/r$bits/model.safetensors"
    ok "the same config.json" cmp "$work/q$bits/config.json" "$work/r$bits/config.json"
done
said() { "$QLORA" export --model_name_or_path "$work/q4" --adapter_name_or_path "$work/b" --export_dir "$work/dq" 2>&1 | grep -c 'stored in 4 bits: its weights are decoded first'; }
ok "one line says that a 4-bit base is decoded" test "$(said)" = 1
ok "no quantization_config is left" test "$(grep -c quantization_config "$work/dq/config.json")" = 0
ok "and the adapter is in" near "$(loss --model_name_or_path "$work/dq")" "$(loss --model_name_or_path "$work/q4" --adapter_name_or_path "$work/b")" 0.02
printf 'model_name_or_path: %s\nadapter_name_or_path: %s\ntemplate: yuan\ntrust_remote_code: true\nexport_dir: %s\nexport_size: 5\nexport_device: cpu  # choices: [cpu, auto]\nexport_legacy_format: false\n' \
    "$m" "$work/a" "$work/y" >"$work/merge.yaml"
ok "from a file of flags" "$QLORA" export "$work/merge.yaml" --quiet
ok "the old script, the old names" "$QLORA" src/export_model.py --model_name_or_path "$m" --checkpoint_dir "$work/a" --finetuning_type lora --output_dir "$work/o" --quiet
ok "the same file" cmp "$work/y/model.safetensors" "$work/o/model.safetensors"

# training on top of adapters
ok "train: the first is merged, the last goes on" train c --model_name_or_path "$m" --adapter_name_or_path "$both" --lora_rank 2 --use_rslora
ok "the same from the merged model" train c1 --model_name_or_path "$work/ma" --adapter_name_or_path "$work/b" --lora_rank 2 --use_rslora
ok "to the bit" cmp "$work/c/adapter_model.safetensors" "$work/c1/adapter_model.safetensors"
ok "a new adapter on both" train d --model_name_or_path "$m" --adapter_name_or_path "$both" --create_new_adapter
ok "the same from the merged model" train d1 --model_name_or_path "$work/mab"
ok "starts where they stand" near "$(sed -n '1s/.*"loss": \([0-9.]*\).*/\1/p' "$work/d/trainer_log.jsonl")" "$(sed -n '1s/.*"loss": \([0-9.]*\).*/\1/p' "$work/d1/trainer_log.jsonl")" 1e-4
ok "interrupted" train r --model_name_or_path "$m" --adapter_name_or_path "$both" --save_strategy steps --save_steps 8 --max_steps 16
mv "$work/r" "$work/whole" && mkdir "$work/r" && cp -r "$work/whole/checkpoint-8" "$work/r/"
ok "and resumed" train r --model_name_or_path "$m" --adapter_name_or_path "$both" --resume_from_checkpoint true --save_strategy steps --save_steps 8 --max_steps 16
ok "to the bit" cmp "$work/r/adapter_model.safetensors" "$work/whole/adapter_model.safetensors"

# NEFTune: noise that is there in training only, and the same in a run that was resumed
ok "with noise" train n --model_name_or_path "$m" --neftune_noise_alpha 5 --save_strategy steps --save_steps 8 --max_steps 16
ok "is another adapter" test "$(cmp "$work/n/adapter_model.safetensors" "$work/whole/adapter_model.safetensors" | wc -l)" = 1
ok "of no noise is none" train n0 --model_name_or_path "$m" --neftune_noise_alpha 0
ok "to the bit" cmp "$work/n0/adapter_model.safetensors" "$work/a/adapter_model.safetensors"
mkdir "$work/nr" && cp -r "$work/n/checkpoint-8" "$work/nr/"
ok "resumed" train nr --model_name_or_path "$m" --neftune_noise_alpha 5 --save_strategy steps --save_steps 8 --max_steps 16
ok "to the bit" cmp "$work/nr/adapter_model.safetensors" "$work/n/adapter_model.safetensors"

# chat: adapters are switched while it runs
question=$(sed -n '1s/^{"prompt": "\(.*\)"}$/\1/p' "$work/data/prompts.jsonl")
talk() { local file=(); [[ ${1-} == *.yaml ]] && file=("$1") && shift; "$QLORA" chat "${file[@]}" --do_sample false --max_new_tokens 12 --quiet "$@" 2>"$work/talk.err"; }
asked() { printf '%s\n' "$question" | talk --model_name_or_path "$m" "$@"; }
switched() { printf '%b\n%s\n' "$1" "$question" | talk --model_name_or_path "$m" --adapter_name_or_path "$both"; }
plain=$(asked) with_a=$(asked --adapter_name_or_path "$work/a") with_b=$(asked --adapter_name_or_path "$work/b") with_both=$(asked --adapter_name_or_path "$both")
ok "adapters change the answer" test "$(printf "%q\n" "$plain" "$with_a" "$with_b" "$with_both" | sort -u | wc -l)" = 4
ok "/adapter by its name" test "$(switched '/adapter a')" = "$with_a"
ok "/adapter by its folder" test "$(switched "/adapter $work/b")" = "$with_b"
ok "/adapter none" test "$(switched '/adapter none')" = "$plain"
ok "/adapter a,b" test "$(switched '/adapter none\n/adapter a,b')" = "$with_both"
ok "an unknown one changes nothing" test "$(switched '/adapter zzz')" = "$with_both"
ok "and is said" grep -q '"zzz" is neither the name of an adapter' "$work/talk.err"
ok "/adapter lists" test "$(printf '/adapter\n' | talk --model_name_or_path "$m" --adapter_name_or_path "$work/a" && grep -c "In force: $work/a" "$work/talk.err")" = 1
twice=$(printf 'Hello\n/clear\n%s\n' "$question" | talk --model_name_or_path "$m" | tail -n 1)
ok "/clear forgets" test "$twice" = "$plain"
back=$(printf '%s\n/adapter none\n/adapter a\nWhat?\n' "$question" | talk --model_name_or_path "$m" --adapter_name_or_path "$work/a" | tail -n 1)
stay=$(printf '%s\nWhat?\n' "$question" | talk --model_name_or_path "$m" --adapter_name_or_path "$work/a" | tail -n 1)
ok "the conversation goes on when adapters change" test "$back" = "$stay" -a -n "$back"
system=$(printf '/system You are a bear.\n%s\n' "$question" | talk --model_name_or_path "$m" --adapter_name_or_path "$work/a")
ok "/system is --system" test "$system" = "$(asked --adapter_name_or_path "$work/a" --system 'You are a bear.')"
printf 'Hello\n/history\n/help\n/exit\nnot sent\n' | talk --model_name_or_path "$m" >"$work/talk.out"
ok "/history" grep -q "User: Hello$" "$work/talk.err"
ok "/help" grep -q '/system TEXT' "$work/talk.err"
ok "/exit" test "$(wc -l <"$work/talk.out")" = 1
ok "a wrong command" test "$(printf '/histroy\n' | talk --model_name_or_path "$m"; grep -c 'did you mean /history?' "$work/talk.err")" = 1
ok "// sends a slash" test "$(printf '//exit\n' | talk --model_name_or_path "$m" | wc -l)" = 1

printf 'model_name_or_path: %s\nadapter_name_or_path: %s\ntemplate: yuan\ninfer_backend: huggingface\ntrust_remote_code: true\n' "$m" "$work/a" >"$work/chat.yaml"
ok "from a file of flags" test "$(printf '%s\n' "$question" | talk "$work/chat.yaml")" = "$with_a"
ok "the old script" test "$(printf '%s\n' "$question" | "$QLORA" src/cli_demo.py --model_name_or_path "$m" --checkpoint_dir "$work/a" --template yuan --do_sample false --max_new_tokens 12 2>"$work/talk.err")" = "$with_a"

# refusals
refused "no export_dir" 'Please specify export_dir to save model.' export --model_name_or_path "$m"
refused "a folder that holds something" 'already holds' export --model_name_or_path "$m" --export_dir "$work/ma"
ok "unless asked" export_ --model_name_or_path "$m" --export_dir "$work/ma" --overwrite_output_dir
ok "and it is the base again" test "$(loss --model_name_or_path "$work/ma")" = "$(loss --model_name_or_path "$m")"
refused "onto the model" 'folder of the input' export --model_name_or_path "$m" --export_dir "$m" --overwrite_output_dir
refused "onto the adapter" 'folder of the input' export --model_name_or_path "$m" --adapter_name_or_path "$work/a" --export_dir "$work/a" --overwrite_output_dir
refused "an adapter that is none" adapter_config.json export --model_name_or_path "$m" --adapter_name_or_path "$work/data" --export_dir "$work/x"
refused "torch files" 'read but not written' export --model_name_or_path "$m" --export_dir "$work/x" --export_legacy_format true
refused "3 bits" '4-bit or 8-bit' export --model_name_or_path "$m" --export_dir "$work/x" --export_quantization_bit 3
refused "several adapters over 4 bits" 'Merge them first.' train --model_name_or_path "$work/q4" --dataset_dir "$work/data" --dataset questions --lora_target all --template yuan --adapter_name_or_path "$both" --output_dir "$work/x" --quiet --backend cpu
ok "refusals leave nothing" test ! -e "$work/x/model.safetensors"

# A larger model, stopped by a signal at several moments: exit 128 + signal, and no file is left.
ok "a larger model" "$QLORA" new --config yuan2-tiny --output_dir "$work/big" --override hidden_size=768 --override num_attention_heads=8 --override intermediate_size=3072 --quiet
stopped() { # SIGNAL DELAY
    rm -rf "$work/s"
    "$QLORA" export --quiet --model_name_or_path "$work/big" --export_dir "$work/s" --export_dtype fp16 2>"$work/err" &
    local pid=$! rc
    sleep "$2"
    kill -s "$1" $pid 2>/dev/null
    wait $pid
    rc=$?
    [[ $rc == 0 && -f $work/s/config.json ]] || [[ ($rc == 130 || $rc == 143) && -z $(find "$work/s" -mindepth 1 2>/dev/null) ]]
}
for delay in 0.02 0.05 0.1 0.2 0.4; do
    ok "TERM after $delay s" stopped TERM $delay
done
ok "no room on the disk" test "$(QLORA_FAULT=w:1:ENOSPC "$QLORA" export --model_name_or_path "$m" --export_dir "$work/full" --quiet 2>&1 | grep -c '^error: ')" = 1
ok "leaves nothing" test ! -e "$work/full"
finish
