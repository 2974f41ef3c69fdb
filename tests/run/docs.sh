#!/usr/bin/env bash
# Every command of README.md, README_zh.md and docs/*.md that stands in a block marked sh works as written, in a folder like a fresh
# clone: ./qlora, data/, and a small model at ../yuan2-2b. `make` is not run there, but its targets must exist. Links lead somewhere.
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
root=$PWD
tiny_model
mkdir -p "$work/clone/bin" && cd "$work/clone" || exit 1
mv "$work/m" "$work/yuan2-2b" && mv "$work/data" data
sed -i 's/^{$/{"alpaca_zh": {"file_name": "questions.json"}, "alpaca_en": {"file_name": "questions.json"}, "identity": {"file_name": "questions.json"},/' data/dataset_info.json
ln -s "$root/examples" "$root/docs" .
cp "$QLORA" ./qlora && cp "$QLORA" bin/qlora
targets=$(sed -n 's/^#? make \([a-z-]*\) .*/\1/p' "$root/Makefile")
cat >bin/make <<END
#!/bin/sh
for word in "\$@"; do
    case \$word in *=*) ;; *) printf '%s\n' "$targets" | grep -qx -- "\$word" || { echo "no target \$word"; exit 1; } ;; esac
done
END
chmod +x bin/make
export PATH="$PWD/bin:$PATH"

# Blocks of a file, each in a file of its own: block.1, block.2, ..
blocks() { rm -f block.*; awk '/^```sh$/ {n++; on = 1; next} /^```/ {on = 0} on {print > ("block." n)}' "$1"; }
for file in README.md README_zh.md CONTRIBUTING.md tests/README.md docs/*.md; do
    blocks "$root/$file"
    for b in block.*; do
        [[ -f $b ]] && ok "$file, ${b/./ }: $(head -n 1 "$b")" bash -e "$b"
        rm -rf saves out
    done
    while read -r link; do
        [[ $link == http* || $link == '#'* ]] || ok "$file links to $link" test -e "$root/$(dirname "$file")/${link%%#*}"
    done < <(grep -o '](\([^)]*\))' "$root/$file" | sed 's/^](\(.*\))$/\1/')
done
for c in $("$QLORA" help | sed -n '/^Commands/,/^ *version/p' | sed -n 's/^  \([a-z]*\) .*/\1/p' | grep -v version); do
    for file in README.md README_zh.md; do ok "$file names qlora $c" grep -q "^| \`qlora $c\` |" "$root/$file"; done
done
same_commands() { diff <(sed -n '/^```sh$/,/^```$/p' "$1" | sed 's/ *#.*//') <(sed -n '/^```sh$/,/^```$/p' "$2" | sed 's/ *#.*//'); }
ok "both READMEs show the same commands" same_commands "$root/README.md" "$root/README_zh.md"
finish
