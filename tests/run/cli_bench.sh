#!/usr/bin/env bash
# qlora bench: random weights timed at several budgets, the table of the guide, the curve. Speeds are the machine's own and are only
# held to what they must be whatever the machine: positive, below the ceiling, and near the plan's.
. "$(dirname "$0")/check.bash"
number() { sed -n "s/.*\"$1\":\([0-9.e+-]*\).*/\1/p" "$2"; }
between() { awk -v x="$1" -v low="$2" -v high="$3" 'BEGIN {if (!(x > low && x < high)) {print x; exit 1}}'; }
bench() { # NAME FLAG..
    local out=$work/$1
    shift
    "$QLORA" bench --config yuan2-tiny --cutoff_len 65 --gradient_accumulation_steps 4 --max_steps 3 "$@" >"$out" 2>"$out.err"
}

ok "QLoRA" bench q4 --quantization_bit 4 --json --vram 1,512MiB
ok "a line for each budget" test "$(wc -l <"$work/q4")" == 2
ok "which it names" test "$(number vram "$work/q4" | tr '\n' ' ')" == "1073741824 536870912 "
ok "both measured" test "$(grep -c '"measured":true' "$work/q4")" == 2
for row in 1 2; do
    sed -n ${row}p "$work/q4" >"$work/row"
    ok "it is no faster than its products could be" between "$(number flops "$work/row")" 0 "$(awk -v x="$(number ceiling "$work/row")" 'BEGIN {print 2 * x}')"
    ok "a step of 256 tokens" between "$(awk -v a="$(number tokens_per_second "$work/row")" -v b="$(number step_seconds "$work/row")" 'BEGIN {print a * b}')" 255 257
    ok "random weights know nothing" between "$(number loss "$work/row")" 11 13 # ln 135040 is 11.8
    ok "the steps that were asked for" test "$(number steps "$work/row")" == 3
done
for method in "--quantization_bit 8" "--finetuning_type full" "--lora_rank 4"; do
    # shellcheck disable=SC2086
    ok "$method" bench other $method --json
    ok "measured" grep -q '"measured":true' "$work/other"
done
ok "a budget that is too small is not measured" bench small --quantization_bit 4 --vram 16MiB,1
ok "and the table says so" grep -qE '\| 16 MiB \| [0-9]+ MiB \|.*\| estimated [0-9,]+ \|' "$work/small"
ok "and why" grep -q "not measured: this run needs at least" "$work/small.err"
ok "a curve" bench curve --quantization_bit 4 --vram 256MiB,1 --plot "$work/curve.svg"
ok "of two dots" test "$(grep -c '<circle' "$work/curve.svg")" == 2
ok "is well-formed" python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$work/curve.svg"

ok "the guide's table" bash -c '"$0" bench --table guide --vram 8 --use_cpu --json >"$1/guide" 2>"$1/guide.err"' "$QLORA" "$work"
ok "has nine rows" test "$(wc -l <"$work/guide")" == 9
ok "with the guide's figures" test "$(number guide_gb "$work/guide" | tr '\n' ' ')" == "40 7 5 1000 120 40 2000 230 80 "
ok "all marked: no CPU runs them in an afternoon" test "$(grep -c '"measured":false,.*"why":"[^"]*' "$work/guide")" == 9
ok "as a table, too" bash -c '[[ $("$0" bench --table guide --vram 8 --use_cpu 2>/dev/null | grep -c "^| yuan2-.*(guide: ") == 9 ]]' "$QLORA"

refused "Please provide config" "Please provide config" bench
refused "table has models of its own" "table has models of its own" bench --table guide --config yuan2-2b
refused "large is no size; a list such as 6,8,12" '"large" is no size; a list such as 6,8,12' bench --config yuan2-tiny --vram large
refused "did you mean yuan2-2b" "did you mean yuan2-2b" bench --config yuan-2b
refused "neither a file nor a folder" "neither a file nor a folder" bench --config nothing
finish
