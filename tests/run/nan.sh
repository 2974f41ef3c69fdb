#!/usr/bin/env bash
# A NaN at each of 28 places of a step (nan_card.c): what was read, what was computed, gradients, optimizer. None reaches a weight
# that is kept: the step is left out, or the run ends with 70 and what was saved before is good. NAN_UNDER=cuda: on a card.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
export QLORA_UNDER=${NAN_UNDER:-cpu}
plugin=$(realpath "${NAN_CARD:-build/tests/run/nan_card.so}")
tiny_model
common="--backend $plugin --log_level info --double_quantization true --save_total_limit 9"

# nan RUN PLACE:N[:M] FLAGS..: a run with that poison
nan() {
    local out=$work/$1
    QLORA_NAN=$2 train "$out" $common "${@:3}"
}
# Calls of a place in a run of 16 steps, of which OUT.log has counted all.
calls_of() { sed -n "s/.*QLORA_NAN: \([0-9]*\) calls of $2\$/\1/p" "$work/$1.log"; }
finite() { "$QLORA" score --model_name_or_path "$work/m" --adapter_name_or_path "$1" --ids 1,2,3 --backend cpu --quiet; }
# Every checkpoint of a run loads, and the newest goes on to the end.
good() {
    local c
    for c in "$1"/checkpoint-*; do finite "$c" || return 1; done
    train "$1" --backend cpu && finite "$1"
}

train "$work/clean" --backend "$QLORA_UNDER"
ok "undisturbed run" finite "$work/clean"
ok "without poison" nan none count:0
ok "the same bytes" same "$work/clean" "$work/none"

# Passing: gone with the step. One step's calls from the middle of a run touch one step or two, so it goes on to its end.
for place in embed norm norm_dx linear xa linear_dx dA dB filter filter_dx rope attend lse attend_dq attend_dv gate gate_dg loss loss_dy gradient; do
    calls=$(calls_of none $place)
    ok "$place: calls" test "${calls:-0}" -ge 16
    ok "$place: the run goes on" nan "$place" "$place:$((calls / 2)):$((calls / 16))"
    ok "$place: one or two steps are left out, with tensors and sequences named" \
        grep -Eq 'step (8|9|10): the (loss|gradient).* not finite: [0-9]+ of [0-9]+ gradients \(.*\), .*sequences? [0-9, ]+ of the data set; the step is not applied' "$work/$place.log"
    ok "$place: not more" test "$(grep -c 'the step is not applied' "$work/$place.log")" -le 2
    ok "$place: a finite adapter" finite "$work/$place"
    ok "$place: another one than without it" bash -c '! cmp -s "$0" "$1"' "$work/clean/adapter_model.safetensors" "$work/$place/adapter_model.safetensors"
done

# Staying: what a run holds in memory. After three steps it ends, or at once where it would save the damage.
status() { local wanted=$1; shift; "$@"; test $? = "$wanted"; }
for place in embedding norm_weight weight lora_A lora_B moment master; do
    calls=$(calls_of none $place)
    ok "$place: calls" test "${calls:-0}" -ge 16
    ok "$place: exit status 70" status 70 nan "$place" "$place:$((calls / 2))"
    ok "$place: one sentence" test "$(grep -c '^error: ' "$work/$place.log")" = 1
    ok "$place: of numbers" grep -Eq '^error: .*(not finite)' "$work/$place.log"
    ok "$place: a good state to go back to" grep -q 'the last good state is .*/checkpoint-' "$work/$place.log"
    ok "$place: it is good" good "$work/$place"
done

# --nan skip leaves all such steps out and goes on
ok "--nan skip" nan skip "weight:30" --nan skip
ok "nothing was applied from there" test "$(grep -c 'the step is not applied' "$work/skip.log")" -ge 10
ok "a finite adapter" finite "$work/skip"

# the same in full fine-tuning
lora=${lora/--quantization_bit 4/} lora=${lora/--lora_target*--lora_dropout 0.1/--finetuning_type full --optim paged_adamw_8bit}
ok "full: without poison" nan full count:0
for place in dW moment master; do
    calls=$(calls_of full $place)
    ok "full, $place: calls" test "${calls:-0}" -ge 16
    if [[ $place == dW ]]; then
        ok "full, $place: the run goes on" nan "full-$place" "$place:$((calls / 2)):$((calls / 16))"
        ok "full, $place: left out" grep -q 'the step is not applied' "$work/full-$place.log"
    else
        ok "full, $place: exit status 70" status 70 nan "full-$place" "$place:$((calls / 2))"
        ok "full, $place: a good state to go back to" grep -q 'the last good state is .*/checkpoint-' "$work/full-$place.log"
    fi
done
ok "no model was written" bash -c '! ls "$0"/full-m*/model*.safetensors' "$work"

finish
