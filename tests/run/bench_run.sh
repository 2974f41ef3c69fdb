#!/usr/bin/env bash
# bench/run.sh (`make bench`): JSON lines of benchmarks to standard output as they are, and to a file with device, date, commit and
# command; a benchmark that fails; a card that is there. Benchmarks and program are stand-ins that answer at once.
. "$(dirname "$0")/check.bash"
mkdir -p "$work/bench/results"
cp bench/run.sh "$work/bench/"
script() { # FILE TEXT
    printf '#!/bin/sh\n%s\n' "$2" >"$work/$1"
    chmod +x "$work/$1"
}
script bench/cpu_train.sh "echo '{\"what\": \"a step\", \"date\": \"1999-01-01\", \"command\": \"its own\"}'"
script one "echo talk >&2; echo '{\"op\": \"a\", \"ms\": 1}'; echo '{\"op\": \"b\", \"shape\": \"say \\\\\"x\\\\\"\"}'"
script bad "echo '{\"op\": \"c\"}'; exit 3"
script none 'echo "{\"processor\": \"Some (R) Maker 9000, 2 threads\", \"cuda\": \"not found\"}"'
script card '[ "$1" = doctor ] && echo "{\"processor\": \"P\", \"cuda\": \"NVIDIA Card 90 XL, sm_90, 9 multiprocessors\"}" || echo "{\"flags\": \"$*\"}"'
go() { # PROGRAM FOR QLORA, BENCHMARKS..
    local program=$work/$1
    shift
    QLORA=$program "$work/bench/run.sh" "$@" >"$work/out" 2>"$work/err"
}

ok "runs" go none "$work/one"
ok "lines as they are" test "$(head -n 2 "$work/out")" = $'{"op": "a", "ms": 1}\n{"op": "b", "shape": "say \\"x\\""}'
file=$work/bench/results/some-maker-9000-2-threads-$(date +%F).jsonl
ok "a file of the device and day" test -f "$file"
ok "every line is JSON and says where it is from" python3 -c '
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert len(rows) == 3 and all(k in r for r in rows for k in ("device", "date", "commit", "command")), rows
assert rows[0]["command"].endswith("/one") and rows[1]["shape"] == "say \"x\"" and rows[0]["device"].startswith("Some")
assert rows[2]["date"] == "1999-01-01" and rows[2]["command"] == "its own"' "$file"
ok "says that there is no card" grep -q "skipped, no card" "$work/err"
ok "again adds" go none "$work/one"
ok "six lines" test "$(wc -l <"$file")" = 6
ok "RESULTS=FILE" env RESULTS="$work/mine" QLORA="$work/none" "$work/bench/run.sh" "$work/one"
ok "is where they go" test "$(wc -l <"$work/mine") $(wc -l <"$file")" = "3 6"
ok "RESULTS= keeps nothing" env RESULTS= QLORA="$work/none" "$work/bench/run.sh" "$work/one"
ok "nothing" test "$(wc -l <"$work/mine") $(wc -l <"$file") $(find "$work/bench/results" -type f | wc -l)" = "3 6 1"
RESULTS=$work/bad.out go none "$work/bad" "$work/one"
ok "one that fails makes it fail" test $? = 1
ok "and is named" grep -q "✗ .*/bad: exit status 3" "$work/err"
ok "the others are run" test "$(wc -l <"$work/bad.out")" = 4
ok "with a card" go card "$work/one"
ok "2B at the guide's setting" grep -q '"flags": "bench --config yuan2-2b --quantization_bit 4 --lora_rank 64 --json"' "$work/out"
ok "in the card's file" test -f "$work/bench/results/card-90-xl-$(date +%F).jsonl"
finish
