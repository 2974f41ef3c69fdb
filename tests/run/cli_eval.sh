#!/usr/bin/env bash
# qlora eval: the forms of MMLU, C-Eval and CMMLU; letters against the log-probabilities that score gives for prompts put
# together here; results files and messages.
. "$(dirname "$0")/check.bash"
tools=${TOOLS:-build/examples/demo}
export OMP_NUM_THREADS=2
"$tools/make_data" "$work/data" >"$work/.log" && "$tools/make_tokenizer" "$work/tok" 600 "$work/data/corpus.txt" >>"$work/.log" 2>&1 ||
    { cat "$work/.log"; failed=1; finish; }
ids=$(printf '{"text":"<empty_output>"}\n{"text":"<eod>"}\n' | "$QLORA" tokenize --model_name_or_path "$work/tok" --file - --quiet | tr -dc '0-9\n')
last=${ids%%$'\n'*} eod=${ids##*$'\n'}
"$QLORA" new --config yuan2-tiny --tokenizer "$work/tok" --output_dir "$work/m" --override vocab_size=$((last + 1)) \
    --override eod_token="$eod" --override pad_token_id="$eod" --override initializer_range=0.3 --quiet
t=$work/evaluation
mkdir -p "$t/mmlu" "$t/ceval/dev" "$t/ceval/val" "$t/ceval/test"
# MMLU: no header, quotes, a comma in a cell; cells of the first row that are alike
cat >"$t/mmlu/birds_dev.csv" <<'X'
What flies?,fish,fish,"birds, bats",stones,C
What swims?,fish,cats,rocks,hats,A
Third,1,2,3,4,B
X
cat >"$t/mmlu/birds_test.csv" <<'X'
"Who said ""hello""?",a bird,a fish,"a, b",nobody,B
What is red?,roses,the sky,grass,milk,A
"Two
lines?",one,two,three,four,D
X
cp "$t/mmlu/birds_dev.csv" "$t/mmlu/stones_dev.csv"
printf 'What sinks?,wood,oil,stones,air,C\n' >"$t/mmlu/stones_test.csv"
echo '{"birds": {"name": "birds of prey", "category": "STEM"}, "stones": {"name": "stones", "category": "Other"}}' >"$t/mmlu/mapping.json"
# C-Eval: a header, an id in front, an explanation behind, folders by part; test without answers
printf '\xef\xbb\xbfid,question,A,B,C,D,answer,explanation\r\n0,什么是红色的？,花,天,草,奶,A,因为\r\n1,二加二,1,2,3,4,D,\r\n' >"$t/ceval/dev/art_dev.csv"
printf 'id,question,A,B,C,D,answer\n0,谁住在森林？,鱼,鸟,石头,水,B\n1,三加一,1,2,3,4,D\n' >"$t/ceval/val/art_val.csv"
printf 'id,question,A,B,C,D\n0,问题,1,2,3,4\n' >"$t/ceval/test/art_test.csv"
echo '{"art": {"name": "艺术", "category": "Humanities"}}' >"$t/ceval/mapping.json"
# shellcheck disable=SC2086
ask() { "$QLORA" eval --model_name_or_path "$work/m" --template yuan --task_dir "$t" --quiet "$@" >"$work/out" 2>"$work/err"; }

# ---- letters: the largest log-probability behind a prompt made here ----
piece() { "$QLORA" tokenize --model_name_or_path "$work/m" --text "$1" --quiet | tr -cs '0-9' ' '; }
letter=()
for k in A B C D; do letter+=("$(piece $k | awk '{print $NF}')"); done
sep=$(piece "<sep>")
best() { # IDS: the letter that score likes most
    local k
    for k in 0 1 2 3; do
        printf '%s %s\n' "$("$QLORA" score --model_name_or_path "$work/m" --ids "$1 ${letter[k]}" --quiet | sed 's/.*,\(-[0-9.e-]*\)\],"loss".*/\1/')" "$(printf "\\x4$((k + 1))")"
    done | sort -g | tail -n 1 | cut -d' ' -f2
}
text() { printf '%s\nA. %s\nB. %s\nC. %s\nD. %s\n%s' "$@"; }
# NAME LANG COMPAT: the letter of the first question of birds behind two examples
for how in "en old" "en new" "zh old" "zh new"; do
    # shellcheck disable=SC2086
    set -- $how
    if [[ $1 == en ]]; then
        head=$'The following are multiple choice questions (with answers) about birds of prey.\n\n' tail="Answer:"
        [[ $2 == old ]] && tail="Answer: "
    else head=$'以下是中国关于birds of prey考试的单项选择题，请选出其中的正确答案。\n\n' tail="答案："; fi
    one=$(text "${head}What flies?" fish fish "birds, bats" stones "$tail")
    two=$(text "What swims?" fish cats rocks hats "$tail")
    asked=$(text 'Who said "hello"?' "a bird" "a fish" "a, b" nobody "$tail")
    # the same ids in both templates: old has the line end before the next question, new behind the answer
    newline=$(piece $'\n')
    prompt="$(piece "$one") $sep $(piece C) $eod $newline $(piece "$two") $sep $(piece A) $eod $newline $(piece "$asked") $sep"
    ok "mmlu, $1 $2" ask --task mmlu_test --n_shot 2 --lang "$1" --compat "$2" --save_dir "$work/r-$1-$2"
    ok "its first letter" test "$(sed -n 's/.*"0": "\(.\)".*/\1/p' "$work/r-$1-$2/results.json" | head -n 1)" = "$(best "$prompt")"
done
ok "the examples count" ask --task mmlu_test --n_shot 0 --save_dir "$work/r0"
ok "no examples" test "$(sed -n 's/.*"0": "\(.\)".*/\1/p' "$work/r0/results.json" | head -n 1)" = "$(best "$(piece "$(text $'The following are multiple choice questions (with answers) about birds of prey.\n\nWho said "hello"?' "a bird" "a fish" "a, b" nobody "Answer: ")") $sep")"

# ---- files and numbers ----
ok "results.json" grep -q '^  "birds": {$' "$work/r-en-old/results.json"
ok "three and one answers" test "$(grep -c '"[0-9]*": "[A-D]"' "$work/r-en-old/results.json")" = 4
right=$(awk -F'"' '/: "[A-D]"/ {print $4}' "$work/r-en-old/results.json" | paste - - - - | awk '{print ($1 == "B") + ($2 == "A") + ($3 == "D"), ($4 == "C")}')
ok "the table" diff "$work/r-en-old/results.log" <(awk -v r="$right" 'BEGIN {split(r, x, " "); printf "%15s: %.2f\n%15s: %.2f\n%15s: %.2f", "Average", 25 * (x[1] + x[2]), "STEM", 100 * x[1] / 3, "Other", 100 * x[2]}')
ask --task mmlu_test --n_shot 2
ok "is printed" diff "$work/out" <(cat "$work/r-en-old/results.log"; echo)
ok "limit" ask --task mmlu_test --limit 1 --save_dir "$work/r1"
ok "one question a subject" test "$(grep -c '"[0-9]*": "[A-D]"' "$work/r1/results.json")" = 2
ok "C-Eval, its header, folders and marks" ask --task ceval_validation --lang zh --n_shot 5 --batch_size 4 --save_dir "$work/rc"
ok "is in Humanities" grep -q '^     Humanities: ' "$work/out"
ok "answers that are kept secret" ask --task ceval_test --lang zh --save_dir "$work/rt"
ok "are given" grep -q '"0": "[A-D]"' "$work/rt/results.json"
ok "and not counted" test ! -s "$work/out" -a "$(grep -c 'no answer in their file' "$work/err")" = 1
sed 's/^\(.*\)$/x,\1/; 1i ,Question,A,B,C,D,Answer' "$t/mmlu/stones_dev.csv" >"$t/mmlu/more_dev.csv"
sed 's/^\(.*\)$/x,\1/; 1i ,Question,A,B,C,D,Answer' "$t/mmlu/stones_test.csv" >"$t/mmlu/more_test.csv"
echo '{"more": {"name": "stones", "category": "Other"}}' >"$t/mmlu/mapping.json"
ok "CMMLU: a nameless first column, capital names" ask --task mmlu_test --n_shot 2 --save_dir "$work/rm"
ok "the same answer as without a header" test "$(grep -o '"0": "[A-D]"' "$work/rm/results.json")" = "$(sed -n '/stones/,$p' "$work/r-en-old/results.json" | grep -o '"0": "[A-D]"')"
ok "quantised" ask --task ceval_validation --quantization_bit 4
# shellcheck disable=SC2086
"$QLORA" train --do_train --model_name_or_path "$work/m" --dataset_dir "$work/data" --dataset questions --max_samples 8 --template yuan --lora_target all --output_dir "$work/a" --quiet >"$work/.log" 2>&1
ok "with an adapter" ask --task ceval_validation --adapter_name_or_path "$work/a"

# ---- messages ----
e="--model_name_or_path $work/m --quiet --task_dir $t"
# shellcheck disable=SC2086
{
    refused "no task" "Please provide task" eval $e
    refused "no part" "must end in _validation or _test" eval $e --task mmlu
    refused "no folder" "there is no folder" eval $e --task cmmlu_test
    refused "a used folder" "exists already" eval $e --task mmlu_test --save_dir "$work/rc"
    refused "no file" "there is neither" eval $e --task mmlu_validation
    echo '{"../mmlu/more": {}}' >"$t/mmlu/mapping.json"
    refused "a subject that is a path" "is not the name of a file" eval $e --task mmlu_test
    echo '{"more": 3}' >"$t/mmlu/mapping.json"
    refused "no object" "is not an object" eval $e --task mmlu_test
    echo '[]' >"$t/mmlu/mapping.json"
    refused "a list" "must be an object" eval $e --task mmlu_test
    echo '{"bad": {}}' >"$t/mmlu/mapping.json"
    printf 'q,a,b,c,d,E\n' >"$t/mmlu/bad_test.csv"
    refused "a fifth letter" 'the answer is "E", but must be A, B, C or D' eval $e --task mmlu_test --n_shot 0
    printf ',a,b,c,d,A\n' >"$t/mmlu/bad_test.csv"
    refused "no question" "there is no question" eval $e --task mmlu_test --n_shot 0
    printf '"q,a\n' >"$t/mmlu/bad_test.csv"
    refused "an open quote" "is never closed" eval $e --task mmlu_test --n_shot 0
}
finish
