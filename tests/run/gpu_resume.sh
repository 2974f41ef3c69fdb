#!/usr/bin/env bash
# On the card as on the CPU a run is a function of its flags: twice, killed and resumed, logged otherwise or profiled, it
# ends with the same adapter, byte for byte. A budget decides how long chunks are, and with them the shapes of products,
# whose sums cublasLt splits as it likes: the same chunks give the same bits, others a loss within a hundredth.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
need_card
tiny_model

ok "undisturbed run" train "$work/a" --backend "$backend"
ok "the same again" train "$work/b" --backend "$backend"
ok "same bytes" same "$work/a" "$work/b"
ok "other logging and saving, profiled" train "$work/l" --backend "$backend" --logging_steps 3 --save_steps 7 --profile
ok "same bytes" same "$work/a" "$work/l"
ok "the table knows linear" grep -Eq '^linear +[0-9]+ .*FLOP/s' "$work/l.log"
for n in 5 34 89; do # system calls of the saves
    (QLORA_FAULT="wsnum:$n:KILL" train "$work/k$n" --backend "$backend") 2>/dev/null
    ok "after a kill in system call $n" train "$work/k$n" --backend "$backend"
    ok "same bytes after a kill in system call $n" same "$work/a" "$work/k$n"
done

# with magnitudes, too; and as on the CPU, but for bf16
loss() { sed -n 's/.*"train_loss": \([0-9.e-]*\).*/\1/p' "$1/train_results.json"; }
ok "DoRA" train "$work/d" --backend "$backend" --use_dora true
ok "DoRA again" train "$work/e" --backend "$backend" --use_dora true
ok "same bytes" same "$work/d" "$work/e"
(QLORA_FAULT="wsnum:34:KILL" train "$work/f" --backend "$backend" --use_dora true) 2>/dev/null
ok "DoRA after a kill" train "$work/f" --backend "$backend" --use_dora true
ok "same bytes" same "$work/d" "$work/f"
ok "DoRA on the CPU" train "$work/g" --backend cpu --use_dora true
ok "its loss" awk -v a="$(loss "$work/d")" -v b="$(loss "$work/g")" 'BEGIN { exit !(a > 0 && (a - b)^2 <= (0.01 * a)^2) }'
ok "it talks" "$QLORA" chat --model_name_or_path "$work/m" --adapter_name_or_path "$work/d" --quantization_bit 4 --backend "$backend" --prompt "What colour is the bafi?" --max_new_tokens 4 --quiet

CUDA_VISIBLE_DEVICES="" train "$work/none" --backend "$backend"
ok "without a card: exit status 1" test $? = 1
ok "it says why" grep -q '^error: no card: CUDA_VISIBLE_DEVICES=""' "$work/none.log"

# The smallest budget that starts, in KiB, then larger ones.
starts() { train "$work/dry" --backend "$backend" --dry_run --vram "$1KiB"; }
low=1 high=65536
while ((high - low > 16)); do
    mid=$(((low + high) / 2))
    if starts $mid; then high=$mid; else low=$mid; fi
done
chunks() { sed -n 's/.*plan: chunks of \([0-9,]*\) tokens.*/\1/p' "$1.log" | tail -n 1 | tr -d ,; }
declare -A first
for budget in $high $((high * 5 / 4)) $((high * 3 / 2)) $((high * 2)) $((high * 4)) 1048576; do
    out=$work/v$budget
    ok "--vram ${budget}KiB" train "$out" --backend "$backend" --vram "${budget}KiB"
    n=$(chunks "$out")
    first[$n]=${first[$n]:-$out}
    ok "same bytes in chunks of $n tokens" same "${first[$n]}" "$out"
    ok "the loss" awk -v a="$(loss "$work/a")" -v b="$(loss "$out")" 'BEGIN { exit !(a > 0 && (a - b)^2 <= (0.01 * a)^2) }'
    echo "  --vram ${budget}KiB: chunks of $n tokens, $(same "$work/a" "$out" >/dev/null && echo "the bits of the run without a budget" || echo "bits of its own")$(grep -o '; [0-9]* of [0-9]* layers streamed' "$out.log")"
done
ok "without a budget as with a large one" same "$work/a" "$work/v1048576"
finish
