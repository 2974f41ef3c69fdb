#!/usr/bin/env bash
# Every command line of the guide, as it is typed but for its launcher, on a small model: all files of examples/, the lines with
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
# the same and other runs as files of flags; the words by which LLaMA-Factory says what it does
file() { local name=$1; shift; "$QLORA" "${name%%:*}" "$examples/${name#*:}" model_name_or_path=$MODEL "$@" >file.log 2>&1 || { cat file.log; return 1; }; }
said() { grep -qF -e "$1" file.log || { cat file.log; return 1; }; }
ok "qlora.yaml again" file train:qlora.yaml num_train_epochs=0.1 output_dir=saves/yaml
for line in "Found linear modules: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj" "Quantizing model to 4 bit." "Fine-tuning method: LoRA" "trainable params: " "***** Running training *****" "bf16: a card computes"; do
    ok "it says $line" said "$line"
done
ok "examples/full.yaml" file train:full.yaml num_train_epochs=0.1 max_samples=200 cutoff_len=128 eval_steps=1 logging_steps=1 deepspeed="$examples/zero2.json" output_dir=saves/fullyaml
ok "it says Fine-tuning method: Full" said "Fine-tuning method: Full"
ok "and what of zero2.json is not needed" said "zero_optimization.overlap_comm"
ok "its results" leaves saves/fullyaml config.json model.safetensors trainer_log.jsonl eval_results.json training_loss.png training_eval_loss.png
ok "no events, as report_to none says" test -z "$(find saves/fullyaml -name 'events*')"
ok "examples/export.yaml" file export:export.yaml export_dir=saves/mergedyaml
ok "its result is that of export.sh" cmp saves/merged/model.safetensors saves/mergedyaml/model.safetensors
chat() { printf 'hello\nexit\n' | file chat:chat.yaml max_new_tokens=4; }
ok "examples/chat.yaml" chat
ok "examples/predict.sh" env ADAPTER=saves/lora "$examples/predict.sh" --max_samples 3 --max_new_tokens 4
ok "its results" leaves saves/predict generated_predictions.jsonl predict_results.json
ok "examples/predict.yaml" file train:predict.yaml max_samples=3 max_new_tokens=4 output_dir=saves/predictyaml
ok "its results" leaves saves/predictyaml generated_predictions.jsonl predict_results.json
mkdir -p evaluation/ceval/dev evaluation/ceval/val
printf 'id,question,A,B,C,D,answer,explanation\n0,What is red?,roses,sky,grass,milk,A,\n' >evaluation/ceval/dev/art_dev.csv
printf 'id,question,A,B,C,D,answer\n0,Who flies?,fish,birds,stones,water,B\n1,Three and one,1,2,3,4,D\n' >evaluation/ceval/val/art_val.csv
echo '{"art": {"name": "art", "category": "Humanities"}}' >evaluation/ceval/mapping.json
ok "examples/eval.sh" env ADAPTER=saves/lora "$examples/eval.sh" --save_dir saves/eval
ok "its results" leaves saves/eval results.json results.log
ok "examples/eval.yaml" file eval:eval.yaml save_dir=saves/evalyaml
ok "the same letters" cmp saves/eval/results.json saves/evalyaml/results.json
ok "by the script's name" "$QLORA" src/evaluate.py --model_name_or_path $MODEL --template yuan --finetuning_type lora --task ceval --split validation --lang zh --n_shot 5 --batch_size 4
cp data/corpus.txt data/wiki_demo.txt
sed -i 's/^{"alpaca_zh"/{"wiki_demo": {"file_name": "wiki_demo.txt", "columns": {"prompt": "text"}}, "alpaca_zh"/' data/dataset_info.json
if grep -q "preview only" <("$QLORA" train --help); then skip "stage pt is not trained here"; else
    ok "examples/pt.sh" "$examples/pt.sh" --cutoff_len 64 --max_samples 200 --num_train_epochs 1 --logging_steps 1
    ok "its results" leaves saves/pt $adapter
fi

for f in "$examples"/*.sh "$examples"/*.yaml; do ok "${f##*/} is tried here" grep -q "${f##*/}" "$examples/../tests/run/guide.sh"; done
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
