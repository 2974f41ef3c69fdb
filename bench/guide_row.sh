#!/usr/bin/env bash
# bench/guide_row.sh MODEL DATA [FLAGS..] - the guide's QLoRA command as a user runs it, and where its time goes.
#
# MODEL is a checkpoint with tokenizer files, DATA a folder with dataset_info.json. What examples/qlora.sh types, with FLAGS added. Prints one
# JSON line: seconds from the command to tokenised data, to weights in place (loaded, quantised), to the first logged step and the
# last, to the saved adapter. The whole log with the time in front of each line goes to $LOG, if that is set.
set -eu
cd "$(dirname "$0")/.."
model=$(realpath "$1") data=$(realpath "$2")
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=${LOG:-$work/log}
echo "$EPOCHREALTIME start" >"$log"
MODEL=$model DATASET=${DATASET:-alpaca_en} DATASET_DIR=$data OUTPUT=${OUTPUT:-$work/out} QLORA=$(realpath "${QLORA:-./qlora}") sh examples/qlora.sh --logging_steps 1 "$@" 2>&1 >/dev/null |
    while IFS= read -r line; do echo "$EPOCHREALTIME $line"; done >>"$log"
echo "$EPOCHREALTIME end" >>"$log"
grep -q ' Training completed' "$log" || { tail -n 4 "$log" >&2; exit 1; }
tr ',' '.' <"$log" | awk -v flags="$*" '
    { at = $1 }
    / start$/ { t0 = at }
    / of which .* count in the loss/ { t1 = at }
    / Running training / { t2 = at }
    / loss [0-9.]+ .* lr / { if (!first) first = at; t3 = at; loss = $0; sub(/.* loss /, "", loss); sub(/ .*/, "", loss); split($0, of, "/"); steps = of[1]; sub(/.* /, "", steps) }
    / steps: .* tokens in all/ { tokens = $0; sub(/.* steps: [0-9.]*, /, "", tokens); sub(/ tokens.*/, "", tokens) }
    / end$/ { t4 = at }
    / total .* of / { plan = $3 " " $4 }
    END { printf "{\"bench\":\"guide_row\",\"flags\":\"%s\",\"seconds\":%.1f,\"start_and_tokenising\":%.1f,\"loading\":%.1f,\"first_step\":%.2f,\"training\":%.1f,\"saving\":%.1f,\"steps\":%d,\"last_loss\":%s,\"plan\":\"%s\"}\n",
          flags, t4 - t0, t1 - t0, t2 - t1, first - t2, t3 - t2, t4 - t3, steps, loss, plan }'
