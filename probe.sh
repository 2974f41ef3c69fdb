#!/bin/sh
# probe.sh FILE - finds the compiler and the libraries and writes what it found to FILE, which the Makefile includes and
# all objects depend on. FILE is touched only when something changed; then one line per probe says what was found.
#
# Needed: a C compiler, zlib, cJSON. Optional: a CBLAS (OpenBLAS), OpenMP, nvcc. On Debian and its children what is
# missing of the first three is installed through apt-get, after one line that says so. INSTALL=0: nothing is installed;
# the command to type is printed, and only without a needed library the build stops.
# Reads the environment: CC CPPFLAGS CFLAGS LDFLAGS WERROR CBLAS CUDA NVCC ARCH INSTALL.
set -u
file=$1
: "${CC:=cc}"
[ -n "${NVCC-}" ] || NVCC=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
[ -n "$(ls backend/cuda/*.cu 2>/dev/null)" ] && cuda_sources=yes || cuda_sources=no

# The question stands in the first line of the answer: asked again, it is not probed again, unless something was missing.
question="# $CC|${CPPFLAGS-}|${CFLAGS-}|${LDFLAGS-}|${WERROR-}|CBLAS=${CBLAS-}|CUDA=${CUDA-}|$NVCC|${ARCH-}|$cuda_sources"
[ "$(head -n 1 "$file" 2>/dev/null)" = "$question" ] && ! [ "$0" -nt "$file" ] && ! grep -q '^# missing' "$file" && exit

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

fail() { printf '✗ %s\n' "$*" >&2; exit 1; }
say() { printf '%s\n' "$*" >>"$tmp/said"; }
echo "$question" >"$tmp/config"
set_var() { printf '%s := %s\n' "$1" "$2" >>"$tmp/config"; }
# links SOURCE FLAG...: can a program be built from it?
links() {
    printf '%b\n' "$1" >"$tmp/t.c"
    shift
    # shellcheck disable=SC2086
    $CC ${CPPFLAGS-} ${LDFLAGS-} -o "$tmp/t" "$tmp/t.c" "$@" >"$tmp/log" 2>&1
}

has_cc() { links 'int main(void) { return 0; }'; }
has_zlib() { links '#include <zlib.h>\nint main(void) { return !zlibVersion(); }' -lz; }
has_cjson() { links '#include <cjson/cJSON.h>\nint main(void) { return !cJSON_Version(); }' -lcjson; }
has_openmp() { links '#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }' -fopenmp; }
has_cblas() {
    for cblas_flags in "" -I/usr/include/openblas; do
        # shellcheck disable=SC2086
        links '#include <cblas.h>\nint main(void) { return (int)cblas_sdot(0, 0, 1, 0, 1); }' $cblas_flags -lopenblas && return
    done
    return 1
}

missing() {
    packages=""
    has_cc || packages="gcc libc6-dev"
    has_zlib || packages="$packages zlib1g-dev"
    has_cjson || packages="$packages libcjson-dev"
    packages=${packages# }
}

# ---- what is missing is installed, once ----
missing
if [ -n "$packages" ] && command -v apt-get >/dev/null 2>&1; then
    root=""
    [ "$(id -u)" = 0 ] || root="sudo "
    if [ "${INSTALL:-1}" = 0 ]; then
        [ "$packages" = libopenblas-dev ] || fail "missing: $packages. Type: ${root}apt-get install $packages"
    else
        echo "→ installing through ${root}apt-get: $packages (INSTALL=0 leaves that to you)" >&2
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086
        { ${root}apt-get update -qq && ${root}apt-get install -y -qq --no-install-recommends $packages; } >"$tmp/apt" 2>&1 ||
            { tail -n 5 "$tmp/apt" >&2; echo "✗ apt-get failed; by hand: ${root}apt-get install $packages" >&2; }
        missing
    fi
fi

# ---- needed ----
has_cc || fail "the compiler '$CC' does not build programs; install gcc or clang, or set CC=/path/to/cc
$(cat "$tmp/log")"
has_zlib || fail "zlib is missing: install zlib1g-dev (Debian), zlib-devel (Fedora) or zlib (Arch)"
has_cjson || fail "cJSON is missing: install libcjson-dev (Debian), cjson-devel (Fedora) or cjson (Arch)"
say "✓ compiler: $($CC --version 2>/dev/null | head -n 1)"
say "✓ zlib and cJSON"

# ---- optional ----
if has_openmp; then
    say "✓ OpenMP"
    set_var OPENMP -fopenmp
else
    say "✗ OpenMP: '$CC -fopenmp' does not link, the CPU backend will use one thread (clang needs libomp-dev)"
    set_var OPENMP -Wno-unknown-pragmas
    echo "# missing OpenMP" >>"$tmp/config"
fi
if [ "${CBLAS:-1}" = 0 ]; then
    say "→ CBLAS left out (CBLAS=0): bench/ compares with none"
elif has_cblas; then
    say "✓ CBLAS: OpenBLAS, for comparison in bench/ (products run on kernels of our own, the same on every machine)"
    set_var CBLAS_CFLAGS "-DQLORA_CBLAS $cblas_flags"
    set_var CBLAS_LIBS -lopenblas
else
    say "→ CBLAS: no OpenBLAS, bench/ compares with none (libopenblas-dev)"
fi

if [ "${CUDA-}" = 0 ]; then
    say "→ CUDA left out (CUDA=0)"
elif [ $cuda_sources = no ]; then
    say "→ CUDA: no sources in backend/cuda"
elif [ -z "$NVCC" ]; then
    [ "${CUDA-}" = 1 ] && fail "CUDA=1 but no nvcc in PATH: install the CUDA toolkit, set NVCC=/path/to/nvcc, or drop CUDA=1"
    say "✗ CUDA: no nvcc in PATH, only the CPU backend is built (set NVCC=/path/to/nvcc, or CUDA=0 to say you know)"
else
    codes=$("$NVCC" --list-gpu-code 2>"$tmp/log") || fail "'$NVCC --list-gpu-code' fails: $(cat "$tmp/log")"
    gencode="" built="" ptx=""
    # Code for sm_90 itself is made as sm_90a: attention there uses instructions of that one architecture.
    hopper="-gencode arch=compute_90a,code=sm_90a -DQLORA_SM90A"
    # shellcheck disable=SC2086
    "$NVCC" --dryrun -x cu $hopper -c /dev/null >/dev/null 2>&1 || hopper="-gencode arch=compute_90,code=sm_90"
    if [ "${ARCH-}" = native ] && nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -qx 9.0; then
        gencode=" $hopper" built=" the card of this machine"
    elif [ "${ARCH-}" = native ]; then
        gencode=-arch=native built=" the card of this machine"
    else
        for a in ${ARCH:-80 86 89 90}; do
            if printf '%s\n' "$codes" | grep -qx "sm_$a"; then
                case $a in
                90) gencode="$gencode $hopper" ;;
                *) gencode="$gencode -gencode arch=compute_$a,code=sm_$a" ;;
                esac
                built="$built sm_$a" ptx=$a
            elif [ -n "${ARCH-}" ]; then
                fail "this nvcc does not know ARCH=$a; it knows: $(printf '%s ' $codes)"
            fi
        done
        gencode="$gencode -gencode arch=compute_$ptx,code=compute_$ptx" built="$built, PTX $ptx"
    fi
    say "✓ CUDA: $NVCC $("$NVCC" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') for$built"
    set_var NVCC "$NVCC"
    set_var GENCODE "$gencode"
fi

if ! cmp -s "$tmp/config" "$file"; then
    cat "$tmp/said" >&2
    cp "$tmp/config" "$file"
fi
