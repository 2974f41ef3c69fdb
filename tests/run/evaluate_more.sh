#!/usr/bin/env bash
# Evaluations of single data sets, smoothed labels, a rate that evaluations lower.
. "$(dirname "$0")/check.bash"
. tests/run/evaluate.bash

ok "a run" train end --do_eval

# ---- each data set by itself: numbers of evaluations of one set ----
each="--eval_dataset held_out,world --per_device_eval_batch_size 3 --compute_accuracy"
train_two() { local out=$1; shift; train "$out" --val_size 0 "$@"; }
# shellcheck disable=SC2086
{
    ok "on each" train_two ea $each --eval_on_each_dataset true --eval_strategy steps --eval_steps 8 --save_strategy steps --save_steps 8
    for f in trainer_log.jsonl trainer_state.json eval_results.json all_results.json; do
        ok "$f" grep -q '"eval_held_out_loss": .*' "$work/ea/$f"
        ok "$f, the other" grep -q '"eval_world_accuracy": .*' "$work/ea/$f"
    done
    ok "an evaluation every eight steps of 32" test "$(grep -c '"eval_world_loss"' "$work/ea/trainer_state.json")" = 4
    for s in held_out world; do
        ok "$s alone" only "ea_$s" --eval_dataset $s --max_samples 64 --per_device_eval_batch_size 3 --do_eval --compute_accuracy --adapter_name_or_path "$work/ea"
        ok "its loss" near "$(number ea/eval_results.json eval_${s}_loss)" "$(number ea_$s/eval_results.json eval_loss)" 1e-6
        ok "its accuracy" near "$(number ea/eval_results.json eval_${s}_accuracy)" "$(number ea_$s/eval_results.json eval_accuracy)" 1e-6
    done
    ok "without training" only ea2 $each --max_samples 64 --eval_on_each_dataset true --do_eval --adapter_name_or_path "$work/ea"
    for k in eval_loss eval_held_out_loss eval_world_loss; do ok "the same $k" test "$(number ea/eval_results.json $k)" = "$(number ea2/eval_results.json $k)"; done
    ok "packed, each by itself" train_two ea3 $each --packing true --eval_on_each_dataset true --do_eval
    rm -rf "$work/ea4" && cp -r "$work/ea" "$work/ea4" && rm -rf "$work/ea4/checkpoint-24" "$work/ea4/checkpoint-32" "$work/ea4/trainer_state.json"
    ok "resumed" train_two ea4 $each --eval_on_each_dataset true --eval_strategy steps --eval_steps 8 --save_strategy steps --save_steps 8 --resume_from_checkpoint true
    ok "with the history of before" diff <(grep -o '"eval_[a-z_]*_\(loss\|accuracy\)": .*' "$work/ea/trainer_state.json") <(grep -o '"eval_[a-z_]*_\(loss\|accuracy\)": .*' "$work/ea4/trainer_state.json")
}

# ---- smoothed labels ----
ok "smoothed labels" train sl --do_eval --label_smoothing_factor 0.25
again() { only "$@" --eval_dataset held_out --do_eval --adapter_name_or_path "$work/sl"; }
for s in 0 0.25 1; do ok "evaluated with $s" again "sl$s" --label_smoothing_factor $s; done
plain=$(number sl0/eval_results.json eval_loss) spread=$(number sl1/eval_results.json eval_loss)
ok "the spread part alone is worse than a guess" awk "BEGIN {exit !($spread > log($last + 1) && $spread > $plain)}"
ok "a quarter of it" near "$(number sl0.25/eval_results.json eval_loss)" "$(awk "BEGIN {print 0.75 * $plain + 0.25 * $spread}")" 2e-5
ok "and they train otherwise" bash -c '! cmp -s "$0" "$1"' "$work/sl/adapter_model.safetensors" "$work/end/adapter_model.safetensors"

# ---- reduce_lr_on_plateau: evaluations lower the rate; a run in two halves does as one in one go ----
flat="--lr_scheduler_type reduce_lr_on_plateau --eval_strategy steps --eval_steps 2 --max_steps 16 --learning_rate 0.05 --logging_steps 2 --save_strategy steps --save_steps 6"
kwargs='{"patience": 0, "factor": 0.5, "threshold": 0.2}'
# shellcheck disable=SC2086
{
    ok "on a plateau" train fl $flat --lr_scheduler_kwargs "$kwargs" --quiet false
    ok "the rate falls" grep -q "the learning rate is now 0.025" "$work/fl.log"
    rates() { sed -n 's/.*"lr": \([0-9.e-]*\).*/\1/p' "$work/fl/trainer_log.jsonl" | sort -gu; }
    ok "in the log, by halves" test "$(rates | tail -n 2 | tr '\n' ' ')" = "0.025 0.05 "
    ok "patience of ten: it stays" train fl10 $flat
    ok "one rate" test "$(sed -n 's/.*"lr": \([0-9.e-]*\).*/\1/p' "$work/fl10/trainer_log.jsonl" | sort -u)" = 0.05
    ok "the first half" train fh $flat --lr_scheduler_kwargs "$kwargs" --max_steps 12
    ok "the second" train fh $flat --lr_scheduler_kwargs "$kwargs" --resume_from_checkpoint true
    ok "the same bits" same fl fh
}
finish
