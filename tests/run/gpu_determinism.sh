#!/usr/bin/env bash
# determinism.sh on a card; what budgets do to bits there is gpu_resume.sh's.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
need_card
DET_BACKEND=$backend tests/run/determinism.sh
exit
