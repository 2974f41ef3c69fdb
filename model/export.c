/* model/export.c - the order of an export: what is asked for can be done, every tensor is declared, there is room on the
 * disk, tensors go through one by one, small files follow, and the folder appears. */
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/export_internal.h"
#include "model/files.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const int64_t SHARD_BYTES = 5000000000;
enum { CONFIG_MAX_BYTES = 16 << 20 };

/* ---- what goes in ---- */

static int open_adapters(struct job *j, const char *to) {
    char dir[3000];
    for (const char *list = j->how->adapters; lora_next(&list, dir, sizeof dir); j->adapters++) {
        if (j->adapters == EXPORT_ADAPTERS)
            return err_set(j->e, ERR_INPUT, "more than %d adapters at once; merge some of them first",
                           EXPORT_ADAPTERS);
        if (model_output_dir(to, dir, 1, j->e) ||
            lora_file_open(dir, &j->config, &j->adapter[j->adapters], j->e))
            return -1;
        const struct lora_file *f = &j->adapter[j->adapters];
        if (lora_file_saved(f, "model.embed_tokens.weight") || lora_file_saved(f, "lm_head.weight"))
            j->untied |= j->config.tied;
    }
    if (!j->untied) return 0;
    log_info("an adapter brings its own embedding or head: the two are no longer tied in the result");
    j->config.tied = 0;
    return 0;
}

static int open_source(struct job *j, const char *from) {
    if (model_config_read(from, &j->config, j->e)) return -1;
    j->type = j->how->type < 0 ? j->config.stored : (enum dtype)j->how->type;
    if (j->config.q_bits && j->how->original)
        return err_set(j->e, ERR_INPUT, "%s is quantised already (%d bits); give the original checkpoint",
                       from, j->config.q_bits);
    if (j->config.q_bits)
        log_info("%s is stored in %d bits: its weights are decoded first, so the result differs from merging "
                 "into, or "
                 "converting, the original weights",
                 from, j->config.q_bits);
    return (j->in = ckpt_open(from, j->e)) ? 0 : -1;
}

static int declare_all(struct job *j, const char *from, const char *to) {
    struct model_tensor m;
    char need[24], have[24];
    for (int64_t i = 0; i < model_tensor_count(&j->config); i++) {
        model_tensor_at(&j->config, i, &m);
        if (source_check(j, &m, from) || export_declare(j, &m)) return -1;
    }
    int64_t room = dir_free_bytes(to);
    if (room >= 0 && room < j->write_bytes)
        return err_set(j->e, ERR_RUN, "%s: the result needs %s, the disk has %s free", to,
                       text_bytes(need, j->write_bytes), text_bytes(have, room));
    return 0;
}

/* ---- what comes out ---- */

static int write_tensors(struct job *j) {
    struct model_tensor m;
    struct source s;
    if (!(j->piece = sys_alloc((size_t)EXPORT_PIECE * 4, "a piece of a tensor", j->e)) ||
        !(j->wide = sys_alloc((size_t)EXPORT_PIECE * 4, "a piece of a tensor", j->e)) ||
        !(j->codes = sys_alloc((size_t)EXPORT_PIECE, "codes", j->e)))
        return -1;
    for (int64_t i = 0; i < model_tensor_count(&j->config); i++) {
        model_tensor_at(&j->config, i, &m);
        if (source_open(j, &m, &s)) return -1;
        int rc = export_tensor(j, &m, &s);
        source_close(&s);
        if (rc) return -1;
    }
    return 0;
}

static const char *type_name(enum dtype t) {
    return t == DT_F32 ? "float32" : t == DT_F16 ? "float16" : "bfloat16";
}

static int write_config(const struct job *j, const char *dir) {
    char path[4096], type[40];
    const char *overrides[] = {type, "tie_word_embeddings=false"};
    struct model_config q = {
        .q_bits = j->how->bits, .q_type = j->how->q_type, .q_double = j->how->bits == 4 && j->how->nested};
    snprintf(type, sizeof type, "torch_dtype=%s", type_name(j->type));
    char *text = model_config_text(&j->config, overrides, 1 + j->untied, &q, j->e);
    int rc = text ? path_join(path, sizeof path, dir, "config.json", j->e) ||
                        file_write_all(path, text, strlen(text), j->e)
                  : -1;
    sys_free(text);
    return rc ? -1 : 0;
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* README.md: what this is, made of what, and how to use it. */
static int write_card(const struct job *j, const char *from, const char *to, const char *dir) {
    char path[4096];
    struct str s = {0};
    str_puts(&s, "---\nlibrary_name: transformers\nlicense: other\nbase_model: ");
    str_json(&s, from, strlen(from));
    str_printf(&s, "\ntags:\n- yuan\n%s%s---\n\n# %s\n\n", j->adapters ? "- merge\n- lora\n" : "",
               j->how->bits ? "- bitsandbytes\n" : "", last_part(to));
    str_printf(&s, "`%s`, stored as %s", last_part(from), type_name(j->type));
    if (j->how->bits)
        str_printf(&s, " with the projections in %s%s (bitsandbytes)",
                   j->how->bits == 8          ? "int8"
                   : j->how->q_type == Q4_NF4 ? "NF4"
                                              : "FP4",
                   j->how->bits == 4 && j->how->nested ? ", scales in 8 bits" : "");
    if (j->how->bits == 4 && j->how->filter_4bit)
        str_puts(&s, ". The localized filter is stored in 4 bits, too, which **only qlora reads**: other tools miss its tensors");
    str_puts(&s, ".\n");
    if (j->config.q_bits)
        str_printf(&s, "Its projections were stored in %d bits and were decoded first.\n", j->config.q_bits);
    if (j->adapters)
        str_puts(&s, "\nMerged into it, in this order:\n\n| adapter | rank | scale |\n|---|---|---|\n");
    const char *list = j->how->adapters;
    for (int i = 0; lora_next(&list, path, sizeof path); i++)
        str_printf(&s, "| %s | %lld | %g |\n", path, (long long)j->adapter[i].shape.config.rank,
                   (double)lora_scale(&j->adapter[i].shape.config));
    str_printf(&s, "\n    qlora chat --model_name_or_path %s --template yuan\n", to);
    int rc =
        s.oom ? err_set(j->e, ERR_RUN, "out of memory: README.md")
              : path_join(path, sizeof path, dir, "README.md", j->e) || file_write_all(path, s.p, s.n, j->e);
    str_free(&s);
    return rc ? -1 : 0;
}

/* The template yuan for tools that render conversations, unless the model has one. */
static int write_template(const struct job *j, const char *dir) {
    static const char text[] =
        "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}{{ m['content'] + '<eod>\\n' }}"
        "{%- elif m['role'] == 'user' -%}{{ m['content'] + '<sep>' }}{%- else -%}{{ m['content'] }}{%- endif "
        "-%}{%- endfor -%}";
    char path[4096], *config = NULL;
    size_t n;
    if (path_join(path, sizeof path, dir, "tokenizer_config.json", j->e)) return -1;
    if (!path_is_file(path)) return 0;
    if (file_read_all(path, CONFIG_MAX_BYTES, &config, &n, j->e)) return -1;
    int has = strstr(config, "\"chat_template\"") != NULL;
    sys_free(config);
    if (path_join(path, sizeof path, dir, "chat_template.jinja", j->e)) return -1;
    return has || path_exists(path) ? 0 : file_write_all(path, text, sizeof text - 1, j->e);
}

static int export_to(struct job *j, const char *from, const char *to, const char *tmp) {
    int64_t shard = j->how->shard_bytes ? j->how->shard_bytes : SHARD_BYTES;
    if (!(j->out = ckpt_create(tmp, "model", shard, j->e)) || declare_all(j, from, to) || write_tensors(j))
        return -1;
    int rc = ckpt_commit(j->out, j->e);
    j->out = NULL;
    return rc || model_copy_files(from, tmp, j->e) || model_write_generation(&j->config, tmp, j->e) || write_template(j, tmp) ||
                   write_card(j, from, to, tmp) || write_config(j, tmp) || model_publish(tmp, to, j->e)
               ? -1
               : 0;
}

static void close_job(struct job *j) {
    if (j->out) ckpt_abort(j->out);
    ckpt_close(j->in);
    for (int i = 0; i < j->adapters; i++) lora_file_close(&j->adapter[i]);
    sys_free(j->piece);
    sys_free(j->wide);
    sys_free(j->codes);
}

int model_export(const char *from, const char *to, const struct export_how *how, struct err *e) {
    struct job j = {.how = how, .e = e, .start = sys_seconds()};
    char in[24], out[24], tmp[3200];
    int rc = -1;
    nf4_init();
    snprintf(tmp, sizeof tmp, "%.3000s/.tmp-export.%ld", to, (long)getpid());
    const int existed = path_exists(to);
    if (!open_source(&j, from) && !model_output_dir(to, from, how->overwrite, e) && !open_adapters(&j, to))
        rc = export_to(&j, from, to, tmp);
    if (!rc)
        log_progress(1, "wrote %s in %.1f s, %.0f MB/s (read %s): %s", text_bytes(out, j.write_bytes),
                     sys_seconds() - j.start, (double)j.read_bytes * 1e-6 / (sys_seconds() - j.start + 1e-9),
                     text_bytes(in, j.read_bytes), to);
    close_job(&j);
    dir_remove(tmp, NULL);
    if (rc && !existed) sys_rmdir(to);
    model_config_free(&j.config);
    return rc;
}

int model_new(const struct model_config *c, const char *dir, uint64_t seed, const struct export_how *how, struct err *e) {
    static const struct export_how plain = {0};
    struct made made;
    struct job j = {.config = *c, .how = how ? how : &plain, .type = c->stored, .made = &made, .e = e, .start = sys_seconds()};
    char path[4096];
    int rc = -1;
    nf4_init();
    if (made_open(&made, c, seed, e)) return -1;
    if ((j.out = ckpt_create(dir, "model", SHARD_BYTES, e)) && !declare_all(&j, NULL, dir) && !write_tensors(&j)) {
        rc = ckpt_commit(j.out, e);
        j.out = NULL;
    }
    if (!rc)
        rc = j.how->bits ? write_config(&j, dir)
             : path_join(path, sizeof path, dir, "config.json", e) || file_write_all(path, c->text, strlen(c->text), e) ? -1
                                                                                                                        : 0;
    close_job(&j);
    made_close(&made);
    return rc;
}
