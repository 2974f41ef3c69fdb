#!/usr/bin/env bash
# Evaluation in and after training, the best model, early stopping, predictions: numbers against those of score and chat, and
# runs that are stopped across an evaluation end as undisturbed ones.
. "$(dirname "$0")/check.bash"
. tests/run/evaluate.bash

# ---- loss and accuracy: those of score and chat over the same records ----
ok "with evaluations" train e --eval_strategy steps --eval_steps 4 --compute_accuracy --plot_loss
ok "evaluated every four steps of 24" test "$(events e '"eval_loss": [0-9]')" = 6
for key in eval_loss eval_accuracy eval_perplexity eval_runtime eval_samples_per_second eval_steps_per_second epoch; do
    ok "$key in eval_results.json" grep -q "\"$key\"" "$work/e/eval_results.json"
    ok "$key in all_results.json" grep -q "\"$key\"" "$work/e/all_results.json"
done
ok "perplexity" near "$(number e/eval_results.json eval_perplexity)" "$(awk "BEGIN {print exp($(number e/eval_results.json eval_loss))}")" 0.01
ok "a picture of the accuracy" test -s "$work/e/training_eval_accuracy.png"
ok "evaluations in the state" test "$(grep -c '"eval_accuracy"' "$work/e/trainer_state.json")" = 6
# shellcheck disable=SC2086
"$QLORA" preview $data --dataset held_out --max_samples 5 --disable_shuffling true | sed 's/"input_ids"/"ids"/' >"$work/v.jsonl"
# v0.5.0's mean: batches of three, then two
want=$("$QLORA" score --model_name_or_path "$work/m" --adapter_name_or_path "$work/e" --file "$work/v.jsonl" --quiet |
    sed 's/.*"loss":\([0-9.]*\),"tokens":\([0-9]*\).*/\1 \2/' | awk '{b = NR <= 3; s[b] += $1 * $2; n[b] += $2; c[b]++} END {print (s[1] / n[1] * c[1] + s[0] / n[0] * c[0]) / NR}')
ok "evaluation without training" only ev --eval_dataset held_out --max_samples 5 --per_device_eval_batch_size 3 --do_eval --compute_accuracy --adapter_name_or_path "$work/e"
ok "its loss is that of score" near "$(number ev/eval_results.json eval_loss)" "$want" 1e-5
ok "no training is reported" test ! -e "$work/ev/train_results.json"
# the likeliest token in each labelled place, by greedy generation from what stands before it
share=0 sequences=0
while IFS='|' read -r x y; do
    read -ra id <<<"$x"
    read -ra label <<<"$y"
    right=0 counted=0
    for ((i = 1; i < ${#id[@]}; i++)); do
        ((label[i] < 0)) && continue
        got=$("$QLORA" chat --model_name_or_path "$work/m" --adapter_name_or_path "$work/e" --ids "${id[*]:0:i}" --max_new_tokens 1 --do_sample false --json --quiet | sed 's/.*"ids":\[\([0-9]*\)\].*/\1/')
        counted=$((counted + 1)) right=$((right + (${got:-$eod} == label[i]))) # no id: <eod>, which is not shown
    done
    share=$(awk "BEGIN {print $share + $right / $counted}") sequences=$((sequences + 1))
done < <(head -n 3 "$work/v.jsonl" | sed 's/{"ids":\[\(.*\)\],"labels":\[\(.*\)\]}/\1|\2/; s/,/ /g')
only ev3 --eval_dataset held_out --max_samples 3 --do_eval --compute_accuracy --adapter_name_or_path "$work/e"
ok "accuracy: the mean share of right tokens" near "$(number ev3/eval_results.json eval_accuracy)" "$(awk "BEGIN {print $share / $sequences}")" 1e-5
ok "and not 0 or 1 in this test" awk "BEGIN {exit !($share > 0 && $share < $sequences)}"
ok "only at the end" train end --do_eval
ok "one evaluation" test "$(events end '"eval_loss": [0-9]')" = 1
ok "as good as the last of the others" test "$(number end/eval_results.json eval_loss)" = "$(number e/eval_results.json eval_loss)"
ok "from the start, after a delay" train d --eval_strategy steps --eval_steps 4 --eval_on_start --eval_delay 12
ok "steps 0, 12, 16, 20, 24" test "$(grep '"eval_loss": [0-9]' "$work/d/trainer_log.jsonl" | sed 's/.*"current_steps": \([0-9]*\),.*/\1/' | tr '\n' ' ')" = "0 12 16 20 24 "
ok "every epoch" train ep --eval_strategy epoch
ok "two epochs" test "$(events ep '"eval_loss": [0-9]')" = 2
ok "evaluation changes nothing" same e ep

# ---- the best model, early stopping ----
# A rate so high that the loss rises again: the best evaluation is not the last.
high="--learning_rate 0.3 --lr_scheduler_type constant --eval_strategy steps --eval_steps 2 --max_steps 40"
# shellcheck disable=SC2086
ok "the best of a wild run" train b $high --save_strategy steps --save_steps 4 --load_best_model_at_end --save_total_limit 2
best=$(number b/trainer_state.json best_metric)
lowest=$(sed -n 's/.*"eval_loss": \([0-9.]*\).*/\1/p' "$work/b/trainer_log.jsonl" | sort -g | head -n 1)
checkpoint=$(sed -n 's/.*"best_model_checkpoint": "\(.*\)",/\1/p' "$work/b/trainer_state.json")
ok "is the lowest loss" test "$best" = "$lowest"
ok "not that of the last evaluation" test "$best" != "$(sed -n 's/.*"eval_loss": \([0-9.]*\).*/\1/p' "$work/b/trainer_log.jsonl" | tail -n 2 | head -n 1)"
ok "its checkpoint is kept" test -s "$checkpoint/adapter_model.safetensors"
ok "its weights are the result" cmp "$checkpoint/adapter_model.safetensors" "$work/b/adapter_model.safetensors"
ok "and are evaluated" test "$(number b/eval_results.json eval_loss)" = "$best"
# shellcheck disable=SC2086
ok "saved when better, and only then" train sb $high --save_strategy best --metric_for_best_model eval_loss --load_best_model_at_end
ok "the same end" same b sb
ok "the largest, if greater is better" train g --learning_rate 2e-3 --eval_strategy steps --save_strategy best --metric_for_best_model loss --greater_is_better
ok "is the first" grep -q 'checkpoint-4"' "$work/g/trainer_state.json"
# shellcheck disable=SC2086
ok "best by accuracy" train a $high --save_strategy best --compute_accuracy --metric_for_best_model accuracy
ok "a share" awk "BEGIN {exit !($(number a/trainer_state.json best_metric) <= 1)}"
stop="$high --early_stopping_steps 3 --save_strategy steps --save_steps 1 --save_total_limit 3"
# shellcheck disable=SC2086
ok "early stopping" train s $stop
steps=$(sed -n 's/.*"eval_loss": .*/&/p' "$work/s/trainer_log.jsonl" | sed 's/.*"current_steps": \([0-9]*\),.*/\1/' | tail -n 1)
best_at=$(sed -n 's/.*"eval_loss": \([0-9.]*\).*/\1 &/p' "$work/s/trainer_log.jsonl" | sort -g | head -n 1 | sed 's/.*"current_steps": \([0-9]*\),.*/\1/')
ok "three evaluations after the best" test "$steps" = $((best_at + 6))
ok "before the last step" test "$steps" -lt 40

# ---- stopped and resumed ----
# shellcheck disable=SC2086
for n in 20 45 70 95 120; do # killed in a system call of the saves, the counter of early stopping goes on
    (QLORA_FAULT="wsnum:$n:KILL" "$QLORA" train $base --output_dir "$work/r$n" $stop) >"$work/r.log" 2>&1
    ok "resumed after a kill in call $n" train "r$n" $stop --resume_from_checkpoint true
    ok "ends at the same step" test "$(number "r$n/trainer_state.json" global_step)" = "$(number s/trainer_state.json global_step)"
    ok "with the same adapter" same s "r$n"
    ok "and the same best" test "$(number "r$n/trainer_state.json" best_metric)" = "$(number s/trainer_state.json best_metric)"
done
# A signal that comes while a long evaluation runs: the numbers of the part are not recorded, the evaluation is made after the resume.
many="--eval_strategy steps --eval_steps 5 --val_size 0 --eval_dataset world,world --max_samples 2000 --max_steps 10 --metric_for_best_model loss"
start=$EPOCHREALTIME
# shellcheck disable=SC2086
ok "an undisturbed run" train w $many
took_us=$((${EPOCHREALTIME/./} - ${start/./})) within=0
for part in 30 40 50 60 70 80; do
    rm -rf "$work/i"
    # shellcheck disable=SC2086
    "$QLORA" train $base --output_dir "$work/i" $many >"$work/i.log" 2>&1 &
    sleep "$(awk "BEGIN {print $took_us * $part / 1e8}")"
    kill -TERM $! 2>/dev/null
    wait $!
    [[ -d $work/i/checkpoint-5 || -d $work/i/checkpoint-10 ]] && within=$((within + 1)) # nothing else is saved but where the signal came
    # shellcheck disable=SC2086
    ok "resumed after a signal" train i $many --resume_from_checkpoint true
    ok "the same evaluations" test "$(sed 's/, "elapsed.*//' "$work/i/trainer_log.jsonl")" = "$(sed 's/, "elapsed.*//' "$work/w/trainer_log.jsonl")"
    ok "the same adapter" same w i
done
ok "a signal came within an evaluation" test $within -gt 0

# ---- predictions ----
greedy="--predict_with_generate --do_sample false --max_new_tokens 10"
# shellcheck disable=SC2086
ok "predict" only p --eval_dataset held_out --max_samples 6 --do_predict $greedy --adapter_name_or_path "$work/e"
ok "six lines" test "$(wc -l <"$work/p/generated_predictions.jsonl")" = 6
for key in bleu-4 rouge-1 rouge-2 rouge-l runtime samples_per_second steps_per_second; do ok "predict_$key" grep -q "\"predict_$key\": [0-9]" "$work/p/predict_results.json"; done
head -n 6 "$work/data/prompts.jsonl" >"$work/six.jsonl"
"$QLORA" chat --model_name_or_path "$work/m" --adapter_name_or_path "$work/e" --file "$work/six.jsonl" --json --do_sample false --max_new_tokens 10 --compat new --quiet |
    sed 's/.*"answer":\("[^"]*"\).*/\1/' >"$work/answers"
ok "the answers are those of chat" diff "$work/answers" <(sed 's/.*"predict": \("[^"]*"\), "label".*/\1/' "$work/p/generated_predictions.jsonl")
ok "prompts keep their special tokens" grep -q '^{"prompt": "[^"]*<sep>", "predict": ' "$work/p/generated_predictions.jsonl"
# shellcheck disable=SC2086
ok "after training, with its adapter" train tp --do_predict $greedy --eval_strategy epoch
# shellcheck disable=SC2086
ok "the same without training" only tq --dataset questions --max_samples 64 --val_size 16 --do_predict $greedy --adapter_name_or_path "$work/tp"
ok "byte for byte" cmp "$work/tp/generated_predictions.jsonl" "$work/tq/generated_predictions.jsonl"
ok "all results in one file" bash -c 'for k in train_loss eval_loss predict_bleu-4; do grep -q "\"$k\"" "$0" || exit 1; done' "$work/tp/all_results.json"
# shellcheck disable=SC2086
ok "sampling repeats with its seed" bash -c '"$0" train $1 --output_dir "$2/s1" $3 && "$0" train $1 --output_dir "$2/s2" $3 && cmp "$2/s1/generated_predictions.jsonl" "$2/s2/generated_predictions.jsonl"' \
    "$QLORA" "$data" "$work" "--eval_dataset held_out --max_samples 3 --do_predict --predict_with_generate --max_new_tokens 8 --seed 3"
ok "only the loss" only pl --eval_dataset held_out --max_samples 5 --per_device_eval_batch_size 3 --do_predict --adapter_name_or_path "$work/e"
ok "is the evaluation's" test "$(number pl/predict_results.json predict_loss)" = "$(number ev/eval_results.json eval_loss)"
# shellcheck disable=SC2086
ok "v0.5.0 predicts the data set itself" only po --compat old --dataset held_out --max_samples 4 --do_predict $greedy --adapter_name_or_path "$work/e"
ok "four lines" test "$(wc -l <"$work/po/generated_predictions.jsonl")" = 4
# what stands before the last answer is the prompt
cat >"$work/data/turns.json" <<'J'
[{"instruction": "and the last?", "input": "", "output": "the end", "history": [["one", "two"], ["three", "four"]], "system": "sys"}]
J
# shellcheck disable=SC2086
ok "a conversation" only pc --eval_dataset "$work/data/turns.json" --do_predict $greedy
ok "its history is in the prompt" grep -q '"prompt": "sys *one<sep>two<eod>.*three<sep>four<eod>.*and the last?<sep>", "predict": ".*", "label": "the end' "$work/pc/generated_predictions.jsonl"
refused "a picture book" "Please make sure eval_dataset be provided" train --do_predict --model_name_or_path "$work/m" --dataset questions --output_dir "$work/x" --compat new --quiet
finish
