#!/usr/bin/env bash
# Every call to the system goes through base/sys.c, where tests make it fail: no other source calls it by its own name.
# base/log.c and base/err.c write to standard error, which nobody waits for; base/record.c is the tests' diary behind the seam;
# base/sandbox.c and base/stop.c speak to the kernel about the process itself; backend/cuda has its own.
. "$(dirname "$0")/check.bash"
calls='malloc|calloc|realloc|free|posix_memalign|aligned_alloc|strdup|strndup|asprintf|vasprintf|getline|fopen|fdopen|freopen|open|openat|creat|read|pread|readv|write|pwrite|writev|fsync|fdatasync|sync|close|rename|renameat|unlink|unlinkat|remove|rmdir|mkdir|mkdirat|mkstemp|mkdtemp|tmpfile|mmap|munmap|madvise|msync|mremap|stat|lstat|fstat|fstatat|statvfs|fstatvfs|statfs|access|opendir|fdopendir|readdir|closedir|scandir|ftw|nftw|glob|ftruncate|truncate|fallocate|posix_fallocate|fclose|fgets|fgetc|getc|getchar|fread|fwrite|fflush|fscanf|scanf|puts|putchar|fputc|putc|printf|vprintf|dup|dup2|pipe|readlink|realpath|symlink|link|dlopen|execv|execve|execvp|execl|fork|vfork|posix_spawn|system|popen|socket|connect|sendfile|splice'
sources=$(ls base/*.[ch] nf4/*.[ch] checkpoint/*.[ch] tokenizer/*.[ch] datasets/*.[ch] backend/*.[ch] backend/cpu/*.[ch] pager/*.[ch] lora/*.[ch] model/*.[ch] train/*.[ch] cli/*.[ch] qlora.c 2>/dev/null |
    grep -vxE 'base/(sys|log|err|record|sandbox|stop)\.c')
# comments, texts and calls through a pointer (b->close) go first
strip() { sed -E 's/"([^"\\]|\\.)*"/""/g' "$1" | tr '\n' '\001' | sed -E 's@/\*([^*]|\*+[^*/])*\*+/@@g' | tr '\001' '\n' | sed -E 's@//.*@@; s/(->|\.)[a-z_]+ *\(/(/g'; }
bad=""
for f in $sources; do
    found=$(strip "$f" | grep -nE "(^|[^A-Za-z0-9_])($calls) *\(|(^|[^A-Za-z0-9_])(fprintf|fputs|vfprintf) *\(" | grep -vE 'fprintf *\(stderr|fputs *\([^;]*stderr\)' | grep -vE '^[0-9]+:(static )?(int|void|struct [a-z_]+ \*?|ssize_t) ?(read|write|link|close|sync|remove|access|open|free)\(' | head -n 3)
    [[ -n $found ]] && bad+="$f: $found"$'\n'
done
ok "no call goes round base/sys" test -z "$bad"
[[ -n $bad ]] && printf '%s' "$bad"
# and the check sees one
cat >"$work/x.c" <<'X'
int f(void) { return rename("a", "b"); /* unlink(x) */ }
X
ok "a call is seen" test "$(strip "$work/x.c" | grep -cE "(^|[^A-Za-z0-9_])($calls) *\(")" = 1
finish
