#!/usr/bin/env bash
# bench/save.sh [RANK] - what a checkpoint of a 51B run costs the run, with a state of that size on a model of no size.
#
# 12 layers of hidden 512 and ffn 2048 with rank 3584 have as many adapter numbers as 51B with rank 64: 506,462,208; so a checkpoint
# is 2.03 GB of adapters and 4.05 GB of moments. Twelve steps of a short sequence each, saved after the sixth and at the end; then
# the last six again from checkpoint-6: the adapter must have the same bytes. BEFORE=PROGRAM is run, too: an older program that
# does not say what a save took; its figure is the gap behind "Saving model checkpoint" without a step. Needs 15 GB of memory
# and 20 GB below $TMPDIR. Prints one JSON line; disk_MBps is dd's rate for 2 GB with fsync, before and after.
set -eu
cd "$(dirname "$0")/.."
qlora=$(realpath "${QLORA:-./qlora}") tools=${TOOLS:-build/examples/demo} rank=${1:-3584} steps=${STEPS:-12}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$qlora" new --config yuan2-tiny --output_dir "$work/m" --dtype fp32 --override hidden_size=512 --override num_hidden_layers=12 \
    --override num_attention_heads=8 --override intermediate_size=2048 --override vocab_size=8192 --override eod_token=8191 --override pad_token_id=8191 --quiet
awk 'BEGIN { srand(1); for (r = 0; r < 64; r++) { printf "{\"input_ids\": [";
    for (i = 0; i < 33; i++) printf "%s%d", i ? ", " : "", int(rand() * 600); print "]}" } }' >"$work/d.jsonl"
cat ./*.md docs/*.md >"$work/text"
"$tools/make_tokenizer" "$work/m" 600 "$work/text" >/dev/null 2>&1
run() { # PROGRAM OUT FLAGS..: what it says with the time in front goes to OUT.log
    local program=$1 out=$2
    shift 2
    "$program" train --do_train --stage sft --template yuan --finetuning_type lora --lora_target all --lora_rank "$rank" --optim paged_adamw_32bit \
        --model_name_or_path "$work/m" --dataset "$work/d.jsonl" --cutoff_len 33 --per_device_train_batch_size 1 --gradient_accumulation_steps 1 \
        --max_steps "$steps" --learning_rate 1e-4 --logging_steps 1 --save_steps $((steps / 2)) --output_dir "$out" "$@" 2>&1 >/dev/null |
        while IFS= read -r line; do echo "$EPOCHREALTIME $line"; done >"$out.log"
    [[ -f $out/adapter_model.safetensors ]] || { tail -n 3 "$out.log" >&2; exit 1; }
}
disk() { dd if=/dev/zero of="$work/dd" bs=4M count=512 conv=fsync 2>&1 | sed -n 's/.* \([0-9.]*\) s, .*/\1/p' | awk '{printf "%.0f\n", 2147.5 / $1}'; rm -f "$work/dd"; }
# Seconds between "Saving" and the line after it, for each save but the last, less a step's.
gaps() {
    awk -v half=$((steps / 2)) '/Saving model checkpoint/ { at = $1; next } at { if (!n++) gap = $1 - at; at = 0 } { if (last && / [0-9]+\/[0-9]+ /) { step += $1 - last; k++ } last = / [0-9]+\/[0-9]+ / ? $1 : 0 }
        END { printf "%.1f", gap - (k ? step / k : 0) }' "$1"
}
disk_a=$(disk)
run "$qlora" "$work/a"
said=$(sed -n 's/.*checkpoint-[0-9]* is on the disk: \(.*\) in \([0-9.]*\) s beside the run, which stood still for \([0-9.]*\) s.*/\2 \3/p' "$work/a.log" | head -n 1)
beside=${said% *} stood=${said#* }
[[ -n $said ]] || beside=null stood=$(sed -n 's/.*checkpoint-[0-9]* is on the disk: .* in \([0-9.]*\) s$/\1/p' "$work/a.log" | head -n 1)
bytes=$(du -sb "$work/a/checkpoint-$((steps / 2))" | cut -f 1)
run "$qlora" "$work/b" --resume_from_checkpoint "$work/a/checkpoint-$((steps / 2))" --save_strategy no
same=$(cmp -s "$work/a/adapter_model.safetensors" "$work/b/adapter_model.safetensors" && echo true || echo false)
rm -rf "$work/b"
before=null
if [[ -n ${BEFORE-} ]]; then
    mv "$work/a.log" "$work/a.said" && rm -rf "$work/a"
    run "$(realpath "$BEFORE")" "$work/a" && before=$(gaps "$work/a.log")
fi
disk_b=$(disk)
printf '{"what": "a checkpoint of %.2f GB (rank %s on 12 layers of hidden 512: with 3584, the adapter and moments of 51B with rank 64)", "device": "%s, %s cores", "date": "%s", "commit": "%s", "command": "bench/save.sh %s", "stood_still_s": %s, "written_beside_s": %s, "older_program_s": %s, "resumed_same_bytes": %s, "disk_MBps": [%s, %s]}\n' \
    "$(awk "BEGIN {print $bytes / 1e9}")" "$rank" "$(sed -n 's/^model name.*: //p;T;q' /proc/cpuinfo)" "$(nproc)" "$(date +%F)" "$(git rev-parse --short HEAD 2>/dev/null)" "$rank" \
    "$stood" "$beside" "$before" "$same" "$disk_a" "$disk_b"
