#!/usr/bin/env bash
# bench/run.sh PROGRAM... - `make bench`: runs the compiled benchmarks as they are without arguments, then a CPU training
# step (bench/cpu_train.sh). JSON lines go to standard output, the rest to standard error. Fails if one fails; the card's
# (cuda_ops) says "skipped" and succeeds where there is none.
set -u
here=$(dirname "$0")
plugin=$(dirname "${QLORA:-./qlora}")/libqlora-cuda.so # lies beside the program, not beside the benchmarks
if [[ -f $plugin ]]; then export QLORA_PLUGIN=${QLORA_PLUGIN:-$plugin}; fi
failed=0
for bench in "$@" "$here/cpu_train.sh"; do
    [[ $bench == */* ]] || bench=./$bench
    echo "→ $(basename "$bench")" >&2
    "$bench" </dev/null || { echo "✗ $bench: exit status $?" >&2; failed=1; }
done
exit $failed
