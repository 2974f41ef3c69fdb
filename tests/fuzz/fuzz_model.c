/* Names, types and shapes of a checkpoint's tensors: the header of a .safetensors file beside the config.json of a model of one
 * layer. The payload behind it is as long as the header asks for, and zero. Opened to compute with, and as the source of an
 * export. */
#include "backend/backend.h"
#include "base/log.h"
#include "model/export_internal.h"
#include "model/load.c"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate_safetensors.h"

enum { PAYLOAD_MAX = 1 << 26 };
static const char config_json[] = "{\"architectures\":[\"YuanForCausalLM\"],\"model_type\":\"yuan\",\"hidden_act\":\"silu\",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":32,"
                             "\"model_max_length\":64,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,\"eod_token\":3,\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\"}";

/* The largest number that can be an offset. */
static size_t payload_bytes(const uint8_t *p, size_t n) {
    size_t most = 0;
    for (size_t i = 0; i < n;) {
        size_t v = 0, from = i;
        while (i < n && p[i] >= '0' && p[i] <= '9' && i - from < 9) v = 10 * v + p[i++] - '0';
        if (i == from) i++;
        else if (v > most && v <= PAYLOAD_MAX) most = v;
    }
    return most;
}

static void make_file(const uint8_t *data, size_t size) {
    const uint64_t n = size;
    uint8_t *bytes = malloc(size + 8);
    if (!bytes) abort();
    memcpy(bytes, &n, 8), memcpy(bytes + 8, data, size);
    fuzz_file_zeros("model.safetensors", bytes, size + 8, payload_bytes(data, size));
    free(bytes);
}

static void as_source(const struct model_config *config, struct ckpt *in) {
    struct err e = {0};
    struct export_how how = {0};
    struct job j = {.config = *config, .in = in, .how = &how, .e = &e, .type = DT_BF16};
    struct model_tensor t;
    for (int64_t i = 0; i < model_tensor_count(&j.config); i++) {
        struct source s = {0};
        model_tensor_at(&j.config, i, &t);
        if (source_check(&j, &t, fuzz_dir)) break;
        if (source_open(&j, &t, &s)) break;
        if (s.t->count < 1) abort();
        source_close(&s);
    }
}

/* Asked once: what memory is free takes a dozen files to find out. */
static struct backend_info known;
static void info(void *self, struct backend_info *out) { (void)self, *out = known; }

/* By the door of the model, which reads its config.json too. */
static void whole(struct backend *be, const struct model_how *how) {
    struct model m;
    struct ckpt *c;
    struct err e = {0};
    const int rc = model_open(&m, be, fuzz_dir, how, &c, &e);
    if (rc != (e.code ? -1 : 0) || (!rc && (!c || m.config.D != 64))) abort();
    if (!rc) ckpt_close(c), model_free(&m);
}

/* The checkpoint alone, opened once for both uses, under a configuration that was read before. */
static void parts(struct backend *be, const struct model_config *config, const struct model_how *how) {
    struct model m = {.be = be, .config = *config, .info = known, .trainable_weights = how->fp32};
    struct err e = {0};
    struct ckpt *c = ckpt_open(fuzz_dir, &e);
    if (!c != (e.code != 0)) abort();
    if (!c) return;
    const int rc = inspect(&m, c, fuzz_dir, how, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    if (!rc) warn_unknown(&m, c);
    as_source(config, c);
    ckpt_close(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct backend *be;
    static struct model_config plain;
    struct err e = {0};
    log_quiet = 1;
    make_file(data, size);
    if (!be) {
        fuzz_file("config.json", config_json, sizeof config_json - 1);
        if (!(be = backend_cpu(&e)) || model_config_read(fuzz_dir, &plain, &e)) abort();
        be->info(be->self, &known), be->info = info;
        nf4_init();
    }
    const struct model_how how = {.fp32 = size & 1};
    if (size % 16 < 2) whole(be, &how);
    parts(be, &plain, &how);
    return 0;
}

MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    uint64_t end;
    uint8_t *text = mutate_plain(&m) ? NULL : calloc(max + 1, 1);
    if (!text) return LLVMFuzzerMutate(data, n, max);
    memcpy(text, data, n);
    n = mutate_header(&m, text, n, max, &end);
    memcpy(data, text, n);
    free(text);
    return n;
}
MUTATORS_END
