/* tests/golden/test_data_golden.c - data_load against LLaMA-Factory's own output (shared/goldens/data):
 * every sequence as a line of JSON, compared line by line with the stored file and, beyond it, by digest; then the
 * counters. */
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include "datasets/datasets.h"
#include "tests/test.h"
#include <fcntl.h>
#include <omp.h>
#include <unistd.h>
#include <zlib.h>

/* ---- SHA-256 (FIPS 180-4), of a whole string ---- */

static uint32_t ror(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

static void sha256_block(uint32_t h[8], const unsigned char *p) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 |
               p[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
               (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, h, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) +
                      ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
        uint32_t t2 =
            (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
}

static void sha256(const char *p, size_t n, char hex[65]) {
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char tail[128] = {0};
    size_t whole = n / 64 * 64, rest = n - whole, tail_n = rest < 56 ? 64 : 128;
    for (size_t i = 0; i < whole; i += 64) sha256_block(h, (const unsigned char *)p + i);
    if (rest) memcpy(tail, p + whole, rest);
    tail[rest] = 0x80;
    for (int i = 0; i < 8; i++) tail[tail_n - 1 - (size_t)i] = (unsigned char)((uint64_t)n * 8 >> 8 * i);
    for (size_t i = 0; i < tail_n; i += 64) sha256_block(h, tail + i);
    for (int i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08x", h[i]);
}

/* ---- helpers ---- */

static const char *golden(const char *name) {
    static char path[4][1300];
    static int k;
    snprintf(path[k = (k + 1) % 4], sizeof path[0], "%s/goldens/data/%s", shared_dir(), name);
    return path[k];
}

static char *gunzip(const char *path) { /* freed with free() */
    struct str s = {0};
    char buf[65536];
    int n;
    gzFile f = gzopen(path, "rb");
    if (!f) return NULL;
    while ((n = gzread(f, buf, sizeof buf)) > 0) str_add(&s, buf, (size_t)n);
    gzclose(f);
    return s.p;
}

static void add_array(struct str *s, const char *name, const int32_t *p, int64_t n) {
    str_printf(s, "%s\"%s\":[", s->p[s->n - 1] == '{' ? "" : ",", name);
    for (int64_t i = 0; i < n; i++) str_printf(s, i ? ",%d" : "%d", p[i]);
    str_putc(s, ']');
}

static void add_line(struct str *s, const struct sequence *q) {
    str_putc(s, '{');
    add_array(s, "input_ids", q->ids, q->n);
    add_array(s, "labels", q->labels, q->n);
    if (q->positions) add_array(s, "position_ids", q->positions, q->n);
    if (q->documents) add_array(s, "attention_mask", q->documents, q->n);
    str_puts(s, "}\n");
}

/* All sequences as lines; line i starts at (*start)[i]. */
static void all_lines(const struct dataset *d, struct str *s, size_t **start) {
    const int64_t n = data_count(d);
    *start = calloc((size_t)n + 1, sizeof **start);
    for (int64_t i = 0; i < n; i++) {
        struct sequence q;
        data_get(d, i, &q, NULL);
        (*start)[i] = s->n;
        add_line(s, &q);
    }
    (*start)[n] = s->n;
}

/* The command line of a case; words point into text, which is changed. */
static int read_flags(char *text, struct data_config *c, char *dir, size_t dir_size) {
    *c = (struct data_config){.packing = -1, .seed = 42};
    for (char *flag = strtok(text, " "); flag; flag = strtok(NULL, " ")) {
        if (!strcmp(flag, "--sft_packing")) {
            c->sft_packing = 1;
            continue;
        }
        if (!strcmp(flag, "--neat_packing")) {
            c->neat_packing = 1;
            continue;
        }
        if (!strcmp(flag, "--train_on_prompt")) {
            c->train_on_prompt = 1;
            continue;
        }
        if (!strcmp(flag, "--mask_history")) {
            c->mask_history = 1;
            continue;
        }
        char *v = strtok(NULL, " ");
        if (!v) return -1;
        if (!strcmp(flag, "--compat"))
            c->compat_new = !strcmp(v, "new");
        else if (!strcmp(flag, "--stage"))
            c->stage = !strcmp(v, "pt") ? STAGE_PT : STAGE_SFT;
        else if (!strcmp(flag, "--dataset"))
            c->dataset = v;
        else if (!strcmp(flag, "--dataset_dir"))
            snprintf(dir, dir_size, "%s/%s", shared_dir(), v), c->dataset_dir = dir;
        else if (!strcmp(flag, "--cutoff_len"))
            c->cutoff_len = atoi(v);
        else if (!strcmp(flag, "--packing"))
            c->packing = !strcmp(v, "True");
        else if (!strcmp(flag, "--preprocessing_num_workers"))
            c->num_workers = atoi(v);
        else if (!strcmp(flag, "--preprocessing_batch_size"))
            c->group_size = atoi(v);
        else if (!strcmp(flag, "--max_samples"))
            c->max_samples = atoi(v);
        else if (!strcmp(flag, "--val_size"))
            c->val_size = atof(v);
        else if (!strcmp(flag, "--interleave_probs"))
            c->interleave_probs = v;
        else if (!strcmp(flag, "--default_system"))
            c->default_system = v;
        else if (!strcmp(flag, "--mix_strategy"))
            c->mix = !strcmp(v, "interleave_under")  ? MIX_UNDER
                     : !strcmp(v, "interleave_over") ? MIX_OVER
                                                     : MIX_ONCE;
        else if (strcmp(flag, "--template"))
            return -1;
    }
    return 0;
}

/* data_load with its warnings thrown away: the data are full of what it warns of. */
static int load(const struct data_config *c, const struct tok *t, struct dataset **train,
                struct dataset **eval, struct data_report *r, struct err *e) {
    int stderr_fd = dup(2), null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    int rc = data_load(c, t, train, eval, r, e);
    dup2(stderr_fd, 2);
    close(stderr_fd);
    close(null);
    return rc;
}

static struct tok *tok;
static struct cJSON *cases;

static int open_all(void) {
    char path[1200];
    struct err e = {0};
    if (tok) return 0;
    log_quiet = 1;
    snprintf(path, sizeof path, "%s/data/yuan2-tokenizer", shared_dir());
    tok = tok_open(path, &e);
    cases = tok ? json_parse_file(golden("cases.json"), 1 << 24, &e) : NULL;
    CHECK(cases != NULL, "%s", e.text);
    return cases ? 0 : -1;
}

static int64_t number(const struct cJSON *object, const char *key) {
    int64_t x = 0;
    json_int(object, key, 0, INT32_MAX, &x, key, NULL);
    return x;
}

static const char *text(const struct cJSON *object, const char *key) {
    const char *s = NULL;
    json_str(object, key, &s, key, NULL);
    return s;
}

/* ---- the comparison ---- */

static void compare_lines(const struct cJSON *k, const char *name, const struct str *s, const size_t *start,
                          int64_t n) {
    char hex[65];
    char *want = gunzip(golden(text(k, "file")));
    REQUIRE(want, "%s: no golden file", name);
    const char *p = want;
    for (int64_t i = 0; i < number(k, "lines_in_file") && i < n; i++) {
        size_t len = strcspn(p, "\n") + 1;
        int same = len == start[i + 1] - start[i] && !memcmp(p, s->p + start[i], len);
        CHECK(same, "%s: sequence %lld is\n%.600s\nbut must be\n%.600s", name, (long long)i, s->p + start[i],
              p);
        if (!same) break;
        p += len;
    }
    free(want);
    const char *digests = text(k, "line_digests");
    char *list = NULL;
    size_t list_n;
    if (digests && !file_read_all(golden(digests), 1 << 24, &list, &list_n, NULL)) {
        for (int64_t i = 0; i < n && (size_t)(13 * i) < list_n; i++) {
            sha256(s->p + start[i], start[i + 1] - start[i], hex);
            int same = !strncmp(hex, list + 13 * i, 12);
            CHECK(same, "%s: sequence %lld has another digest", name, (long long)i);
            if (!same) break;
        }
        sys_free(list);
    }
    sha256(s->p, s->n, hex);
    CHECK(!strcmp(hex, text(k, "sha256_full")), "%s: digest of all sequences is %s", name, hex);
}

static void compare_counters(const struct cJSON *k, const char *name, const struct data_config *c,
                             const struct data_report *r) {
    const struct cJSON *own = json_get(k, "own_counts"), *warned = json_get(k, "warned");
#define SAME(have, object, key)                                                                              \
    CHECK((have) == number(object, key), "%s: %s is %lld, must be %lld", name, key, (long long)(have),       \
          (long long)number(object, key))
    SAME(r->sequences, k, "sequences");
    SAME(r->tokens, k, "total_tokens");
    SAME(r->longest, k, "longest");
    SAME(r->labelled_tokens, k, "labelled_tokens");
    SAME(r->records, own, "records");
    SAME(r->dropped_invalid + r->dropped_empty, own, "dropped");
    SAME(r->dropped_lengthy, own, "lengthy");
    SAME(r->cut_source, own, "cut_source");
    SAME(r->cut_target, own, "cut_target");
    SAME(r->cut_both, own, "cut_both");
    SAME(r->over_cutoff, own, "over_cutoff");
    SAME(r->skipped_turns, own, "skipped_turns");
    SAME(r->remainder_tokens, own, "remainder_tokens");
    SAME(r->invalid_role, warned, "invalid_role");
    SAME(r->invalid_count, warned, "invalid_count");
    SAME(r->dropped_lengthy, warned, "dropped_lengthy");
    if (c->compat_new) SAME(r->dropped_invalid, warned, "dropped_invalid"); /* OLD drops silently */
#undef SAME
}

static void compare_eval(const struct cJSON *k, const char *name, const struct dataset *eval,
                         const struct data_report *r) {
    const struct cJSON *split = json_get(k, "split");
    CHECK(!split == !eval, "%s: evaluation part", name);
    if (!split || !eval) return;
    struct str s = {0};
    size_t *start;
    char hex[65];
    all_lines(eval, &s, &start);
    sha256(s.p, s.n, hex);
    CHECK(data_count(eval) == number(split, "eval_sequences"), "%s: %lld eval sequences", name,
          (long long)data_count(eval));
    CHECK(r->eval_sequences == data_count(eval), "%s: %lld reported", name, (long long)r->eval_sequences);
    CHECK(!strcmp(hex, text(split, "eval_sha256_full")), "%s: digest of the evaluation part is %s", name,
          hex);
    str_free(&s);
    free(start);
}

static void run_case(const struct cJSON *k, int64_t memory_limit) {
    const char *name = text(k, "name");
    char flags[600], dir[1200], hash[41];
    struct data_config c;
    struct dataset *train, *eval;
    struct data_report r;
    struct err e = {0};
    snprintf(flags, sizeof flags, "%s", text(k, "flags"));
    REQUIRE(!read_flags(flags, &c, dir, sizeof dir), "%s: flags", name);
    c.memory_limit = memory_limit;
    int rc = load(&c, tok, &train, &eval, &r, &e);
    REQUIRE(!rc, "%s: %s", name, e.text);
    CHECK(data_count(train) == r.sequences && data_tokens(train) == r.tokens &&
              data_longest(train) == r.longest,
          "%s: report and data set disagree", name);
    CHECK(!data_hash(train, hash, &e) && strlen(hash) == 40, "%s: hash", name);
    struct str s = {0};
    size_t *start;
    all_lines(train, &s, &start);
    compare_lines(k, name, &s, start, data_count(train));
    compare_counters(k, name, &c, &r);
    compare_eval(k, name, eval, &r);
    str_free(&s);
    free(start);
    data_free(train);
    data_free(eval);
}

static void run_cases(int64_t memory_limit, const char *only) {
    const struct cJSON *k;
    int done = 0;
    cJSON_ArrayForEach(k, json_get(cases, "cases")) {
        const char *name = text(k, "name");
        int sequences =
            !strstr(name, "dpo") && !strstr(name, "kto") && strcmp(name, "sampler") && text(k, "file");
        if (!sequences || !strstr(name, only)) continue;
        run_case(k, memory_limit);
        done++;
    }
    CHECK(done > 0, "no case with %s in its name", only);
}

TEST(every_case_gives_the_official_sequences) {
    if (!shared_dir()) SKIP("no shared folder");
    if (!open_all()) run_cases(0, "");
}

TEST(a_temporary_file_and_one_thread_change_nothing) {
    if (!shared_dir()) SKIP("no shared folder");
    if (open_all()) return;
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    run_cases(1, "multiturn");
    run_cases(1, "zh_512");
    run_cases(1, "val_");
    omp_set_num_threads(threads);
}

/* Where the official program stops, records are dropped and counted, or the message says what to do. */
TEST(aborts_of_the_official_program) {
    if (!shared_dir()) SKIP("no shared folder");
    if (open_all()) return;
    const struct cJSON *k;
    int done = 0;
    cJSON_ArrayForEach(k, json_get(cases, "cases")) {
        if (!text(k, "aborts")) continue;
        const char *name = text(k, "name");
        char flags[600], dir[1200];
        struct data_config c;
        struct dataset *train, *eval;
        struct data_report r;
        struct err e = {0};
        snprintf(flags, sizeof flags, "%s", text(k, "flags"));
        REQUIRE(!read_flags(flags, &c, dir, sizeof dir), "%s: flags", name);
        int rc = load(&c, tok, &train, &eval, &r, &e);
        done++;
        if (strstr(name, "pack")) {
            CHECK(rc && e.code == ERR_INPUT && !strncmp(e.text, "Empty dataset!", 14), "%s: %s", name,
                  e.text);
            CHECK(strstr(e.text, "preprocessing_num_workers"), "%s: no advice in: %s", name, e.text);
            continue;
        }
        REQUIRE(!rc, "%s: %s", name, e.text);
        if (strstr(name,
                   "multiturn")) { /* of 20: three roles out of turn, a system message, no messages at all */
            CHECK(r.invalid_role == 4 && r.dropped_invalid == 4 && r.vanished == 1, "%s: %lld %lld %lld",
                  name, (long long)r.invalid_role, (long long)r.dropped_invalid, (long long)r.vanished);
            CHECK(r.sequences == 15, "%s: %lld sequences", name, (long long)r.sequences);
        } else { /* null answer dropped; null history, input and instruction used as if empty */
            CHECK(r.sequences == 15 && r.dropped_invalid == 1, "%s: %lld sequences", name,
                  (long long)r.sequences);
        }
        data_free(train);
        data_free(eval);
    }
    CHECK(done == 3, "%d cases", done);
}

TEST(order_of_torch_randperm) {
    if (!shared_dir()) SKIP("no shared folder");
    char *lines = gunzip(golden("sampler.jsonl.gz"));
    REQUIRE(lines, "no golden file");
    int done = 0;
    for (char *line = strtok(lines, "\n"); line; line = strtok(NULL, "\n"), done++) {
        struct err e = {0};
        struct cJSON *j = json_parse(line, strlen(line), "sampler", &e);
        REQUIRE(j, "%s", e.text);
        int64_t n = number(j, "n"), epoch = number(j, "epoch");
        struct sampler_config c = {.count = n,
                                   .batch = 1,
                                   .accumulate = n,
                                   .epochs = 10,
                                   .seed = (uint64_t)number(j, "seed"),
                                   .shuffle = 1,
                                   .compat_new = 1};
        struct sampler *s = sampler_open(&c, &e);
        struct sampler_step step;
        REQUIRE(s && !sampler_get(s, epoch, &step, &e), "%s", e.text);
        const struct cJSON *v;
        int64_t i = 0;
        cJSON_ArrayForEach(v, json_get(j, "order")) {
            CHECK(i < step.sequences && step.index[i] == v->valueint, "epoch %lld, place %lld",
                  (long long)epoch, (long long)i);
            i++;
        }
        CHECK(i == step.sequences && i == n, "%lld in order", (long long)i);
        sampler_close(s);
        json_free(j);
    }
    CHECK(done == 5, "%d lines", done);
    free(lines);
}

TEST_MAIN
