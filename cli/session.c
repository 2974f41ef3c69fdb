/* cli/session.c - see session.h */
#include "cli/session.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static int open_tokenizer(struct session *s, const struct options *o, struct err *e) {
    char path[1200];
    if (path_join(path, sizeof path, o->train.model_name_or_path, "tokenizer.model", e)) return -1;
    s->ids = s->model.config.V;
    if (!path_exists(path)) return 0;
    if (!(s->tok = tok_open(o->train.model_name_or_path, e))) return -1;
    if (tok_count(s->tok) > s->ids)
        return err_set(e, ERR_INPUT,
                       "the tokenizer knows %d ids, the model's vocab_size is %lld; this tokenizer belongs to another model",
                       tok_count(s->tok), (long long)s->ids);
    s->ids = tok_count(s->tok);
    return 0;
}

/* The adapters of a comma list as one. */
static int load_adapters(const struct session *s, const char *dirs, struct lora *sum, struct err *e) {
    struct lora one = {0};
    char dir[3000];
    int r = 0;
    while (!r && lora_next(&dirs, dir, sizeof dir)) {
        struct lora *to = sum->data ? &one : sum;
        r = lora_load(dir, &s->model.config, to, e);
        if (!r && to == &one) r = lora_append(sum, &one, e);
        lora_free(&one);
    }
    return r;
}

/* The whole weights of the adapters into the model, the last one's winning. */
static int load_wholes(struct session *s, const char *dirs, struct err *e) {
    char dir[3000];
    int r = 0;
    while (!r && lora_next(&dirs, dir, sizeof dir)) r = model_wholes(&s->model, dir, e);
    return r;
}

int session_adapters(struct session *s, const char *dirs, struct err *e) {
    struct lora sum = {0};
    struct pages *pages = NULL;
    unsigned wholes = 0;
    if (dirs && lora_wholes(dirs, &wholes, e)) return -1;
    if (s->ready && (wholes || s->lora.config.wholes))
        return err_set(e, ERR_INPUT,
                       "%s holds whole weights (modules_to_save), which take the place of the model's own: start again with "
                       "--adapter_name_or_path",
                       wholes ? dirs : "the adapter in force");
    int r = dirs ? load_adapters(s, dirs, &sum, e) : 0;
    if (!r && sum.data) {
        struct pages_config c = {.name = "adapters",
                                 .count = s->model.config.L,
                                 .page_bytes = (size_t)sum.layer_floats * 4,
                                 .resident = s->model.config.L};
        if (!(pages = pages_open(s->be, &c, e))) r = -1;
        for (int64_t l = 0; !r && l < c.count; l++) r = pages_write(pages, l, 0, sum.data + l * sum.layer_floats, c.page_bytes, e);
    }
    if (!r && wholes) r = load_wholes(s, dirs, e);
    if (r) return pages_close(pages), lora_free(&sum), -1;
    pages_close(s->adapters), lora_free(&s->lora);
    s->adapters = pages, s->lora = sum;
    return 0;
}

int session_open(struct session *s, const struct options *o, struct err *e) {
    const struct train_options *t = &o->train;
    struct model_how how = {.quantization_bit = t->quantization_bit,
                            .q_type = t->quantization_type,
                            .q_double = t->double_quantization,
                            .filter_4bit = t->filter_4bit,
                            .resident_layers = -1};
    struct ckpt *c = NULL;
    *s = (struct session){0};
    if (t->adapter_name_or_path && lora_wholes(t->adapter_name_or_path, &how.wholes, e)) return -1;
    if (!(s->be = backend_open(t->backend, e)) || model_open(&s->model, s->be, t->model_name_or_path, &how, &c, e)) return -1;
    if (t->vram_bytes) { /* as many layers stay on the device as leave room for the rest */
        struct pages_config layers, outer;
        model_pages(&s->model, &how, &layers, &outer);
        int64_t device, host, disk, room = t->vram_bytes - (int64_t)outer.page_bytes - (t->vram_bytes >> 2);
        pages_cost(&layers, &device, &host, &disk);
        if (device > room) how.resident_layers = room > 2 * (int64_t)layers.page_bytes ? room / (int64_t)layers.page_bytes - 2 : 0;
    }
    int r = open_tokenizer(s, o, e) || model_load(&s->model, &how, c, e) ? -1 : 0;
    ckpt_close(c);
    if (!r) r = session_adapters(s, t->adapter_name_or_path, e);
    s->ready = 1;
    return r && backend_failed(s->be, e) ? -1 : r;
}

void session_close(struct session *s) {
    pages_close(s->adapters), lora_free(&s->lora), tok_close(s->tok), model_free(&s->model), backend_close(s->be);
    *s = (struct session){0};
}

int session_encode(const struct session *s, const char *text, size_t n, struct ids *ids, struct err *e) {
    if (!s->tok) return err_set(e, ERR_INPUT, "the model's folder has no tokenizer.model, so text cannot be read; give --ids");
    return tok_encode(s->tok, text, n, TOK_SPECIAL, ids, e);
}

enum { FILE_MAX = 1 << 30, LINE_MAX_BYTES = 16 << 20 };

int lines_open(struct lines *l, const char *path, struct err *e) {
    *l = (struct lines){.name = strcmp(path, "-") ? path : "standard input"};
    if (strcmp(path, "-")) return file_read_all(path, FILE_MAX, &l->text, &l->n, e);
    for (size_t cap = 0;;) {
        if (l->n + (1 << 16) > cap) {
            char *p = l->n < FILE_MAX ? sys_grow(l->text, cap = 2 * cap + (1 << 17), "standard input", e) : NULL;
            if (!p) return err_set(e, ERR_INPUT, "standard input is longer than %d bytes", FILE_MAX);
            l->text = p;
        }
        if (stop_wait_input(0)) return stop_check("while it waited for input", e);
        ssize_t r = sys_read(0, l->text + l->n, 1 << 16);
        if (r < 0) return err_errno(e, ERR_RUN, "standard input cannot be read");
        if (!r) return 0;
        l->n += (size_t)r;
    }
}

int lines_next(struct lines *l, struct cJSON **j, struct err *e) {
    while (l->at < l->n) {
        const char *p = l->text + l->at, *end = memchr(p, '\n', l->n - l->at);
        size_t n = end ? (size_t)(end - p) : l->n - l->at;
        l->at += n + 1, l->line++;
        if (strspn(p, " \t\r") >= n) continue;
        char where[600];
        snprintf(where, sizeof where, "%.500s line %lld", l->name, (long long)l->line);
        if (n > LINE_MAX_BYTES) return err_set(e, ERR_INPUT, "%s is longer than 16 MB", where);
        if (!(*j = json_parse(p, n, where, e))) return -1;
        if (cJSON_IsObject(*j)) return 1;
        json_free(*j);
        return err_set(e, ERR_INPUT, "%s is not an object {..}", where);
    }
    return 0;
}

void lines_close(struct lines *l) {
    sys_free(l->text);
    *l = (struct lines){0};
}
