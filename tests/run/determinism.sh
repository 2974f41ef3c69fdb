#!/usr/bin/env bash
# The same command gives the same adapter, byte for byte, whatever else differs: the run before, where it was resumed, how often it
# logs, saves or plots, threads of the machine and of the data, memory for data, device memory. RUNS=3: each so often (once; plain
# runs always three times). DET_BACKEND=cuda: on a card.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
common="--backend ${DET_BACKEND:-cpu} --save_total_limit 9 --quiet"
tiny_model

# like NAME FLAGS..: such runs end with the adapter of the first one
like() {
    local name=$1 k
    shift
    for ((k = 1; k <= ${RUNS:-1}; k++)); do
        # shellcheck disable=SC2086
        ok "$name" train "$work/$k" $common "$@"
        ok "$name: same bytes" same "$work/first" "$work/$k"
        rm -rf "${work:?}/$k"
    done
}

ok "first run" train "$work/first" $common
ok "it learned something" test "$(stat -c %s "$work/first/adapter_model.safetensors")" -gt 10000
RUNS=3 like "again"

for step in 4 8 12; do
    for ((k = 1; k <= ${RUNS:-1}; k++)); do
        mkdir "$work/r$step"
        cp -r "$work/first/run.json" "$work/first/checkpoint-$step" "$work/r$step"
        ok "resumed at step $step" train "$work/r$step" $common
        ok "from there" grep -q "$(printf '"current_steps": %d' 15)" "$work/r$step/trainer_log.jsonl"
        ok "resumed at step $step: same bytes" same "$work/first" "$work/r$step"
        rm -rf "${work:?}/r$step"
    done
done

like "a line for every step" --logging_steps 1 --logging_first_step
like "no line but the last" --logging_steps 100
like "saved after every step" --save_steps 1 --save_total_limit 2
like "never saved" --save_strategy no
like "with a picture and tokens counted" --plot_loss --include_num_input_tokens_seen

for n in 1 2 8; do
    like "$n loader threads" --preprocessing_num_workers $n
    OMP_NUM_THREADS=$n like "$n threads"
done
like "data in a file" --data_memory 4KiB
like "state on the host" --optim paged_adamw_32bit
if [[ ! ${DET_BACKEND-} ]]; then # a card's products depend on the length of chunks
    for vram in 20500KiB 24MiB 48MiB; do like "$vram of device memory" --vram $vram; done
    like "chunks of a sequence" --chunk_tokens 64
fi
finish
