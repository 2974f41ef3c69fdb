#!/usr/bin/env bash
# bench/small_model.sh TOKENIZER DATA OUT - from random weights to a conversation, with nobody's checkpoint.
#
# A model of 231 M parameters (hidden 768, 12 layers) with the tokenizer in TOKENIZER is trained in full for $STEPS steps (900) of 16,384
# tokens on the sets alpaca_en and alpaca_zh of DATA, but for 500 records of the latter; quantised to NF4; and fine-tuned (QLoRA, rank 64) for two epochs on
# what of alpaca_zh is left. Before and after that: the loss on the 500 records, and answers to the same prompts. In OUT:
# full.jsonl, qlora.jsonl (logs), full.png, qlora.png (loss), transcript.md, summary.jsonl. $SHAPE: other --override flags.
# Needs python3, to part the records.
set -eu
cd "$(dirname "$0")/.."
tokenizer=$(realpath "$1") data=$(realpath "$2") steps=${STEPS:-900} packing=${CUTOFF:-1024}
mkdir -p "$3"
out=$(realpath "$3") qlora=$(realpath "${QLORA:-./qlora}")
shape=${SHAPE---override hidden_size=768 --override num_hidden_layers=12 --override num_attention_heads=12 --override intermediate_size=3072 --override max_position_embeddings=2048}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
now() { echo "${EPOCHREALTIME/,/.}"; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }
field() { sed -n 's/.*"'"$2"'": \([-0-9.e+]*\).*/\1/p' "$1" | head -n 1; }
quietly() { "$@" >>"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }; }

# shellcheck disable=SC2086
quietly "$qlora" new --config yuan2-2b --tokenizer "$tokenizer" --output_dir "$work/random" $shape
held=$(python3 - "$data" "$work" <<'EOF'
import json, sys, os
data, work = sys.argv[1:]
info = json.load(open(os.path.join(data, "dataset_info.json")))
records = json.load(open(os.path.join(data, info["alpaca_zh"]["file_name"])))
os.makedirs(os.path.join(work, "data"))
step = len(records) // 500
held = [r for i, r in enumerate(records) if i % step == 0][:500]
kept = {json.dumps(r, sort_keys=True) for r in held}
left = [r for r in records if json.dumps(r, sort_keys=True) not in kept]
write = lambda name, r: json.dump(r, open(os.path.join(work, "data", name), "w"), ensure_ascii=False)
write("zh.json", left), write("held.json", held)
write("dataset_info.json", {"zh": {"file_name": "zh.json"}, "held": {"file_name": "held.json"}})
os.symlink(os.path.join(data, info["alpaca_en"]["file_name"]), os.path.join(work, "data", "en.json"))
write("dataset_info.json", {n: {"file_name": n + ".json"} for n in ("en", "zh", "held")})
print(len(held))
EOF
)
common=(--stage sft --template yuan --dataset_dir "$work/data" --cutoff_len "$packing" --sft_packing --per_device_train_batch_size 1 --gradient_accumulation_steps 16
    --lr_scheduler_type cosine --warmup_steps 40 --logging_steps 10 --save_strategy no --plot_loss --overwrite_output_dir)
start=$(now)
quietly "$qlora" train --do_train --finetuning_type full --model_name_or_path "$work/random" --dataset en,zh --max_steps "$steps" --learning_rate 6e-4 "${common[@]}" --output_dir "$work/full"
full=$(since "$start")
quietly "$qlora" quantize --model_name_or_path "$work/full" --quantization_bit 4 --output_dir "$work/nf4"
evaluate() { # OUT FLAGS..
    local to=$1
    shift
    quietly "$qlora" train --do_eval --stage sft --template yuan --dataset_dir "$work/data" --eval_dataset held --cutoff_len "$packing" --per_device_eval_batch_size 8 \
        --model_name_or_path "$work/nf4" --output_dir "$to" --overwrite_output_dir "$@"
    field "$to/all_results.json" eval_loss
}
before=$(evaluate "$work/before")
start=$(now)
quietly "$qlora" train --do_train --finetuning_type lora --model_name_or_path "$work/nf4" --dataset zh --num_train_epochs "${EPOCHS:-2}" --learning_rate 4e-4 --lora_rank 64 --lora_target all \
    --optim paged_adamw_32bit "${common[@]}" --output_dir "$work/adapter"
lora=$(since "$start")
after=$(evaluate "$work/after" --adapter_name_or_path "$work/adapter")

# The transcript: greedy, so that it can be made again.
printf '%s\n' '{"prompt": "你好，请介绍一下你自己。"}' '{"prompt": "中国的首都是哪里？"}' '{"prompt": "请写出三种水果的名字。"}' '{"prompt": "如何保持健康？给出三条建议。"}' \
    '{"prompt": "What is the capital of France?"}' '{"prompt": "Give three tips for staying healthy."}' >"$work/prompts"
answers() { "$qlora" chat --model_name_or_path "$work/nf4" --template yuan --file "$work/prompts" --max_new_tokens 120 --do_sample false --repetition_penalty 1.1 --json --quiet "$@" 2>>"$work/log"; }
answers >"$work/answers.before"
answers --adapter_name_or_path "$work/adapter" >"$work/answers.after"
python3 - "$work" "$out" <<'EOF'
import json, sys
work, out = sys.argv[1:]
rows = lambda name: [json.loads(line) for line in open(f"{work}/{name}")]
text = lambda r: next((r[k] for k in ("text", "answer", "response", "output", "predict") if k in r), json.dumps(r, ensure_ascii=False))
with open(f"{out}/transcript.md", "w") as f:
    f.write("Greedy answers of the NF4 model before and after QLoRA.\n")
    for p, a, b in zip(rows("prompts"), rows("answers.before"), rows("answers.after")):
        f.write(f"\n**{p['prompt']}**\n\n- before: {text(a).strip()}\n- after: {text(b).strip()}\n")
EOF
cp "$work/full/trainer_log.jsonl" "$out/full.jsonl"
cp "$work/adapter/trainer_log.jsonl" "$out/qlora.jsonl"
for kind in full adapter; do # no curve of a single point
    [[ -f $work/$kind/training_loss.png ]] && cp "$work/$kind/training_loss.png" "$out/$([[ $kind == full ]] && echo full || echo qlora).png"
done
echo "{\"bench\":\"small_model\",\"steps\":$steps,\"full_seconds\":$full,\"full_loss\":$(field "$work/full/all_results.json" train_loss),\"qlora_seconds\":$lora,\"held_out_records\":$held,\"held_out_loss_before\":$before,\"held_out_loss_after\":$after}" | tee "$out/summary.jsonl"
