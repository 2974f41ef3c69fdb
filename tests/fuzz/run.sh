#!/usr/bin/env bash
# tests/fuzz/run.sh SECONDS WORK FUZZER... - runs each libFuzzer program that long, from the seeds in
# tests/fuzz/corpus/NAME and what earlier runs found (WORK/NAME). An input that crashes, trips a sanitizer, takes over 10 s
# or 2 GiB is a finding and stays in WORK/findings. The last line counts fuzzers; STATS=1 adds the executions to
# tests/fuzz/STATS ("NAME executions", kept in the repository).
set -u
seconds=$1 work=$2
shift 2
here=$(dirname "$0")
passed=0 failed=0
mkdir -p "$work/findings"
for fuzzer in "$@"; do
    name=$(basename "$fuzzer" .fuzzer)
    name=${name#fuzz_}
    seeds=$here/corpus/$name
    log=$work/$name.log
    mkdir -p "$work/$name"
    dictionary=()
    [[ -f $here/$name.dict ]] && dictionary=("-dict=$here/$name.dict")
    [[ -d $seeds ]] || seeds=
    "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -max_len=65536 \
        -artifact_prefix="$work/findings/$name-" "${dictionary[@]}" "$work/$name" $seeds >"$log" 2>&1
    rc=$?
    execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    if [[ $rc == 0 && -n $execs ]]; then
        passed=$((passed + 1))
        printf 'ok    %-20s %12s executions, %s edges, no findings\n' "$name" "$execs" "${coverage:-?}"
        if [[ ${STATS-} == 1 ]]; then
            awk -v name="$name" -v n="$execs" '$1 == name { $2 += n; seen = 1 } { print } END { if (!seen) print name, n }' \
                "$here/STATS" 2>/dev/null >"$work/STATS" || echo "$name $execs" >"$work/STATS"
            sort "$work/STATS" >"$here/STATS"
        fi
    else
        failed=$((failed + 1))
        printf 'FAIL  %-20s exit status %d; inputs in %s, the whole output in %s\n' "$name" $rc "$work/findings" "$log"
        grep -E 'ERROR|SUMMARY|runtime error|^    #[0-9]|Test unit written' "$log" | head -n 20 | sed 's/^/      /'
    fi
done
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0))
