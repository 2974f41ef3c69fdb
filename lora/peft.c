/* lora/peft.c - adapters in the folder layout of PEFT: adapter_config.json, adapter_model.safetensors or .bin.
 *
 * Files of strangers: nothing is allocated for a tensor before the file has shown its shape, and a configuration that
 * asks for something the program would not apply is refused, not ignored. */
#include "lora/lora.h"
#include "base/file.h"
#include "base/json.h"
#include "base/stop.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 128, CONFIG_MAX_BYTES = 1 << 20 };

/* ---- adapter_config.json ---- */

/* "off": null, false, "none", "" or an empty list or object. */
static int is_off(const struct cJSON *v) {
    return cJSON_IsNull(v) || cJSON_IsFalse(v) ||
           (cJSON_IsString(v) && (!*v->valuestring || !strcmp(v->valuestring, "none"))) ||
           ((cJSON_IsArray(v) || cJSON_IsObject(v)) && !v->child);
}

static int in_list(const char *word, const char *const *list) {
    while (*list && strcmp(*list, word)) list++;
    return *list != NULL;
}

/* Everything that is neither read below nor without effect on a trained adapter must be off. */
static int check_extras(const struct cJSON *config, const char *where, struct err *e) {
    static const char *const known[] = {
        "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules",
        "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern", "modules_to_save",
        /* no effect once trained */
        "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
        "megatron_core", "layers_pattern", "loftq_config", "eva_config", "corda_config", "runtime_config",
        "qalora_group_size", NULL};
    for (const struct cJSON *v = config->child; v; v = v->next)
        if (!in_list(v->string, known) && !is_off(v))
            return err_set(e, ERR_INPUT,
                           "%s: \"%.60s\" is set, and this program would not apply it: only plain LoRA, rsLoRA "
                           "and DoRA adapters are supported",
                           where, v->string);
    return 0;
}

/* Patterns name modules as PEFT compares them: the whole name or its end behind a dot, "^" for the beginning. */
static int check_pattern(const struct cJSON *config, const char *key, double least, double most,
                         const char *where, struct err *e) {
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.";
    const struct cJSON *pattern = json_get(config, key);
    if (!pattern || is_off(pattern)) return 0;
    if (!cJSON_IsObject(pattern)) return err_set(e, ERR_INPUT, "%s: %s is not an object", where, key);
    for (const struct cJSON *v = pattern->child; v; v = v->next) {
        const char *name = v->string + (*v->string == '^');
        if (!*name || name[strspn(name, plain)])
            return err_set(e, ERR_INPUT, "%s: %s: \"%.60s\" is a pattern; only module names are understood",
                           where, key, v->string);
        if (!cJSON_IsNumber(v) || !(v->valuedouble >= least && v->valuedouble <= most) ||
            (least >= 1 && v->valuedouble != floor(v->valuedouble)))
            return err_set(e, ERR_INPUT, "%s: %s of \"%.60s\" is out of range", where, key, v->string);
    }
    return 0;
}

/* The number that a pattern gives to a module, or the general one. */
static double pattern_number(const struct cJSON *config, const char *key, int64_t layer, enum proj p,
                             double general) {
    char module[96];
    const struct cJSON *pattern = json_get(config, key);
    snprintf(module, sizeof module, "model.layers.%lld.%s", (long long)layer, proj_module[p]);
    for (const struct cJSON *v = cJSON_IsObject(pattern) ? pattern->child : NULL; v; v = v->next) {
        const char *name = v->string + (*v->string == '^');
        size_t n = strlen(name), m = strlen(module);
        if (!strcmp(name, module) ||
            (name == v->string && n < m && module[m - n - 1] == '.' && !strcmp(module + m - n, name)))
            return v->valuedouble;
    }
    return general;
}

static int check_saved(const struct cJSON *config, const char *where, struct err *e) {
    static const char *const known[] = {"embed_tokens", "model.embed_tokens", "lm_head",
                                        "norm",         "model.norm",         NULL};
    const struct cJSON *list = json_get(config, "modules_to_save"), *v;
    if (!list || is_off(list)) return 0;
    cJSON_ArrayForEach(v, list) if (!cJSON_IsString(v) || !in_list(v->valuestring, known)) return err_set(
        e, ERR_INPUT, "%s: modules_to_save may hold embed_tokens, lm_head and norm, not \"%.60s\"", where,
        cJSON_IsString(v) ? v->valuestring : "?");
    return cJSON_IsArray(list) ? 0 : err_set(e, ERR_INPUT, "%s: modules_to_save is not a list", where);
}

/* Values that say how training began; those that changed the base model along the way make a plain sum wrong. */
static int check_start(const struct cJSON *config, const char *where, struct err *e) {
    static const char *const plain[] = {"gaussian", "eva", "orthogonal", NULL};
    const struct cJSON *v = json_get(config, "init_lora_weights");
    if (!v || cJSON_IsBool(v) || cJSON_IsNull(v) || (cJSON_IsString(v) && in_list(v->valuestring, plain)))
        return 0;
    return err_set(
        e, ERR_INPUT,
        "%s: init_lora_weights is \"%.40s\": such an adapter belongs to a base model that was changed "
        "with it; convert it to a plain LoRA adapter first",
        where, cJSON_IsString(v) ? v->valuestring : "?");
}

/* A module name matches as PEFT matches: "q_proj" or "self_attn.q_proj". */
static int add_target(const struct cJSON *v, unsigned *targets, const char *where, struct err *e) {
    if (!cJSON_IsString(v)) return err_set(e, ERR_INPUT, "%s: target_modules must hold module names", where);
    for (int p = 0; p < PROJ_COUNT; p++)
        if (!strcmp(v->valuestring, proj_name[p]) || !strcmp(v->valuestring, proj_module[p])) {
            *targets |= 1u << p;
            return 0;
        }
    return err_set(e, ERR_INPUT,
                   "%s: target module \"%.60s\" is not one of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,"
                   "down_proj",
                   where, v->valuestring);
}

static int read_targets(const struct cJSON *config, unsigned *targets, const char *where, struct err *e) {
    const struct cJSON *list = json_get(config, "target_modules");
    *targets = 0;
    if (cJSON_IsString(list)) {
        if (strcmp(list->valuestring, "all-linear"))
            return err_set(e, ERR_INPUT, "%s: target_modules is a pattern; write the module names as a list",
                           where);
        *targets = (1u << PROJ_COUNT) - 1;
    } else if (cJSON_IsArray(list)) {
        for (const struct cJSON *v = list->child; v; v = v->next)
            if (add_target(v, targets, where, e)) return -1;
    }
    if (!*targets) return err_set(e, ERR_INPUT, "%s: target_modules is missing or empty", where);
    return 0;
}

int lora_parse_config(const char *text, size_t n, const char *where, struct lora_config *c, struct err *e) {
    int r = -1;
    const char *type = "LORA", *task = "CAUSAL_LM";
    struct cJSON *j = json_parse(text, n, where, e);
    *c = (struct lora_config){.rank = 8, .alpha = 8}; /* PEFT's defaults for absent keys */
    if (!j) return -1;
    if (!cJSON_IsObject(j)) {
        err_set(e, ERR_INPUT, "%s is not a JSON object", where);
        goto out;
    }
    if (json_str(j, "peft_type", &type, where, e) < 0 || json_str(j, "task_type", &task, where, e) < 0)
        goto out;
    if (strcmp(type, "LORA") || strcmp(task, "CAUSAL_LM")) {
        err_set(e, ERR_INPUT, "%s: peft_type %.40s, task_type %.40s: only LORA for CAUSAL_LM is supported",
                where, type, task);
        goto out;
    }
    if (json_int(j, "r", 1, INT32_MAX, &c->rank, where, e) < 0 ||
        json_num(j, "lora_alpha", &c->alpha, where, e) < 0 ||
        json_num(j, "lora_dropout", &c->dropout, where, e) < 0 ||
        json_bool(j, "use_rslora", &c->rslora, where, e) < 0 ||
        json_bool(j, "use_dora", &c->dora, where, e) < 0 || read_targets(j, &c->targets, where, e) ||
        check_start(j, where, e) || check_pattern(j, "rank_pattern", 1, 65536, where, e) ||
        check_pattern(j, "alpha_pattern", 0, 0x1p30, where, e) || check_saved(j, where, e) ||
        check_extras(j, where, e))
        goto out;
    if (lora_check(c, e)) {
        err_where(e, "%s", where);
        goto out;
    }
    r = 0;
out:
    json_free(j);
    return r;
}

/* In the order and form of PEFT 0.7 (sorted keys, two blanks), so that a folder can be compared with one of its own. */
static void write_wholes(struct str *s, unsigned wholes) {
    static const char *const name[WHOLES] = {"embed_tokens", "lm_head", "model.norm"}; /* "norm" would be the end of other names, too */
    const char *comma = "";
    if (!wholes) str_puts(s, "null");
    for (int w = 0; w < WHOLES; w++)
        if (wholes >> w & 1) str_printf(s, "%s\n    \"%s\"", *comma ? comma : "[", name[w]), comma = ",";
    if (wholes) str_puts(s, "\n  ]");
}

static int write_config(const struct lora_config *c, const char *dir, const char *base_model, struct err *e) {
    char path[4096];
    struct str s = {0};
    str_puts(&s, "{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": ");
    if (base_model)
        str_json(&s, base_model, strlen(base_model));
    else
        str_puts(&s, "null");
    str_puts(&s,
             ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n"
             "  \"init_lora_weights\": true,\n  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n"
             "  \"loftq_config\": {},\n  \"lora_alpha\": ");
    str_json_num(&s, c->alpha);
    str_puts(&s, ",\n  \"lora_dropout\": ");
    str_json_num(&s, c->dropout);
    str_puts(&s, ",\n  \"megatron_config\": null,\n  \"megatron_core\": \"megatron.core\",\n  \"modules_to_save\": ");
    write_wholes(&s, c->wholes);
    str_printf(&s,
               ",\n"
               "  \"peft_type\": \"LORA\",\n  \"r\": %lld,\n  \"rank_pattern\": {},\n  \"revision\": null,\n"
               "  \"target_modules\": [",
               (long long)c->rank);
    const char *comma = "";
    for (int p = 0; p < PROJ_COUNT; p++)
        if (c->targets >> p & 1) str_printf(&s, "%s\n    \"%s\"", comma, proj_name[p]), comma = ",";
    str_printf(&s, "\n  ],\n  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": %s,\n  \"use_rslora\": %s\n}",
               c->dora ? "true" : "false", c->rslora ? "true" : "false");
    int r = path_join(path, sizeof path, dir, "adapter_config.json", e);
    if (!r && s.oom) r = err_set(e, ERR_RUN, "out of memory: %s", path);
    if (!r) r = file_write_all(path, s.p, s.n, e);
    str_free(&s);
    return r;
}

/* ---- tensors ---- */

enum part { PART_A, PART_B, PART_M, PARTS };
struct slot {
    int64_t layer;
    enum proj p;
    enum part part;
};

static void slot_name(struct slot s, char name[NAME_MAX_BYTES]) {
    static const char *const part[] = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"};
    snprintf(name, NAME_MAX_BYTES, "base_model.model.model.layers.%lld.%s.%s", (long long)s.layer, proj_module[s.p],
             part[s.part]);
}

/* The parts that a matrix of this adapter has. */
static int parts(const struct lora *l) { return l->config.dora ? PARTS : PART_M; }

/* Returns the number of dimensions; shape[1] is 1 behind the last. */
static int slot_shape(const struct lora *l, struct slot s, int64_t rank, int64_t shape[2]) {
    int64_t rows, cols;
    proj_shape(&l->model, s.p, &rows, &cols);
    shape[0] = s.part == PART_A ? rank : rows;
    shape[1] = s.part == PART_A ? cols : s.part == PART_B ? rank : 1;
    return s.part == PART_M ? 1 : 2;
}

static float *slot_data(const struct lora *l, struct slot s) {
    const int64_t at[] = {lora_offset_a(l, s.p), lora_offset_b(l, s.p), lora_offset_m(l, s.p)};
    return l->data + s.layer * l->layer_floats + at[s.part];
}

/* The targets in the order of their module names, which is the order of tensors in PEFT's files. */
static const enum proj by_name[PROJ_COUNT] = {PROJ_DOWN, PROJ_GATE, PROJ_UP, PROJ_K, PROJ_O, PROJ_Q, PROJ_V};

/* The place of a tensor by its name; -1 if the adapter has no such tensor. */
static int find_slot(const struct lora *l, const char *name, struct slot *s) {
    static const char prefix[] = "base_model.model.model.layers.";
    char canonical[NAME_MAX_BYTES];
    if (strncmp(name, prefix, sizeof prefix - 1)) return -1;
    s->layer = strtoll(name + sizeof prefix - 1, NULL, 10);
    if (s->layer < 0 || s->layer >= l->model.L) return -1;
    for (int k = 0; k < PARTS * PROJ_COUNT; k++) {
        s->p = (enum proj)(k / PARTS), s->part = (enum part)(k % PARTS);
        if (!(l->config.targets >> s->p & 1) || (int)s->part >= parts(l)) continue;
        slot_name(*s, canonical);
        const char *behind = name + strlen(canonical);
        if (text_starts(name, canonical) && (!*behind || (s->part == PART_M && !strcmp(behind, ".weight")))) return 0;
    }
    return -1;
}

/* The tensor of a slot, or NULL. The PEFT of some months wrote magnitudes with ".weight" behind their name. */
static const struct ckpt_tensor *find_tensor(const struct lora_file *f, struct slot s) {
    char name[NAME_MAX_BYTES + 8];
    slot_name(s, name);
    const struct ckpt_tensor *t = ckpt_find(f->c, name);
    if (t || s.part != PART_M) return t;
    strcat(name, ".weight");
    return ckpt_find(f->c, name);
}

/* ---- reading ---- */

static int64_t rank_of(const struct lora_file *f, int64_t layer, enum proj p) {
    return (int64_t)pattern_number(f->json, "rank_pattern", layer, p, (double)f->own.rank);
}

static float scale_of(const struct lora_file *f, int64_t layer, enum proj p) {
    struct lora_config c = f->own;
    c.rank = rank_of(f, layer, p), c.alpha = pattern_number(f->json, "alpha_pattern", layer, p, f->own.alpha);
    return lora_scale(&c);
}

static const struct ckpt_tensor *find_saved(const struct ckpt *c, const char *name) {
    char full[2 * NAME_MAX_BYTES];
    snprintf(full, sizeof full, "base_model.model.%s", name);
    return ckpt_find(c, full);
}
const struct ckpt_tensor *lora_file_saved(const struct lora_file *f, const char *name) { return find_saved(f->c, name); }

static int check_shape(const struct lora_file *f, const struct ckpt_tensor *t, int rank, const int64_t *shape,
                       struct err *e) {
    if (t->rank == rank && t->shape[0] == shape[0] && (rank == 1 || t->shape[1] == shape[1])) return 0;
    return err_set(e, ERR_INPUT,
                   "%s: tensor %s has shape [%lld, %lld]%s, but rank %lld on this model needs [%lld, %lld]",
                   ckpt_file(f->c, t), t->name, (long long)t->shape[0],
                   (long long)(t->rank > 1 ? t->shape[1] : 1), t->rank == 2 ? "" : " and not two dimensions",
                   (long long)f->own.rank, (long long)shape[0], (long long)(rank > 1 ? shape[1] : 1));
}

/* Weights of the model that a file may hold whole, in the model's shapes. */
static const struct {
    const char *module, *tensor;
    int rank;
} wholes[WHOLES] = {{"embed_tokens", "model.embed_tokens.weight", 2},
                    {"lm_head", "lm_head.weight", 2},
                    {"norm", "model.norm.weight", 1}};

const struct ckpt_tensor *lora_file_whole(const struct lora_file *f, enum whole w) { return find_saved(f->c, wholes[w].tensor); }

static unsigned wholes_of(const struct ckpt *c) {
    unsigned found = 0;
    for (int w = 0; w < WHOLES; w++) found |= (unsigned)(find_saved(c, wholes[w].tensor) != NULL) << w;
    return found;
}

static int no_config(const char *dir, struct err *e) {
    return err_set(e, ERR_INPUT, "%s holds no adapter_config.json; give the folder that a LoRA run wrote, or one of its checkpoint-N", dir);
}

int lora_wholes(const char *dirs, unsigned *found, struct err *e) {
    char dir[3000];
    *found = 0;
    while (lora_next(&dirs, dir, sizeof dir)) {
        char path[4096];
        if (path_join(path, sizeof path, dir, "adapter_config.json", e)) return -1;
        if (!path_exists(path)) return no_config(dir, e);
        struct ckpt *c = ckpt_open_adapter(dir, e);
        if (!c) return -1;
        *found |= wholes_of(c);
        ckpt_close(c);
    }
    return 0;
}

static int check_wholes(struct lora_file *f, struct err *e) {
    const struct model_config *m = &f->shape.model;
    const struct cJSON *list = json_get(f->json, "modules_to_save"), *v;
    for (int i = 0; i < WHOLES; i++) {
        const struct ckpt_tensor *t = lora_file_saved(f, wholes[i].tensor);
        int wanted = 0;
        cJSON_ArrayForEach(v, list) wanted |= text_ends(v->valuestring, wholes[i].module);
        if (wanted && !t)
            return err_set(
                e, ERR_INPUT,
                "the adapter lacks the tensor base_model.model.%s, which its modules_to_save promise",
                wholes[i].tensor);
        if (t && check_shape(f, t, wholes[i].rank,
                             wholes[i].rank == 1 ? (int64_t[]){m->D} : (int64_t[]){m->V, m->D}, e))
            return -1;
    }
    f->shape.config.wholes = wholes_of(f->c);
    return 0;
}

static int is_whole(const char *name) {
    for (int i = 0; i < WHOLES; i++)
        if (text_starts(name, "base_model.model.") &&
            !strcmp(name + strlen("base_model.model."), wholes[i].tensor))
            return 1;
    return 0;
}

/* Every tensor of the file belongs to the adapter and has its shape, and none is missing. */
static int check_tensors(struct lora_file *f, struct err *e) {
    const struct lora *l = &f->shape;
    struct slot s;
    int64_t shape[2];
    char name[NAME_MAX_BYTES];
    if (check_wholes(f, e)) return -1;
    for (int64_t i = 0; i < ckpt_count(f->c); i++) {
        const struct ckpt_tensor *t = ckpt_at(f->c, i);
        if (is_whole(t->name)) continue;
        if (find_slot(l, t->name, &s))
            return err_set(e, ERR_INPUT,
                           "%s: tensor %.200s has no place in this model (%lld layers) with the adapter's "
                           "target_modules",
                           ckpt_file(f->c, t), t->name, (long long)l->model.L);
        int rank = slot_shape(l, s, rank_of(f, s.layer, s.p), shape);
        if (s.part == PART_M && t->rank == 2 && t->count == shape[0]) continue; /* (1,out), as the first PEFT with DoRA had it */
        if (check_shape(f, t, rank, shape, e)) return -1;
    }
    for (s.layer = 0; s.layer < l->model.L; s.layer++)
        for (int k = 0; k < PARTS * PROJ_COUNT; k++) {
            s.p = (enum proj)(k / PARTS), s.part = (enum part)(k % PARTS);
            if (!(l->config.targets >> s.p & 1) || (int)s.part >= parts(l)) continue;
            slot_name(s, name);
            if (!find_tensor(f, s))
                return err_set(e, ERR_INPUT,
                               "the adapter lacks the tensor %s, which its target_modules promise", name);
        }
    return 0;
}

/* adapter_config.json into f->own and f->json; the shape that all matrices fit in. */
static int read_config(const char *dir, const struct model_config *m, struct lora_file *f, struct err *e) {
    char path[4096], *text;
    size_t n;
    if (path_join(path, sizeof path, dir, "adapter_config.json", e)) return -1;
    if (!path_exists(path))
        return no_config(dir, e);;
    if (file_read_all(path, CONFIG_MAX_BYTES, &text, &n, e)) return -1;
    int r =
        lora_parse_config(text, n, path, &f->own, e) || !(f->json = json_parse(text, n, path, e)) ? -1 : 0;
    sys_free(text);
    if (r) return -1;
    struct lora_config c = f->own;
    f->patterned = cJSON_GetArraySize(json_get(f->json, "rank_pattern")) +
                       cJSON_GetArraySize(json_get(f->json, "alpha_pattern")) >
                   0;
    if (f->patterned) {
        c.rank = 1, c.rslora = 0;
        for (int64_t layer = 0; layer < m->L; layer++)
            for (int p = 0; p < PROJ_COUNT; p++) {
                int64_t rank = rank_of(f, layer, (enum proj)p);
                if (c.targets >> p & 1 && rank > c.rank) c.rank = rank;
            }
        c.alpha = (double)c.rank; /* scale 1: each B holds its own */
    }
    return lora_shapes(&f->shape, &c, m, e);
}

int lora_file_open(const char *dir, const struct model_config *m, struct lora_file *f, struct err *e) {
    *f = (struct lora_file){0};
    if (!read_config(dir, m, f, e) && (f->c = ckpt_open_adapter(dir, e)) && !check_tensors(f, e)) return 0;
    lora_file_close(f);
    return -1;
}

void lora_file_close(struct lora_file *f) {
    ckpt_close(f->c);
    json_free(f->json);
    *f = (struct lora_file){0};
}

int lora_file_adds(const struct lora_file *f, const char *dir, struct err *e) {
    if (!f->shape.config.wholes) return 0;
    return err_set(e, ERR_INPUT,
                   "%s holds not only additions but whole weights (modules_to_save: embedding, head or "
                   "norm); make a model of it "
                   "first: qlora export --adapter_name_or_path %s .. --export_dir NEW",
                   dir, dir);
}

static int read_slot(const struct lora_file *f, struct slot s, float *x, struct err *e) {
    const struct ckpt_tensor *t = find_tensor(f, s);
    ASSERT(t, "part %d of layer %lld, %s was checked", (int)s.part, (long long)s.layer, proj_name[s.p]);
    if (ckpt_read_all(f->c, t, DT_F32, x, e)) return -1;
    for (int64_t k = 0; k < t->count; k++)
        if (!isfinite(x[k]))
            return err_set(e, ERR_INPUT, "%s: element %lld of tensor %s is not a finite number",
                           ckpt_file(f->c, t), (long long)k, t->name);
    return 0;
}

int lora_file_read(const struct lora_file *f, int64_t layer, enum proj p, float *a, float *b, float *m, struct err *e) {
    int64_t rows, cols, R = f->shape.config.rank, r = rank_of(f, layer, p);
    if (read_slot(f, (struct slot){layer, p, PART_A}, a, e) || read_slot(f, (struct slot){layer, p, PART_B}, b, e) ||
        (f->shape.config.dora && read_slot(f, (struct slot){layer, p, PART_M}, m, e)))
        return -1;
    if (!f->patterned) return 0;
    const float scale = scale_of(f, layer, p);
    proj_shape(&f->shape.model, p, &rows, &cols);
    memset(a + r * cols, 0, (size_t)((R - r) * cols) * sizeof *a);
    for (int64_t i = rows; i-- > 0;) /* from the end: rows grow in place */
        for (int64_t k = R; k-- > 0;) b[i * R + k] = k < r ? scale * b[i * r + k] : 0;
    return 0;
}

int lora_load(const char *dir, const struct model_config *m, struct lora *l, struct err *e) {
    struct lora_file f;
    *l = (struct lora){0};
    if (lora_file_open(dir, m, &f, e)) return -1;
    int r = lora_init(l, &f.shape.config, m, e);
    for (int64_t layer = 0; !r && layer < m->L; layer++)
        for (int p = 0; !r && p < PROJ_COUNT; p++)
            if (l->config.targets >> p & 1) {
                float *data = l->data + layer * l->layer_floats;
                r = stop_check("while an adapter was loaded", e) ||
                            lora_file_read(&f, layer, (enum proj)p, data + lora_offset_a(l, (enum proj)p),
                                           data + lora_offset_b(l, (enum proj)p),
                                           l->config.dora ? data + lora_offset_m(l, (enum proj)p) : NULL, e)
                        ? -1
                        : 0;
            }
    lora_file_close(&f);
    if (r) lora_free(l);
    return r;
}

/* ---- writing ---- */

/* Layer numbers sort as text inside tensor names: 0, 1, 10, 11, .., 2. */
static int by_decimal(const void *a, const void *b) {
    char x[24], y[24];
    snprintf(x, sizeof x, "%lld", (long long)*(const int64_t *)a);
    snprintf(y, sizeof y, "%lld", (long long)*(const int64_t *)b);
    return strcmp(x, y);
}

/* Declares a whole weight, or writes it. */
static int save_whole(const struct lora *l, enum whole w, struct ckpt_writer *to, int declare, struct err *e) {
    char name[NAME_MAX_BYTES];
    const int64_t shape[2] = {w == WHOLE_NORM ? l->model.D : l->model.V, l->model.D};
    ASSERT(l->whole[w], "%s is not held", wholes[w].module);
    snprintf(name, sizeof name, "base_model.model.%s", wholes[w].tensor);
    return declare ? ckpt_declare(to, name, DT_F32, wholes[w].rank, shape, e)
                   : ckpt_write(to, l->whole[w], lora_whole_count(l, w) * (int64_t)sizeof(float), e);
}

int lora_save(const struct lora *l, const char *dir, const char *base_model, struct err *e) {
    static const enum whole sorted[WHOLES] = {WHOLE_HEAD, WHOLE_EMBED, WHOLE_NORM}; /* by name: in front of all layers, between, behind */
    char name[NAME_MAX_BYTES];
    int64_t shape[2], *layer = NULL;
    struct ckpt_writer *w = NULL;
    const int64_t L = l->model.L, each = PARTS * PROJ_COUNT, slots = L * each;
    if (!(layer = sys_alloc_array((size_t)L, sizeof *layer, "layer order", e))) goto fail;
    for (int64_t i = 0; i < L; i++) layer[i] = i;
    qsort(layer, (size_t)L, sizeof *layer, by_decimal);
    if (!(w = ckpt_create(dir, "adapter_model", 0, e))) goto fail;
    for (int pass = 0; pass < 2; pass++) { /* declare all, then write all */
        for (int k = 0; k < 2; k++)
            if (l->config.wholes >> sorted[k] & 1 && save_whole(l, sorted[k], w, !pass, e)) goto fail;
        for (int64_t i = 0; i < slots; i++) {
            struct slot s = {layer[i / each], by_name[i / PARTS % PROJ_COUNT], (enum part)(i % PARTS)};
            if (!(l->config.targets >> s.p & 1) || (int)s.part >= parts(l)) continue;
            slot_name(s, name);
            int rank = slot_shape(l, s, l->config.rank, shape);
            if (pass == 0 ? ckpt_declare(w, name, DT_F32, rank, shape, e)
                          : ckpt_write(w, slot_data(l, s), shape[0] * shape[1] * (int64_t)sizeof(float), e))
                goto fail;
        }
        if (l->config.wholes >> WHOLE_NORM & 1 && save_whole(l, WHOLE_NORM, w, !pass, e)) goto fail;
    }
    sys_free(layer);
    return ckpt_commit(w, e) ? -1 : write_config(&l->config, dir, base_model, e);
fail:
    sys_free(layer);
    ckpt_abort(w);
    return -1;
}
