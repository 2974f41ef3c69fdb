#!/usr/bin/env bash
# gpu_faults.sh without a card: on the plugin of lost_card.c, which $LOST_CARD names.
QLORA_PLUGIN=$(realpath "${LOST_CARD:-build/tests/run/lost_card.so}") exec "$(dirname "$0")/gpu_faults.sh"
