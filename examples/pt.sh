#!/bin/sh
# Going on with pre-training: plain text, every token counts. Text files, a line a record; or JSON with a column for the text.
# LLaMA-Factory's command line; only its launcher (python src/train_bash.py) became qlora train.
#
#     MODEL=../yuan2-2b DATASET=wiki_demo DATASET_DIR=data examples/pt.sh
set -eu
: "${MODEL:?set MODEL to the folder of a Yuan 2.0 checkpoint}"

exec "${QLORA:-$(command -v ./qlora || echo qlora)}" train \
    --stage pt \
    --model_name_or_path "$MODEL" \
    --do_train \
    --dataset "${DATASET:-wiki_demo}" \
    --dataset_dir "${DATASET_DIR:-data}" \
    --finetuning_type lora \
    --lora_target q_proj,v_proj \
    --output_dir "${OUTPUT:-saves/pt}" \
    --overwrite_cache \
    --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 4 \
    --lr_scheduler_type cosine \
    --logging_steps 10 \
    --save_steps 1000 \
    --learning_rate 5e-5 \
    --num_train_epochs 3.0 \
    --cutoff_len 1024 \
    --overwrite_output_dir \
    --plot_loss \
    --bf16 \
    "$@"
