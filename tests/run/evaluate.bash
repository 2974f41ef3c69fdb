# tests/run/evaluate.bash - sourced behind check.bash by what evaluates: runs on the tiny model, numbers of their files.
. tests/run/tiny.bash
tiny_model
data="--model_name_or_path $work/m --dataset_dir $work/data --template yuan --cutoff_len 64 --compat new --quiet"
base="--do_train $data --dataset questions --max_samples 64 --val_size 16 --per_device_train_batch_size 4 --per_device_eval_batch_size 3
    --num_train_epochs 2 --lora_target all --lora_rank 4 --learning_rate 2e-3 --logging_steps 4 --save_strategy no"
# shellcheck disable=SC2086
train() { local out=$1; shift; "$QLORA" train $base --output_dir "$work/$out" "$@" >"$work/$out.log" 2>&1; }
# shellcheck disable=SC2086
only() { local out=$1; shift; "$QLORA" train $data --output_dir "$work/$out" "$@" >"$work/$out.log" 2>&1; }
number() { sed -n "s/.*\"$2\": \(-\?[0-9.e+-]*\).*/\1/p" "$work/$1" | tail -n 1; } # FILE KEY: the last one
near() { awk "BEGIN {d = $1 - $2; exit !(d < $3 && -d < $3)}"; }
events() { grep -c "$2" "$work/$1/trainer_log.jsonl"; }
same() { cmp "$work/$1/adapter_model.safetensors" "$work/$2/adapter_model.safetensors"; }
