#!/bin/sh
# Talking to a model with its adapter. The guide's command line; only its launcher (python src/cli_demo.py) became qlora chat.
#
#     MODEL=../yuan2-2b ADAPTER=saves/lora examples/chat.sh
#     MODEL=../yuan2-2b examples/chat.sh --prompt "你是谁？"
set -eu
: "${MODEL:?set MODEL to the folder of a Yuan 2.0 checkpoint}"

exec "${QLORA:-$(command -v ./qlora || echo qlora)}" chat \
    --model_name_or_path "$MODEL" \
    ${ADAPTER:+--adapter_name_or_path "$ADAPTER"} \
    --template yuan \
    --finetuning_type lora \
    "$@"
