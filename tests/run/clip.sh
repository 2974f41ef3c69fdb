#!/usr/bin/env bash
# max_grad_norm: above the largest norm of a run it changes nothing, below it it does.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
tiny_model
common="--backend cpu --quiet --logging_steps 1 --save_strategy no"
# shellcheck disable=SC2086
{
    ok "without clipping" train "$work/off" $common --max_grad_norm 0
    largest=$(grep -o '"grad_norm": [0-9.e-]*' "$work/off/trainer_state.json" | awk '$2 + 0 > m { m = $2 + 0 } END { print m }')
    ok "norms are told" awk -v m="$largest" 'BEGIN { exit !(m > 0) }'
    above=$(awk -v m="$largest" 'BEGIN { print m * 1.02 }') below=$(awk -v m="$largest" 'BEGIN { print m * 0.9 }')
    ok "above the largest norm, $largest" train "$work/above" $common --max_grad_norm "$above"
    ok "the same bytes" same "$work/off" "$work/above"
    ok "below it" train "$work/below" $common --max_grad_norm "$below"
    ok "other bytes" bash -c '! cmp -s "$0" "$1"' "$work/off/adapter_model.safetensors" "$work/below/adapter_model.safetensors"
}
finish
