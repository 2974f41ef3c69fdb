/* train/trained.c - see trained.h. The rules are those of LLaMA-Factory's freeze tuning; there, the extra module "norm" would
 * take all names with this word in them along, here it is the last norm. */
#include "train/trained.h"
#include "base/log.h"
#include "base/str.h"
#include <string.h>

#define BIT(x) (1u << (x))
struct module { const char *name; unsigned bits; };
static const struct module hidden[] = {
    {"all", BIT(LT_COUNT) - 1},
    {"self_attn", BIT(LT_Q) | BIT(LT_K) | BIT(LT_V) | BIT(LT_O) | BIT(LT_CONV1_0) | BIT(LT_CONV1_1) | BIT(LT_CONV2_0) | BIT(LT_CONV2_1) | BIT(LT_CONV1_B) | BIT(LT_CONV2_B) | BIT(LT_NORM_F)},
    {"mlp", BIT(LT_GATE) | BIT(LT_UP) | BIT(LT_DOWN)},
    {"input_layernorm", BIT(LT_NORM1)},
    {"post_attention_layernorm", BIT(LT_NORM2)},
    {NULL, 0}};
static const struct module outer[] = {{"embed_tokens", BIT(OT_EMBED)}, {"norm", BIT(OT_NORM)}, {"lm_head", BIT(OT_HEAD)}, {NULL, 0}};

/* The modules of a comma list; `hide` bits belong to none of this model's. */
static int read_list(const char *list, const struct module *m, unsigned hide, unsigned *bits, struct err *e) {
    for (const char *p = list; p && *p; p += *p == ',') {
        const size_t n = strcspn(p, ",");
        const struct module *k = m;
        while (k->name && (strlen(k->name) != n || strncmp(k->name, p, n) || k->bits & hide)) k++;
        if (!k->name) {
            struct str names = {0};
            for (k = m; k->name; k++)
                if (strcmp(k->name, "all") && !(k->bits & hide)) str_printf(&names, "%s%s", names.n ? ", " : "", k->name);
            err_set(e, ERR_INPUT, "Module %.*s is not found, please choose from %s", (int)(n < 60 ? n : 60), p, names.p ? names.p : "");
            str_free(&names);
            return -1;
        }
        *bits |= k->bits;
        p += n;
    }
    return 0;
}

/* "Set trainable layers: .22.mlp,.23.mlp,embed_tokens", as LLaMA-Factory prints it. */
static void announce(const struct train_options *o, const struct params_how *how) {
    struct str s = {0};
    for (const char *p = o->freeze_modules; how->layers && *p; p += *p == ',') {
        const size_t n = strcspn(p, ","), shown = n == 3 && !strncmp(p, "all", 3) ? 0 : n;
        for (int64_t l = how->first_layer; l < how->first_layer + how->layers; l++)
            str_printf(&s, "%s.%lld.%.*s", s.n ? "," : "", (long long)l, (int)shown, p);
        p += n;
    }
    if (o->freeze_extra) str_printf(&s, "%s%s", s.n ? "," : "", o->freeze_extra);
    if (!s.oom) log_info("Set trainable layers: %s", s.p);
    str_free(&s);
}

int trained_weights(const struct train_options *o, const struct model_config *c, struct params_how *how, struct err *e) {
    if (o->finetuning != FT_FREEZE) {
        how->first_layer = 0, how->layers = c->L, how->tensors = BIT(LT_COUNT) - 1, how->outer = BIT(OT_COUNT) - 1;
        return 0;
    }
    const int64_t n = o->freeze_layers, layers = n < 0 ? -n : n;
    how->tensors = how->outer = 0;
    how->layers = layers < c->L ? layers : c->L, how->first_layer = n > 0 ? c->L - how->layers : 0;
    if (read_list(o->freeze_modules, hidden, 0, &how->tensors, e) ||
        read_list(o->freeze_extra, outer, c->tied ? BIT(OT_HEAD) : 0, &how->outer, e))
        return -1;
    if (!how->tensors) how->layers = 0;
    if (!how->layers) how->tensors = 0;
    if (!how->tensors && !how->outer)
        return err_set(e, ERR_INPUT,
                       "nothing is left to train: freeze_trainable_layers is %lld, and there are no freeze_extra_modules",
                       (long long)n);
    announce(o, how);
    return 0;
}
