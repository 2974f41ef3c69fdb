#!/usr/bin/env bash
# qlora tokenize: golden rows both ways, streaming, line numbers of errors.
. "$(dirname "$0")/check.bash"
[[ $shared ]] || { skip "no shared folder"; finish; }
m=(--model_name_or_path "$shared/data/yuan2-tokenizer")
rows=$shared/goldens/tokenizer.jsonl

# The golden rows as input and as expected output: {"text": ..} and {"ids": [..]}, special strings recognised.
python3 - "$rows" "$work" <<'PY' || { skip "no python3 to cut the golden rows"; finish; }
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
out = sys.argv[2]
with open(out + "/text", "w", encoding="utf-8") as t, open(out + "/ids", "w") as i:
    for r in rows:
        if "\0" in r["text"]: continue
        t.write(json.dumps({"text": r["text"]}) + "\n")
        i.write('{"ids":%s}\n' % json.dumps(r.get("ids_special", r["ids"]), separators=(",", ":")))
PY
encodes() { "$QLORA" tokenize "${m[@]}" --file "$work/text" | diff - "$work/ids"; }
ok "golden rows become their ids" encodes
from_stdin() { "$QLORA" tokenize "${m[@]}" --file - <"$work/text" | diff - "$work/ids"; }
ok "standard input" from_stdin
round_trip() {
    "$QLORA" tokenize "${m[@]}" --file "$work/ids" --decode >"$work/back" && "$QLORA" tokenize "${m[@]}" --file "$work/back" | diff - "$work/ids"
}
ok "ids to text and back" round_trip
ok "--text" test "$("$QLORA" tokenize "${m[@]}" --text '你好<sep>世界')" = '{"ids":[29871,38190,77187,29871,32138]}'
ok "--ids" test "$("$QLORA" tokenize "${m[@]}" --decode --ids '29871 38190, 77187 [29871 32138]')" = '{"text":"你好<sep>世界"}'
ok "empty text" test "$("$QLORA" tokenize "${m[@]}" --text '')" = '{"ids":[]}'
ok "blank lines and a missing last line end" test "$(printf '\n{"text":"a"}\r\n\n  \n{"text":"b"}' | "$QLORA" tokenize "${m[@]}" --file - | wc -l)" = 2

# Many blocks: order and line numbers hold, memory does not grow with the file.
for _ in {1..400}; do cat "$work/text"; done >"$work/long"
for _ in {1..400}; do cat "$work/ids"; done >"$work/long.ids"
in_order() { "$QLORA" tokenize "${m[@]}" --file "$work/long" | cmp - "$work/long.ids"; }
ok "a long file in order" in_order
n=$(wc -l <"$work/long")
echo '{"text": 3}' >>"$work/long"
refused_late() {
    "$QLORA" tokenize "${m[@]}" --file "$work/long" >"$work/out" 2>"$work/err"
    [[ $? == 2 && $(wc -l <"$work/out") == "$n" ]] && grep -q "^error: $work/long:$((n + 1)): " "$work/err"
}
ok "a late error names its line, earlier lines are out" refused_late

wrong() { # NAME PATTERN LINE FLAGS..
    local name=$1 pattern=$2
    printf '%s\n' "$3" >"$work/wrong"
    shift 3
    refused "$name" "$pattern" tokenize "${m[@]}" --file "$work/wrong" "$@"
}
wrong "not JSON" 'wrong:1: JSON:1:' 'text'
wrong "no text" 'the key "text"' '{"txt": "a"}'
wrong "no ids" 'the key "ids"' '{"text": "a"}' --decode
wrong "an id beyond the vocabulary" '134958 is not a token id (0 to 134957)' '{"ids": [134958]}' --decode
wrong "a negative id" '-1 is not a token id' '{"ids": [-1]}' --decode
wrong "a fraction" '1.5 is not a token id' '{"ids": [1.5]}' --decode
wrong "a text as id" 'not a number' '{"ids": ["1"]}' --decode
refused "ids that are no numbers" '"x" is not a token id' tokenize "${m[@]}" --decode --ids '1 x'
refused "no such file" 'none cannot be opened' tokenize "${m[@]}" --file "$work/none"
long_line() { head -c 20000000 /dev/zero | tr '\0' 'a' | "$QLORA" tokenize "${m[@]}" --file - 2>&1 | grep -q 'more than 16 MB'; }
ok "a line without end" long_line
finish
