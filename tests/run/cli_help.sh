#!/usr/bin/env bash
# Help, version, docs/FLAGS.md, and one line with exit status 2 for wrong input of each command.
. "$(dirname "$0")/check.bash"
commands=$("$QLORA" help | sed -n '/^Commands/,/^ *version/p' | sed -n 's/^  \([a-z]*\) .*/\1/p' | grep -v version)

begins_with_example() { "$QLORA" "$1" --help | head -n 1 | grep -qx 'Example:'; }
same_help() { cmp <("$QLORA" "$1" --help) <("$QLORA" help "$1") && cmp <("$QLORA" "$1" --help) <("$QLORA" "$1" --bogus -h); }
in_docs() { # every flag of a command's help is in the docs, and the docs name the command beside it
    "$QLORA" "$1" --help | sed -n 's/^  --\([a-z0-9_]*\) .*/\1/p' | while read -r flag; do
        grep -F "| \`$flag\`" docs/FLAGS.md | grep -qw "$1" || { echo "$flag of $1 is missing"; return 1; }
    done
}
fits() { ! "$QLORA" "$1" --help | sed 1,8d | grep -nE '.{112}'; }
for c in $commands; do
    ok "help of $c begins with an example" begins_with_example "$c"
    ok "help of $c in all forms" same_help "$c"
    ok "docs/FLAGS.md has the flags of $c" in_docs "$c"
    ok "lines of the help of $c fit" fits "$c"
done
ok "there are commands" test "$(wc -w <<<"$commands")" -ge 6
ok "docs/FLAGS.md is current (qlora help markdown > docs/FLAGS.md)" diff <("$QLORA" help markdown) docs/FLAGS.md
ok "version" grep -qE '^qlora [0-9]+\.[0-9]+\.[0-9]+$' <("$QLORA" version)
ok "--version" cmp <("$QLORA" version) <("$QLORA" --version)
ok "no argument prints help" grep -q '^Commands' <("$QLORA")

# The best of 20: others share the machine. A sanitizer's start-up is not ours.
quick() {
    local best=1000000 start took
    for _ in {1..20}; do
        start=$EPOCHREALTIME
        "$QLORA" train --help >/dev/null
        took=$((${EPOCHREALTIME/./} - ${start/./}))
        ((took < best)) && best=$took
    done
    echo "$best us"
    ((best < 5000))
}
if grep -q __asan_init "$QLORA"; then skip "timing under a sanitizer"; else ok "help within 5 ms" quick; fi

no_room() { ! "$QLORA" help markdown >/dev/full 2>"$work/err" && grep -q '^error: standard output' "$work/err"; }
ok "a full standard output is an error" no_room

refused "unknown command" 'unknown command "trian", did you mean train?' trian
refused "unknown topic" 'unknown command "trian"' help trian
m=(--model_name_or_path "$work")
refused "train without a model" 'Please provide model_name_or_path.' train --dataset d
refused "train without data" 'Please specify dataset for training.' train "${m[@]}" --output_dir o
refused "train with a typo" 'did you mean --learning_rate?' train "${m[@]}" --lerning_rate 1
refused "train from an empty folder" "$work holds no tokenizer.model" train "${m[@]}" --dataset d --output_dir "$work/o" --lora_target all --backend cpu
refused "train with a missing file of flags" none.yaml train "$work/none.yaml"
refused "the old script as a command" 'Please provide model_name_or_path.' src/train_bash.py --dataset d
refused "preview without a tokenizer" tokenizer.model preview "${m[@]}" --dataset d
refused "preview with a bad number" 'not a whole number' preview "${m[@]}" --dataset d --limit x
refused "tokenize without a tokenizer" tokenizer.model tokenize "${m[@]}" --text x
refused "a system text before ids" 'system goes before a prompt' chat "${m[@]}" --ids 1 --system a
refused "tokenize of two texts" 'takes one of file, text and ids' tokenize "${m[@]}" --text a --ids 1
refused "tokenize from text to text" 'decode makes text of ids' tokenize "${m[@]}" --decode --text a
refused "tokenize without text" 'Please provide file, text or ids.' tokenize "${m[@]}"
refused "quantize an empty folder" config.json quantize "${m[@]}" --output_dir "$work/q" --quantization_bit 4
refused "quantize to 5 bits" 'We only accept 4-bit or 8-bit quantization.' quantize "${m[@]}" --output_dir "$work/q" --quantization_bit 5
refused "new with an unknown configuration" 'did you mean yuan2-2b?' new --config yuan2-3b --output_dir "$work/n"
refused "new with an unknown override" 'did you mean "hidden_size"?' new --config yuan2-tiny --output_dir "$work/n" --override hiden_size=3
refused "new with a wrong size" 'even whole number' new --config yuan2-tiny --output_dir "$work/n" --override hidden_size=63
refused "doctor with a flag of another" 'is a flag of qlora train' doctor --dataset x

ignored=$("$QLORA" train "${m[@]}" --dataset d --output_dir "$work/o" --overwrite_cache --ddp_timeout 1 --report_to wandb 2>&1 | grep -c '^ignored: ')
ok "ignored flags are named in one line" test "$ignored" = 1
finish
