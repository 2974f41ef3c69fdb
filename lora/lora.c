/* lora/lora.c - the shape of an adapter and its start values. See lora.h; the files are in peft.c. */
#include "lora/lora.h"
#include "base/rng.h"
#include "base/str.h"
#include "base/sys.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const proj_name[PROJ_COUNT] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                           "gate_proj", "up_proj", "down_proj"};
const char *const proj_module[PROJ_COUNT] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                             "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                             "mlp.down_proj"};

void proj_shape(const struct model_config *c, enum proj p, int64_t *rows, int64_t *cols) {
    *rows = p == PROJ_GATE || p == PROJ_UP ? c->F : c->D;
    *cols = p == PROJ_DOWN ? c->F : c->D;
}

float lora_scale(const struct lora_config *c) {
    return (float)(c->alpha / (c->rslora ? sqrt((double)c->rank) : (double)c->rank));
}

/* The words of a comma list as bits in the order of `known`; those of `all` for its last word. */
static int parse_words(const char *text, const char *flag, const char *const *known, const char *choices, unsigned all,
                       unsigned *bits, struct err *e) {
    static const char trim[] = " \t\r\n\"'";
    unsigned found = 0;
    for (const char *s = text;; s++) { /* s++ steps over the comma */
        s += strspn(s, trim);
        const char *comma = s + strcspn(s, ",");
        size_t n = (size_t)(comma - s);
        while (n && strchr(trim, s[n - 1])) n--;
        char word[64];
        snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), s);
        int k = 0;
        while (known[k] && strcmp(known[k], word)) k++;
        if (!known[k]) {
            const char *near = n ? nearest_word(word, known) : NULL;
            return err_set(
                e, ERR_INPUT, "%s: \"%s\" is no module%s%s%s; give %s", flag, word,
                near ? " (did you mean " : "", near ? near : "", near ? "?)" : "", choices);
        }
        found |= all && !known[k + 1] ? all : 1u << k;
        if (!*comma) break;
        s = comma;
    }
    *bits = found;
    return 0;
}

int lora_parse_targets(const char *text, unsigned *targets, struct err *e) {
    static const char *const known[] = {"q_proj",  "k_proj",    "v_proj", "o_proj", "gate_proj",
                                        "up_proj", "down_proj", "all",    NULL};
    return parse_words(text, "lora_target", known, "all, or some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
                       (1u << PROJ_COUNT) - 1, targets, e);
}

int lora_parse_wholes(const char *text, unsigned *wholes, struct err *e) {
    static const char *const known[] = {"embed_tokens", "lm_head", "norm", NULL};
    return parse_words(text, "additional_target", known, "some of embed_tokens,lm_head,norm (the last norm)", 0, wholes, e);
}

/* Floats of one layer's adapters of the targets before `end`. Bounded by lora_shapes, so it cannot overflow later. */
static int64_t floats_before(const struct lora *l, int end) {
    int64_t sum = 0, rows, cols;
    for (int p = 0; p < end; p++)
        if (l->config.targets >> p & 1) {
            proj_shape(&l->model, (enum proj)p, &rows, &cols);
            sum += l->config.rank * (rows + cols) + (l->config.dora ? rows : 0);
        }
    return sum;
}

int64_t lora_offset_a(const struct lora *l, enum proj p) {
    return l->config.targets >> p & 1 ? floats_before(l, (int)p) : -1;
}

int64_t lora_offset_b(const struct lora *l, enum proj p) {
    int64_t rows, cols, a = lora_offset_a(l, p);
    proj_shape(&l->model, p, &rows, &cols);
    return a < 0 ? a : a + l->config.rank * cols;
}

int64_t lora_offset_m(const struct lora *l, enum proj p) {
    int64_t rows, cols, b = lora_offset_b(l, p);
    proj_shape(&l->model, p, &rows, &cols);
    return b < 0 || !l->config.dora ? -1 : b + rows * l->config.rank;
}

int64_t lora_rows(const struct lora *l, enum proj p) {
    int64_t sum = 0, rows, cols;
    for (int i = 0; i < (int)p; i++)
        if (l->config.targets >> i & 1) {
            proj_shape(&l->model, (enum proj)i, &rows, &cols);
            sum += rows;
        }
    return sum;
}

int lora_check(const struct lora_config *c, struct err *e) {
    if (c->rank < 1 || c->rank > 1 << 16)
        return err_set(e, ERR_INPUT, "lora_rank %lld is out of range: 1 to 65536", (long long)c->rank);
    if (!(c->alpha >= 0 && c->alpha <= 0x1p30)) /* so that the scale is a finite float */
        return err_set(e, ERR_INPUT, "lora_alpha %g is out of range: 0 to 2^30", c->alpha);
    if (!(c->dropout >= 0 && c->dropout < 1))
        return err_set(e, ERR_INPUT, "lora_dropout %g is out of range: at least 0 and below 1", c->dropout);
    return 0;
}

int lora_shapes(struct lora *l, const struct lora_config *c, const struct model_config *m, struct err *e) {
    ASSERT(c->targets && c->targets < 1u << PROJ_COUNT, "targets %#x", c->targets);
    *l = (struct lora){.config = *c, .model = *m};
    l->model.text = NULL;
    if (lora_check(c, e)) return -1;
    /* no overflow: rank <= 2^16, and model_config bounds D and F far below 2^31 */
    l->layer_floats = floats_before(l, PROJ_COUNT);
    return 0;
}

int lora_init(struct lora *l, const struct lora_config *c, const struct model_config *m, struct err *e) {
    if (lora_shapes(l, c, m, e)) return -1;
    l->data = sys_alloc_array((size_t)l->layer_floats, (size_t)m->L * sizeof(float), "the adapter", e);
    return l->data ? 0 : -1;
}

/* Element i of A of projection p in layer l comes from word i%4 of Philox(counter {i/4 low, i/4 high, p, l}); the key
 * differs from dropout's, so that the two streams share nothing. 24 bits of the word place it on a grid symmetric about 0. */
void lora_start(struct lora *l, uint64_t seed) {
    const uint32_t key[2] = {(uint32_t)seed ^ 0x41726f6cu, (uint32_t)(seed >> 32)};
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int64_t layer = 0; layer < l->model.L; layer++)
        for (int p = 0; p < PROJ_COUNT; p++) {
            int64_t rows, cols, offset = lora_offset_a(l, (enum proj)p);
            if (offset < 0) continue;
            proj_shape(&l->model, (enum proj)p, &rows, &cols);
            float *a = l->data + layer * l->layer_floats + offset;
            const double bound = 1 / sqrt((double)cols);
            const int64_t n = l->config.rank * cols;
            memset(a + n, 0, (size_t)(l->config.rank * rows) * sizeof *a); /* B */
            for (int64_t i = 0; i < n; i += 4) {
                uint64_t at = (uint64_t)i / 4;
                uint32_t counter[4] = {(uint32_t)at, (uint32_t)(at >> 32), (uint32_t)p, (uint32_t)layer},
                         word[4];
                philox4x32(counter, key, word);
                for (int64_t k = 0; k < 4 && i + k < n; k++)
                    a[i + k] = (float)(((double)(word[k] >> 8) + 0.5 - 0x1p23) * 0x1p-23 * bound);
            }
        }
}

int64_t lora_whole_count(const struct lora *l, enum whole w) { return w == WHOLE_NORM ? l->model.D : l->model.V * l->model.D; }

int lora_hold(struct lora *l, struct err *e) {
    for (int w = 0; w < WHOLES; w++)
        if (l->config.wholes >> w & 1 && !(l->whole[w] = sys_alloc_array((size_t)lora_whole_count(l, (enum whole)w),
                                                                         sizeof(float), "a module trained whole", e)))
            return -1;
    return 0;
}

void lora_free(struct lora *l) {
    for (int w = 0; w < WHOLES; w++) sys_free(l->whole[w]), l->whole[w] = NULL;
    sys_free(l->data);
    l->data = NULL;
}
