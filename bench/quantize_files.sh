#!/usr/bin/env bash
# bench/quantize_files.sh [CONFIG [FLAG..]] - qlora quantize beside what the disk gives for the same bytes. CONFIG: yuan2-2b; key=value
# overrides it (num_hidden_layers=58 makes shards of 10 GB); FLAG: of quantize (--lfa_bits 4).
#
# A random checkpoint is made below $TMPDIR and removed at the end. Reading: dd of the shards past the page cache; writing: dd of as many
# bytes as the result has, with fsync; both before and after. Then quantize with the shards dropped from the page cache, and with
# as much of them in it as it holds. One disk does both, so at its speed quantize takes no less than reading and writing together
# (disk_s), the slower pair of the two. Prints one JSON line for each; "share" = disk_s / seconds.
set -eu
cd "$(dirname "$0")/.."
qlora=$(realpath "${QLORA:-./qlora}") config=yuan2-2b overrides=() flags=()
for word in "$@"; do
    case $word in
    *=*) overrides+=(--override "$word") ;;
    -* | [0-9]*) flags+=("$word") ;;
    *) config=$word ;;
    esac
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$qlora" new --config "$config" --output_dir "$work/in" "${overrides[@]}" --quiet
seconds() { local start=$EPOCHREALTIME; "$@" >/dev/null 2>&1; awk "BEGIN {print $EPOCHREALTIME - $start}"; }
shards() { for f in "$work"/in/*.safetensors; do "$@" if="$f"; done; }
reading() { seconds shards dd of=/dev/null bs=8M iflag=direct; }
writing() { seconds dd if=/dev/zero of="$work/dd" bs=4M count=$((out_bytes >> 22)) conv=fsync; rm -f "$work/dd"; }
quantize() { # seconds and peak resident MB
    rm -rf "$work/out"
    python3 -c '
import resource, subprocess, sys, time
start = time.time()
subprocess.run(sys.argv[1:], check=True)
print("%.1f %.0f" % (time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024))' \
        "$qlora" quantize --model_name_or_path "$work/in" --output_dir "$work/out" --quantization_bit 4 "${flags[@]}" --quiet
}
bytes() { find "$work/$1" -name '*.safetensors' -printf '%s\n' | awk '{s += $1} END {printf "%.0f", s}'; }
shards dd of=/dev/null iflag=nocache count=0 2>/dev/null # forgotten by the page cache
cold=$(quantize)
in_bytes=$(bytes in) out_bytes=$(bytes out)
read_a=$(reading) write_a=$(writing)
shards dd of=/dev/null bs=8M 2>/dev/null
warm=$(quantize)
read_b=$(reading) write_b=$(writing)
line() { # WHAT SECONDS MB
    awk -v what="$1" -v s="$2" -v mb="$3" -v in_b="$in_bytes" -v out_b="$out_bytes" -v r="$read_a $read_b" -v w="$write_a $write_b" -v device="$(sed -n 's/^model name.*: //p;T;q' /proc/cpuinfo), $(nproc) cores" \
        -v date="$(date +%F)" -v commit="$(git rev-parse --short HEAD 2>/dev/null)" -v command="bench/quantize_files.sh $all" -v load="$(cut -d' ' -f1 /proc/loadavg)" 'BEGIN {
        split(r, a, " "); split(w, b, " "); disk = a[1] + b[1] > a[2] + b[2] ? a[1] + b[1] : a[2] + b[2]
        printf "{\"what\": \"quantising %.2f GB of bf16 shards to NF4, %.2f GB, files in and out, %s\", \"device\": \"%s\", \"date\": \"%s\", \"commit\": \"%s\", \"command\": \"%s\", \"seconds\": %.1f, \"in_MBps\": %.0f, \"resident_MB\": %d, \"read_MBps\": [%.0f, %.0f], \"write_MBps\": [%.0f, %.0f], \"disk_s\": %.1f, \"share\": %.2f, \"load\": %s}\n",
            in_b / 1e9, out_b / 1e9, what, device, date, commit, command, s, in_b / 1e6 / s, mb, in_b / 1e6 / a[1], in_b / 1e6 / a[2], out_b / 1e6 / b[1], out_b / 1e6 / b[2], disk, disk / s, load }'
}
all=$*
line "shards not in the page cache" $cold
line "shards in the page cache as far as it holds them" $warm
