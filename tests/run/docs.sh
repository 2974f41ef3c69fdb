#!/usr/bin/env bash
# Every command of README.md, README_zh.md and docs/*.md that stands in a block marked sh works as written, in a folder like a fresh
# clone: ./qlora, data/, a small model at ../yuan2-2b, an adapter in saves/qlora, a file and questions of the user's own. `make` is not
# run there, but its targets must exist. Commands of qlora stand nowhere but in such blocks. Links, files and flags exist.
. "$(dirname "$0")/check.bash"
. tests/run/tiny.bash
root=$PWD
tiny_model
mkdir -p "$work/clone/bin" && cd "$work/clone" || exit 1
mv "$work/m" "$work/yuan2-2b" && mv "$work/data" data
sed -i 's/^{$/{"alpaca_zh": {"file_name": "questions.json"}, "alpaca_en": {"file_name": "questions.json"}, "identity": {"file_name": "questions.json"},/' data/dataset_info.json
ln -s "$root/examples" "$root/docs" .
head -n 20 data/questions.json | sed '1d; s/},$/}/' >my.jsonl
mkdir -p evaluation/ceval
printf 'id,question,A,B,C,D,answer\n0,Who flies?,fish,birds,stones,water,B\n' | tee evaluation/ceval/art_dev.csv >evaluation/ceval/art_val.csv
echo '{"art": {"name": "art", "category": "Humanities"}}' >evaluation/ceval/mapping.json
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
trains() { ./qlora train --do_train --model_name_or_path ../yuan2-2b --dataset identity --template yuan --lora_target q_proj --max_steps 1 --output_dir "$1" --quiet; }
ok "an adapter" trains ../adapter
# unmarked FILE: no line of a block that is not run, or indented like one, is a command
unmarked() { ! awk '/^```/ {on = /^```./ ? 2 : !on; next} on != 2 && (on || /^    /) && /^ *(\.\/)?(qlora|make|examples\/[a-z]*\.sh) / && !/\$|manifest/' "$1" | grep .; }
# What a page names: files below the root, tests/ or docs/, but for places of a name and what a run leaves; and flags.
named() {
    local name
    while read -r name; do
        [[ $name =~ NAME|_X|/X\.|^build/|^evaluation/|^src/|faults\.jsonl ]] || [[ ! -d $root/${name%%/*} && ! -d $root/tests/${name%%/*} ]] && continue
        compgen -G "$root/$name" >/dev/null || compgen -G "$root/$name.*" >/dev/null || compgen -G "$root/tests/$name*" >/dev/null || { echo "$name is not there"; return 1; }
    done < <(grep -oE '`[a-z0-9_]+/[A-Za-z0-9_./*-]+`' "$1" | tr -d '`' | sort -u)
}
"$QLORA" help markdown | grep -oE '`[a-z_0-9]+`' | tr -d '`' | sort -u >flags
printf '%s\n' help build gpus name no_x >>flags # of qlora, podman and docker; what ERRORS.md says in general
known() { ! comm -23 <(grep -oE -- '(^|[^a-z-])--[a-z][a-z_0-9]+' "$1" | sed 's/.*--//' | sort -u) <(sort -u flags) | grep .; }
for file in README.md README_zh.md CONTRIBUTING.md tests/README.md docs/*.md; do
    blocks "$root/$file"
    for b in block.*; do
        grep -q -- '--output_dir saves/qlora' "$b" 2>/dev/null || { mkdir -p saves && cp -r ../adapter saves/qlora; }
        [[ -f $b ]] && ok "$file, ${b/./ }: $(head -n 1 "$b")" bash -e "$b"
        rm -rf saves out
    done
    ok "$file: commands stand in blocks that are run here" unmarked "$root/$file"
    ok "$file: its files are there" named "$root/$file"
    ok "$file: its flags exist" known "$root/$file"
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
