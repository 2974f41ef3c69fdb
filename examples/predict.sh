#!/bin/sh
# Answers to a data set, beside the ones it holds: generated_predictions.jsonl, BLEU-4 and ROUGE in predict_results.json.
# LLaMA-Factory's command line; only its launcher (python src/train_bash.py) became qlora train.
#
#     MODEL=../yuan2-2b ADAPTER=saves/lora DATASET=alpaca_zh examples/predict.sh --max_samples 100
set -eu
: "${MODEL:?set MODEL to the folder of a Yuan 2.0 checkpoint}"

exec "${QLORA:-$(command -v ./qlora || echo qlora)}" train src/train_bash.py \
    --stage sft \
    --do_predict \
    --model_name_or_path "$MODEL" \
    ${ADAPTER:+--adapter_name_or_path "$ADAPTER"} \
    --dataset "${DATASET:-alpaca_zh}" \
    --dataset_dir "${DATASET_DIR:-data}" \
    --template yuan \
    --finetuning_type lora \
    --output_dir "${OUTPUT:-saves/predict}" \
    --overwrite_output_dir \
    --per_device_eval_batch_size 1 \
    --predict_with_generate \
    --max_new_tokens 256 \
    --bf16 \
    "$@"
