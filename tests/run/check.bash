# tests/run/check.bash - sourced by the run tests: counts checks and prints the last line that tests/run.sh reads.
# $QLORA is the program (./qlora), $shared the folder of golden files or empty, $work a fresh folder.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
QLORA=$(realpath "${QLORA:-./qlora}")
shared=${QLORA_SHARED:-../shared}
[[ -d $shared/goldens ]] && shared=$(realpath "$shared") || shared=
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

# ok NAME COMMAND..: the command must succeed
ok() {
    local name=$1
    shift
    if "$@" >"$work/.log" 2>&1; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED $name: $*"
        tail -n 5 "$work/.log"
    fi
}
# refused NAME PATTERN ARGUMENTS..: the program must exit 2 and say one line "error: .." that holds PATTERN
refused() {
    local name=$1 pattern=$2 rc
    shift 2
    "$QLORA" "$@" >"$work/.out" 2>"$work/.err" </dev/null
    rc=$?
    if [[ $rc == 2 && ! -s $work/.out && $(grep -c '^error: ' "$work/.err") == 1 && $(grep -F -- "$pattern" "$work/.err") ]]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $name: exit status $rc, wanted 2 and one line with \"$pattern\""
        tail -n 3 "$work/.err"
    fi
}
skip() {
    skipped=$((skipped + 1))
    echo "  skipped: $1"
}
finish() {
    echo "$(basename "$0"): $passed passed, $failed failed, $skipped skipped"
    ((failed == 0))
    exit
}
