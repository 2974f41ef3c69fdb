# tests/run/tiny.bash - sourced behind check.bash: a small data set, tokenizer and model, and a short run on them.
# tiny_model makes them in $work (its arguments are more flags of `qlora new`; $last and $eod are the last id and that of <eod>); $lora are the flags of the run; need_card ends the script where there is no card, and
# says in $backend where it is.
tools=${TOOLS:-build/examples/demo}
export OMP_NUM_THREADS=2

lora="--do_train --stage sft --template yuan --model_name_or_path $work/m --dataset_dir $work/data --dataset questions
    --max_samples 64 --cutoff_len 64 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --num_train_epochs 1
    --learning_rate 2e-3 --logging_steps 5 --save_steps 4 --save_total_limit 2 --resume_from_checkpoint true
    --lora_target q_proj,k_proj,v_proj,down_proj --lora_rank 4 --lora_dropout 0.1 --quantization_bit 4"

tiny_model() {
    local ids
    "$tools/make_data" "$work/data" >"$work/.log" && "$tools/make_tokenizer" "$work/tok" 600 "$work/data/corpus.txt" >>"$work/.log" 2>&1 ||
        { cat "$work/.log"; failed=1; finish; }
    ids=$(printf '{"text":"<empty_output>"}\n{"text":"<eod>"}\n' | "$QLORA" tokenize --model_name_or_path "$work/tok" --file - --quiet | tr -dc '0-9\n')
    last=${ids%%$'\n'*} eod=${ids##*$'\n'}
    ok "a tiny model" "$QLORA" new --config yuan2-tiny --tokenizer "$work/tok" --output_dir "$work/m" --override vocab_size=$((last + 1)) \
        --override eod_token="$eod" --override pad_token_id="$eod" "$@" --quiet
}
need_card() {
    local why
    backend=${QLORA_PLUGIN:-cuda}
    why=$("$QLORA" doctor --backend "$backend" | grep -A 1 'not working$' | sed -n 's/^! [0-9]* *//p')
    [[ -z $why ]] && return
    skip "no card: $why"
    finish
}
# train OUT FLAGS..: a run into OUT, what it says in OUT.log; its exit status
train() {
    local out=$1
    shift
    # shellcheck disable=SC2086
    timeout 120 "$QLORA" train $lora --output_dir "$out" "$@" >"$out.log" 2>&1
}
same() { cmp "$1/adapter_model.safetensors" "$2/adapter_model.safetensors"; }
