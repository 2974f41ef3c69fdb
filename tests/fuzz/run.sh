#!/usr/bin/env bash
# tests/fuzz/run.sh SECONDS WORK FUZZER... - runs each libFuzzer program that long, from the seeds in
# tests/fuzz/corpus/NAME and what earlier runs found (WORK/NAME). An input that crashes, trips a sanitizer, takes over 5 s
# (TIMEOUT; about 1 s without sanitizers on an idle machine), asks for 32 MiB at once or 1 GiB in all is a finding and stays in
# WORK/findings. As many run at a time as there are processors (JOBS). The last line counts fuzzers; STATS=1 adds the inputs to
# tests/fuzz/STATS ("NAME inputs date", kept in the repository).
# RUNS=N: N inputs each instead, at most SECONDS, from the seeds alone and always the same ones: the same sources pass or fail
# each time (and TIMEOUT is 25 s, since a machine may be busy). What a search finds is not the fault of the change at hand.
set -u
# A finding's whole stack: run its fuzzer over the file alone. The quarantine is small so that it stays in the cache, and of what was
# allocated one caller is kept. One thread, also where the program asks for several: they would wait for each other, busily.
export ASAN_OPTIONS=${ASAN_OPTIONS:-quarantine_size_mb=8:malloc_context_size=1} OMP_NUM_THREADS=1 OMP_THREAD_LIMIT=1
seconds=$1 work=$2
shift 2
here=$(dirname "$0")
mkdir -p "$work/findings"
name_of() { basename "$1" .fuzzer | sed 's/^fuzz_//'; }

# The longest input: what has buffers of its own, that an input may fill, takes more. LONGEST=512: that for all, at up to twice the rate;
# not for those whose seeds are longer: they are cut, and fewer edges are reached.
longest() {
    case $1 in
    json | lines | model | questions | records | safetensors | stream | tokenizer) echo 16384 ;;
    *) echo 4096 ;;
    esac
}

# fuzz NAME FUZZER: the whole output goes to WORK/NAME.log, the exit status to WORK/NAME.rc
fuzz() {
    local name=$1 extra=() steady=()
    [[ -f $here/$name.dict ]] && extra+=("-dict=$here/$name.dict")
    if [[ -n ${RUNS-} ]]; then # the seeds in an order that no file system has a say in, and nothing is read back
        find "$here/corpus/$name" -type f 2>/dev/null | LC_ALL=C sort | paste -sd, >"$work/$name.seeds"
        extra+=(-seed=1 -runs="$RUNS" -use_cmp=0)
        setarch -R true 2>/dev/null && steady=(setarch -R) # what was compared, and where, is not the same each time
        [[ -s $work/$name.seeds ]] && extra+=(-seed_inputs="@$work/$name.seeds")
    else
        mkdir -p "$work/$name"
        extra+=("$work/$name")
        [[ -d $here/corpus/$name ]] && extra+=("$here/corpus/$name")
    fi
    "${steady[@]}" "$2" -max_total_time="$seconds" -timeout="${TIMEOUT:-${RUNS:+2}5}" -malloc_limit_mb=32 -rss_limit_mb=1024 -print_final_stats=1 -max_len="${LONGEST:-$(longest "$name")}" \
        -artifact_prefix="$work/findings/$name-" "${extra[@]}" </dev/null >"$work/$name.log" 2>&1
    echo $? >"$work/$name.rc"
}

jobs=${JOBS:-$(nproc)} running=0
for fuzzer in "$@"; do
    ((running++ < jobs)) || wait -n
    fuzz "$(name_of "$fuzzer")" "$fuzzer" &
done
wait

passed=0 failed=0
[[ ${STATS-} == 1 ]] && exec 9>>"$here/STATS"
for fuzzer in "$@"; do
    name=$(name_of "$fuzzer")
    log=$work/$name.log rc=$(cat "$work/$name.rc")
    execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    if [[ $rc == 0 && -n $execs ]]; then
        passed=$((passed + 1))
        printf 'ok    %-20s %12s executions, %s edges, no findings\n' "$name" "$execs" "${coverage:-?}"
        if [[ ${STATS-} == 1 ]]; then
            flock 9 # searches may go on side by side
            awk -v name="$name" -v n="$execs" -v day="$(date -u +%F)" \
                '$1 == name { $2 += n; $3 = day; seen = 1 } { print } END { if (!seen) print name, n, day }' "$here/STATS" >"$work/STATS"
            sort "$work/STATS" >"$here/STATS"
            flock -u 9
        fi
    else
        failed=$((failed + 1))
        printf 'FAIL  %-20s exit status %d; inputs in %s, the whole output in %s\n' "$name" "$rc" "$work/findings" "$log"
        grep -E 'ERROR|SUMMARY|runtime error|^    #[0-9]|Test unit written' "$log" | head -n 20 | sed 's/^/      /'
    fi
done
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0))
