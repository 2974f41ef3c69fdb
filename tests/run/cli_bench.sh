#!/usr/bin/env bash
# qlora bench: random weights timed at several budgets, the table of the guide, the curve. Speeds are the machine's own and are only
# held to what they must be whatever the machine: positive, below the ceiling, and near the plan's.
. "$(dirname "$0")/check.bash"
number() { sed -n "s/.*\"$1\":\([0-9.e+-]*\).*/\1/p" "$2"; }
between() { awk -v x="$1" -v low="$2" -v high="$3" 'BEGIN {if (!(x > low && x < high)) {print x; exit 1}}'; }
ok "a tiny configuration" "$QLORA" new --config yuan2-tiny --output_dir "$work/tiny" --override vocab_size=512 --override eod_token=510 --override eos_token_id=510 \
    --override pad_token_id=510 --quiet
bench() { # NAME FLAG..
    local out=$work/$1
    shift
    "$QLORA" bench --config "$work/tiny" --cutoff_len 65 --gradient_accumulation_steps 4 --max_steps 3 "$@" >"$out" 2>"$out.err"
}

ok "QLoRA" bench q4 --quantization_bit 4 --json --vram 1,512MiB --plot "$work/curve.png"
ok "a line for each budget" test "$(wc -l <"$work/q4")" == 2
ok "which it names" test "$(number vram "$work/q4" | tr '\n' ' ')" == "1073741824 536870912 "
ok "both measured" test "$(grep -c '"measured":true' "$work/q4")" == 2
for row in 1 2; do
    sed -n ${row}p "$work/q4" >"$work/row"
    ok "it is no faster than its products could be" between "$(number flops "$work/row")" 0 "$(awk -v x="$(number ceiling "$work/row")" 'BEGIN {print 2 * x}')"
    ok "a step of 256 tokens" between "$(awk -v a="$(number tokens_per_second "$work/row")" -v b="$(number step_seconds "$work/row")" 'BEGIN {print a * b}')" 255 257
    ok "random weights know nothing" between "$(number loss "$work/row")" 6 8 # ln 512 is 6.2
    ok "the steps that were asked for" test "$(number steps "$work/row")" == 3
done
for method in "--quantization_bit 8" "--finetuning_type full" "--lora_rank 4"; do
    # shellcheck disable=SC2086
    ok "$method" bench other $method --json
    ok "measured" grep -q '"measured":true' "$work/other"
done
ok "a budget that is too small is not measured" bench small --quantization_bit 4 --vram 1MiB,1
ok "and the table says so" grep -qE '\| 1 MiB \| [0-9.]+ MiB \|.*\| estimated [0-9,]+ \|' "$work/small"
ok "and why" grep -q "not measured: this run needs at least" "$work/small.err"
ok "a curve" bench curve --quantization_bit 4 --vram 256MiB,1 --plot "$work/curve.svg"
ok "the curve as PNG" python3 -c '
import struct, sys, zlib
d = open(sys.argv[1], "rb").read()
assert d[:8] == b"\x89PNG\r\n\x1a\n"
at, kinds, data = 8, [], b""
while at < len(d):
    n, kind = struct.unpack(">I4s", d[at:at + 8])
    assert zlib.crc32(d[at + 4:at + 8 + n]) == struct.unpack(">I", d[at + 8 + n:at + 12 + n])[0]
    kinds.append(kind)
    data += d[at + 8:at + 8 + n] if kind == b"IDAT" else b""
    at += 12 + n
assert kinds == [b"IHDR", b"IDAT", b"IEND"]
w, h = struct.unpack(">II", d[16:24])
rows = zlib.decompress(data)
assert len(rows) == h * (1 + 3 * w) and rows.count(b"\x1f\x77\xb4") > 40 # a dot has 51 pixels of this colour; both may lie in one place' "$work/curve.png"
ok "of two dots" test "$(grep -c '<circle' "$work/curve.svg")" == 2
ok "is well-formed" python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$work/curve.svg"

ok "the guide's table" bash -c '"$0" bench --table guide --vram 8 --use_cpu --json >"$1/guide" 2>"$1/guide.err"' "$QLORA" "$work"
ok "has nine rows of memory and two of time" test "$(grep -c '"table":"memory"' "$work/guide") $(grep -c '"table":"time"' "$work/guide") $(wc -l <"$work/guide")" == "9 2 11"
ok "with the guide's figures" test "$(number guide_gb "$work/guide" | tr '\n' ' ')" == "40 7 5 1000 120 40 2000 230 80 4.5 40 "
ok "and its hours" test "$(number guide_hours "$work/guide" | tr '\n' ' ')" == "1 22 "
ok "within the budget, but where no plan is" python3 -c '
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
over = [(r["model"], r["method"]) for r in rows if r["device_bytes"] > r["vram"]]
assert {r["vram"] for r in rows} == {8 << 30} and over == [("yuan2-51b", "full"), ("yuan2-102b", "full")], over' "$work/guide"
ok "all marked: no CPU runs them in an afternoon" test "$(grep -c '"measured":false,.*"why":"[^"]*' "$work/guide")" == 11
ok "the ratios are those of the figures" python3 -c '
import json, sys
for line in open(sys.argv[1]):
    r = json.loads(line)
    assert r["sequence"] == 1024 and r["gpus"] == 1 and (r["micro_batch"], r["global_batch"]) == (1, 16)
    assert abs(r["memory_ratio"] * r["device_bytes"] / r["guide_gb"] / 1e9 - 1) < 1e-3
    assert abs(r["hours"] * 3600 * r["predicted_tokens_per_second"] / 10.02e6 - 1) < 1e-3
    if r["table"] == "time": assert abs(r["time_ratio"] * r["hours"] / r["guide_hours"] - 1) < 1e-3' "$work/guide"
"$QLORA" bench --table guide --vram 8 --use_cpu >"$work/guide.md" 2>/dev/null
ok "as tables, too, all rows marked" test "$(grep -cE '^\| (2|51|102)B \|.*\| [0-9.]+ GB \| estimated [0-9.]+ GB \| [0-9.]+ \|' "$work/guide.md")" == 11
ok "with the budget" grep -qxF "budget: 8 GiB of the card for each row" "$work/guide.md"
ok "with the hours of the L40S" grep -qE "^\| 51B \| QLoRA 4 bit, rank 8 \| 1024 \| 1 \| 1/16 \| 40 GB \| .* \| 22 h \| estimated [0-9.]+ h \| [0-9.]+ \|" "$work/guide.md"

# the three plans
sed -n 1p "$work/q4" >"$work/plan-default"
for memory in default resident smallest; do
    [[ $memory == default ]] || ok "$memory" bench "plan-$memory" --quantization_bit 4 --vram 1 --memory $memory --json
    ok "$memory is what estimate says" test "$(number device_bytes "$work/plan-$memory")" == "$("$QLORA" estimate --config "$work/tiny" --cutoff_len 65 --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --optim paged_adamw_32bit --quantization_bit 4 --vram 1GiB --memory $memory --json --quiet | sed -n 's/^{"device_bytes":\([0-9]*\).*/\1/p')"
done
ok "smallest is smaller" test "$(number device_bytes "$work/plan-smallest")" -lt "$(number device_bytes "$work/plan-resident")"
ok "a resident plan that does not fit is not measured" bench big --quantization_bit 4 --vram 1MiB --memory resident
ok "and says so" grep -q "not measured: this run needs at least" "$work/big.err"
ok "figures of the timed steps alone" python3 -c '
import json, sys
r = json.loads(open(sys.argv[1]).readline())
assert r["warm_steps"] == 2 and r["steps"] == 3 and 0 < r["slowest"] <= r["tokens_per_second"] <= r["fastest"]
assert r["resident_set"] > 1e6 and r["resident_set_peak"] >= r["resident_set"] and r["locked_bytes"] is not None and r["context_bytes"] == 0' "$work/q4"

refused "Please provide config" "Please provide config" bench
refused "a table of a method" "methods of its own" bench --table guide --finetuning_type full
ok "a table for little of the host" bash -c '"$0" bench --table guide --use_cpu --vram 8 --host_memory 8GiB --lfa_bits 4 --json >"$1/guide" 2>"$1/guide.err"' "$QLORA" "$work"
ok "has rows that need more, and says so" test "$(grep -c '"why":"this run needs at least [0-9.]* .iB of host memory and has 8 GiB' "$work/guide")" -ge 3
refused "a table of several budgets" "6,8 are several budgets; table takes one" bench --table guide --vram 6,8 --use_cpu
refused "table has models of its own" "table has models of its own" bench --table guide --config yuan2-2b
refused "a picture of another kind" "must end in .svg or .png" bench --config yuan2-tiny --plot curve.gif
refused "all three plans" "leave out memory" estimate --table --memory smallest
refused "large is no size; a list such as 6,8,12" '"large" is no size; a list such as 6,8,12' bench --config yuan2-tiny --vram large
refused "did you mean yuan2-2b" "did you mean yuan2-2b" bench --config yuan-2b
refused "neither a file nor a folder" "neither a file nor a folder" bench --config nothing
finish
