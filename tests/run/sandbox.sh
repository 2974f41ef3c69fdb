#!/usr/bin/env bash
# What a run does to the rest of the machine: nothing is executed, nothing connected, nothing written outside the output folder and
# the one for temporary files. strace watches the program; Landlock, where the kernel has it, holds it to that.
. "$(dirname "$0")/check.bash"
. "$(dirname "$0")/tiny.bash"
tiny_model
mkdir -p "$work/tmp"
export TMPDIR=$work/tmp
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0 # its search for leaks cannot be traced

# ---- watched ----
# watched NAME FOLDER ARGUMENTS..: paths written to lie below FOLDER or TMPDIR
watched() {
    local name=$1 folder=$2
    shift 2
    rm -f "$work"/thread.*
    ok "$name" strace -ff -qq -o "$work/thread" -e trace=execve,execveat,fork,vfork,socket,connect,bind,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,link,symlink,truncate,chmod,mknod,mknodat "$QLORA" "$@"
    sed 's/^/ /' "$work"/thread.* >"$work/trace" # a file a thread: no call is cut in two
    ok "$name: nothing is executed" test "$(grep -cE ' (execve|execveat)\(' "$work/trace")" = 1
    ok "$name: no process, no socket" test "$(grep -cE ' (fork|vfork|socket|connect|bind)\(' "$work/trace")" = 0
    grep -E ' (open|openat|creat)\(.*(O_WRONLY|O_RDWR|O_CREAT|O_TRUNC)| (mkdir|mkdirat|rename|renameat|renameat2|unlink|unlinkat|link|symlink|truncate|chmod|mknod|mknodat)\(' "$work/trace" |
        grep -v ' = -1 E' >"$work/written"
    ok "$name: writes were seen" test "$(wc -l <"$work/written")" -gt "${least:-3}"
    ok "$name: nothing is written elsewhere" test -z "$(grep -vF -e "\"$folder" -e "\"$TMPDIR/" "$work/written" | grep -vE 'unlinkat\([0-9]+, ')"
}
if strace -o "$work/trace" true 2>/dev/null; then
    # shellcheck disable=SC2086
    watched train "$work/a" train $lora --max_samples 16 --data_memory 1KiB --output_dir "$work/a" --quiet
    watched quantize "$work/q" quantize --model_name_or_path "$work/m" --output_dir "$work/q" --quantization_bit 4 --quiet
    watched export "$work/x" export --model_name_or_path "$work/m" --adapter_name_or_path "$work/a" --export_dir "$work/x" --quiet
    least=-1 watched score "$work/none" score --model_name_or_path "$work/m" --text hello --quiet
    ok "score writes nothing" test ! -s "$work/written"
else
    # shellcheck disable=SC2086
    train "$work/a" --max_samples 16
    skip "no strace, or it may not trace here"
fi

# ---- held ----
sandbox=$("$QLORA" doctor --backend cpu | sed -n 's/^sandbox *//p')
ok "doctor says it" test -n "$sandbox"
if [[ $sandbox == Landlock* ]]; then
    entered() { # ARGUMENTS..: how many threads of how many sandboxes
        strace -f -qq -o "$work/trace" -e trace=landlock_restrict_self "$QLORA" "$@" >/dev/null 2>&1
        grep -c 'landlock_restrict_self(.*) *= 0' "$work/trace"
    }
    if strace -o "$work/trace" true 2>/dev/null; then
        for command in "score --model_name_or_path $work/m --text hello" "tokenize --model_name_or_path $work/m --text hello" \
            "preview --model_name_or_path $work/m --dataset_dir $work/data --dataset questions --limit 1" "chat --model_name_or_path $work/m --prompt hello --max_new_tokens 1"; do
            # shellcheck disable=SC2086
            ok "${command%% *} enters it" test "$(entered $command)" = 1
        done
        # shellcheck disable=SC2086
        ok "--sandbox off" test "$(entered $command --sandbox off)" = 0
        # shellcheck disable=SC2086
        ok "QLORA_SANDBOX=off" test "$(QLORA_SANDBOX=off entered $command)" = 0
    fi
    # A link that somebody left in the output folder: the log does not go where it points.
    mkdir -p "$work/l" "$work/outside"
    : >"$work/outside/log"
    ln -s "$work/outside/log" "$work/l/trainer_log.jsonl"
    # shellcheck disable=SC2086
    ok "a run beside a link" "$QLORA" train $lora --max_samples 16 --output_dir "$work/l" --quiet
    ok "nothing is written through it" test ! -s "$work/outside/log"
    ok "off by the environment" grep -q 'off by QLORA_SANDBOX' <(QLORA_SANDBOX=off "$QLORA" doctor --backend cpu)
else
    skip "no Landlock: $sandbox"
fi
# The folder that was made for a rule goes when nothing came of it; one that was there stays.
refused "a model that is not there" "$work/none" quantize --model_name_or_path "$work/none" --output_dir "$work/e" --quantization_bit 4
ok "its output folder is gone" test ! -e "$work/e"
mkdir "$work/e"
refused "once more" "$work/none" quantize --model_name_or_path "$work/none" --output_dir "$work/e" --quantization_bit 4
ok "an older folder stays" test -d "$work/e"
finish
