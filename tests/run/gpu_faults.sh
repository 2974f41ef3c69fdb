#!/usr/bin/env bash
# The card is lost at call N of a run, for N over the whole run: the run ends at once with exit status 1 and one sentence,
# and the same command started again ends with the adapter of an undisturbed run, byte for byte.
# QLORA_FAULT=cuda:N fails calls from N on; with :TRAP a kernel traps there and the driver itself loses the card.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
need_card
tiny_model
ulimit -c unlimited 2>/dev/null

ok "undisturbed run" train "$work/a" --backend "$backend"
QLORA_FAULT=cuda:0 ok "counted run" train "$work/c" --backend "$backend"
ok "same bytes" same "$work/a" "$work/c"
calls=$(sed -n 's/.*QLORA_FAULT: \([0-9]*\) calls.*/\1/p' "$work/c.log")
ok "calls are counted" test "${calls:-0}" -gt 500

# lost N[:TRAP]: a run that loses the card there, then one that does not
lost() {
    local out=$work/l${1//:/} rc
    QLORA_FAULT=cuda:$1 train "$out" --backend "$backend"
    rc=$?
    if [[ $rc == 0 && ${1%%:*} -gt $((calls * 9 / 10)) ]]; then # the run was over, only memory was still given back
        ok "call $1: the adapter was written" same "$work/a" "$out"
        return
    fi
    ok "call $1: exit status 1, not $rc" test $rc = 1
    ok "call $1: one sentence" test "$(grep -c '^error: ' "$out.log")" = 1
    ok "call $1: of the card" grep -Eq '^error: .*(the card failed|no usable card)' "$out.log"
    ok "call $1: nothing about numbers" bash -c "! grep -qi 'finite\|nan' '$out.log'"
    ok "call $1: the next run goes on" train "$out" --backend "$backend"
    ok "call $1: same bytes" same "$work/a" "$out"
}
lost 1
lost 2
for ((i = 0; i < 24; i++)); do lost $((7 + i * (calls - 12) / 23)); done
for i in 4 10 18; do lost $((i * calls / 20)):TRAP; done
ok "no core" test -z "$(find . "$work" -maxdepth 1 -name 'core*' -newer "$work/a.log")"

train "$work/small" --backend "$backend" --vram 1MiB
ok "too small a card: exit status 1" test $? = 1
ok "what is needed, what there is, what would help" grep -Eq '^error: this run needs at least .* on the device and has 1(.0*)? MiB: .* would fit more' "$work/small.log"
finish
