#!/usr/bin/env bash
# tests/coverage.sh BUILD - lines and branches of the parsers that the tests of this build (gcc --coverage) reached, by gcov: a row
# for each file, the sum in the last. A branch into a failure of memory or of a file call is counted like any other; the sweeps of
# tests/unit take most of them. LINES=95 BRANCHES=90: less of the sum is a failure.
set -u
build=$1
parsers="checkpoint/safetensors.c checkpoint/scan.c checkpoint/zip.c checkpoint/pickle.c checkpoint/torchbin.c checkpoint/index.c checkpoint/manifest.c checkpoint/bnb.c checkpoint/checkpoint.c
    base/json.c tokenizer/model.c tokenizer/vocab.c datasets/records.c datasets/convert.c datasets/catalog.c datasets/tools.c datasets/questions.c cli/yaml.c cli/values.c cli/ids.c
    model/config.c lora/peft.c train/deepspeed.c"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
printf '%-28s %7s %7s   %8s %7s\n' file lines % branches %
for file in $parsers; do
    # -b: branches; the numbers of the file itself come first, those of its headers behind
    (cd "$work" && gcov -b -c -o "$OLDPWD/$build/$(dirname "$file")" "$OLDPWD/$build/${file%.c}.o" 2>/dev/null) |
        awk -v file="$file" '/^File/ { own = index($0, "\x27" file "\x27") || $0 ~ file } own && /^Lines executed/ { split($2, a, ":"); lines = $4; l = a[2] }
            own && /^Taken at least once/ { split($4, a, ":"); branches = $6; b = a[2] }
            END { printf "%s %d %.2f %d %.2f\n", file, lines, l, branches, b }'
done | awk -v need_l="${LINES:-95}" -v need_b="${BRANCHES:-90}" '
    { printf "%-28s %7d %6.1f%%   %8d %6.1f%%\n", $1, $2, $3, $4, $5; l += $2; lh += $2 * $3 / 100; b += $4; bh += $4 * $5 / 100 }
    END { printf "%-28s %7d %6.1f%%   %8d %6.1f%%\n", "all", l, 100 * lh / l, b, 100 * bh / b; exit !(100 * lh / l >= need_l && 100 * bh / b >= need_b) }'
