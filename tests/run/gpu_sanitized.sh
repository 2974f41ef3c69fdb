#!/usr/bin/env bash
# Two layers under compute-sanitizer: $SANITIZED is its command with a tool (make sanitize-gpu). Adapters on weights in 4 bits, with
# moments in 8 bits; then all weights, with masters and moments on the host; then an answer.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
need_card
[[ -n ${SANITIZED-} ]] || { skip "make sanitize-gpu sets SANITIZED"; finish; }
tiny_model --override hidden_size=256 --override num_attention_heads=4 --override intermediate_size=512

# tool NAME COMMAND..: what it and the program say is in NAME.log
tool() {
    local name=$1
    shift
    # shellcheck disable=SC2086
    timeout 400 $SANITIZED "$QLORA" "$@" --backend "$backend" >"$work/$name.log" 2>&1
}
# run NAME COMMAND..: it succeeds, and nothing is reported
run() {
    ok "$1" tool "$@"
    ok "$1: nothing is reported" grep -qE 'SUMMARY: 0 (errors|hazards)' "$work/$1.log"
}
# tight NAME FLAGS..: a run of two steps in the least memory that it says it needs
tight() {
    local name=$1 budget
    shift
    "$QLORA" train "$@" --backend "$backend" --dry_run --vram 1KiB --output_dir "$work/dry" >"$work/dry.log" 2>&1
    budget=$(awk '/needs at least/ { x = $7; if ($8 == "MiB") x *= 1024; printf "%d\n", x * 1.006 + 1 }' "$work/dry.log")
    run "$name" train "$@" --max_steps 2 --vram "${budget}KiB" --output_dir "$work/$name"
}
# shellcheck disable=SC2086
{
    tight adapters $lora --optim paged_adamw_8bit
    tight weights ${lora%--lora_target*} --finetuning_type full --optim adamw_torch
}
run answer score --model_name_or_path "$work/weights" --text "What colour is the bafi?"
finish
