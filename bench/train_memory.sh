#!/usr/bin/env bash
# bench/train_memory.sh [MIB] - host memory of a run on a data file of that size (default 2048) beyond that of the same run on
# its first 64 records. The file is made in $WORK (default: a fresh folder of TMPDIR) and removed. One JSON line. Extra FLAGS go
# to qlora train; MODEL is a folder (default: yuan2-tiny of random weights with the tokenizer of ../shared).
set -eu
cd "$(dirname "$0")/.."
mib=${1:-2048}
qlora=$(realpath "${QLORA:-./qlora}")
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

# Records of 100 to 700 letters: words by a linear congruential generator; 64 MiB of them again and again.
block=$((mib < 64 ? mib : 64))
awk -v bytes=$((block << 20)) 'BEGIN {
    n = split("the of and to in that for it was with be by not his but are this have from they which one you were all her there would their him been has when who will more out said what about than into them only other time some could these first then like over people even after before must years through", word, " ")
    x = 1
    while (done < bytes) {
        q = ""; a = ""
        x = (x * 16807) % 2147483647; for (k = 5 + x % 20; k; k--) { x = (x * 16807) % 2147483647; q = q word[1 + x % n] " " }
        x = (x * 16807) % 2147483647; for (k = 15 + x % 100; k; k--) { x = (x * 16807) % 2147483647; a = a word[1 + x % n] " " }
        line = "{\"instruction\": \"" q "\", \"output\": \"" a "\"}"
        print line; done += length(line) + 1
    }
}' >"$work/block"
for ((i = 0; i < mib; i += block)); do cat "$work/block"; done >"$work/data.jsonl"
head -n 64 "$work/block" >"$work/few.jsonl"
rm "$work/block"

model=${MODEL:-$work/m}
[[ -d $model ]] || "$qlora" new --config yuan2-tiny --tokenizer "${QLORA_SHARED:-../shared}/data/yuan2-tokenizer" --output_dir "$model" --quiet
# run FILE: the run's highest resident size in KiB, as the kernel keeps it, and its time
run() {
    local out=$1 start=$EPOCHREALTIME
    # shellcheck disable=SC2086
    TMPDIR=$work "$qlora" train --do_train --stage sft --template yuan --model_name_or_path "$model" --dataset "$work/$out.jsonl" --cutoff_len 256 --lora_target all \
        --output_dir "$work/$out" --overwrite_output_dir --per_device_train_batch_size 4 --max_steps 8 --save_strategy no --logging_steps 4 ${FLAGS-} >"$work/$out.log" 2>&1 &
    local pid=$! peak=0 now
    while now=$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$pid/status" 2>/dev/null) && [[ $now ]]; do peak=$now; sleep 0.02; done
    wait $pid || { tail -n 3 "$work/$out.log" >&2; exit 1; }
    echo "$peak $(awk "BEGIN {printf \"%.1f\", $EPOCHREALTIME - $start}")"
}
read -r base _ <<<"$(run few)"
read -r peak seconds <<<"$(run data)"
[[ ${FLAGS-} == *streaming* ]] || data=$(sed -n "s/^\([0-9,]* sequences, [0-9,]* tokens\), of which .*/\1/p" "$work/data.log" | sed 1q)
data=${data-}
echo "{\"what\": \"training on a JSON lines file of $mib MiB${data:+ ($data)}${FLAGS:+, $FLAGS}: peak of resident memory beyond that of the same run on its first 64 records\", \"mib\": $(((peak - base) >> 10)), \"base_mib\": $((base >> 10)), \"seconds\": $seconds}"
