#!/usr/bin/env bash
# --profile: a table of the ops, longest first, with their sum beside the time of the steps; the result stays the same.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
tiny_model

ok "a run" train "$work/a" --backend cpu
ok "the same, profiled" train "$work/p" --backend cpu --profile
ok "same bytes" same "$work/a" "$work/p"
ok "the header says that it is slower" grep -q "slower than without" "$work/p.log"
ok "linear with calls, time, rates and share" grep -Eq '^linear +[0-9]+ +[0-9.]+ +[0-9.]+ [kMGT]FLOP/s +[0-9.]+ [kMGT]B/s +[0-9.]+%$' "$work/p.log"
ok "longest first" awk '/^op +calls/ {on = 1; last = 1e30; next} /^all ops/ {exit bad || !n} on {n++; if ($3 > last) bad = 1; last = $3}' "$work/p.log"
ok "the sum is that of the rows and below the wall time" awk '/^op +calls/ {on = 1; next} /^all ops/ {for (i = 1; i < NF; i++) if ($i == "of") wall = $(i + 1); d = $3 - sum
    exit d > 2 || d < -2 || $3 > wall} on {sum += $3}' "$work/p.log"
finish
