#!/usr/bin/env bash
# Every flag that tests/run/flags.tsv calls used changes what a run does, prints or leaves: each is tried on a small run beside the
# same run without it, and the two must differ in more than times. The list below is complete, or the test fails.
[[ -w /dev/shm ]] && export TMPDIR=/dev/shm # some two hundred short runs, each of which waits for its files to reach the disk
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
export OMP_NUM_THREADS=1
tiny_model
list=$PWD/tests/run/flags.tsv
cd "$work" || exit 1

# ---- data: a second set of conversations, a second folder, a second model ----
cat >data/turns.json <<'JSON'
[{"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day"}, {"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is green."}]},
 {"conversations": [{"from": "human", "value": "And you?"}, {"from": "gpt", "value": "Well"}, {"from": "human", "value": "Where?"}, {"from": "gpt", "value": "In the caves."}]}]
JSON
mv data/questions.json data/many.json
{ head -n 23 data/many.json; sed -n '24s/,$//p' data/many.json; echo ']'; } >data/questions.json # a bracket and 23 records
sed -i 's/^{$/{"many": {"file_name": "many.json"}, "turns": {"file_name": "turns.json", "formatting": "sharegpt"},/' data/dataset_info.json
mkdir other && cp data/dataset_info.json other/ && cp data/held_out.json other/questions.json
"$QLORA" new --config m --tokenizer m --output_dir m2 --seed 9 --quiet >.log 2>&1 || "$QLORA" new --config m/config.json --tokenizer m --output_dir m2 --seed 9 --quiet
echo '{"gradient_clipping": 1, "zero_optimization": {"stage": 2}}' >ds.json

base="--do_train true --compat new --model_name_or_path m --dataset_dir data --dataset questions --cutoff_len 48
    --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --num_train_epochs 1 --learning_rate 2e-3 --logging_steps 1
    --save_strategy no --lora_target q_proj,v_proj --lora_rank 4 --backend cpu --output_dir o"

# What a run does: exit status, words, adapter, names of files, log. Times and speeds are left out.
trace() {
    [[ $KEEP ]] || rm -rf o
    # shellcheck disable=SC2086
    timeout 60 "$QLORA" train $base "$@" >.said 2>&1
    echo "exit status $?"
    sed -e '/tokens\/s\|per_second\|_runtime\|^time: \|^loaded \|^reading \|^disk: \|^  for products\|^loading \|^saving \|^checkpoint-[0-9]* is on the disk: \|^evaluating \|^predicting /d; s/   of [0-9.]* [KMGT]iB$//' .said
    find o other_o -type f 2>/dev/null | sed 's/tfevents.*/tfevents/' | sort
    [[ -f o/trainer_log.jsonl ]] && sed 's/"\(elapsed_time\|remaining_time\)": "[^"]*"//g; s/"throughput": [0-9.]*/"throughput"/' o/trainer_log.jsonl
    [[ -f o/trainer_state.json ]] && sed '/runtime\|per_second\|num_input_tokens/d' o/trainer_state.json
    [[ -f o/adapter_model.safetensors ]] && sha1sum o/adapter_model.safetensors o/adapter_config.json
    [[ -f o/generated_predictions.jsonl ]] && cat o/generated_predictions.jsonl
    [[ -f o/model.safetensors ]] && sha1sum o/model.safetensors
    rm -rf other_o
}
KEEP= trace >same.1
KEEP= trace >same.2
ok "two runs alike leave the same traces" diff same.1 same.2
ok "and train" grep -q "'loss': " same.1
mkdir -p ready && cp -r o ready/adapter && KEEP= trace --save_strategy steps --save_steps 2 >/dev/null && cp -r o ready/saved

declare -A tried=() plain=()
# effect FLAG VALUE [FLAGS OF BOTH RUNS]: the run with --FLAG VALUE behind must differ. FRESH: a command to run before each.
effect() {
    local flag=$1 value=$2 key="${*:3} ${FRESH-}"
    tried[$flag]=1
    if [[ -z ${plain[$key]-} ]]; then
        plain[$key]=plain.${#plain[@]}
        eval "${FRESH-}"
        KEEP=${FRESH-} trace "${@:3}" >"${plain[$key]}"
        eval "${FRESH-}"
        KEEP=${FRESH-} trace "${@:3}" >again
        cmp -s again "${plain[$key]}" || ok "runs alike with ${*:3} leave the same traces" diff again "${plain[$key]}"
    fi
    eval "${FRESH-}"
    KEEP=${FRESH-} trace "${@:3}" "--$flag" "$value" >with
    if cmp -s with "${plain[$key]}"; then
        failed=$((failed + 1))
        echo "FAILED --$flag $value changes nothing"
    else passed=$((passed + 1)); fi
}
eval4=(--val_size 4 --eval_strategy steps --eval_steps 2)

# model and method
effect model_name_or_path m2
effect adapter_name_or_path ready/adapter
effect checkpoint_dir ready/adapter
effect create_new_adapter true --adapter_name_or_path ready/adapter
effect finetuning_type full
effect use_dora true
effect additional_target embed_tokens
effect pure_bf16 true --finetuning_type full
effect lora_bf16_mode true --finetuning_type full
effect freeze_trainable_layers 1 --finetuning_type freeze
effect num_layer_trainable 1 --finetuning_type freeze
effect freeze_trainable_modules mlp --finetuning_type freeze
effect name_module_trainable mlp --finetuning_type freeze
effect freeze_extra_modules norm --finetuning_type freeze
effect quantization_bit 4
effect quantization_type fp4 --quantization_bit 4
effect double_quantization false --quantization_bit 4
effect disable_gradient_checkpointing true --finetuning_type full --vram 30MiB --cutoff_len 512 --packing true --dataset many --max_samples 2000 --max_steps 1
effect gradient_checkpointing false
effect stage pt
effect lora_rank 8
effect lora_alpha 3
effect lora_dropout 0.25
effect lora_target q_proj
effect use_rslora true
effect loraplus_lr_ratio 4
effect neftune_noise_alpha 5
effect neft_alpha 5
effect label_smoothing_factor 0.1
# data
effect dataset held_out
effect dataset_dir other
effect eval_dataset held_out --do_eval true
effect eval_on_each_dataset true --eval_dataset held_out,turns --do_eval true
effect template yaun
effect cutoff_len 12
effect reserved_label_len 48
effect sft_packing true --compat old
effect packing true
effect neat_packing true
effect train_on_prompt true
effect mask_history true --dataset turns
effect max_samples 9
effect tokenized_path other_o/rows
effect cache_path other_o/rows
effect val_size 4
effect mix_strategy interleave_over --dataset questions,turns
effect interleave_probs 0.9,0.1 --dataset questions,turns --mix_strategy interleave_under
effect preprocessing_num_workers 3 --packing true
effect preprocessing_batch_size 5 --packing true
effect default_system "Be brief."
effect disable_shuffling true
effect group_by_length true
effect train_sampling_strategy group_by_length
effect streaming true --max_steps 4
effect buffer_size 3 --streaming true --max_steps 4
# run
effect output_dir other_o
FRESH='rm -rf o && cp -r ready/adapter o' effect overwrite_output_dir true
FRESH='rm -rf o && cp -r ready/saved o' effect resume_from_checkpoint o/checkpoint-2
effect do_train false "${eval4[@]}"
effect do_eval true --val_size 4
effect do_predict true --val_size 4
effect predict_with_generate true --val_size 2 --do_predict true --max_new_tokens 3
effect skip_special_tokens false --val_size 2 --do_predict true --predict_with_generate true --max_new_tokens 3
ok "labels with <eod>" grep -q '"label": ".*<eod>' o/generated_predictions.jsonl
effect per_device_train_batch_size 3
effect per_device_eval_batch_size 3 "${eval4[@]}"
effect gradient_accumulation_steps 3
effect num_train_epochs 0.5
effect max_steps 3
effect seed 9
effect data_seed 9
effect dataloader_drop_last true
effect bf16 true
effect fp16 true
effect use_cpu true --backend cuda
effect no_cuda true --backend cuda
effect deepspeed ds.json
# optimizer
effect learning_rate 1e-4
effect weight_decay 0.5
effect adam_beta1 0.5
effect adam_beta2 0.5
effect adam_epsilon 0.1
effect max_grad_norm 0.01
effect optim adamw_8bit --finetuning_type full
effect lr_scheduler_type cosine
effect lr_scheduler_kwargs '{"num_cycles": 2}' --lr_scheduler_type cosine
effect warmup_ratio 0.5
effect warmup_steps 3
# logs and saving
effect logging_steps 2
effect logging_strategy epoch
effect logging_first_step true --logging_steps 4
effect save_strategy epoch
effect save_steps 2 --save_strategy steps
effect save_total_limit 2 --save_strategy steps --save_steps 1
effect save_only_model true --save_strategy epoch
effect evaluation_strategy epoch --val_size 4
effect eval_strategy epoch --val_size 4
effect eval_steps 2 --val_size 4 --eval_strategy steps
effect eval_delay 3 "${eval4[@]}"
effect eval_on_start true "${eval4[@]}"
effect compute_accuracy true "${eval4[@]}"
best=("${eval4[@]}" --save_strategy steps --save_steps 2)
effect load_best_model_at_end true "${best[@]}" --learning_rate 3
effect metric_for_best_model perplexity "${best[@]}" --load_best_model_at_end true
effect greater_is_better true "${best[@]}" --load_best_model_at_end true
effect early_stopping_steps 1 "${eval4[@]}" --learning_rate 0
effect plot_loss true
effect include_num_input_tokens_seen true
effect include_effective_tokens_per_second true
effect report_to none

while IFS=$'\t' read -r flag _ outcome _; do
    [[ $outcome != used || ${tried[$flag]-} ]] || ok "$flag is tried above" false
done < <(grep -v '^#' "$list")
finish
