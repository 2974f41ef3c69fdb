#!/usr/bin/env bash
# Stage pt: plain text, cut into blocks, every token of which counts. LoRA, QLoRA, full; text and JSON lines, packed files.
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
tiny_model
head -n 120 "$work/data/corpus.txt" >"$work/data/few.txt"
common="--do_train --stage pt --model_name_or_path $work/m --dataset_dir $work/data --cutoff_len 48 --compat new
    --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --num_train_epochs 2 --learning_rate 1e-2 --logging_steps 1 --save_strategy no --lora_rank 4 --quiet"
# shellcheck disable=SC2086
pt() { local out=$1; shift; "$QLORA" train $common --output_dir "$work/$out" "$@" >"$work/$out.log" 2>&1; }
losses() { sed -n 's/.*"loss": \([0-9.]*\).*/\1/p' "$work/$1/trainer_log.jsonl"; }
fell() { losses "$1" | awk 'NR == 1 {a = $1} {b = $1} END {exit !(NR > 1 && b < a - 0.2)}'; }
near() { awk "BEGIN {d = $1 - $2; exit !(d < $3 && -d < $3)}"; }

ok "LoRA" pt lora --dataset few.txt
ok "its loss falls" fell lora
ok "QLoRA" pt qlora --dataset few.txt --quantization_bit 4
ok "its loss falls" fell qlora
ok "full" pt full --dataset few.txt --finetuning_type full --learning_rate 1e-3
ok "its loss falls" fell full

# The loss of a step is the mean over blocks of the mean over a block's tokens, as qlora score has it over the same ids.
# shellcheck disable=SC2086
"$QLORA" preview $common --dataset few.txt --disable_shuffling true >"$work/blocks.jsonl"
blocks=$(wc -l <"$work/blocks.jsonl")
ok "labels are the ids" test "$(sed 's/{"input_ids":\(.*\),"labels":\(.*\)}/\1/' "$work/blocks.jsonl")" = "$(sed 's/{"input_ids":\(.*\),"labels":\(.*\)}/\2/' "$work/blocks.jsonl")"
ok "blocks of cutoff_len, without what is left over" awk -F, '{n = split($0, x, "labels"); if (split(x[1], y, ",") - 1 != 48) bad = 1} END {exit bad || NR < 12}' "$work/blocks.jsonl"
mean=$(sed 's/"input_ids"/"ids"/; s/,"labels.*/}/' "$work/blocks.jsonl" | "$QLORA" score --model_name_or_path "$work/m" --file - --quiet | sed 's/.*"loss":\([0-9.]*\).*/\1/' | awk '{s += $1} END {print s / NR}')
ok "one step of all blocks" pt step --dataset few.txt --max_steps 1 --per_device_train_batch_size 1 --gradient_accumulation_steps "$blocks"
ok "its loss is that of score: every token counts" near "$(losses step)" "$mean" 1e-4

# the same text as records, packed, and under the column of an entry
sed 's/\\/\\\\/g; s/"/\\"/g; s/.*/{"text": "&"}/' "$work/data/few.txt" | gzip >"$work/data/few.jsonl.gz"
gzip -c "$work/data/few.txt" >"$work/data/few.txt.gz"
printf '{"pages": {"file_name": "few.jsonl.gz", "columns": {"prompt": "text"}}}' >"$work/data/dataset_info.json"
for data in few.txt.gz few.jsonl.gz pages; do
    ok "the text as $data" pt "$data" --dataset "$data"
    ok "the same adapter" cmp "$work/lora/adapter_model.safetensors" "$work/$data/adapter_model.safetensors"
done

# without packing each text is a sequence; a run in two halves ends as one in one go; evaluation
ok "texts apart" pt plain --dataset few.txt --packing False --max_samples 10
ok "ten sequences: three steps an epoch" test "$(losses plain | wc -l)" = 6
ok "a whole run" pt whole --dataset few.txt --lr_scheduler_type constant --lora_dropout 0.1
ok "half a run" pt half --dataset few.txt --lr_scheduler_type constant --lora_dropout 0.1 --max_steps 7 --save_strategy steps --save_steps 7
ok "the other half" pt half --dataset few.txt --lr_scheduler_type constant --lora_dropout 0.1 --resume_from_checkpoint true
ok "as in one go" cmp "$work/whole/adapter_model.safetensors" "$work/half/adapter_model.safetensors"
ok "evaluation" pt eval --dataset few.txt --val_size 20 --do_eval
ok "its perplexity" grep -q '"eval_perplexity"' "$work/eval/eval_results.json"
# shellcheck disable=SC2086
{
    refused "neat packing" '`neat_packing` is only valid for stage sft.' train $common --dataset few.txt --neat_packing --output_dir "$work/x"
    printf '{"pages": {"file_name": "questions.json", "columns": {"prompt": "text"}}}' >"$work/data/dataset_info.json"
    refused "records without the column" 'no record has the key "text"' train $common --dataset pages --output_dir "$work/x"
}
finish
