#!/usr/bin/env bash
# The manual page and the completions know every command and every flag, and the tools that read them load them without a word.
. "$(dirname "$0")/check.bash"
for what in man bash zsh; do ok "help $what" bash -c '"$0" help "$1" >"$2"' "$QLORA" $what "$work/$what"; done
commands=$("$QLORA" help | sed -n '/^Commands/,/^ *version/p' | sed -n 's/^  \([a-z]*\) .*/\1/p')
# COMMAND FLAG of the first cells and the command cells of docs/FLAGS.md, aliases too
flags=$("$QLORA" help markdown | awk -F' \\| ' '/^\| `/ {names = $1; where = NF > 4 ? $4 : $2; gsub(/[|` ]/, "", names); gsub(/<br>/, " ", names);
    split(where, c, " "); k = split(names, f, " "); for (i in c) for (j = 1; j <= k; j++) print c[i], f[j]}')
ok "a list of flags" test "$(wc -l <<<"$flags")" -gt 300

all_in() { # FILE PATTERN, in which COMMAND stands for a command
    local c
    for c in $commands; do grep -qE -e "${2//COMMAND/$c}" "$1" || { echo "$c is missing"; return 1; }; done
}
man_has_flags() {
    local f
    for f in $(cut -d' ' -f2 <<<"$flags" | sort -u); do grep -qw -e "$f" "$work/man" || { echo "$f is missing"; return 1; }; done
}
ok "the manual page has all commands" all_in "$work/man" '^\.B COMMAND$'
ok "the manual page has all flags" man_has_flags
if command -v groff >/dev/null; then
    ok "the manual page is sound" bash -c '[[ -z $(groff -k -man -ww -Tutf8 "$0" 2>&1 >/dev/null) ]]' "$work/man"
else skip "no groff to read the manual page"; fi

# complete WORD..: what is offered for the last word
complete_words() {
    # shellcheck disable=SC2034
    COMP_WORDS=(qlora "$@") COMP_CWORD=$#
    COMPREPLY=()
    _qlora
    printf '%s\n' "${COMPREPLY[@]}"
}
offers() { # WANTED WORD..
    local wanted=$1
    shift
    complete_words "$@" | grep -qxF -e "$wanted" || { echo "\"$wanted\" is not offered for $*"; return 1; }
}
offers_flags() {
    local c f
    while read -r c f; do # one without effect hides behind one that begins with its name
        offers "--$f" "$c" "--$f" || sed -n "/^    $c)/,/^        ;;/p" "$work/bash" | grep -q "more=.* --$f[ ']" || return 1
    done <<<"$flags" >/dev/null
}
ok "bash: the syntax" bash -n "$work/bash"
# shellcheck disable=SC1091
. "$work/bash"
ok "bash: it is registered" grep -q _qlora <(complete -p qlora)
for c in $commands; do ok "bash: the command $c" offers "$c" "${c:0:2}"; done
ok "bash: every flag of every command" offers_flags
ok "bash: values of a choice" offers full train --finetuning_type fu
ok "bash: values of a boolean" offers true train --bf16 t
ok "bash: values behind an equals sign" offers cosine train --lr_scheduler_type = cos
ok "bash: of an old name" offers epoch train --evaluation_strategy e
ok "bash: topics of help" offers markdown help ma
ok "bash: what has no effect only when nothing else fits" bash -c '! grep -q -- --use_unsloth <<<"$0"' "$(complete_words train --)"
ok "bash: nothing for a path" test -z "$(complete_words train --output_dir '' | tr -d '\n')"

zsh=${ZSH_PROGRAM:-$(command -v zsh)}
if [[ $zsh ]]; then
    ok "zsh: the syntax" "$zsh" -n "$work/zsh"
else skip "no zsh to read its completion"; fi
zsh_has_flags() {
    local c f
    while read -r c f; do
        sed -n "/^    $c)/,/;;/p" "$work/zsh" | grep -q -e "'--$f\[" || { echo "$f of $c is missing"; return 1; }
    done <<<"$flags"
}
ok "zsh: all commands" all_in "$work/zsh" "^        'COMMAND:"
ok "zsh: every flag of every command" zsh_has_flags
finish
