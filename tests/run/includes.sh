#!/usr/bin/env bash
# Includes go downwards only: a file may include headers of its own folder, its level and the levels below. Also: headers
# include one another without circles; paths start at the root; a *_internal.h stays in its folder; what lies in backend/cpu
# and backend/cuda is seen by nobody else; CUDA headers only in backend/cuda; cJSON only behind base/json.h. Tests, benchmarks and
# examples may include anything. `includes.sh FOLDER` checks another tree.
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
levels="qlora.c | cli | train | model lora datasets pager | backend/cpu backend/cuda | backend checkpoint tokenizer | nf4 | base"

# check ROOT: one line per offence
check() {
    cd "$1" || exit 1
    local lines
    lines=$(find . \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -printf '%P\n' |
        grep -vE '^(build|tests|bench|examples)' | sort | xargs -r grep -HnE '^[[:space:]]*#[[:space:]]*include' /dev/null)
    awk -v levels="$levels" '
        BEGIN { n = split(levels, name, " "); for (i = 1; i <= n; i++) if (name[i] == "|") level++; else height[name[i]] = -level }
        function folder(path) { return sub(/\/[^\/]*$/, "", path) ? path : "" }
        function bad(why) { print file ":" line ": " what " " why }
        {
            split($0, part, ":"); file = part[1]; line = part[2]
            if (!match($0, /[<"][^>"]*[>"]/)) next
            quoted = substr($0, RSTART, 1) == "\""; what = substr($0, RSTART + 1, RLENGTH - 2)
            from = file == "qlora.c" ? file : folder(file); to = folder(what)
            if (what ~ /^(cuda|cublas|curand|cub\/|cooperative_groups|nv|mma\.h|nccl)/ && from != "backend/cuda")
                bad("outside backend/cuda")
            if (what ~ /cJSON/ && file != "base/json.h") bad("outside base/json.h")
            if (!quoted) next
            if (to == "") bad("does not start at the root")
            else if (!(from in height) || !(to in height)) bad("joins a folder that has no level in tests/run/includes.sh")
            else if (to == from) next
            else if (what ~ /_internal\.h$/) bad("belongs to its folder alone")
            else if (to ~ /^backend\//) bad("is behind the door backend/backend.h")
            else if (height[to] > height[from]) bad("is above " from)
        }' <<<"$lines"
    sed -nE 's/^([^:]*\.(h|cuh)):[0-9]*:[^"]*"([^"]*)".*/\1 \3/p' <<<"$lines" | tsort 2>&1 >/dev/null | sed 's/^tsort: //'
}

if (($#)); then check "$1"; exit; fi

failed=0
offences=$(check "$here")
[[ -n $offences ]] && { echo "$offences"; failed=1; }

# The check itself: lines that are right, and one of each offence.
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{base,train,model,backend/cuda}
put() { printf '#include %s\n' "${@:2}" >"$tree/$1"; }
put qlora.c '"train/train.h"'
put train/good.c '"model/model.h"' '<math.h>' '"train/own_internal.h"' '"base/err.h"'
put model/good.h '"lora/lora.h"' '"backend/backend.h"'
put backend/cuda/good.cu '<cuda_runtime.h>' '"backend/backend.h"' '"backend/cuda/x.cuh"'
[[ -z $(check "$tree") ]] || { echo "right lines are refused:"; check "$tree"; failed=1; }
put model/bad.c '"train/train.h"' '<nccl.h>' '"model.h"' '<cjson/cJSON.h>' '"backend/cuda/x.cuh"' '"base/x_internal.h"' '"nowhere/x.h"'
[[ $(check "$tree" | grep -c '^model/bad.c:') == 7 ]] || { echo "7 offences, found are:"; check "$tree"; failed=1; }
put model/a.h '"model/b.h"'
put model/b.h '"model/a.h"'
check "$tree" | grep -q loop || { echo "a circle of headers is not found"; failed=1; }

echo "includes: $((1 - failed)) passed, $failed failed, 0 skipped"
exit $failed
