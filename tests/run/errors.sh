#!/usr/bin/env bash
# docs/ERRORS.md against the program: each command below must fail with the status and one sentence that the document has, and
# each sentence of the document, but for the groups that need a card or a broken machine, must be met by one of the commands.
# ERRORS_LIST=1: print what the program says instead, one line a command.
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
document=$PWD/docs/ERRORS.md
cd "$work" || exit 1
mkdir -p empty data2 && tiny_model_here() { (cd "$OLDPWD" && tiny_model); }

# ---- the document: the first cell of each row is a sentence in code quotes, "…" stands for what differs ----
sentences=() met=() patterns=()
while IFS= read -r line; do
    sentence=${line#| \`} sentence=${sentence%%\` |*}
    sentence=${sentence#\` } sentence=${sentence% \`} # doubled quotes, for a sentence that holds one
    sentence=${sentence//\\|/|}
    pattern=${sentence//\\/\\\\} pattern=${pattern//\*/\\*} pattern=${pattern//\?/\\?} pattern=${pattern//\[/\\[}
    sentences+=("$sentence") patterns+=("${pattern//…/*}") met+=(0)
done < <(sed '/^## .*(not provoked by the tests)/,/^## /d' "$document" | grep '^| `')

# fails STATUS ARGUMENT..: the program must exit so, with one line "error: .." that the document has
fails() {
    local wanted=$1 rc text i found=0
    shift
    "$QLORA" "$@" >.out 2>.err </dev/null
    rc=$?
    text=$(sed -n 's/^error: //p' .err)
    if [[ ${ERRORS_LIST-} ]]; then echo "$rc $text"; return; fi
    for i in "${!patterns[@]}"; do
        # shellcheck disable=SC2053
        [[ $text == *${patterns[i]}* ]] && met[i]=1 found=1
    done
    if [[ $rc == "$wanted" && $(grep -c '^error: ' .err) == 1 && $found == 1 ]]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED $*"
        echo "exit status $rc (wanted $wanted), $( ((found)) || echo "not in docs/ERRORS.md: ")$text"
    fi
}
# config KEY VALUE: a copy of the model's configuration in bad/ with another value
config() { mkdir -p bad && sed "s/\"$1\": [^,}]*/\"$1\": $2/" m/config.json >bad/config.json && cp m/tokenizer.model bad/; }
# data NAME ENTRY: a dataset_info.json in data2 with one data set
data() { printf '{"%s": %s}\n' "$1" "$2" >data2/dataset_info.json; }
# file PATH TEXT
file() { printf '%s\n' "$2" >"$1"; }

tiny_model_here
lora=${lora//$work\//}
"$QLORA" quantize --model_name_or_path m --output_dir m4 --quantization_bit 4 --quiet
# shellcheck disable=SC2086
"$QLORA" train $lora --output_dir a --max_steps 2 --quiet >/dev/null 2>&1
m=(--model_name_or_path m)
run=(train --do_train "${m[@]}" --template yuan --dataset_dir data --lora_target all --output_dir o --cutoff_len 64 --max_samples 16 --backend cpu)
on=("${run[@]}" --dataset questions)
own=("${run[@]}" --dataset_dir data2)

# ---- commands and flags ----
fails 2 trian
fails 2 help me
fails 2 train --lerning_rate 1
fails 2 train --zzzzzzzzz 1
fails 2 chat --cutoff_len 3
fails 2 train --lora 3
fails 2 train --lora_rank
fails 2 train --lora_rank eight
fails 2 train --learning_rate fast
fails 2 train --vram lots
fails 2 train --bf16 maybe
fails 2 train --finetuning_type loar
fails 2 train "—lora_rank" 8
fails 2 train --lora_rank "８"
fails 2 train loose
fails 2 train --=3
fails 2 train --no_double_quantization=true
fails 2 "${on[@]}" --pissa_init true
fails 2 "${on[@]}" --optim adamw_troch
fails 2 "${on[@]}" --backend cdua
fails 2 "${on[@]}" --use_cpu --backend cuda


# ---- flags that contradict each other, or need others ----
fails 2 train --dataset d
fails 2 train --model_name_or_path nowhere --dataset d
fails 2 train "${m[@]}" --output_dir o
fails 2 train "${m[@]}" --dataset questions --lora_target all
fails 2 train "${m[@]}" --dataset questions --output_dir o --compat old
fails 2 "${on[@]}" --template yaun
fails 2 "${on[@]}" --template llama2
fails 2 "${on[@]}" --report_to tensorbord
fails 2 "${on[@]}" --lora_target q_porj
fails 2 "${on[@]}" --quantization_bit 5
fails 2 "${on[@]}" --quantization_bit 4 --finetuning_type full
fails 2 "${on[@]}" --quantization_bit 4 --compat old --finetuning_type full
fails 2 "${on[@]}" --adapter_name_or_path a --finetuning_type full
fails 2 "${on[@]}" --adapter_name_or_path a,a --quantization_bit 4
fails 2 "${on[@]}" --adapter_name_or_path a --create_new_adapter --quantization_bit 4
fails 2 "${on[@]}" --adapter_name_or_path a --resume_from_checkpoint true
fails 2 "${on[@]}" --bf16 --fp16
fails 2 "${on[@]}" --sft_packing --packing true
fails 2 "${on[@]}" --train_on_prompt --mask_history
fails 2 "${on[@]}" --reserved_label_len 64
fails 2 "${on[@]}" --interleave_probs 0.5,0.5
fails 2 "${on[@]}" --streaming --max_steps -1
fails 2 "${on[@]}" --streaming --max_steps 3
fails 2 "${on[@]}" --streaming --max_steps 3 --tokenized_path rows
file plain x
fails 2 "${on[@]}" --tokenized_path plain
fails 2 "${on[@]}" --tokenized_path data
"$QLORA" "${on[@]}" --tokenized_path rows --quiet
fails 2 "${on[@]}" --tokenized_path rows --cutoff_len 32
fails 2 "${on[@]}" --tokenized_path rows --val_size 4
(cd "$OLDPWD" && "${TOOLS:-build/examples/demo}/make_tokenizer" "$work/tok2" 400 "$work/data/corpus.txt" >/dev/null) && cp tok2/tokenizer.model m4/
fails 2 "${on[@]}" --tokenized_path rows --model_name_or_path m4
cp m/tokenizer.model m4/
flow=(train --do_train "${m[@]}" --template yuan --dataset_dir data --lora_target all --output_dir o --backend cpu --dataset questions --streaming --max_steps 3)
fails 2 "${flow[@]}" --val_size 0.1
fails 2 "${flow[@]}" --group_by_length
fails 2 "${flow[@]}" --save_strategy epoch
fails 2 "${flow[@]}" --val_size 100000
fails 2 "${on[@]}" --train_sampling_strategy sequential --group_by_length
fails 2 "${run[@]}" --dataset questions,world --mix_strategy interleave_over --interleave_probs 0.5
fails 2 "${run[@]}" --dataset questions,world --mix_strategy interleave_over --interleave_probs 0.5,0.6
fails 2 "${run[@]}" --dataset questions,world --mix_strategy interleave_over --interleave_probs 0.5,x
fails 2 "${on[@]}" --val_size 0.1 --eval_dataset world
fails 2 "${on[@]}" --val_size 1
fails 2 "${on[@]}" --val_size 400
fails 2 "${on[@]}" --do_eval
fails 2 "${on[@]}" --early_stopping_steps 2
fails 2 "${on[@]}" --save_strategy best
fails 2 "${on[@]}" --val_size 4 --eval_on_each_dataset true
fails 2 "${on[@]}" --eval_dataset held_out --eval_on_each_dataset true --tokenized_path rows3
fails 2 "${on[@]}" --eval_dataset "held_out$(printf ',held_out%.0s' {1..16})" --eval_on_each_dataset true
fails 2 "${on[@]}" --val_size 4 --lr_scheduler_type reduce_lr_on_plateau
fails 2 "${on[@]}" --val_size 4 --metric_for_best_model bleu
fails 2 "${on[@]}" --val_size 4 --metric_for_best_model accuracy
fails 2 "${on[@]}" --val_size 4 --load_best_model_at_end --eval_strategy epoch
fails 2 "${on[@]}" --val_size 4 --load_best_model_at_end --eval_strategy steps --eval_steps 3 --save_steps 4
fails 2 "${on[@]}" --val_size 4 --predict_with_generate --compat old
fails 2 "${on[@]}" --finetuning_type full --loraplus_lr_ratio 16
fails 2 "${on[@]}" --pure_bf16 --fp16
fails 2 "${on[@]}" --finetuning_type freeze --freeze_trainable_modules mlps
fails 2 "${on[@]}" --finetuning_type freeze --freeze_extra_modules lm_head
fails 2 "${on[@]}" --finetuning_type freeze --freeze_trainable_layers 0
fails 2 export "${m[@]}"
fails 2 export "${m[@]}" --export_dir x --export_quantization_bit 3
fails 2 quantize "${m[@]}" --output_dir x
fails 2 quantize "${m[@]}" --output_dir x --quantization_bit 8 --lfa_bits 4
fails 2 bench --config yuan2-tiny --plot x.gif
fails 2 estimate --table --memory smallest
fails 2 estimate --table --quantization_bit 4
fails 2 bench --table guide --vram 6,8
fails 2 estimate
fails 2 tokenize "${m[@]}"
fails 2 tokenize "${m[@]}" --text a --ids 1
fails 2 tokenize "${m[@]}" --text a --decode
fails 2 chat "${m[@]}" --ids 1 --system a
fails 2 score "${m[@]}" --backend cpu
fails 2 chat "${m[@]}" --prompt a --ids 1 --backend cpu
fails 2 score "${m[@]}" --ids "1 99999" --backend cpu
fails 2 score "${m[@]}" --ids "1 x" --backend cpu

fails 2 "${on[@]}" --lr_scheduler_kwargs '{"power": 2}'
fails 2 "${on[@]}" --lr_scheduler_type cosine_with_min_lr

# ---- files of flags, DeepSpeed ----
fails 2 train none.yaml
file a.yaml 'lerning_rate: 1'
fails 2 train a.yaml
file a.yaml $'seed: 1\nseed: 2'
fails 2 train a.yaml
file a.yaml $'train:\n  seed: 1'
fails 2 train a.yaml
file a.yaml $'seed: &x 1'
fails 2 train a.yaml
file a.json '[1]'
fails 2 train a.json
file a.json '{"seed": [[1]]}'
fails 2 train a.json
file a.json '{"seed": 1,}'
fails 2 train a.json
file ds.json '{"amp": {"enabled": true}}'
fails 2 "${on[@]}" --deepspeed ds.json
file ds.json '{"zero_optimization": 2}'
fails 2 "${on[@]}" --deepspeed ds.json
file ds.json '{"zero_optimization": {"offload_optimizer": {"device": "disk"}}}'
fails 2 "${on[@]}" --deepspeed ds.json
file ds.json '{"train_batch_size": 7}'
fails 2 "${on[@]}" --deepspeed ds.json
file ds.json '{"optimizer": {"type": "Lion"}}'
fails 2 "${on[@]}" --deepspeed ds.json
file ds.json '{"scheduler": {"type": "OneCycle"}}'
fails 2 "${on[@]}" --deepspeed ds.json
fails 2 "${on[@]}" --deepspeed "ds_\${stage}.json"

# ---- data ----
fails 2 "${run[@]}" --dataset question
fails 2 "${run[@]}" --dataset zzzzzzzz
fails 2 "${run[@]}" --dataset nothing.json
fails 2 "${run[@]}" --dataset x --dataset_dir empty
file data2/a.json '[{"instruction": "a", "output": "b"}]'
data a '{"file_name": "a.json", "formating": "alpaca"}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "a.json", "formatting": "alpacca"}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "a.json", "columns": {"promt": "instruction"}}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "a.json", "columns": {"response": "output"}}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "a.json", "columns": {"prompt": "instruktion", "response": "output"}}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "gone.json"}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "../data/questions.json"}'
fails 2 "${own[@]}" --dataset a
data a '{"hf_hub_url": "somebody/something"}'
fails 2 "${own[@]}" --dataset a
data a '{"columns": {}}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "a.json", "ranking": true}'
fails 2 "${own[@]}" --dataset a
file data2/dataset_info.json '[]'
fails 2 "${own[@]}" --dataset a
file data2/dataset_info.json '{"a": {"file_name": "a.json",}}'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "a.json"}'
file data2/a.json '[{"instruction": "a", "output": "b"},, {}]'
fails 2 "${own[@]}" --dataset a
file data2/a.json '[]'
fails 2 "${own[@]}" --dataset data2/a.json
file data2/a.json '[{"a": 1}]'
fails 2 "${own[@]}" --dataset data2/a.json
data a '{"file_name": "a.json", "formatting": "sharegpt"}'
file data2/a.json '[{"conversations": [{"from": "gpt", "value": "b"}]}]'
fails 2 "${own[@]}" --dataset a
data a '{"file_name": "a.json"}'
file data2/a.json '[{"instruction": "a", "output": "b"}]'
fails 2 "${own[@]}" --dataset a --sft_packing
fails 2 "${own[@]}" --dataset a --per_device_train_batch_size 4 --dataloader_drop_last
file data2/a.txt 'plain text'
fails 2 "${own[@]}" --dataset data2/a.txt
gzip -c data/questions.json >data2/a.json.gz
head -c 1000 data2/a.json.gz >data2/b.json.gz && fails 2 "${own[@]}" --dataset data2/b.json.gz
# Damage at the end is met by a run that reads as far.
{ head -c -8 data2/a.json.gz; printf 12345678; } >data2/c.json.gz && fails 2 "${own[@]}" --max_samples 1000 --dataset data2/c.json.gz
{ cat data2/a.json.gz; echo more; } >data2/d.json.gz && fails 2 "${own[@]}" --max_samples 1000 --dataset data2/d.json.gz
file data2/a.parquet 'PAR1'
data a '{"file_name": "a.parquet"}'
fails 2 "${own[@]}" --dataset a

# ---- models, tokenizers, adapters ----
empty=(--model_name_or_path empty)
bad=(score --model_name_or_path bad --text a --backend cpu)
fails 2 score "${empty[@]}" --text a --backend cpu
fails 2 tokenize "${empty[@]}" --text a
config model_type '"llama"'
fails 2 "${bad[@]}"
config hidden_size 63
fails 2 "${bad[@]}"
config vocab_size 10
fails 2 "${bad[@]}"
config hidden_size '"many"'
fails 2 "${bad[@]}"
config hidden_size 128
cp m/model.safetensors bad/
fails 2 "${bad[@]}"
config hidden_size 64
rm bad/model.safetensors
fails 2 "${bad[@]}"
head -c 1000 m/model.safetensors >bad/model.safetensors
fails 2 "${bad[@]}"
file bad/model.safetensors 'version https://git-lfs.github.com/spec/v1'
fails 2 "${bad[@]}"
cp m/model.safetensors bad/
head -c 100 m/tokenizer.model >bad/tokenizer.model
fails 2 "${bad[@]}"
file bad/config.json 'not JSON'
fails 2 "${bad[@]}"
fails 2 "${on[@]}" --model_name_or_path m4 --quantization_bit 8
fails 2 "${on[@]}" --model_name_or_path m4 --finetuning_type full
fails 2 "${on[@]}" --model_name_or_path m4 --adapter_name_or_path a,a
fails 2 score "${m[@]}" --adapter_name_or_path empty --text a --backend cpu
adapter=(score "${m[@]}" --adapter_name_or_path b --text a --backend cpu)
cp -r a b
sed -i 's/"r": [0-9]*/"r": 7/' b/adapter_config.json
fails 2 "${adapter[@]}"
sed 's/"bias": "none"/"bias": "all"/' a/adapter_config.json >b/adapter_config.json
fails 2 "${adapter[@]}"
sed 's/"LORA"/"IA3"/' a/adapter_config.json >b/adapter_config.json
fails 2 "${adapter[@]}"
sed 's/"q_proj"/"qkv_proj"/' a/adapter_config.json >b/adapter_config.json
fails 2 "${adapter[@]}"
fails 2 new --config yuan2-3b --output_dir n
fails 2 new --config yuan2-tiny --output_dir n --override hiden_size=3
fails 2 new --config yuan2-tiny --output_dir n --override hidden_size

# ---- folders and machines ----
fails 2 "${on[@]}" --output_dir a
fails 2 quantize "${m[@]}" --output_dir m --quantization_bit 4
fails 2 quantize "${m[@]}" --output_dir m4 --quantization_bit 4
"$QLORA" quantize "${m[@]}" --output_dir m4f --quantization_bit 4 --lfa_bits 4 --quiet 2>.setup || { cat .setup; failed=$((failed + 1)); }
fails 2 export --model_name_or_path m4f --export_dir x
fails 1 "${on[@]}" --vram 1MiB
fails 2 "${on[@]}" --output_dir o2 --resume_from_checkpoint o2/checkpoint-7
file taken x
fails 2 "${on[@]}" --output_dir taken/o
mkdir -p alone && cp "$QLORA" alone/qlora # a program without a plugin beside it
with=$QLORA QLORA=$PWD/alone/qlora
fails 1 "${on[@]}" --backend cuda
QLORA=$with
cp -r a/checkpoint-2 torn 2>/dev/null && rm -f torn/MANIFEST torn/*anifest*
fails 2 "${on[@]}" --output_dir o3 --resume_from_checkpoint torn

[[ ${ERRORS_LIST-} ]] && exit
for i in "${!met[@]}"; do ok "met: ${sentences[i]}" test "${met[i]}" = 1; done
ok "at least 60 sentences" test "${#sentences[@]}" -ge 60
finish
