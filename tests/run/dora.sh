#!/usr/bin/env bash
# DoRA as its users run it: over every base format, killed and resumed, paged, in windows, with checkpointing and without; its files,
# merged, talked to, gone on from.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
tiny_model
lora="$lora --use_dora true --quiet"
near() { awk "BEGIN {d = $1 - $2; exit !(d < $3 && -d < $3)}"; }
less() { awk "BEGIN {exit !($1 < $2)}"; }
# shellcheck disable=SC2086
"$QLORA" preview --stage sft --template yuan --model_name_or_path "$work/m" --dataset_dir "$work/data" --dataset questions --cutoff_len 64 --limit 12 --quiet |
    sed 's/"input_ids"/"ids"/' >"$work/q.jsonl"
scores() { "$QLORA" score --file "$work/q.jsonl" --quiet "$@"; }
loss() { scores "$@" | sed 's/.*"loss":\([0-9.]*\).*/\1/' | awk '{s += $1} END {printf "%.6f\n", s / NR}'; }
# largest difference between the log-probabilities of two answers of score
apart() { paste -d' ' <(grep -o '"logprobs":\[[^]]*' "$1" | tr ',[' '\n\n' | grep '^-') <(grep -o '"logprobs":\[[^]]*' "$2" | tr ',[' '\n\n' | grep '^-') |
    awk '{d = $1 - $2; if (d < 0) d = -d; if (d > m) m = d} END {print NR < 50 ? 99 : m}'; }

before=$(loss --model_name_or_path "$work/m")
for how in "nf4" "plain --quantization_bit 0" "int8 --quantization_bit 8"; do
    # shellcheck disable=SC2086
    set -- $how
    name=$1 bits=4
    shift
    [[ $name == int8 ]] && bits=8
    if [[ $name == plain ]]; then
        plain=${lora/--quantization_bit 4/}
        # shellcheck disable=SC2086
        ok "over $name" timeout 120 "$QLORA" train $plain --output_dir "$work/$name"
        ok "$name: the loss fell" less "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/$name")" "$before - 0.05"
    else
        ok "over $name" train "$work/$name" "$@"
        ok "$name: the loss fell" less "$(loss --model_name_or_path "$work/m" --quantization_bit $bits --adapter_name_or_path "$work/$name")" "$before - 0.05"
    fi
done
ok "its configuration" grep -q '"use_dora": true' "$work/nf4/adapter_config.json"
ok "its magnitudes under PEFT's name" grep -aq 'self_attn.v_proj.lora_magnitude_vector"' "$work/nf4/adapter_model.safetensors"

# the bits
ok "the same again" train "$work/again"
ok "same bytes" same "$work/nf4" "$work/again"
ok "one thread" env OMP_NUM_THREADS=1 "$QLORA" train $lora --output_dir "$work/t1"
ok "same bytes with one thread" same "$work/nf4" "$work/t1"
ok "weights streamed, adapters, state and layer inputs paged" train "$work/v" --vram 21MiB --optim paged_adamw_32bit
ok "same bytes paged" same "$work/nf4" "$work/v"
ok "nothing recomputed" train "$work/keep" --disable_gradient_checkpointing true
ok "same bytes without checkpointing" same "$work/nf4" "$work/keep"
for n in 5 34 55; do
    (QLORA_FAULT="wsnum:$n:KILL" train "$work/s$n") 2>/dev/null
    ok "after a kill in system call $n" train "$work/s$n"
    ok "same bytes after a kill in system call $n" same "$work/nf4" "$work/s$n"
done

# sequences longer than a chunk may be
ok "sequences whole" train "$work/whole" --packing true --cutoff_len 128
ok "in windows" train "$work/windows" --packing true --cutoff_len 128 --chunk_tokens 48
ok "the same losses" test "$(grep -o '"loss": [0-9.]*' "$work/whole/trainer_log.jsonl")" = "$(grep -o '"loss": [0-9.]*' "$work/windows/trainer_log.jsonl")"

# merged it answers as it does apart
ok "export" "$QLORA" export --model_name_or_path "$work/m" --adapter_name_or_path "$work/plain" --template yuan --export_dir "$work/merged" --export_dtype float32 --quiet
scores --model_name_or_path "$work/m" --adapter_name_or_path "$work/plain" >"$work/apart"
scores --model_name_or_path "$work/merged" >"$work/together"
ok "merged: the same log-probabilities" less "$(apart "$work/apart" "$work/together")" 2e-4
ok "chat" "$QLORA" chat --model_name_or_path "$work/m" --adapter_name_or_path "$work/plain" --prompt "What colour is the bafi?" --max_new_tokens 4 --do_sample false --quiet

# gone on from, and a new one on top of a merged one
plain=${lora/--quantization_bit 4/} plain=${plain/--resume_from_checkpoint true/}
# shellcheck disable=SC2086
ok "goes on" timeout 120 "$QLORA" train $plain --adapter_name_or_path "$work/plain" --output_dir "$work/on"
ok "and gets better" less "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/on")" "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/plain")"
# shellcheck disable=SC2086
ok "a new one over it" timeout 120 "$QLORA" train $plain --adapter_name_or_path "$work/plain" --create_new_adapter true --learning_rate 0 --output_dir "$work/new"
ok "begins where the merged model is" near "$(loss --model_name_or_path "$work/merged" --adapter_name_or_path "$work/new")" "$(loss --model_name_or_path "$work/merged")" 1e-5
refused "two at once" "an adapter with use_dora scales what is there" score --model_name_or_path "$work/m" --text a --adapter_name_or_path "$work/plain,$work/on" --quiet
ok "but merged one after the other" "$QLORA" export --model_name_or_path "$work/m" --adapter_name_or_path "$work/plain,$work/new" --template yuan --export_dir "$work/both" --export_dtype float32 --quiet
ok "in their order" near "$(loss --model_name_or_path "$work/both")" "$(loss --model_name_or_path "$work/merged")" 1e-5
finish
