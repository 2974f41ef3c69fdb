/* train/setup.c - from options to a run that can take its first step: data, model headers, the plan, memory. */
#include "base/log.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "train/schedule.h"
#include "train/train_internal.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

int setup_is_lora(const struct trainer *t) { return t->o->finetuning == FT_LORA; }

/* "every": a number of steps, or below 1 a fraction of all. */
static int64_t interval(double every, int64_t total) {
    return every <= 0 ? 0 : every < 1 ? (int64_t)ceil(every * (double)total) : (int64_t)every;
}

static int sizes(struct trainer *t, struct err *e);

int setup_data(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    struct data_report r = {0};
    if (!(t->tok = tok_open(o->model_name_or_path, e)) || data_load(&o->data, t->tok, &t->train, &t->eval, &r, e)) return -1;
    if (data_hash(t->train, t->data_hash, e)) return -1;
    int64_t n = data_count(t->train), *lengths = NULL;
    if (o->group_by_length) {
        if (!(lengths = sys_alloc_array((size_t)n, sizeof *lengths, "sequence lengths", e))) return -1;
        for (int64_t i = 0; i < n; i++) {
            struct sequence s;
            if (data_get(t->train, i, &s, e)) return sys_free(lengths), -1;
            lengths[i] = s.n;
        }
    }
    t->sampler = sampler_open(&(struct sampler_config){.count = n, .batch = o->batch, .accumulate = o->accumulate, .epochs = o->epochs, .max_steps = o->max_steps,
                                                       .seed = o->data_seed, .shuffle = !o->disable_shuffling, .drop_last = o->drop_last,
                                                       .group_by_length = o->group_by_length, .lengths = lengths, .compat_new = o->data.compat_new}, e);
    sys_free(lengths);
    if (!t->sampler) return -1;
    t->total_steps = sampler_total_steps(t->sampler);
    t->warmup = schedule_warmup(o->warmup_steps, o->warmup_ratio, t->total_steps);
    int64_t epoch = sampler_steps_per_epoch(t->sampler);
    t->log_every = interval(o->logging_steps, t->total_steps);
    t->save_every = o->save_strategy == EVERY_STEPS ? interval(o->save_steps, t->total_steps) : o->save_strategy == EVERY_EPOCH ? epoch : 0;
    double eval_steps = o->eval_steps > 0 ? o->eval_steps : o->logging_steps;
    t->eval_every = !t->eval ? 0 : o->eval_strategy == EVERY_STEPS ? interval(eval_steps, t->total_steps) : o->eval_strategy == EVERY_EPOCH ? epoch : 0;
    log_info("data: %lld records became %lld sequences, %lld tokens, %lld of them labelled, the longest %lld", (long long)r.records, (long long)r.sequences,
             (long long)r.tokens, (long long)r.labelled_tokens, (long long)r.longest);
    return sizes(t, e);
}

/* Rows of each sequence of a data set. */
static int32_t *row_counts(const struct dataset *d, struct err *e) {
    int64_t n = d ? data_count(d) : 0;
    int32_t *rows = sys_alloc_array((size_t)n + 1, sizeof *rows, "row counts", e);
    struct sequence s;
    for (int64_t i = 0; rows && i < n; i++) {
        if (data_get(d, i, &s, e)) return sys_free(rows), NULL;
        rows[i] = (int32_t)batch_rows(s.labels, s.n);
    }
    return rows;
}

/* Walks all steps of the run and all evaluation batches: the largest number of rows, of sequences, and of chunks when a
 * chunk holds at most `capacity` rows (the greedy rule of batch_fill). */
struct extent { int64_t rows, seqs, chunks; };
static void extend(struct extent *x, const int32_t *rows, const int64_t *index, int64_t first, int64_t n, int64_t capacity) {
    int64_t sum = 0, chunk = 0, chunks = 1;
    for (int64_t i = 0; i < n; i++) {
        int64_t r = rows[index ? index[i] : first + i];
        if (chunk + r > capacity) chunks++, chunk = 0;
        sum += r, chunk += r;
    }
    if (sum > x->rows) x->rows = sum;
    if (n > x->seqs) x->seqs = n;
    if (chunks > x->chunks) x->chunks = chunks;
}

static int walk(struct trainer *t, int64_t capacity, struct extent *x, struct err *e) {
    int32_t *train = row_counts(t->train, e), *eval = row_counts(t->eval, e);
    int r = train && eval ? 0 : -1;
    *x = (struct extent){.chunks = 1};
    for (int64_t i = 0; !r && i < t->total_steps; i++) {
        struct sampler_step s;
        if (!(r = sampler_get(t->sampler, i, &s, e))) extend(x, train, s.index, 0, s.sequences, capacity);
    }
    int64_t n = t->eval ? data_count(t->eval) : 0, B = t->o->eval_batch;
    for (int64_t i = 0; !r && i < n; i += B) extend(x, eval, NULL, i, i + B < n ? B : n - i, capacity);
    sys_free(train), sys_free(eval);
    return r;
}

static int sizes(struct trainer *t, struct err *e) {
    int32_t *train = row_counts(t->train, e), *eval = row_counts(t->eval, e);
    int r = train && eval ? 0 : -1;
    for (int64_t i = 0; !r && i < data_count(t->train); i++) t->longest = train[i] > t->longest ? train[i] : t->longest;
    for (int64_t i = 0; !r && t->eval && i < data_count(t->eval); i++) t->longest = eval[i] > t->longest ? eval[i] : t->longest;
    sys_free(train), sys_free(eval);
    struct extent x;
    if (r || walk(t, INT64_MAX / 2, &x, e)) return -1;
    if (!t->longest) return err_set(e, ERR_INPUT, "no sequence has a labelled token to learn from; check the data set and --cutoff_len");
    t->max_rows = x.rows, t->max_seqs = x.seqs;
    t->sequences = sys_alloc_array((size_t)t->max_seqs, sizeof *t->sequences, "sequences of a step", e);
    return t->sequences ? 0 : -1;
}

void setup_show_example(const struct trainer *t) {
    struct sequence s;
    struct str out = {0};
    if (data_get(t->train, 0, &s, NULL)) return;
    str_puts(&out, "training example:\ninput_ids:\n[");
    for (int64_t i = 0; i < s.n; i++) str_printf(&out, "%s%d", i ? ", " : "", s.ids[i]);
    str_puts(&out, "]\ninputs:\n");
    tok_decode(t->tok, s.ids, (size_t)s.n, 0, &out);
    str_puts(&out, "\nlabel_ids:\n[");
    for (int64_t i = 0; i < s.n; i++) str_printf(&out, "%s%d", i ? ", " : "", s.labels[i]);
    str_puts(&out, "]\nlabels:\n");
    for (int64_t i = 0, run = 0; i <= s.n; i++) /* the labelled stretches */
        if (i == s.n || s.labels[i] < 0) {
            if (run) tok_decode(t->tok, s.labels + i - run, (size_t)run, 0, &out);
            run = 0;
        } else run++;
    if (!out.oom) fprintf(stdout, "%s\n", out.p), fflush(stdout);
    str_free(&out);
}

/* The engine's configuration under a choice of the plan. */
static void engine_choice(struct trainer *t, const struct plan_choice *c, struct engine_config *k) {
    int64_t rows = c->rows > t->longest ? c->rows : t->longest; /* a longer sequence is a chunk of several windows */
    if (t->chunks_at != rows) {
        struct extent x;
        t->chunks = walk(t, rows, &x, NULL) ? t->max_seqs : x.chunks;
        t->chunks_at = rows;
    }
    *k = (struct engine_config){.rows = rows, .window = c->rows, .chunks = t->chunks, .longest = t->longest, .training = 1, .keep_layers = c->keep_layers,
                                .resident_acts = c->acts_on_host ? 0 : -1, .join = c->join, .drops = setup_is_lora(t) && t->lora.config.dropout > 0, .lora = setup_is_lora(t) ? &t->lora : NULL};
}

/* in, out: how often a step copies what lives on the host. */
static struct plan_item pages_item(const struct pages_config *c, const char *name, int in, int out) {
    struct plan_item i = {.name = name};
    if (c->count) pages_cost(c, &i.device, &i.host);
    i.in = in * (double)i.host, i.out = out * (double)i.host;
    return i;
}

static int cost(void *context, const struct plan_choice *c, struct plan_item *items) {
    struct trainer *t = context;
    struct engine_config k;
    struct pages_config layers, outer, value, grad, state;
    t->how.resident_layers = c->resident_layers;
    engine_choice(t, c, &k);
    model_pages(&t->model, &t->how, &layers, &outer);
    params_pages(&t->params, c->values_on_host, c->state_on_host, &value, &grad, &state);
    int n = 0;
    int full = !setup_is_lora(t);
    items[n++] = pages_item(&layers, layers.name, 2 + full, full);
    items[n++] = pages_item(&outer, outer.name, 2 + full, full);
    items[n++] = pages_item(&value, "adapters", 3, 1);
    items[n++] = pages_item(&grad, "gradients", 1, 1);
    items[n++] = pages_item(&state, "optimizer state", 1, 1);
    n += engine_items(&t->model, &k, items + n);
    if (t->code_bytes) items[n++] = (struct plan_item){.name = "kernels", .device = t->code_bytes};
    items[n++] = (struct plan_item){.name = "token arrays", .device = batch_cost(t->max_rows), .host = batch_cost(t->max_rows)};
    return n;
}

static int adapter(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    if (!setup_is_lora(t)) return 0;
    if (o->merged_adapters && (t->model.lay.proj == W_Q4 || t->model.lay.proj == W_INT8))
        return err_set(e, ERR_INPUT, "Quantized model only accepts a single adapter. Merge them first.");
    if (o->adapter_name_or_path) {
        if (lora_load(o->adapter_name_or_path, &t->model.config, &t->lora, e)) return -1;
        if (o->lora.rank != t->lora.config.rank || o->lora.targets != t->lora.config.targets)
            log_warn("the adapter's own rank %lld and targets are used, not those of the command line", (long long)t->lora.config.rank);
        t->lora.config.dropout = o->lora.dropout;
        return 0;
    }
    if (lora_init(&t->lora, &o->lora, &t->model.config, e)) return -1;
    lora_start(&t->lora, o->seed);
    return 0;
}

int setup_model(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    struct backend_info info;
    t->be->info(t->be->self, &info);
    t->code_bytes = info.code_bytes;
    t->how = (struct model_how){.quantization_bit = o->quantization_bit, .q_type = o->quantization_type, .q_double = o->double_quantization,
                                .fp32 = !setup_is_lora(t), .resident_layers = -1};
    struct ckpt *c;
    if (model_open(&t->model, t->be, o->model_name_or_path, &t->how, &c, e)) return -1;
    ckpt_close(c);
    int32_t ids = tok_count(t->tok);
    if (ids > t->model.config.V)
        return err_set(e, ERR_INPUT, "the tokenizer knows %d ids, the model's vocab_size is %lld; this tokenizer belongs to another model", ids, (long long)t->model.config.V);
    if (adapter(t, e) || params_describe(&t->params, &t->model, setup_is_lora(t) ? &t->lora : NULL, o->optimizer == OPT_ADAMW_8BIT, e)) return -1;
    if (setup_is_lora(t) && o->loraplus_lr_ratio > 0) params_loraplus(&t->params, o->loraplus_lr_ratio);
    if (t->longest + 1 > t->model.config.max_positions)
        log_warn("sequences of up to %lld tokens are longer than max_position_embeddings %lld", (long long)t->longest + 1, (long long)t->model.config.max_positions);
    log_info("attention %s", t->model.config.document_mask ? "stops at <eod>: records of a packed row, and turns of a conversation, do not see each other (config.json: use_flash_attention false, reset_attention_mask true)"
                                                           : "is plain causal across a row (config.json: use_flash_attention true, or reset_attention_mask false)");
    /* A CPU's caches like small chunks, a card's matrix units large ones. Kept activations may take half of a machine's memory. */
    int64_t budget = o->vram_bytes ? o->vram_bytes : info.free_bytes - info.free_bytes / 20;
    const struct model_config *k = &t->model.config;
    double tokens = (double)t->max_rows, layer = 2.0 * (double)(6 * k->D * k->D + 3 * k->D * k->F), pairs = 2.0 * (double)(k->D * t->longest); /* FLOPs a token */
    double forward = tokens * (double)k->L * (layer + pairs), head = 4 * tokens * (double)(k->V * k->D);
    t->request = (struct plan_request){.budget = budget, .layers = k->L, .longest = t->longest, .prefer_rows = o->chunk_tokens ? o->chunk_tokens : info.unified ? 1024 : 8192, .most_rows = o->chunk_tokens, .step_rows = t->max_rows,
                                       .joins = info.joins, .forward = forward, .backward = (setup_is_lora(t) ? 1 : 2) * forward + head, .flops = info.flops, .link = info.link,
                                       .may_page_state = o->paged, .training = 1, .keep_all = !o->gradient_checkpointing, .keep_budget = info.unified ? budget / 2 : budget};
    if (plan_make(&t->request, cost, t, &t->plan, e)) return -1;
    struct str text = {0};
    plan_print(&t->plan, &t->request, &text);
    if (!text.oom) log_info("%s", text.p);
    str_free(&text);
    return 0;
}

static int64_t model_numbers(const struct model_config *c) {
    int64_t layer = 4 * c->D * c->D + 3 * c->D * c->F + 2 * c->D * c->D + 3 * c->D / 2 + 3 * c->D;
    return c->L * layer + c->V * c->D * (c->tied ? 1 : 2) + c->D;
}

static void reach(void *params, int64_t l) { params_reach(params, l); }

int setup_memory(struct trainer *t, struct err *e) {
    struct ckpt *c = NULL;
    const struct plan_choice *k = &t->plan.choice;
    struct engine_config g;
    t->how.resident_layers = k->resident_layers;
    if (!(c = ckpt_open(t->o->model_name_or_path, e)) || model_load(&t->model, &t->how, c, e)) return ckpt_close(c), -1;
    ckpt_close(c);
    if (t->o->merged_adapters && model_merge(&t->model, t->o->merged_adapters, e)) return -1;
    if (params_open(&t->params, k->values_on_host, k->state_on_host, e)) return -1;
    engine_choice(t, k, &g);
    g.adapters = t->params.value;
    if (engine_open(&t->engine, &t->model, &g, e) || batch_open(&t->batch, t->be, g.rows, g.window, t->max_rows, t->max_seqs, e)) return -1;
    t->engine.reach = reach, t->engine.context = &t->params;
    char a[32], b[32];
    int64_t all = model_numbers(&t->model.config) + (setup_is_lora(t) ? t->params.total : 0);
    log_info("trainable params: %s || all params: %s || trainable%%: %.4f", text_thousands(a, t->params.total), text_thousands(b, all), 100.0 * (double)t->params.total / (double)all);
    return 0;
}
