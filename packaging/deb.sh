#!/bin/sh
# packaging/deb.sh ROOT OUT - makes OUT/qlora_VERSION_ARCH.deb of what `make install PREFIX=/usr` put below ROOT, with dpkg-deb
# alone. What the program needs is asked of dpkg-shlibdeps where that is there (dpkg-dev), else named. The CUDA libraries
# and the driver are recommended, not required: without them the program computes on the processor.
set -eu
root=$1 out=$2
command -v dpkg-deb >/dev/null || { echo "make deb needs dpkg-deb" >&2; exit 1; }
version=$(sed -n 's/^#define QLORA_VERSION "\(.*\)"/\1/p' cli/cli.h)
arch=$(dpkg --print-architecture 2>/dev/null || echo amd64)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
doc=$root/usr/share/doc/qlora
plugin=$root/usr/lib/qlora/libqlora-cuda.so

strip --strip-unneeded "$root/usr/bin/qlora"
if [ -f "$plugin" ]; then strip --strip-unneeded "$plugin"; fi
gzip -9n "$root/usr/share/man/man1/qlora.1"
mv "$doc/LICENSE" "$doc/copyright"
printf 'qlora (%s) unstable; urgency=low\n\n  * See the history of the sources.\n\n -- qlora <qlora@localhost>  %s\n' "$version" \
    "$(date -uRd "@$epoch")" | gzip -9n >"$doc/changelog.gz"

# dpkg-shlibdeps wants a source package around it.
needs="libc6, libgomp1, zlib1g, libcjson1"
if command -v dpkg-shlibdeps >/dev/null; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    mkdir "$scratch/debian"
    printf 'Source: qlora\n\nPackage: qlora\nArchitecture: any\n' >"$scratch/debian/control"
    program=$(realpath "$root/usr/bin/qlora")
    found=$(cd "$scratch" && dpkg-shlibdeps -O "$program" 2>/dev/null | sed -n 's/^shlibs:Depends=//p') || found=""
    needs=${found:-$needs}
fi
cublas=""
if [ -f "$plugin" ]; then
    major=$(objdump -p "$plugin" | sed -n 's/.*NEEDED *libcublasLt\.so\.//p')
    cublas="Recommends: libcublaslt${major:-12} | libcublas-${major:-12}
"
fi

mkdir -p "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<END
Package: qlora
Version: $version
Architecture: $arch
Maintainer: qlora <qlora@localhost>
Installed-Size: $(du -ks --exclude=DEBIAN "$root" | cut -f1)
Depends: $needs
${cublas}Section: science
Priority: optional
Description: fine-tune Yuan 2.0 models: QLoRA, LoRA, or in full
 One C program that takes the command lines, data files and checkpoints that
 are used with LLaMA-Factory, PEFT, bitsandbytes and DeepSpeed, trains on one
 card or on the processor alone, and leaves adapters and checkpoints that load
 in them.
END
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -type d -exec chmod 755 {} +
find "$root" -exec touch -h -d "@$epoch" {} +
SOURCE_DATE_EPOCH=$epoch dpkg-deb --root-owner-group --build "$root" "$out/qlora_${version}_$arch.deb"
