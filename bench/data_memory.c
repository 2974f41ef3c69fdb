/* bench/data_memory.c - reading a data file that is larger than what reading it may take: peak memory and
 * speed.
 *
 *     data_memory [MIB]        size of the file that is made for it in TMPDIR, default 200
 *
 * Each way of packing runs in its own process, with 64 MiB for sequences and 4 threads. Fails when the peak is
 * more than 160 MiB: two such stores (records, blocks), 16 of the mapped temporary file, and what a batch of 8 MiB
 * of text needs. One JSON line each. */
#include "base/file.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/sys.h"
#include "datasets/datasets.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PEAK_MIB = 160, COUNT = 60 };

static const char *const words[] = {
    "the ",   "of ",    "and ",   "to ",     "in ",    "that ",  "for ",    "it ",    "was ",   "with ",
    "be ",    "by ",    "not ",   "his ",    "but ",   "are ",   "this ",   "have ",  "from ",  "they ",
    "which ", "one ",   "you ",   "were ",   "all ",   "her ",   "there ",  "would ", "their ", "him ",
    "been ",  "has ",   "when ",  "who ",    "will ",  "more ",  "out ",    "said ",  "what ",  "about ",
    "than ",  "into ",  "them ",  "only ",   "other ", "time ",  "some ",   "could ", "these ", "first ",
    "then ",  "like ",  "over ",  "people ", "even ",  "after ", "before ", "must ",  "years ", "through "};

/* The letters as pieces, for want of a real model: more tokens than any real tokenizer makes. */
static struct tok *letters(struct err *e) {
    static char text[26][2];
    struct tok_piece piece[29] = {{"\xe2\x96\x81", -1}, {"<eod>", 0}, {"<sep>", 0}};
    struct str model = {0};
    for (int i = 0; i < 26; i++) text[i][0] = (char)('a' + i), piece[3 + i] = (struct tok_piece){text[i], -2};
    struct tok *t = tok_model_write(piece, 29, &model, e) ? NULL : tok_parse(model.p, model.n, "letters", e);
    str_free(&model);
    return t;
}

static int make_file(const char *path, int64_t bytes, struct err *e) {
    struct mt19937 g;
    struct str s = {0};
    struct out *o = out_open(path, e);
    mt_seed(&g, 1);
    while (o && out_bytes(o) < bytes) {
        str_clear(&s);
        while (s.n < 1 << 20) {
            str_puts(&s, "{\"instruction\":\"");
            for (uint32_t k = 5 + mt_next(&g) % 40; k; k--) str_puts(&s, words[mt_next(&g) % COUNT]);
            str_puts(&s, "\",\"output\":\"");
            for (uint32_t k = 20 + mt_next(&g) % 300; k; k--) str_puts(&s, words[mt_next(&g) % COUNT]);
            str_puts(&s, "\"}\n");
        }
        if (s.oom || out_write(o, s.p, s.n, e)) out_abort(o), o = NULL;
    }
    str_free(&s);
    return o ? out_commit(o, e) : -1;
}

/* In a process of its own: loads the file and prints the line. */
static int measure(const char *path, const char *name, const char *tokenizer, const struct data_config *c) {
    struct dataset *train, *eval;
    struct data_report r;
    struct rusage u;
    struct err e = {0};
    log_quiet = 1;
    omp_set_num_threads(4);
    struct tok *t = path_is_dir(tokenizer) ? tok_open(tokenizer, &e) : letters(&e);
    double start = sys_seconds();
    if (!t || data_load(c, t, &train, &eval, &r, &e)) return err_print(&e);
    double seconds = sys_seconds() - start, mib = (double)path_bytes(path) / 0x1p20;
    getrusage(RUSAGE_SELF, &u);
    printf(
        "{\"bench\":\"data_memory\",\"packing\":\"%s\",\"file_mib\":%.0f,\"tokens\":%lld,\"sequences\":%lld,"
        "\"seconds\":%.2f,\"mib_per_s\":%.1f,\"peak_mib\":%.0f}\n",
        name, mib, (long long)r.tokens, (long long)r.sequences, seconds, mib / seconds,
        (double)u.ru_maxrss / 1024);
    fflush(stdout);
    data_free(train);
    tok_close(t);
    return u.ru_maxrss > PEAK_MIB * 1024;
}

int main(int argc, char **argv) {
    char path[4200], tokenizer[1200];
    const char *tmp = getenv("TMPDIR"), *shared = getenv("QLORA_SHARED");
    struct err e = {0};
    int failed = 0;
    snprintf(tokenizer, sizeof tokenizer, "%s/data/yuan2-tokenizer", shared ? shared : "../shared");
    snprintf(path, sizeof path, "%s/qlora-data-memory-%ld.jsonl", tmp && *tmp ? tmp : "/tmp", (long)getpid());
    if (make_file(path, (argc > 1 ? atoll(argv[1]) : 200) << 20, &e)) return err_print(&e);
    for (int k = 0; k < 3; k++) {
        static const char *const names[] = {"none", "chunks", "bins"};
        struct data_config c = {.dataset = path,
                                .cutoff_len = 1024,
                                .packing = k == 2 ? 1 : -1,
                                .sft_packing = k == 1,
                                .compat_new = k == 2,
                                .memory_limit = 64 << 20};
        int status = 1;
        pid_t child = fork();
        if (child == 0) _exit(measure(path, names[k], tokenizer, &c));
        if (child < 0 || waitpid(child, &status, 0) != child || status) failed = 1;
    }
    unlink(path);
    return failed;
}
