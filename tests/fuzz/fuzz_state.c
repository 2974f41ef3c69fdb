/* The facts of a checkpoint, under a MANIFEST that is whole, and the run.json that names a folder's run: what resuming reads. */
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"
#include "base/sha1.h"
#include "train/state.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct str s = {0};
    struct sha1 sha;
    struct err e = {0};
    struct progress p;
    char hex[41], run[33], own[33];
    log_quiet = 1;
    str_puts(&s, "qlora manifest 1\nfacts ");
    for (size_t i = 0; i < size; i++) str_putc(&s, data[i] == '\n' ? ' ' : (char)data[i]);
    str_putc(&s, '\n');
    fuzz_file("run.json", data, size);
    sha1_init(&sha), sha1_add(&sha, data, size), sha1_hex(&sha, hex);
    str_printf(&s, "file %s %zu run.json\n", hex, size);
    sha1_init(&sha), sha1_add(&sha, s.p, s.n), sha1_hex(&sha, hex);
    str_printf(&s, "end %s\n", hex);
    fuzz_file("MANIFEST", s.p, s.n);
    int rc = read_facts(fuzz_dir, &p, run, NULL, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    if (!rc) {
        const int64_t most = (int64_t)1 << 52, counts[] = {p.step, p.tokens, p.updates, p.window_steps, p.nonfinite, p.nonfinite_run, p.best_step, p.worse, p.evaluated + 1};
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            if (counts[i] < 0 || counts[i] > most + 1) abort();
    }
    if (run_of(fuzz_dir, own, &(struct err){0})) abort();
    if (memchr(own, 0, sizeof own) == NULL || (!rc && !memchr(data, '\n', size) && strcmp(own, run))) abort();
    str_free(&s);
    return 0;
}

static const char *const words[] = {"step", "run", "tokens", "updates", "window_steps", "nonfinite", "nonfinite_run", "loss_sum", "window_sum", "window_norm", "seconds", "evaluated", "best", "best_step", "worse", "data",
    "batch", "accumulate", "total_steps", "0x1p+0", "nan", "inf", "-0x1.8p-1074", "0123456789abcdef0123456789abcdef0123456789abcdef"};
MUTATE_WITH(mutate_json, words)
