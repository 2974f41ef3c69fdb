#!/bin/sh
# Freeze tuning: the weights of the last layers are trained, here all modules of two layers and the last norm; the rest stays.
# A negative number of layers counts from the beginning. What is saved is the whole model.
#
#     MODEL=../yuan2-2b DATASET=alpaca_zh DATASET_DIR=data examples/freeze.sh
#
# Flags given to this script are added and win: examples/freeze.sh --freeze_trainable_modules mlp --dry_run
set -eu
: "${MODEL:?set MODEL to the folder of a Yuan 2.0 checkpoint}"

exec "${QLORA:-$(command -v ./qlora || echo qlora)}" train \
    --stage sft \
    --model_name_or_path "$MODEL" \
    --do_train \
    --dataset "${DATASET:-alpaca_zh}" \
    --dataset_dir "${DATASET_DIR:-data}" \
    --finetuning_type freeze \
    --freeze_trainable_layers 2 \
    --freeze_trainable_modules all \
    --freeze_extra_modules norm \
    --output_dir "${OUTPUT:-saves/freeze}" \
    --overwrite_cache \
    --per_device_train_batch_size 4 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 4 \
    --preprocessing_num_workers 16 \
    --lr_scheduler_type cosine \
    --logging_steps 10 \
    --save_steps 500 \
    --learning_rate 1e-5 \
    --max_grad_norm 0.5 \
    --num_train_epochs 3 \
    --evaluation_strategy no \
    --bf16 \
    --deepspeed "$(dirname "$0")/zero2.json" \
    --template yuan \
    --overwrite_output_dir \
    --cutoff_len 1024 \
    --sft_packing \
    --gradient_checkpointing True \
    --plot_loss \
    "$@"
