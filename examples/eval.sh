#!/bin/sh
# Multiple-choice questions in the form of C-Eval, MMLU and CMMLU; the folder of a task holds mapping.json and csv files.
# LLaMA-Factory's command line; only its launcher (python src/evaluate.py) became qlora eval.
#
#     MODEL=../yuan2-2b ADAPTER=saves/lora TASK_DIR=evaluation examples/eval.sh
#     MODEL=../yuan2-2b examples/eval.sh --task mmlu --split test --lang en
set -eu
: "${MODEL:?set MODEL to the folder of a Yuan 2.0 checkpoint}"

exec "${QLORA:-$(command -v ./qlora || echo qlora)}" eval \
    --model_name_or_path "$MODEL" \
    ${ADAPTER:+--adapter_name_or_path "$ADAPTER"} \
    --template yuan \
    --finetuning_type lora \
    --task_dir "${TASK_DIR:-evaluation}" \
    --task ceval \
    --split validation \
    --lang zh \
    --n_shot 5 \
    --batch_size 4 \
    "$@"
