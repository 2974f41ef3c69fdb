#!/usr/bin/env bash
# nan.sh on a card: a NaN at each of those places of its memory.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
need_card
NAN_UNDER=$backend tests/run/nan.sh
exit
