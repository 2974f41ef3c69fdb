#!/usr/bin/env bash
# Every command line of the guide, as it is typed but for its launcher, on a small model: the files of examples/, the lines with
# the script's name in front, oddities of pasted text, files of flags. Each must train and leave what the guide promises.
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
examples=$PWD/examples
tiny_model
# The guide's data sets, all of the demo's questions, and enough of them that 16 workers each fill blocks of 1024 tokens.
cd "$work" || exit 1
{
    echo '['
    for i in 1 2 3 4 5 6 7; do
        ((i > 1)) && echo ,
        sed '1d;$d' data/questions.json
    done
    echo ']'
} >data/many.json
sed -i 's/^{$/{"alpaca_zh": {"file_name": "many.json"}, "alpaca_en": {"file_name": "questions.json"}, "identity": {"file_name": "questions.json"},/' data/dataset_info.json
mkdir -p path/to && ln -s ../../m path/to/yuan2-2b
export QLORA MODEL=path/to/yuan2-2b DATASET_DIR=data
short="--num_train_epochs 0.3 --logging_steps 1" # the flags of a user win over those of a file

# leaves DIR FILE..: the run's results
leaves() {
    local dir=$1 f
    shift
    for f in "$@"; do [[ -s $dir/$f ]] || { echo "$dir/$f is missing"; return 1; }; done
}
adapter="adapter_model.safetensors adapter_config.json README.md trainer_log.jsonl trainer_state.json train_results.json all_results.json training_loss.png tokenizer.model"
# shellcheck disable=SC2086
{
    ok "examples/qlora.sh" "$examples/qlora.sh" $short
    ok "its results" leaves saves/qlora $adapter
    ok "examples/lora.sh" "$examples/lora.sh" $short
    ok "its results" leaves saves/lora $adapter
    ok "examples/full.sh" "$examples/full.sh" $short
    ok "its results" leaves saves/full config.json generation_config.json tokenizer.model trainer_log.jsonl training_loss.png
    ok "examples/freeze.sh" "$examples/freeze.sh" $short --freeze_trainable_layers 1
    ok "its results" leaves saves/freeze config.json generation_config.json tokenizer.model trainer_log.jsonl training_loss.png
    ok "examples/qlora.yaml" "$QLORA" train "$examples/qlora.yaml" model_name_or_path=$MODEL num_train_epochs=0.3 logging_steps=1 output_dir=saves/yaml
    ok "its results" leaves saves/yaml $adapter
}
ok "examples/export.sh" "$examples/export.sh"
ok "its results" leaves saves/merged config.json tokenizer.model model.safetensors
says() { ADAPTER=$1 "$examples/chat.sh" --prompt "${@:2}" --do_sample false --max_new_tokens 8 --quiet >said && [[ $(wc -l <said) -ge 1 ]]; }
ok "examples/chat.sh" says saves/lora hello
ok "without an adapter" says "" hello
ok "the merged model" env MODEL=saves/merged ADAPTER= "$examples/chat.sh" --prompt hello --do_sample false --max_new_tokens 8 --quiet

# ---- the lines as they are typed ----
# shellcheck disable=SC2086,SC2140
{
ok "full, the script's name in front" "$QLORA" train src/train_bash.py \
    --deepspeed "$examples/zero2.json" \
    --stage sft \
    --model_name_or_path path/to/yuan2-2b \
    --do_train True \
    --finetuning_type full \
    --dataset identity \
    --dataset_dir data \
    --template yuan \
    --output_dir yuan2_2B_full_finetuning \
    --overwrite_cache \
    --overwrite_output_dir \
    --cutoff_len 2048\
    --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 4 \
    --preprocessing_num_workers 16 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --save_steps 1000 \
    --learning_rate 5e-5 \
    --max_grad_norm 1 \
    --num_train_epochs 0.5 \
    --evaluation_strategy no \
    --gradient_checkpointing True \
    --bf16 True \
    --plot_loss True
ok "its results" leaves yuan2_2B_full_finetuning config.json model.safetensors training_loss.png
ok "QLoRA, modules in quotes with blanks between" "$QLORA" train src/train_bash.py \
    --stage sft \
    --model_name_or_path path/to/yuan2-2b \
    --do_train \
    --dataset alpaca_zh \
    --dataset_dir data \
    --finetuning_type lora \
    --lora_rank 32 \
    --lora_alpha 16 \
    --lora_dropout 0.1 \
    --lora_target "q_proj",  "k_proj", "v_proj","o_proj", "gate_proj", "up_proj", "down_proj" \
    --quantization_bit 4 \
    --output_dir yuan2_2B_qlora \
    --overwrite_cache \
    --per_device_train_batch_size 1 \
    --per_device_eval_batch_size 1 \
    --gradient_accumulation_steps 16 \
    --preprocessing_num_workers 16 \
    --lr_scheduler_type cosine \
    --logging_steps 10 \
    --save_steps 10000 \
    --learning_rate 5e-5 \
    --max_grad_norm 0.5 \
    --num_train_epochs 0.3 \
    --evaluation_strategy no \
    --bf16 \
    --template yuan \
    --overwrite_output_dir \
    --cutoff_len 1024 \
    --sft_packing \
    --gradient_checkpointing True \
    --plot_loss
ok "its results, but no picture of fewer than ten steps" leaves yuan2_2B_qlora ${adapter/training_loss.png/}
}
ok "the script alone" "$QLORA" src/train_bash.py --do_train --stage sft --model_name_or_path path/to/yuan2-2b --dataset alpaca_en \
    --template yuan --finetuning_type lora --lora_target q_proj,v_proj --output_dir path/to/checkpoint --overwrite-cache \
    --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --lr_scheduler_type cosine --logging_steps 10 --save_steps 1000 \
    --learning_rate 5e-5 --num_train_epochs 0.2 --fp16
ok "8 bits" "$QLORA" train --do_train --model_name_or_path path/to/yuan2-2b --dataset alpaca_en --template yuan --lora_target all \
    --quantization_bit 8 --output_dir eight --num_train_epochs 0.2 --bf16
ok "merging by the script's name" "$QLORA" src/export_model.py --model_name_or_path path/to/yuan2-2b --adapter_name_or_path path/to/checkpoint \
    --template yuan --finetuning_type lora --export_dir path_to_export --export_size 2 --export_legacy_format False
ok "its results" leaves path_to_export config.json model.safetensors tokenizer.model
ok "talking by the script's name" bash -c 'printf "hello\nexit\n" | "$0" src/cli_demo.py --model_name_or_path path/to/yuan2-2b --adapter_name_or_path path/to/checkpoint --template yuan --finetuning_type lora --max_new_tokens 4 --quiet' "$QLORA"
refused "the guide's own typo" 'Did you mean alpaca_en?' train --do_train --model_name_or_path path/to/yuan2-2b --dataset alpca_en --template yuan --lora_target all --output_dir typo
finish
