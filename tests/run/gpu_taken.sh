#!/usr/bin/env bash
# Another program has the card's memory (hog.c): what is left is planned with; where that is too little, or --vram asks for more than
# is there, a run ends at once with exit status 1 and a sentence that says what is missing and who may have it.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
need_card
tiny_model
hog=${HOG:-build/tests/run/hog} plugin=$backend
[[ $plugin == */* ]] || plugin=$(dirname "$QLORA")/libqlora-cuda.so

# beside LEAVE COMMAND..: the command while a hog leaves so many MiB; its exit status, its words in $work/out
beside() {
    local leave=$1 rc
    shift
    mkfifo "$work/hold"
    "$hog" "$plugin" "$leave" <"$work/hold" >"$work/hog" 2>&1 &
    exec 9>"$work/hold"
    while kill -0 $! 2>/dev/null && ! grep -q '^holds' "$work/hog"; do sleep 0.1; done
    grep -q '^holds' "$work/hog" || cat "$work/hog"
    "$@" >"$work/out" 2>&1 9>&-
    rc=$?
    exec 9>&-
    wait
    rm "$work/hold"
    return $rc
}
says() { grep -Eq "$1" "$work/out" || { tail -n 3 "$work/out"; return 1; }; }
bench="$QLORA bench --config yuan2-2b --quantization_bit 4 --lora_rank 64 --lora_target all --gradient_accumulation_steps 2 --cutoff_len 513 --max_steps 1 --backend $backend --quiet"

beside 3000 $bench --json
ok "what is left is planned with: exit status 0" test $? = 0
ok "it was measured, within that" says '"measured":true,.*"device_bytes_taken":[12][0-9]{9},'
beside 3000 train "$work/a" --backend "$backend" --vram 200GiB
ok "a plan that is small is not refused for a large budget" test $? = 0
beside 100 train "$work/b" --backend "$backend"
ok "no room to start: exit status 1" test $? = 1
ok "one sentence" test "$(grep -c '^error: ' "$work/b.log")" = 1
ok "who may have it" grep -Eq '^error: .*(no room to start|out of memory|needs at least).*' "$work/b.log"
ok "a run after that" train "$work/b" --backend "$backend"
ok "has the bits of the one beside the hog" same "$work/a" "$work/b"
finish
