#!/usr/bin/env bash
# qlora preview against golden sequences; limit, order, text.
. "$(dirname "$0")/check.bash"
[[ $shared ]] || { skip "no shared folder"; finish; }
m=(--model_name_or_path "$shared/data/yuan2-tokenizer")
cd "$shared" || exit 1

# case NAME FLAGS..: the first 200 sequences are those of goldens/data/NAME.jsonl.gz
case_is() {
    local name=$1
    shift
    "$QLORA" preview "${m[@]}" --disable_shuffling true --template yuan "$@" --limit 200 2>"$work/err" | cmp - <(zcat "goldens/data/$name.jsonl.gz")
}
check() { ok "$1" case_is "$@"; }
zh=(--dataset alpaca_zh_demo --dataset_dir data/llamafactory)
turns=(--dataset_dir goldens/data --dataset)
check old_plain_zh_1024 --compat old "${zh[@]}" --cutoff_len 1024
check old_pack_zh_1024_w16 --compat old "${zh[@]}" --cutoff_len 1024 --sft_packing --preprocessing_num_workers 16
check new_plain_zh_128 --compat new "${zh[@]}" --cutoff_len 128
check new_pack_zh_1024_w16 --compat new "${zh[@]}" --cutoff_len 1024 --packing True --preprocessing_num_workers 16
check new_neat_zh_512_g100 --compat new "${zh[@]}" --cutoff_len 512 --neat_packing --preprocessing_batch_size 100
check new_multiturn_maskhist_64 --compat new "${turns[@]}" multiturn --cutoff_len 64 --mask_history
check new_multiturn_default_system --compat new "${turns[@]}" multiturn --cutoff_len 256 --default_system 你是源大模型。
check new_pt_32 --compat new --stage pt "${turns[@]}" pages --cutoff_len 32
check new_pt_32_packing --compat new --stage pt "${turns[@]}" pages --cutoff_len 32 --packing True
check new_pt_32_plain --compat new --stage pt "${turns[@]}" pages --cutoff_len 32 --packing False
check new_mix_probs --compat new --dataset alpaca_zh_demo,identity --dataset_dir data/llamafactory --max_samples 50 --cutoff_len 256 --mix_strategy interleave_under --interleave_probs 0.3,0.7
check old_val_zh --compat old "${zh[@]}" --cutoff_len 256 --val_size 0.1
# the flags' names choose, without --compat
check old_pack_zh_1024_w16 "${zh[@]}" --sft_packing --preprocessing_num_workers 16
check new_pack_identity_2048 --dataset identity --dataset_dir data/llamafactory --packing True
# a whole command line of train
check new_identity_2048 --dataset identity --dataset_dir data/llamafactory --do_train --learning_rate 5e-5 --output_dir o --lora_rank 8 --bf16 --overwrite_cache

p=("$QLORA" preview "${m[@]}" --dataset identity --dataset_dir data/llamafactory)
lines() { test "$("${p[@]}" "${@:2}" | wc -l)" = "$1"; }
ok "every sequence once" lines 91
ok "limit" lines 7 --limit 7
ok "limit beyond the end" lines 91 --limit 1000
shuffled() { ! cmp -s <("${p[@]}") <("${p[@]}" --disable_shuffling true) && cmp <("${p[@]}" | sort) <("${p[@]}" --disable_shuffling true | sort); }
ok "shuffled: another order of the same sequences" shuffled
other_seed() { ! cmp -s <("${p[@]}") <("${p[@]}" --seed 1) && cmp <("${p[@]}" --seed 1) <("${p[@]}" --seed 5 --data_seed 1); }
ok "seed and data_seed choose the order" other_seed
by_length() { # the longest sequence of an epoch comes first
    "${p[@]}" --group_by_length | awk -F, '{ n = NF } NR == 1 { first = n } n > first { bad = 1 } END { exit bad }'
}
ok "group_by_length" by_length
as_text() { "${p[@]}" --text --limit 3 --disable_shuffling true | grep -A1 -e '--- trained' | grep -q 'Hello! I am {{name}}'; }
ok "text" as_text
refused "an unknown data set" 'Undefined dataset alpca_en' preview "${m[@]}" --dataset alpca_en --dataset_dir data/llamafactory
refused "packing that leaves nothing" 'Empty dataset!' preview "${m[@]}" --dataset identity --dataset_dir data/llamafactory --sft_packing --preprocessing_num_workers 16
finish
