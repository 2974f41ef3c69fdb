#!/bin/sh
# Merging: an adapter becomes part of its model, as files that transformers loads.
# The guide's command line; only its launcher (python src/export_model.py) became qlora export.
#
#     MODEL=../yuan2-2b ADAPTER=saves/lora examples/export.sh
set -eu
: "${MODEL:?set MODEL to the folder of a Yuan 2.0 checkpoint}"

exec "${QLORA:-$(command -v ./qlora || echo qlora)}" export \
    --model_name_or_path "$MODEL" \
    --adapter_name_or_path "${ADAPTER:-saves/lora}" \
    --template yuan \
    --finetuning_type lora \
    --export_dir "${OUTPUT:-saves/merged}" \
    --export_size 2 \
    --export_legacy_format False \
    "$@"
