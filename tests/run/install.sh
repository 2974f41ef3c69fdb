#!/usr/bin/env bash
# `make install` and the Debian package: every file in its place, the program runs from there and finds its plugin there.
. "$(dirname "$0")/check.bash"
build=${TOOLS:-build/examples/demo} build=${build%/examples/demo}
# What is built is installed; nothing is built or probed here.
ok "make install" make -s -o all -o "$build/config.mk" B="$build" DESTDIR="$work/root" PREFIX=/usr install
for f in bin/qlora share/man/man1/qlora.1 share/bash-completion/completions/qlora share/zsh/site-functions/_qlora share/doc/qlora/README.md \
    share/doc/qlora/LICENSE share/doc/qlora/docs/FLAGS.md share/doc/qlora/examples/qlora.sh share/doc/qlora/examples/zero2.json; do
    ok "$f is there" test -s "$work/root/usr/$f"
done
ok "the installed program runs" cmp <("$work/root/usr/bin/qlora" version) <("$QLORA" version)
ok "it is the manual of this program" cmp "$work/root/usr/share/man/man1/qlora.1" <("$QLORA" help man)

# A plugin in lib/qlora, and one beside the program, which goes first.
plugin_of() { "$1/bin/qlora" doctor --backend cuda 2>&1 | grep -q "$2" || { "$1/bin/qlora" doctor --backend cuda; return 1; }; }
cp -r "$work/root/usr" "$work/other"
rm -rf "$work/other/lib/qlora"
ok "no plugin: it says where it looked" plugin_of "$work/other" 'no libqlora-cuda.so beside the program or in ../lib/qlora'
mkdir -p "$work/other/lib/qlora"
echo broken >"$work/other/lib/qlora/libqlora-cuda.so"
ok "a plugin in lib/qlora is found" plugin_of "$work/other" '/lib/qlora/libqlora-cuda.so cannot be loaded'
if [[ -f ${LOST_CARD-} ]]; then
    cp "$LOST_CARD" "$work/other/lib/qlora/libqlora-cuda.so"
    ok "and loaded" plugin_of "$work/other" '^cuda .* free$'
fi
echo broken >"$work/other/bin/libqlora-cuda.so"
ok "one beside the program goes first" plugin_of "$work/other" '/bin/libqlora-cuda.so cannot be loaded'

if ! command -v dpkg-deb >/dev/null || ! command -v strip >/dev/null; then
    skip "no dpkg-deb or strip for the package"
    finish
fi
ok "the package" packaging/deb.sh "$work/root" "$work"
deb=$(echo "$work"/qlora_*.deb)
for field in Package Version Architecture Depends Description Installed-Size; do
    ok "it has the field $field" bash -c '[[ $(dpkg-deb -f "$0" "$1") ]]' "$deb" $field
done
ok "it needs zlib and cJSON" bash -c '[[ $(dpkg-deb -f "$0" Depends) == *libcjson1*zlib1g* ]]' "$deb"
ok "everything in it is below usr and of root" bash -c '! dpkg-deb -c "$0" | grep -vE "^[d-]rw[x-]r-[x-]r-[x-] root/root .* \./(usr/.*)?$"' "$deb"
ok "unpacked, the program runs" bash -c 'dpkg-deb -x "$0" "$1" && "$1/usr/bin/qlora" version' "$deb" "$work/x"
ok "its sums are right" bash -c 'dpkg-deb -e "$0" "$1/e" && cd "$1" && md5sum -c --quiet e/md5sums' "$deb" "$work/x"
mkdir -p "$work/db/var/lib/dpkg/info" "$work/db/var/lib/dpkg/updates" && touch "$work/db/var/lib/dpkg/status"
if [[ $(id -u) == 0 ]]; then
    ok "dpkg installs it into a root of its own" dpkg --root="$work/db" --force-depends --no-triggers --install "$deb"
    ok "and it runs there" "$work/db/usr/bin/qlora" version
    ok "dpkg knows it" bash -c '[[ $(dpkg --root="$0" -s qlora) == *"Status: install ok installed"* ]]' "$work/db"
    ok "and takes it away" dpkg --root="$work/db" --remove qlora
    ok "without a trace" test ! -e "$work/db/usr/bin/qlora"
else skip "dpkg --root needs root"; fi
finish
