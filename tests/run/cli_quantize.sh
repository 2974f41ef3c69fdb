#!/usr/bin/env bash
# qlora new, quantize, doctor: files appear whole, repeat, load again; signals stop them and leave nothing.
. "$(dirname "$0")/check.bash"
q() { "$QLORA" "$@" --quiet; }

ok "new" q new --config yuan2-tiny --output_dir "$work/a" --override vocab_size=512 --override eod_token=510 \
    --override eos_token_id=510 --override pad_token_id=510
ok "new again" q new --config "$work/a" --output_dir "$work/b"
ok "same seed, same bytes" cmp "$work/a/model.safetensors" "$work/b/model.safetensors"
ok "new with another seed" q new --config "$work/a/config.json" --output_dir "$work/c" --seed 7
ok "other bytes" test "$(cmp "$work/a/model.safetensors" "$work/c/model.safetensors" | wc -l)" = 1
ok "new in fp32" q new --config "$work/a" --output_dir "$work/f" --dtype fp32
ok "fp32 is twice the size" test $((2 * $(stat -c %s "$work/a/model.safetensors") - $(stat -c %s "$work/f/model.safetensors"))) -lt 4096
ok "config.json says so" grep -q '"torch_dtype": "float32"' "$work/f/config.json"
refused "new over a model" 'already holds' new --config yuan2-tiny --output_dir "$work/a"
ok "overwrite" q new --config "$work/a" --output_dir "$work/c" --overwrite_output_dir

for how in "4" "4 --quantization_type fp4" "4 --double_quantization false" "4 --no_double_quantization" "8"; do
    # shellcheck disable=SC2086
    ok "quantize $how" q quantize --model_name_or_path "$work/a" --output_dir "$work/q${how// /}" --quantization_bit $how
done
ok "both ways to switch double quantisation off" cmp "$work/q4--double_quantizationfalse/model.safetensors" "$work/q4--no_double_quantization/model.safetensors"
ok "config.json of 4 bits" grep -q '"bnb_4bit_use_double_quant": true' "$work/q4/config.json"

# The filter in 4 bits, made on load and stored.
ok "quantize with the filter" q quantize --model_name_or_path "$work/a" --output_dir "$work/q4l" --quantization_bit 4 --lfa_bits 4
ok "export with the filter" q export --model_name_or_path "$work/a" --export_dir "$work/x4l" --export_quantization_bit 4 --lfa_bits 4
ok "the same file" cmp "$work/q4l/model.safetensors" "$work/x4l/model.safetensors"
score() { "$QLORA" score --quiet --ids 1,2,3,4,5,6,7,8,9 --model_name_or_path "$@"; }
ok "stored and made on load score the same" test "$(score "$work/q4l")" = "$(score "$work/a" --quantization_bit 4 --lfa_bits 4)"
ok "and otherwise than the whole filter" test "$(score "$work/q4l")" != "$(score "$work/q4")"
refused "the filter alone" 'lfa_bits 4 stores the localized filter like projections in 4 bits' export --model_name_or_path "$work/a" --export_dir "$work/z" --lfa_bits 4
refused "the filter beside 8 bits" 'lfa_bits 4 stores the localized filter like projections in 4 bits' quantize --model_name_or_path "$work/a" --output_dir "$work/z" --quantization_bit 8 --lfa_bits 4
refused "a checkpoint of such a one" 'stored in 4 bits' export --model_name_or_path "$work/q4l" --export_dir "$work/z"
refused "quantised already" 'quantised already (4 bits)' quantize --model_name_or_path "$work/q4" --output_dir "$work/z" --quantization_bit 4
refused "onto itself" 'folder of the input' quantize --model_name_or_path "$work/a" --output_dir "$work/a" --quantization_bit 4
head -c 100000 "$work/a/model.safetensors" >"$work/c/model.safetensors"
refused "a cut file" model.safetensors quantize --model_name_or_path "$work/c" --output_dir "$work/z" --quantization_bit 4

if [[ $shared ]]; then
    t=$shared/data/yuan2-tokenizer
    ok "new with a tokenizer" q new --config yuan2-tiny --tokenizer "$t" --output_dir "$work/t"
    ok "its files are copied" cmp "$t/tokenizer.model" "$work/t/tokenizer.model"
    ok "and go along" q quantize --model_name_or_path "$work/t" --output_dir "$work/tq" --quantization_bit 4
    ok "to the quantised model" cmp "$t/special_tokens_map.json" "$work/tq/special_tokens_map.json"
    refused "a vocabulary that is too small" 'has 134958 tokens, vocab_size is 512' new --config "$work/a" --tokenizer "$t" --output_dir "$work/z"
else
    skip "no shared folder"
fi

# A larger model, stopped by a signal at several moments: exit 128 + signal, and no file under its final name.
ok "a larger model" q new --config yuan2-tiny --output_dir "$work/big" --override hidden_size=512 --override num_attention_heads=8 --override intermediate_size=2048
# Written by a thread behind a queue, and at once (while faults are counted): the same bytes. A disk that takes no more: one sentence.
ok "large, by a thread" q quantize --model_name_or_path "$work/big" --output_dir "$work/thread" --quantization_bit 4
ok "large, at once" env QLORA_FAULT=w:1000000000:EIO "$QLORA" quantize --quiet --model_name_or_path "$work/big" --output_dir "$work/once" --quantization_bit 4
ok "same bytes" cmp "$work/thread/model.safetensors" "$work/once/model.safetensors"
(trap '' XFSZ && ulimit -f 100000 && "$QLORA" quantize --quiet --model_name_or_path "$work/big" --output_dir "$work/short" --quantization_bit 4) >"$work/err" 2>&1
ok "a disk that takes no more" test $? = 1
ok "is one sentence" test "$(grep -c '^error: cannot write' "$work/err")" = 1 -a "$(wc -l <"$work/err")" = 1
ok "nothing is left" test -z "$(find "$work/short" -type f 2>/dev/null)"
rm -rf "$work/thread" "$work/once"
stopped() { # SIGNAL DELAY
    rm -rf "$work/s"
    "$QLORA" quantize --quiet --model_name_or_path "$work/big" --output_dir "$work/s" --quantization_bit 4 2>"$work/err" &
    local pid=$! rc
    sleep "$2"
    kill -s "$1" $pid 2>/dev/null
    wait $pid
    rc=$?
    [[ $rc == 0 && -f $work/s/config.json ]] || [[ ($rc == 130 || $rc == 143) && -z $(find "$work/s" -type f 2>/dev/null) ]]
}
for delay in 0.02 0.05 0.1 0.2 0.4; do
    ok "TERM after $delay s" stopped TERM $delay
done

ok "doctor" grep -q '^cpu ' <("$QLORA" doctor)
ok "doctor as JSON" grep -qE '^\{"qlora": "[0-9.]+", .*\}$' <("$QLORA" doctor --json)
finish
