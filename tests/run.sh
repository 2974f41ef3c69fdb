#!/usr/bin/env bash
# tests/run.sh PROGRAM... - runs test programs and scripts one after the other and adds up their last lines,
# "name: N passed, N failed, N skipped". A crash, a timeout or a missing last line is one failure, whatever was counted
# before. Shows a line per program and the output of those that fail.
# RUNNER="valgrind .." stands before compiled programs; EACH=1: every test of a program in a process of its own; TEST_TIMEOUT: seconds
# for each (300); V=1 shows all output.
set -u
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000} # waiting OpenMP threads give the core back soon: tests share it
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
passed=0 failed=0 skipped=0

# run PROGRAM [TEST]
run() {
    local program=$1 name runner=${RUNNER-} start rc took p f s why verdict=ok
    name=$(basename "$program")${2+ $2}
    [[ $program == *.sh ]] && runner=""
    start=$EPOCHREALTIME
    # shellcheck disable=SC2086
    { timeout -k 5 "${TEST_TIMEOUT:-300}" $runner "$@" </dev/null; } >"$log" 2>&1
    rc=$?
    took=$(((${EPOCHREALTIME/./} - ${start/./}) / 1000))
    if [[ $(tail -n 1 "$log") =~ :\ ([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
        p=${BASH_REMATCH[1]} f=${BASH_REMATCH[2]} s=${BASH_REMATCH[3]} why=""
        [[ $rc != 0 && $f == 0 ]] && f=1 why=", exit status $rc"
    else
        p=0 f=1 s=0 why=", exit status $rc without a result"
        [[ $rc == 124 || $rc == 137 ]] && why=", no end after ${TEST_TIMEOUT:-300} s"
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    ((f)) && verdict=FAIL
    printf '%-4s  %-28s %5d passed%s%s%s  %d.%03d s\n' $verdict "$name" "$p" "$( ((f)) && echo ", $f failed")" \
        "$( ((s)) && echo ", $s skipped")" "$why" $((took / 1000)) $((took % 1000))
    if ((f)) || [[ ${V-} == 1 ]]; then sed 's/^/      /' "$log" | tail -n 200; fi
}

for program in "$@"; do
    [[ $program == */* ]] || program=./$program
    if [[ ${EACH-} == 1 && $program != *.sh ]]; then
        tests=$("$program" list) && [[ $tests ]] || tests=list # which then fails, and shows why
        for test in $tests; do run "$program" "$test"; done
    else run "$program"; fi
done
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
