/* cli/new.c - qlora new: configuration, tokenizer files, random weights. */
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli.h"
#include "model/export.h"
#include "model/files.h"
#include "model/tensors.h"
#include "tokenizer/tokenizer.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The configuration with --dtype and --override put in. */
static int make_config(const struct options *o, struct model_config *c, struct err *e) {
    static const char *const types[] = {NULL, "torch_dtype=bfloat16", "torch_dtype=float32"};
    struct model_config base = {0};
    const char *changes[OVERRIDES_MAX + 1];
    int n = 0, rc = -1;
    char *text = NULL;
    if (types[o->dtype]) changes[n++] = types[o->dtype];
    for (int i = 0; i < o->n_overrides; i++) changes[n++] = o->overrides[i];
    if (!model_config_find(o->config, &base, e) && (text = model_config_text(&base, changes, n, NULL, e)))
        rc = model_config_parse(text, strlen(text), o->config, c, e);
    sys_free(text);
    model_config_free(&base);
    return rc;
}

/* Every id of the tokenizer needs a row of the embedding. */
static int check_tokenizer(const struct options *o, const struct model_config *c, struct err *e) {
    struct tok *t = tok_open(o->tokenizer, e);
    if (!t) return -1;
    int64_t n = tok_count(t);
    tok_close(t);
    if (n <= c->V) return 0;
    return err_set(e, ERR_INPUT, "the tokenizer of %s has %lld tokens, vocab_size is %lld", o->tokenizer,
                   (long long)n, (long long)c->V);
}

/* The files come to be in a folder of their own and appear together. */
static int make_in(const struct model_config *c, const struct options *o, const char *dir, struct err *e) {
    const struct train_options *t = &o->train;
    const struct export_how how = {.bits = t->quantization_bit,
                                   .q_type = t->quantization_type,
                                   .nested = t->double_quantization,
                                   .filter_4bit = t->filter_4bit};
    char tmp[4096], name[40];
    snprintf(name, sizeof name, ".tmp-new.%ld", (long)getpid());
    if (path_join(tmp, sizeof tmp, dir, name, e) || dir_make(tmp, e)) return -1;
    int rc = model_new(c, tmp, t->seed, &how, e) || (o->tokenizer && model_copy_files(o->tokenizer, tmp, e)) || model_publish(tmp, dir, e);
    dir_remove(tmp, NULL);
    return rc ? -1 : 0;
}

int cmd_new(struct options *o, struct err *e) {
    struct model_config c = {0};
    const char *dir = o->train.output_dir;
    char count[32];
    int rc = make_config(o, &c, e) || (o->tokenizer && check_tokenizer(o, &c, e)) ||
             model_output_dir(dir, o->tokenizer, o->train.overwrite_output_dir, e) || make_in(&c, o, dir, e);
    if (!rc)
        log_info("%s: %s parameters, seed %llu", dir, text_thousands(count, model_parameters(&c)),
                 (unsigned long long)o->train.seed);
    model_config_free(&c);
    return rc ? e->code : 0;
}
