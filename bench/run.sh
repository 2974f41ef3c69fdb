#!/usr/bin/env bash
# bench/run.sh PROGRAM... - `make bench`: runs the compiled benchmarks as they are without arguments, a CPU training step
# (bench/cpu_train.sh) and, where there is a card, a training step of 2B at the guide's setting (qlora bench). JSON lines go to
# standard output, the rest to standard error. Fails if one fails; the card's (cuda_ops, cuda_layer) say "skipped" and succeed
# where there is none.
#
# The lines are also added to bench/results/DEVICE-DATE.jsonl, each with the device, date, commit and command that it came from.
# RESULTS=FILE names another file, RESULTS= keeps nothing.
set -u
here=$(dirname "$0")
qlora=${QLORA:-./qlora}
plugin=$(dirname "$qlora")/libqlora-cuda.so # lies beside the program, not beside the benchmarks
if [[ -f $plugin ]]; then export QLORA_PLUGIN=${QLORA_PLUGIN:-$plugin}; fi

found() { "$qlora" doctor --json 2>/dev/null | sed -n "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p"; }
card=$(found cuda | grep -v '^not ' | sed 's/,.*//') # its name, if one works
device=${card:-$(found processor | sed 's/([^)]*)//g')}
slug=$(tr '[:upper:]' '[:lower:]' <<<"$device" | sed 's/nvidia //; s/[^a-z0-9]\{1,\}/-/g; s/^-//; s/-$//')
date=$(date +%F)
commit=$(git -C "$here" rev-parse --short HEAD 2>/dev/null)
[[ -z $(git -C "$here" status --porcelain --untracked-files=no 2>/dev/null) ]] || commit+=" and changes"
results=${RESULTS-$here/results/${slug:-unknown}-$date.jsonl}

said=$(mktemp)
trap 'rm -f "$said"' EXIT
# The lines of $said with what they lack.
keep() { # COMMAND
    DEVICE=$device DATE=$date COMMIT=$commit COMMAND=$1 awk '
        function quoted(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
        function add(key) { if (index($0, "\"" key "\":") == 0) more = more ", \"" key "\": " quoted(ENVIRON[toupper(key)]) }
        /^\{.*\}$/ { more = ""; add("device"); add("date"); add("commit"); add("command"); print substr($0, 1, length($0) - 1) more "}" }' "$said" >>"$results"
}

failed=0
run() { # COMMAND..
    echo "→ $*" >&2
    "$@" </dev/null | tee "$said"
    local rc=${PIPESTATUS[0]}
    [[ -z $results ]] || keep "$*" || failed=1
    [[ $rc == 0 ]] || { echo "✗ $*: exit status $rc" >&2; failed=1; }
}
for bench in "$@" "$here/cpu_train.sh"; do
    [[ $bench == */* ]] || bench=./$bench
    run "$bench"
done
if [[ -n $card ]]; then # the guide's setting is the default of qlora bench: sequence 1024, micro-batch 1, accumulate 16
    run "$qlora" bench --config yuan2-2b --quantization_bit 4 --lora_rank 64 --json
else
    echo "→ qlora bench: skipped, no card" >&2
fi
[[ -z $results || ! -f $results ]] || echo "→ kept in $results" >&2
exit $failed
