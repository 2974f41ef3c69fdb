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

# Every case of cases.json for the stages sft and pt, as its flags are written there: all sequences, by the digest of all lines.
whole_is() {
    # shellcheck disable=SC2086
    [[ $("$QLORA" preview "${m[@]}" --disable_shuffling true $2 2>"$work/err" | sha256sum) == "$1  -" ]] || { tail -n 2 "$work/err"; false; }
}
cases=0
while read -r name digest flags; do
    [[ $name == *dpo* || $name == *kto* ]] && continue
    ok "$name" whole_is "$digest" "$flags"
    cases=$((cases + 1))
done < <(awk -F'"' '$2 == "name" { name = $4; flags = digest = "" } $2 == "flags" { flags = $4 }
    $2 == "sha256_full" && flags != "" { print name, $4, flags }' goldens/data/cases.json)
ok "all cases" test $cases = 44
# what is dropped where v0.5.0 stops, and what leaves nothing, is in tests/golden/test_data_golden.c

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

# every data set beside dataset_info.json loads: in stage sft, plain text in stage pt; preferences are named as what they are
loads() { test "$("$QLORA" preview "${m[@]}" --dataset "$1" --dataset_dir data/llamafactory "${@:2}" 2>"$work/err" --limit 3 | wc -l)" = 3; }
sets=0
while read -r name; do
    sets=$((sets + 1))
    case $name in
    dpo_* | kto_*) refused "$name" 'The dataset is not applicable in the current training stage.' preview "${m[@]}" --dataset "$name" --dataset_dir data/llamafactory ;;
    wiki_* | c4_*) ok "$name" loads "$name" --stage pt ;;
    *) ok "$name" loads "$name" && ok "$name, old" loads "$name" --compat old ;;
    esac
done < <(sed -n 's/^  "\([a-z0-9_]*\)": {$/\1/p' data/llamafactory/dataset_info.json)
ok "all data sets" test $sets = 9
refused "an unknown data set" 'Undefined dataset alpca_en' preview "${m[@]}" --dataset alpca_en --dataset_dir data/llamafactory
refused "packing that leaves nothing" 'Empty dataset!' preview "${m[@]}" --dataset identity --dataset_dir data/llamafactory --sft_packing --preprocessing_num_workers 16
finish
