#!/usr/bin/env bash
# qlora doctor: a row for each thing, and for each thing that is missing a sentence with its remedy. What only a card can show
# (driver, device files) is not provoked here.
. "$(dirname "$0")/check.bash"
says() { # PATTERN ENVIRONMENT..: doctor in that environment says it, and ends with 0
    local pattern=$1
    shift
    env "$@" "$QLORA" doctor >"$work/out" 2>&1 && grep -qE -e "$pattern" "$work/out" || { cat "$work/out"; return 1; }
}
silent() { ! says "$@" >/dev/null; }
for key in qlora system processor memory compiler disk temporary locale driver plugin cublasLt locking cpu; do ok "a row for $key" says "^$key +[^ ]" A=1; done
ok "JSON" bash -c '"$0" doctor --json | grep -qE "^\{\"qlora\": \"[0-9.]+\", .*\}$"' "$QLORA"
if command -v python3 >/dev/null; then ok "it is JSON, each key once" bash -c '"$0" doctor --json | python3 -c "
import json, sys
json.load(sys.stdin, object_pairs_hook=lambda p: p if len({k for k, _ in p}) == len(p) else sys.exit(1))"' "$QLORA"; fi
ok "another locale" says '^! [0-9]+ +the locale is not UTF-8.*export LANG=' LC_ALL=C
ok "no locale" says '^! [0-9]+ +the locale is not UTF-8' -u LC_ALL -u LC_CTYPE -u LANG
ok "a UTF-8 locale" silent 'the locale is not' LC_ALL=zh_CN.UTF-8
ok "the first of the variables counts" silent 'the locale is not' LC_ALL= LC_CTYPE=C.utf8 LANG=C
ok "a folder of temporary files that is not there" says '^! .*/nowhere cannot be looked at' TMPDIR=/nowhere
if (($(nproc) > 1)); then ok "fewer threads" says '^! .*OMP_NUM_THREADS' OMP_NUM_THREADS=1; fi
locked() { (ulimit -l 64 && says '^locking +64 KiB' A=1); }
ok "the lock limit" locked
mkdir -p "$work/bin" "$work/lib/qlora"
cp "$QLORA" "$work/bin/qlora"
QLORA=$work/bin/qlora
ok "no plugin" says '^plugin +none beside the program, none in' A=1
ok "and cuda is asked for" bash -c '"$0" doctor --backend cuda | grep -A 1 "^cuda *not working" | grep -q "^! .*nvcc"' "$QLORA"
echo broken >"$work/lib/qlora/libqlora-cuda.so"
ok "a plugin" says "^plugin +$work/bin/../lib/qlora/libqlora-cuda.so" A=1
ok "a broken plugin, asked for" bash -c '"$0" doctor --backend cuda | grep -q "^! .*cannot be loaded"' "$QLORA"
ok "a name that is near" bash -c '"$0" doctor --backend cudda | grep -q "^! .*did you mean cuda?"' "$QLORA"
finish
