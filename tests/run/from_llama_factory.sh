#!/usr/bin/env bash
# docs/FROM_LLAMA_FACTORY.md against the table of flags: each row says what the program does, and no flag that users of
# LLaMA-Factory know (tests/run/flags.tsv) is left out. `tests/run/from_llama_factory.sh --write` brings the rows up to date:
# same, not needed and refused come from the table, with its words; a row marked "other meaning" keeps its own.
. "$(dirname "$0")/check.bash"
document=docs/FROM_LLAMA_FACTORY.md

current() { # the document as the table has it
    "$QLORA" help markdown | awk -F ' [|] ' '
        function name_of(cell) { match(cell, /`[a-z0-9_]+`/); return substr(cell, RSTART + 1, RLENGTH - 2) }
        FNR == NR && /^## / { part = $0 ~ /^## Accepted/ ? "not needed" : $0 ~ /^## Known/ ? "refused" : "same" }
        FNR == NR && /^\| `/ {
            where = part == "same" ? $4 : $2; words = part == "same" ? $5 : $3; name = name_of($1)
            if (name in verdict && " " where " " !~ / train /) next # the row of qlora train goes first
            cells[name] = $1; verdict[name] = part; sub(/ \|$/, "", words); says[name] = words
        }
        FNR == NR { next }
        /^\| `[a-z0-9_]+`.* \| (same|other meaning|not needed|refused) \| / {
            name = name_of($1)
            if (!(name in verdict)) print "| `" name "` | unknown | |"
            else if ($2 == "other meaning" && verdict[name] == "same") print cells[name] " | other meaning | " $3
            else print cells[name] " | " verdict[name] " | " says[name] " |"
            next
        }
        { print }' - "$document"
}
if [[ ${1-} == --write ]]; then
    current >"$work/new" && cp "$work/new" "$document"
    exit
fi
ok "it is current (tests/run/from_llama_factory.sh --write)" diff "$document" <(current)
has() { grep -qF -e "\`$1\`" "$document" || { echo "$1 is missing"; return 1; }; }
while IFS=$'\t' read -r flag _; do ok "$flag" has "$flag"; done < <(grep -v '^#' tests/run/flags.tsv)
ok "rows of each kind" bash -c 'for v in same "other meaning" "not needed" refused; do grep -q "| $v |" "$0" || exit 1; done' "$document"

# the command lines of the page are those of examples/
lines_of() { sed -n '/^exec/,/"\$@"$/p' "examples/$1" | grep -o -e '--[a-z_0-9]*' | sort -u; }
for f in full.sh freeze.sh lora.sh qlora.sh export.sh chat.sh pt.sh predict.sh eval.sh; do
    ok "the page names $f" has "examples/$f"
    for flag in $(lines_of $f); do ok "$f: ${flag#--}" has "${flag#--}"; done
done
finish
