/* bench/tokenize.c - speed of the tokenizer on one core (CPU time, best of five): each file as one text, and
 * line by line.
 *
 *     tokenize TOKENIZER FILE...      TOKENIZER: a folder with tokenizer.model, or that file
 *
 * One JSON line for each file. Without arguments: the Yuan tokenizer and two texts of $QLORA_SHARED, if it
 * is there. bench/tokenize_peer.py times sentencepiece itself on the same texts. */
#include "base/file.h"
#include "base/sys.h"
#include "tokenizer/tokenizer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 5 };

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Encodes text as one, or each of its lines without the LF; seconds taken, ids in out. */
static double encode(const struct tok *t, const char *text, size_t n, int by_line, struct ids *out,
                     struct err *e) {
    double start = cpu_seconds();
    out->n = 0;
    for (const char *p = text, *end = text + n; p < end;) {
        const char *lf = by_line ? memchr(p, '\n', (size_t)(end - p)) : NULL, *stop = lf ? lf : end;
        if (tok_encode(t, p, (size_t)(stop - p), 0, out, e)) return -1;
        p = stop + 1;
    }
    return cpu_seconds() - start;
}

static int bench_file(const struct tok *t, const char *path, struct err *e) {
    char *text;
    size_t n, count[2] = {0};
    double best[2] = {1e9, 1e9}, back = 1e9;
    struct ids ids = {0};
    struct str s = {0}, line = {0};
    if (file_read_all(path, INT32_MAX, &text, &n, e)) return -1;
    for (int round = 0; round < ROUNDS; round++)
        for (int by_line = 1; by_line >= 0; by_line--) {
            double seconds = encode(t, text, n, by_line, &ids, e);
            if (seconds >= 0 && seconds < best[by_line]) best[by_line] = seconds;
            count[by_line] = ids.n;
        }
    for (int round = 0; round < ROUNDS; round++) {
        double start = cpu_seconds();
        str_clear(&s);
        tok_decode(t, ids.p, ids.n, 0, &s);
        if (cpu_seconds() - start < back) back = cpu_seconds() - start;
    }
    double mb = (double)n / 1e6;
    str_puts(&line, "{\"bench\":\"tokenize\",\"file\":");
    str_json(&line, path, strlen(path));
    str_printf(&line,
               ",\"bytes\":%zu,\"tokens\":%zu,\"mb_per_s\":%.1f,\"tokens_per_s\":%.3g,\"line_tokens\":%zu,",
               n, count[0], mb / best[0], (double)count[0] / best[0], count[1]);
    str_printf(&line, "\"line_mb_per_s\":%.1f,\"line_tokens_per_s\":%.3g,\"decode_mb_per_s\":%.1f}",
               mb / best[1], (double)count[1] / best[1], mb / back);
    puts(line.p ? line.p : "");
    sys_free(text);
    ids_free(&ids), str_free(&s), str_free(&line);
    return 0;
}

int main(int argc, char **argv) {
    static char shared[3][1200], *defaults[] = {"tokenize", shared[0], shared[1], shared[2]};
    static const char *const names[] = {"yuan2-tokenizer", "llamafactory/alpaca_zh_demo.json",
                                        "llamafactory/wiki_demo.txt"};
    const char *folder = getenv("QLORA_SHARED");
    struct err e = {0};
    for (int i = 0; i < 3; i++)
        snprintf(shared[i], sizeof shared[i], "%s/data/%s", folder ? folder : "../shared", names[i]);
    if (argc == 1 && !path_is_dir(shared[0]))
        return puts("{\"bench\":\"tokenize\",\"skipped\":\"no texts\"}"), 0;
    if (argc == 1) argv = defaults, argc = 4;
    if (argc < 3) {
        fprintf(stderr, "usage: tokenize TOKENIZER FILE...\n");
        return ERR_INPUT;
    }
    double start = cpu_seconds();
    struct tok *t = tok_open(argv[1], &e);
    if (!t) return err_print(&e);
    printf("{\"bench\":\"tokenizer_open\",\"pieces\":%d,\"ms\":%.1f}\n", tok_pieces(t),
           1e3 * (cpu_seconds() - start));
    for (int i = 2; i < argc && !e.code; i++) bench_file(t, argv[i], &e);
    tok_close(t);
    return e.code ? err_print(&e) : 0;
}
