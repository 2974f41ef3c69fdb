#!/usr/bin/env bash
# Embedding, head and last norm trained in full beside an adapter: files as PEFT has them, killed and resumed, paged, gone on from,
# scored, merged, and with a head that the model ties to its embedding.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
tiny_model
lora="$lora --quiet"
near() { awk "BEGIN {d = $1 - $2; exit !(d < $3 && -d < $3)}"; }
less() { awk "BEGIN {exit !($1 < $2)}"; }
differ() { ! cmp -s "$1/adapter_model.safetensors" "$2/adapter_model.safetensors"; }
# shellcheck disable=SC2086
"$QLORA" preview --stage sft --template yuan --model_name_or_path "$work/m" --dataset_dir "$work/data" --dataset questions --cutoff_len 64 --limit 12 --quiet |
    sed 's/"input_ids"/"ids"/' >"$work/q.jsonl"
loss() { "$QLORA" score --file "$work/q.jsonl" --quiet "$@" | sed 's/.*"loss":\([0-9.]*\).*/\1/' | awk '{s += $1} END {printf "%.6f\n", s / NR}'; }
names() { head -c 65536 "$1/adapter_model.safetensors" | tr '"' '\n' | grep -a '^base_model' | grep -av layers | tr '\n' ' '; }

# a group of layers or of pieces too many would train something twice
trainable() { (lora=${lora/--quiet/} && train "$work/count$#" --max_steps 1 "$@") && sed -n 's/,//g; s/.*trainable params: \([0-9]*\).*/\1/p' "$work/count$#.log"; }
V=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$work/m/config.json") D=$(sed -n 's/.*"hidden_size": *\([0-9]*\).*/\1/p' "$work/m/config.json")
ok "what is trained" test "$(trainable --additional_target embed_tokens,lm_head,norm)" = $(($(trainable) + 2 * V * D + D))

q="--model_name_or_path $work/m --quantization_bit 4"
for tied in true false; do
    if [[ $tied == false ]]; then
        sed -i 's/"tie_word_embeddings": *true/"tie_word_embeddings": false/' "$work/m/config.json"
        ok "an untied model" "$QLORA" new --config "$work/m/config.json" --tokenizer "$work/tok" --output_dir "$work/untied" --quiet
        lora=${lora//$work\/m /$work/untied } q="--model_name_or_path $work/untied --quantization_bit 4"
    fi
    ok "tied $tied: without" train "$work/none$tied"
    ok "tied $tied: all three" train "$work/all$tied" --additional_target embed_tokens,lm_head,norm
    ok "tied $tied: their names" test "$(names "$work/all$tied")" = "base_model.model.lm_head.weight base_model.model.model.embed_tokens.weight base_model.model.model.norm.weight "
    # shellcheck disable=SC2086
    ok "tied $tied: it learns more" less "$(loss $q --adapter_name_or_path "$work/all$tied")" "$(loss $q --adapter_name_or_path "$work/none$tied")"
    ok "tied $tied: the embedding alone" train "$work/one$tied" --additional_target embed_tokens
    ok "tied $tied: one name" test "$(names "$work/one$tied")" = "base_model.model.model.embed_tokens.weight "
done
ok "its configuration" bash -c 'tr -d " \n" <"$1" | grep -q "\"modules_to_save\":\[\"embed_tokens\",\"lm_head\",\"model.norm\"\]"' - "$work/alltrue/adapter_config.json"
lora=${lora//$work\/untied /$work/m } q="--model_name_or_path $work/m --quantization_bit 4"
sed -i 's/"tie_word_embeddings": *false/"tie_word_embeddings": true/' "$work/m/config.json"

# the bits
some="--additional_target embed_tokens,norm --use_dora true"
# shellcheck disable=SC2086
{
    ok "embedding and norm" train "$work/a" $some
    ok "paged" train "$work/v" $some --vram 24MiB --optim paged_adamw_32bit
    ok "same bytes paged" same "$work/a" "$work/v"
    ok "nothing recomputed" train "$work/k" $some --disable_gradient_checkpointing true
    ok "same bytes without checkpointing" same "$work/a" "$work/k"
    for n in 5 40; do
        (QLORA_FAULT="wsnum:$n:KILL" train "$work/s$n" $some) 2>/dev/null
        ok "after a kill in system call $n" train "$work/s$n" $some
        ok "same bytes after a kill in system call $n" same "$work/a" "$work/s$n"
    done
    ok "8-bit state" train "$work/b8" $some --optim adamw_8bit
    ok "LoRA+ learns the norm faster" train "$work/plus" --additional_target norm --loraplus_lr_ratio 16
    ok "which makes another adapter" differ "$work/plus" "$work/a"
}

# used: score and chat see them, export merges them, training goes on from them
plain=${lora/--quantization_bit 4/} plain=${plain/--resume_from_checkpoint true/}
# shellcheck disable=SC2086
{
    ok "over plain weights" timeout 120 "$QLORA" train $plain --additional_target embed_tokens,lm_head,norm --output_dir "$work/p"
    ok "merged" "$QLORA" export --model_name_or_path "$work/m" --adapter_name_or_path "$work/p" --template yuan --export_dir "$work/merged" --export_dtype float32 --quiet
    ok "the same losses" near "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/p")" "$(loss --model_name_or_path "$work/merged")" 2e-5
    ok "chat" "$QLORA" chat --model_name_or_path "$work/m" --adapter_name_or_path "$work/p" --prompt "What colour is the bafi?" --max_new_tokens 4 --quiet
    ok "goes on" timeout 120 "$QLORA" train $plain --adapter_name_or_path "$work/p" --output_dir "$work/on"
    ok "with what it holds whole" test "$(names "$work/on")" = "$(names "$work/p")"
    ok "and gets better" less "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/on")" "$(loss --model_name_or_path "$work/m" --adapter_name_or_path "$work/p")"
}
finish
