#!/usr/bin/env bash
# qlora estimate: the numbers add up, need neither weights nor card nor data, and are the plan that a run prints; dry runs.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
number() { sed -n "s/.*\"$1\":\([0-9.e+-]*\).*/\1/p" "$2" | head -n 1; }
items() { grep -o "\"place\":\"$1\",\"bytes\":[0-9]*" "$2" | awk -F: '{s += $NF} END {printf "%.0f", s}'; }
adds_up() { # FILE: one line of JSON in the promised shape, each place the sum of its items
    [[ $(wc -l <"$1") == 1 ]] && grep -qE '^\{"device_bytes":[0-9]+,"host_bytes":[0-9]+,"tokens_per_second":[0-9.e+]+,"items":\[\{"name":"[^"]+","place":"(device|host|disk)","bytes":[0-9]+\}' "$1" || return 1
    for place in device host disk; do [[ $(number ${place}_bytes "$1") == "$(items $place "$1")" ]] || { echo "$place"; return 1; }; done
}
between() { awk -v x="$1" -v low="$2" -v high="$3" 'BEGIN {if (!(x > low && x < high)) {print x; exit 1}}'; }
estimate() { # NAME FLAG..: NAME.json, and what else is said in NAME.err
    local out=$work/$1
    shift
    "$QLORA" estimate "$@" --json >"$out.json" 2>"$out.err"
}
quick() { # WHAT COMMAND..: the best of 5 within 0.3 s
    local best=10000000 start took
    for _ in {1..5}; do
        start=$EPOCHREALTIME
        "$@" >"$work/out" 2>"$work/err" || return 1
        took=$((${EPOCHREALTIME/./} - ${start/./}))
        ((took < best)) && best=$took
    done
    echo "$best us"
    ((best < 300000)) || grep -q __asan_init "$QLORA"
}
guide="--per_device_train_batch_size 1 --gradient_accumulation_steps 16 --optim paged_adamw_32bit --bf16 --lora_rank 64 --cutoff_len 1025"

# without weights, data, or a card
for card in h100 l40s 4090 3090 a100 a6000; do
    # shellcheck disable=SC2086
    ok "2B on $card" estimate $card --config yuan2-2b --card $card --quantization_bit 4 $guide
    ok "$card adds up" adds_up "$work/$card.json"
done
ok "an H100 is faster than a 3090" between "$(number tokens_per_second "$work/3090.json")" 1000 "$(number tokens_per_second "$work/h100.json")"
# shellcheck disable=SC2086
{
    ok "DoRA" estimate dora --config yuan2-2b --card h100 --quantization_bit 4 $guide --use_dora true
    ok "takes its time" between "$(number tokens_per_second "$work/dora.json")" "$(awk "BEGIN {print 0.65 * $(number tokens_per_second "$work/h100.json")}")" \
        "$(awk "BEGIN {print 0.85 * $(number tokens_per_second "$work/h100.json")}")"
}
for config in yuan2-2b yuan2-51b yuan2-102b; do
    # shellcheck disable=SC2086
    ok "$config in 12 GiB" estimate small --config $config --card 3090 --vram 12GiB --quantization_bit 4 $guide
    ok "$config adds up" adds_up "$work/small.json"
    ok "$config keeps the budget" between "$(number device_bytes "$work/small.json")" 1e9 12884901889
done
ok "102B: the weights are on the host" grep -q '"layer weights","place":"host"' "$work/small.json"
mkdir "$work/shape" && "$QLORA" new --config yuan2-tiny --output_dir "$work/shape" --quiet && cp "$work/shape/config.json" "$work/config.json"
ok "a config.json" estimate file --config "$work/config.json" --card l40s
rm "$work"/shape/*.safetensors
ok "a folder without weights" estimate folder --model_name_or_path "$work/shape" --card l40s
ok "takes as much" cmp "$work/file.json" "$work/folder.json"
ok "and says so" grep -q "holds no weights" "$work/folder.err"
# shellcheck disable=SC2086
ok "data that is not there" estimate nodata --model_name_or_path "$work/shape" --card l40s --dataset alpaca_en --dataset_dir "$work" $guide
ok "is left out of it" grep -q "the data set is left out" "$work/nodata.err"
ok "a card's full name" estimate name --config yuan2-2b --card "NVIDIA L40S"
ok "the processor" estimate cpu --config yuan2-tiny --backend cpu
# shellcheck disable=SC2086
ok "for reading" bash -c '"$0" estimate --config yuan2-2b --card 4090 --quantization_bit 4 "${@:2}" >"$1/text"' "$QLORA" "$work" $guide
for line in "NVIDIA GeForce RTX 4090" "plan: chunks of" "  total  " "speed: about [0-9,]* tokens/s" "disk: .* for the result" "next: qlora train .*--quantization_bit 4.*--dry_run"; do
    ok "it says $line" grep -q "^$line" "$work/text"
done
ok "lines that fit" bash -c '! grep -v "^next" "$0" | grep -qE ".{112}"' "$work/text"

smallest() { "$QLORA" estimate --config yuan2-51b --card 3090 --vram "$1" --lora_rank 64 2>&1 | grep '^error: '; }
ok "too small a budget" grep -qE 'needs at least .* on the device and has 1 GiB: [a-z ]* [0-9.]* .iB, .*, .* --cutoff_len .*--quantization_bit 4, --optim paged_adamw_32bit would fit more$' <(smallest 1GiB)
refused "a card of no table" "not in the table (h100, " estimate --config yuan2-2b --card voodoo
refused "two machines" "give one" estimate --config yuan2-2b --card l40s --backend cpu
refused "two models" "not both" estimate --config yuan2-2b --model_name_or_path "$work"
refused "no model" "Please provide config (yuan2-2b, yuan2-51b, ..), model_name_or_path, or --table." estimate
refused "a table of a method" "methods of its own" estimate --table --quantization_bit 4
refused "a table of a model" "models of its own" estimate --table --config yuan2-2b
refused "a configuration of no name" "did you mean yuan2-2b?" estimate --config yuan2-3b
refused "a flag that training refuses" "is not supported" estimate --config yuan2-2b --resize_vocab
refused "an endless step" "fits in no machine" estimate --config yuan2-102b --card h100 --per_device_train_batch_size 1048576 --gradient_accumulation_steps 1048576 --cutoff_len 16777216

# the guide's table
rows() { [[ $(grep -c "^| [0-9]*B *|" "$work/out") == 9 && $(grep -c '"model":' "$work/table.json") == 9 ]]; }
smaller() { # the guide's figure is above the smallest of ours in every row
    sed 's/.*"guide_gb":\([0-9.]*\).*"smallest":{"device_gb":\([0-9.]*\).*/\1 \2/' "$work/table.json" | awk '$2 >= $1 || NF != 2 {bad = 1} END {exit bad || NR != 9}'
}
ok "the table within 0.3 s" quick "$QLORA" estimate --table
ok "the table as JSON" bash -c '"$0" estimate --table --json --quiet >"$1/table.json"' "$QLORA" "$work"
ok "nine rows" rows
ok "never more than the guide" smaller
columns() { "$QLORA" estimate --table --json --quiet "$@" | sed 's/.*"resident":{"device_gb":\([0-9.]*\).*"default":\(null\|{"device_gb":[0-9.]*,"host_gb":[0-9.]*\).*"smallest":{"device_gb":\([0-9.]*\).*/\1 \3 \2/'; }
ok "filters in 4 bits take less, but with all weights" awk '{ if (NR % 3 == 1 ? $1 != $4 || $2 != $5 : $4 >= $1 || $5 >= $2) bad = 1 } END { exit bad || NR != 9 }' \
    <(paste -d " " <(columns) <(columns --lfa_bits 4))
ok "host memory is a matter of what a run takes" test "$(columns --host_memory 8GiB | cut -d " " -f 1-2)" == "$(columns | cut -d " " -f 1-2)"
ok "which may not fit" test "$(columns --host_memory 8GiB | grep -c "null$")" == 2
ok "and stays below" awk '{ if ($3 != "null" && ++n && substr($3, index($3, "host_gb") + 9) + 0 > 8.6) bad = 1 } END { exit bad || n != 7 }' <(columns --host_memory 8GiB)
ok "for another card" bash -c '"$0" estimate --table --card 4090 | grep -q "RTX 4090"' "$QLORA"

# the run's own plan
tiny_model
# shellcheck disable=SC2086
set -- $lora --output_dir "$work/none" --backend cpu
ok "with data and a model" estimate tiny "$@"
ok "that adds up, too" adds_up "$work/tiny.json"
ok "its steps" test "$(number steps "$work/tiny.json")" -gt 0
ok "nothing is written" test ! -e "$work/none"
# Free memory moves, so both get a budget.
ok "the table of an estimate" bash -c '"$0" estimate "${@:2}" --vram 1GiB --quiet | sed -n "/^plan: /,/^steps: /p" >"$1/estimate.txt"' "$QLORA" "$work" "$@"
ok "a run's" bash -c '"$0" train "${@:2}" --vram 1GiB 2>&1 | sed -n "/plan: /,/^steps: /p" >"$1/train.txt"' "$QLORA" "$work" "$@"
ok "there is one" grep -q "^  total" "$work/train.txt"
ok "they are the same" cmp "$work/estimate.txt" "$work/train.txt"

ok "dry run" bash -c '"$0" train "${@:2}" --vram 1GiB --dry_run >"$1/a.yaml" 2>"$1/dry.log"' "$QLORA" "$work" "$@"
for line in "plan: chunks of" "steps: [0-9,]*, [0-9,]* tokens in all" "time: about 0:" "disk: [0-9.]* [KM]iB for the result and .* are free" "dry run: nothing was loaded or written"; do
    ok "it says $line" grep -q "$line" "$work/dry.log"
done
ok "its settings" grep -q "^lora_rank: 4$" "$work/a.yaml"
ok "again from that file" bash -c '"$0" train "$1/a.yaml" --dry_run >"$1/b.yaml"' "$QLORA" "$work"
ok "the same settings" cmp "$work/a.yaml" "$work/b.yaml"
more="--quantization_bit 8 --evaluation_strategy steps --eval_steps 0.25 --val_size 0.2 --sft_packing --lr_scheduler_type cosine --warmup_ratio 0.0333333333333 --bf16 --loraplus_lr_ratio 16
    --neftune_noise_alpha 5 --optim paged_adamw_8bit --max_steps 7 --plot_loss --resume_from_checkpoint false --overwrite_output_dir --report_to none"
# shellcheck disable=SC2086
ok "other settings" bash -c '"$0" train "${@:2}" --dry_run >"$1/a.yaml"' "$QLORA" "$work" "$@" $more
ok "are a file, too" bash -c '"$0" train "$1/a.yaml" --dry_run >"$1/b.yaml" && cmp "$1/a.yaml" "$1/b.yaml"' "$QLORA" "$work"
finish
