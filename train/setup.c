/* train/setup.c - from options to a run that can take its first step: data, model headers, the plan, memory. */
#include "base/file.h"
#include "base/log.h"
#include "base/print.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "train/trained.h"
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

static int32_t *sequence_lengths(const struct dataset *d, struct err *e) {
    int32_t *n = sys_alloc_array((size_t)data_count(d), sizeof *n, "sequence lengths", e);
    for (int64_t i = 0; n && i < data_count(d); i++) {
        struct sequence s;
        if (data_get(d, i, &s, e)) return sys_free(n), NULL;
        n[i] = (int32_t)s.n;
    }
    return n;
}

/* A dry run answers at once: of large data sets so much stands for all. */
enum { SAMPLE_RECORDS = 2000, SAMPLE_BYTES = 1 << 20 };
enum { SLICE = 4096 }; /* rows: of 1,024 a product of 8,192 x 2,048 takes as long to add up as to make (docs/PERFORMANCE.md) */

static int load_data(struct trainer *t, struct data_report *r, struct err *e) {
    struct data_config c = t->o->data;
    if (t->o->dry_run && !data_is_saved(c.tokenized_path) && data_sample(&c, SAMPLE_RECORDS, SAMPLE_BYTES, &t->sample, e)) return -1;
    if (t->sample.records) c.max_samples = t->sample.records, c.glance = 1;
    return data_load(&c, t->tok, &t->train, &t->eval, r, e) || data_hash(t->train, t->data_hash, e) ? -1 : 0;
}

/* The order of n sequences. A stream is one epoch of steps that all look alike. */
static struct sampler *open_sampler(const struct trainer *t, int64_t n, const int32_t *lengths, struct err *e) {
    const struct train_options *o = t->o;
    return sampler_open(&(struct sampler_config){.count = t->stream ? o->batch * o->accumulate : n, .batch = o->batch,
                                                 .accumulate = o->accumulate, .epochs = o->epochs,
                                                 .max_steps = o->max_steps, .seed = o->data_seed,
                                                 .shuffle = !t->stream && !o->disable_shuffling, .drop_last = o->drop_last,
                                                 .group_by_length = o->group_by_length && lengths, .lengths = lengths,
                                                 .compat_new = t->stream || o->data.compat_new}, e);
}

static int open_data(struct trainer *t, struct data_report *r, struct err *e) {
    const struct train_options *o = t->o;
    int32_t *lengths = NULL;
    t->sample.scale = 1;
    if (o->streaming ? !(t->stream = data_stream_open(&o->data, t->tok, &t->train, &t->eval, r, e)) ||
                           data_stream_hash(t->stream, t->data_hash, e)
                     : load_data(t, r, e))
        return -1;
    if (o->group_by_length && !(lengths = sequence_lengths(t->train, e))) return -1;
    t->sampler = open_sampler(t, data_count(t->train), lengths, e);
    sys_free(lengths);
    return t->sampler ? 0 : -1;
}

static void set_intervals(struct trainer *t, int64_t epoch) {
    const struct train_options *o = t->o;
    t->log_every = o->log_strategy == EVERY_STEPS ? interval(o->logging_steps, t->total_steps) : o->log_strategy == EVERY_EPOCH ? epoch : 0;
    t->save_every = o->save_strategy == EVERY_STEPS ? interval(o->save_steps, t->total_steps) : o->save_strategy == EVERY_EPOCH ? epoch : 0;
    double eval_steps = o->eval_steps > 0 ? o->eval_steps : o->logging_steps;
    t->eval_every = !t->eval                          ? 0
                    : o->eval_strategy == EVERY_STEPS ? interval(eval_steps, t->total_steps)
                    : o->eval_strategy == EVERY_EPOCH ? epoch
                                                      : 0;
}

/* Steps and rows of all the data, from those of the sample. */
static int scale_up(struct trainer *t, struct err *e) {
    char a[32], b[32];
    if (!t->sample.records) return 0;
    struct sampler *all = open_sampler(t, (int64_t)((double)data_count(t->train) * t->sample.scale), NULL, e);
    if (!all) return -1;
    t->all_rows *= (double)sampler_total_steps(all) / (double)t->total_steps;
    t->total_steps = sampler_total_steps(all);
    set_intervals(t, sampler_steps_per_epoch(all));
    sampler_close(all);
    log_info("dry run: the first %s records of each data set stand for all of about %s; steps, tokens and time follow from them. "
             "qlora preview counts exactly",
             text_thousands(a, t->sample.records), text_thousands(b, (int64_t)t->sample.all));
    return 0;
}

int setup_data(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    struct data_report r = {0};
    if (!(t->tok = tok_open(o->model_name_or_path, e)) || open_data(t, &r, e)) return -1;
    t->total_steps = sampler_total_steps(t->sampler);
    t->labelled = r.tokens ? (double)r.labelled_tokens / (double)r.tokens : 1;
    if (schedule_make(&t->curve, o, t->total_steps, e)) return -1;
    set_intervals(t, t->stream ? t->total_steps : sampler_steps_per_epoch(t->sampler));
    return sizes(t, e) || scale_up(t, e) ? -1 : 0;
}

/* Rows of each sequence of a data set, and their documents if some have several. */
static int count_rows(const struct dataset *d, struct row_counts *c, struct err *e) {
    int64_t n = d ? data_count(d) : 0, documents;
    if (!(c->rows = sys_alloc_array((size_t)n + 1, sizeof *c->rows, "row counts", e))) return -1;
    for (int64_t i = 0; i < n; i++) {
        struct sequence q;
        if (data_get(d, i, &q, e)) return -1;
        const struct batch_sequence s = {.labels = q.labels, .documents = q.documents, .n = q.n};
        c->rows[i] = (int32_t)batch_rows(&s, &documents);
        if (documents > 1 && !c->documents &&
            !(c->documents = sys_alloc_array((size_t)n, sizeof *c->documents, "document counts", e)))
            return -1;
        if (c->documents) c->documents[i] = (int32_t)documents;
    }
    return 0;
}

/* Walks all steps of the run and all evaluation batches: the largest number of rows, of sequences, and of chunks of so many rows
 * (batch.h); the rows of all steps together. */
struct extent { int64_t rows, seqs, chunks; double trained; };
static void extend(struct extent *x, const struct row_counts *c, const int64_t *index, int64_t first, int64_t n, struct chunking into) {
    int64_t sum = 0, chunks = 0, seqs = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = index ? index[i] : first + i, r = c->rows[at];
        if (r) chunks += chunk_begins(&into, r); /* documents alone fill chunks as well or better */
        sum += r, seqs += c->documents && c->documents[at] ? c->documents[at] : 1;
    }
    if (index) x->trained += (double)sum;
    if (sum > x->rows) x->rows = sum;
    if (seqs > x->seqs) x->seqs = seqs;
    if (chunks > x->chunks) x->chunks = chunks;
}

static int walk(struct trainer *t, int64_t capacity, struct extent *x, struct err *e) {
    const struct chunking into = {.capacity = capacity, .slice = t->slice};
    *x = (struct extent){.chunks = 1};
    for (int64_t i = 0; i < sampler_total_steps(t->sampler); i++) {
        struct sampler_step s;
        if (sampler_get(t->sampler, i, &s, e)) return -1;
        extend(x, &t->counts, s.index, 0, s.sequences, into);
    }
    int64_t n = t->eval ? data_count(t->eval) : 0, B = t->o->eval_batch;
    for (int64_t i = 0; i < n; i += B) extend(x, &t->eval_counts, NULL, i, i + B < n ? B : n - i, into);
    return 0;
}

/* Of a stream nothing is known but the longest that a sequence may be, and the first ones. */
static int stream_sizes(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    const int64_t longest = o->data.cutoff_len - 1, eval_longest = t->eval ? data_longest(t->eval) - 1 : 0;
    const double labelled = t->labelled;
    setup_shape(t);
    t->labelled = labelled;
    if (eval_longest > longest) t->longest = eval_longest, t->max_rows += eval_longest; /* room for one of them */
    if (o->data.neat_packing) t->max_seqs *= longest / 2 + 1;                           /* documents have two tokens at least */
    if (t->max_rows > INT32_MAX / 2)
        return err_set(e, ERR_INPUT,
                       "a step of %.3g tokens fits in no machine; lower --gradient_accumulation_steps, "
                       "--per_device_train_batch_size or --cutoff_len",
                       (double)t->max_rows);
    t->sequences = sys_alloc_array((size_t)t->max_seqs, sizeof *t->sequences, "sequences of a step", e);
    return t->sequences ? 0 : -1;
}

static int sizes(struct trainer *t, struct err *e) {
    struct extent x;
    double sum = 0, squares = 0;
    if (t->stream) return stream_sizes(t, e);
    if (count_rows(t->train, &t->counts, e) || count_rows(t->eval, &t->eval_counts, e)) return -1;
    for (int64_t i = 0; i < data_count(t->train); i++) {
        const int64_t r = t->counts.rows[i];
        if (r > t->longest) t->longest = r;
        const int64_t documents = t->counts.documents && r ? t->counts.documents[i] : 1;
        sum += (double)r, squares += (double)r * (double)r / (double)documents; /* as if they were equally long */
    }
    for (int64_t i = 0; t->eval && i < data_count(t->eval); i++)
        t->longest = t->eval_counts.rows[i] > t->longest ? t->eval_counts.rows[i] : t->longest;
    if (walk(t, INT64_MAX / 2, &x, e)) return -1;
    if (!t->longest) return err_set(e, ERR_INPUT, "no sequence has a labelled token to learn from; check the data set and --cutoff_len");
    t->max_rows = x.rows, t->max_seqs = x.seqs, t->all_rows = x.trained, t->reach = squares / sum;
    t->sequences = sys_alloc_array((size_t)t->max_seqs, sizeof *t->sequences, "sequences of a step", e);
    return t->sequences ? 0 : -1;
}

void setup_shape(struct trainer *t) {
    const struct train_options *o = t->o;
    t->longest = o->data.cutoff_len > 1 ? o->data.cutoff_len - 1 : 1; /* the last token of a sequence is no row */
    t->max_seqs = o->batch * o->accumulate, t->total_steps = o->max_steps > 0 ? o->max_steps : 0;
    const double rows = (double)t->max_seqs * (double)t->longest, most = 1e15; /* far more than setup_model accepts */
    t->max_rows = (int64_t)(rows < most ? rows : most);
    t->all_rows = rows * (double)t->total_steps, t->reach = (double)t->longest, t->labelled = 1;
    (void)schedule_make(&t->curve, o, t->total_steps, NULL); /* the flags were checked */
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
    if (!out.oom) print_bytes(out.p, out.n), print_text("\n"), print_flush();
    str_free(&out);
}

/* The engine's configuration under a choice of the plan. */
static void engine_choice(struct trainer *t, const struct plan_choice *c, struct engine_config *k) {
    const int64_t rows = c->rows > t->longest ? c->rows : t->longest; /* a longer sequence is a chunk of several windows */
    if (t->chunks_at != rows) {
        const int64_t slices = t->slice ? rows / t->slice : 0;
        /* Sequences that fill a chunk where all are equally long. */
        const int64_t whole = t->slice ? (slices ? slices : 1) * (t->slice / t->longest) : rows / t->longest;
        struct extent x;
        if (!t->train || t->stream) t->chunks = (t->o->batch * t->o->accumulate + whole - 1) / whole;
        else t->chunks = walk(t, rows, &x, NULL) ? t->max_seqs : x.chunks;
        t->chunks_at = rows;
    }
    int below;
    *k = (struct engine_config){.lowest = params_lowest(&t->params, &below), .rows = rows, .window = c->rows,
                                .chunks = t->chunks, .longest = t->longest, .training = 1, .keep_layers = c->keep_layers,
                                .resident_acts = c->acts_on_host ? 0 : -1, .join = c->join, .outer_on_host = c->outer_on_host,
                                .drops = setup_is_lora(t) && t->lora.config.dropout > 0, .smoothing = t->o->label_smoothing,
                                .lora = setup_is_lora(t) ? &t->lora : NULL};
}

/* in, out: how often a step copies what lives on the host. */
static struct plan_item pages_item(const struct pages_config *c, const char *name, int in, int out) {
    struct plan_item i = {.name = name};
    if (c->count) pages_cost(c, &i.device, &i.host, &i.disk);
    i.in = in * (double)i.host, i.out = out * (double)i.host;
    return i;
}

/* How the model is held under a choice of the plan. */
static void follow(struct trainer *t, const struct plan_choice *c) {
    t->how.resident_layers = c->resident_layers, t->how.disk_layers = c->disk_layers, t->how.outer_on_host = c->outer_on_host;
}

/* Layer weights that nothing changes: a sweep up and one down. */
static struct plan_item layers_item(const struct pages_config *c) {
    struct plan_item i = pages_item(c, c->name, 2, 0);
    double copied, read;
    pages_moved(c, &copied, &read);
    i.in = 2 * copied, i.read = 2 * read;
    return i;
}

/* Where a choice of the plan puts what is trained. */
static struct params_place place_of(const struct trainer *t, const struct plan_choice *c) {
    return (struct params_place){.values = c->values_on_host ? c->resident_state : t->params.groups,
                                 .state = c->state_on_host ? c->resident_state : t->params.groups,
                                 .layers = c->resident_layers, .by_host = c->by_host};
}

/* Weights of the model, some trained: frozen layers come for forward and for backward, trained ones as their update has it. */
static struct plan_item weights_item(const struct trainer *t, const struct pages_config *layers, const struct params_moves *v) {
    struct plan_item i = pages_item(layers, layers->name, 0, 0);
    int below;
    const struct params *p = &t->params;
    const int64_t L = layers->count, from = layers->resident, lowest = params_lowest(p, &below), first = p->how.first_layer,
                  end = first + p->layers;
    const double page = (double)layers->page_bytes, trained = (double)(end > from ? end - (first > from ? first : from) : 0),
                 visited = (double)(L - (lowest > from ? lowest : from));
    i.update_in = page * ((double)(L - from) - trained) + v->update_weights_in, i.update_out = v->update_weights_out;
    i.in = i.update_in + page * visited, i.out = i.update_out;
    return i;
}

/* What a card keeps to find pages in host memory: 8 bytes for each 4 KiB. 1.75 to 1.9 of 1.95 MB for a GB were measured on an H200. */
static int64_t mapped(const struct plan_item *items, int n) {
    int64_t host = 0;
    for (int i = 0; i < n; i++) host += items[i].host;
    return host / 512;
}

static int cost(void *context, const struct plan_choice *c, struct plan_item *items) {
    struct trainer *t = context;
    struct engine_config k;
    struct pages_config layers, outer;
    struct params_pages p;
    struct params_moves v;
    const struct params_place where = place_of(t, c);
    follow(t, c);
    engine_choice(t, c, &k);
    model_pages(&t->model, &t->how, &layers, &outer);
    params_pages(&t->params, &where, &p);
    params_moves(&t->params, &where, &v);
    int n = 0;
    int full = !setup_is_lora(t);
    items[n++] = full ? weights_item(t, &layers, &v) : layers_item(&layers);
    items[n++] = pages_item(&outer, outer.name, 0, 0);
    items[n++] = pages_item(&p.value, "adapters", 3, 1);
    items[n++] = pages_item(&p.grad, "gradients", 1, 1), items[n - 1].device += (int64_t)p.sums;
    if (full) items[n - 1].in = items[n - 1].update_in = v.update_grad_in, items[n - 1].out = v.grad_out;
    items[n++] = pages_item(&p.outer_grad, p.outer_grad.name, 0, 0);
    items[n++] = pages_item(&p.state, p.state.name, 1, 1);
    if (full)
        items[n - 1].in = items[n - 1].update_in = v.update_state_in,
                  items[n - 1].out = items[n - 1].update_out = v.update_state_out, items[n - 1].by_host = v.by_host;
    else items[n++] = (struct plan_item){.name = "adapter for saving", .host = t->params.total * 4};
    n += engine_items(&t->model, &k, items + n);
    if (t->model.info.code_bytes) items[n++] = (struct plan_item){.name = "kernels", .device = t->model.info.code_bytes};
    items[n++] = (struct plan_item){.name = "token arrays", .device = batch_cost(t->max_rows), .host = batch_cost(t->max_rows)};
    if (!t->model.info.unified) items[n] = (struct plan_item){.name = "map of host memory", .device = mapped(items, n)}, n++;
    return n;
}

/* The adapter's shape; its numbers come with setup_memory. */
static int adapter_shape(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    struct lora_config c = o->lora;
    if (!setup_is_lora(t)) return 0;
    if (o->merged_adapters && (t->model.lay.proj == W_Q4 || t->model.lay.proj == W_INT8))
        return err_set(e, ERR_INPUT, "Quantized model only accepts a single adapter. Merge them first.");
    if (o->adapter_name_or_path) {
        struct lora_file f;
        if (lora_file_open(o->adapter_name_or_path, &t->model.config, &f, e)) return -1;
        c = f.shape.config;
        lora_file_close(&f);
        if (o->lora.rank != c.rank || o->lora.targets != c.targets || o->lora.dora != c.dora || o->lora.wholes != c.wholes)
            log_warn("the adapter's own rank %lld, targets, kind (%s) and whole modules are used, not those of the command line",
                     (long long)c.rank, c.dora ? "DoRA" : "LoRA");
        c.dropout = o->lora.dropout;
    }
    return lora_shapes(&t->lora, &c, &t->model.config, e);
}

static int adapter_load(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    const struct lora_config c = t->lora.config;
    if (!setup_is_lora(t)) return 0;
    if (o->adapter_name_or_path) {
        if (lora_load(o->adapter_name_or_path, &t->model.config, &t->lora, e)) return -1;
        t->lora.config.dropout = c.dropout;
        return lora_hold(&t->lora, e);
    }
    if (lora_init(&t->lora, &c, &t->model.config, e) || lora_hold(&t->lora, e)) return -1;
    lora_start(&t->lora, o->seed);
    return 0;
}

/* Activations of D that a token moves through the device's memory in a layer: norms, filter, rope, gate, each op's operands
 * read and written once (spec: 12 D + 6 F live values). Recomputation makes neither the product of down nor its output. */
enum { MOVED_FORWARD = 22, MOVED_AGAIN = 20, MOVED_BACKWARD = 80 };
/* Bytes of the optimizer's pass over a trained number: value, gradient and moments read, all but the gradient written. */
enum { MOVED_UPDATE = 28 };
/* Times that each pass moves the input of a projection with an adapter to drop some of it: 2B with --lora_dropout 0.05 on an H200. */
static const double MOVED_DROP = 3.2;
/* Of a card: seconds the host takes to queue a layer's ops for a chunk, and rows that a chunk's products cost beside their own.
 * Both from 2B in chunks of 2048 to 8192 on an H100 (bench/results/h100.jsonl). */
static const double VISIT = 1e-3, TAIL = 256;
/* Bytes a second of a disk that was not measured: an NVMe drive of the plainer kind. */
static const double DISK = 2e9;

static struct plan_work times(struct plan_work w, double n) { return (struct plan_work){n * w.products, n * w.attention, n * w.bytes}; }

/* Activations of a token in a layer that dropout makes copies of. */
static double dropped(const struct trainer *t) {
    double sum = 0;
    for (int p = 0; p < PROJ_COUNT; p++) {
        int64_t rows, cols;
        proj_shape(&t->model.config, (enum proj)p, &rows, &cols);
        if (setup_is_lora(t) && t->lora.config.dropout > 0 && t->lora.config.targets >> p & 1) sum += (double)cols;
    }
    return sum;
}

/* FLOPs of a card's matrix units in the time of one of its other units: 15 and 16 on an H100 and an A100 by their data sheets. */
static const double PLAIN_FLOP = 15;
/* Times that the operands of DoRA's gradients count, which are sums along columns: 2B in NF4 at rank 64 on an H200, 41,786 tokens/s
 * with DoRA and 54,936 without. */
static const double MOVED_DORA = 2.7;

/* What DoRA adds (model/block.c): norms of all adapted rows once a step, without matrix units; in `visited` layers of backward the
 * outputs that went into the residual made again, and each output read beside its gradient. */
static void add_dora(const struct trainer *t, double visited, double tokens, struct plan_request *r) {
    const struct lora_config *l = &t->lora.config;
    const double R = (double)l->rank, act = (double)dtype_bytes(t->model.info.activation);
    double norms = 0, again = 0, moved = 0; /* FLOPs of a layer; FLOPs and elements of a token in a layer */
    if (!setup_is_lora(t) || !l->dora) return;
    for (int p = 0; p < PROJ_COUNT; p++) {
        int64_t rows, cols;
        proj_shape(&t->model.config, (enum proj)p, &rows, &cols);
        if (!(l->targets >> p & 1)) continue;
        const double out = (double)rows, in = (double)cols;
        norms += 2 * R * out * in, moved += 2 * out;
        if (p == PROJ_O || p == PROJ_DOWN) again += 2 * (out * in + R * (out + in));
        if (p == PROJ_UP) moved += 4 * out;                /* the gate's gradient once more */
        if (p == PROJ_Q || p == PROJ_K) moved += 2 * out;  /* turned back to what the projection gave */
    }
    r->backward.products += visited * again * tokens, r->backward.bytes += MOVED_DORA * visited * moved * act * tokens;
    r->rest.products += (double)t->model.config.L * norms * (t->model.info.unified ? 1 : PLAIN_FLOP);
}

/* Each number of an adapter takes part in a product forward, again, and in two of backward; each trained number of a layer in one
 * of backward. What lies below the lowest trained layer is not gone through again. */
static void describe_work(struct trainer *t, struct plan_request *r) {
    const struct model_config *k = &t->model.config;
    const struct params *p = &t->params;
    int below;
    const int full = !setup_is_lora(t), packed = t->model.lay.proj == W_Q4 || t->model.lay.proj == W_INT8,
              head = p->how.outer & (1 << OT_EMBED | 1 << OT_HEAD);
    const double D = (double)k->D, F = (double)k->F, L = (double)k->L, tokens = (double)t->max_rows,
                 act = (double)dtype_bytes(t->model.info.activation);
    double of_layers = 0; /* trained numbers */
    for (int64_t i = 0; i < p->first[p->layers]; i++) of_layers += (double)p->p[i].n;
    const double weights = 6 * D * D + 3 * D * F, trained = (double)p->total, branch = full ? 0 : 2 * of_layers,
                 drop = MOVED_DROP * dropped(t), attention = 2 * D * t->reach, V = L - (double)params_lowest(p, &below);
    r->forward = times((struct plan_work){L * 2 * weights + branch, L * attention, L * (MOVED_FORWARD * D + drop) * act}, tokens);
    r->again = times((struct plan_work){V * 2 * (weights - D * F) + branch, V * attention, V * (MOVED_AGAIN * D + drop) * act}, tokens);
    r->backward = times((struct plan_work){V * 2 * weights + 2 * (full ? of_layers : branch), V * 2.5 * attention,
                                           V * (MOVED_BACKWARD * D + drop) * act},
                        tokens);
    r->rest = times((struct plan_work){2 * (double)(k->V * k->D) * (2 + (head != 0)), 0, 4 * (double)k->V * act}, tokens * t->labelled);
    r->rest.bytes += MOVED_UPDATE * trained;
    add_dora(t, V, tokens, r);
    r->visited = (int64_t)V > 0 ? (int64_t)V : 1;
    r->unpacked = !r->joins && !packed ? 0 : L * weights * (act + 2);
    if (!t->model.info.unified) r->visit = VISIT, r->tail = TAIL;
}

/* What the plan is asked. Without --vram the CPU has one memory, and nothing to gain from a second home in it. */
static int request(struct trainer *t, struct err *e) {
    const struct train_options *o = t->o;
    const struct backend_info *info = &t->model.info;
    const struct model_config *k = &t->model.config;
    const int full = !setup_is_lora(t), pages = !info->unified || o->vram_bytes,
              joins = info->joins && !engine_stacked(&t->model, full ? NULL : &t->lora);
    const unsigned may =
        PLAN_ACTS | PLAN_VALUES | PLAN_WEIGHTS | (t->params.how.outer ? 0u : PLAN_OUTER) | (o->paged || full ? PLAN_STATE : 0u);
    /* So many bytes a row takes at the very most: in sums of them nothing may overflow. */
    const double row = 64.0 * (double)(k->L + 1) * (double)(k->D + k->F + k->H + (full ? 0 : t->lora.config.rank));
    if ((double)t->max_rows * row > 4e18)
        return err_set(e, ERR_INPUT,
                       "a step of %.3g tokens fits in no machine; lower --gradient_accumulation_steps, "
                       "--per_device_train_batch_size or --cutoff_len",
                       (double)t->max_rows);
    /* A card reads and writes all of a weight's gradient for each slice. Which there are must not depend on the budget. */
    const int slices = full && !info->unified && t->longest <= SLICE && (!o->chunk_tokens || o->chunk_tokens >= SLICE);
    t->slice = slices ? SLICE : 0;
    snprintf(t->advice, sizeof t->advice, "A lower --cutoff_len%s%s%s%s", slices ? ", --chunk_tokens 1024" : "",
             full                        ? ", --finetuning_type lora"
             : t->model.lay.proj == W_Q4 ? " or --lora_rank"
                                         : " or --lora_rank, --quantization_bit 4",
             o->paged || full ? "" : ", --optim paged_adamw_32bit", o->gradient_checkpointing ? "" : ", gradient checkpointing");
    const int64_t budget = o->vram_bytes ? o->vram_bytes : info->free_bytes - info->free_bytes / 20;
    /* A CPU's caches like small chunks, a card's matrix units large ones. Kept activations may take half of a machine's memory. */
    t->request = (struct plan_request){.budget = budget, .host_budget = t->host_bytes, .keep_budget = info->unified ? budget / 2 : budget,
                                       .may = (pages ? may : 0u) | (joins ? PLAN_APART : 0u),
                                       .state_groups = full ? t->params.groups : 0,
                                       .host_layers = full && !info->unified ? t->params.layers : 0,
                                       .layers = k->L, .longest = t->longest, .step_rows = t->max_rows,
                                       .prefer_rows = o->chunk_tokens ? o->chunk_tokens : info->unified ? 1024 : 8192,
                                       .most_rows = o->chunk_tokens, .least_rows = t->slice,
                                       .training = 1, .files = !full, .disk = DISK, .keep_all = !o->gradient_checkpointing,
                                       .joins = joins, .host_bandwidth = rates_known_update(t->host_bytes ? sys_threads() : 0),
                                       .flops = info->flops, .bandwidth = info->bandwidth, .link = info->link, .advice = t->advice};
    describe_work(t, &t->request);
    return 0;
}

int setup_plan(struct trainer *t, struct err *e) {
    if (plan_make(&t->request, cost, t, &t->plan, e)) return -1;
    follow(t, &t->plan.choice);
    if (!setup_is_lora(t) && !t->o->paged && t->plan.choice.state_on_host)
        log_info("the optimizer state is paged, for it does not fit the device's memory; where it lives changes no number");
    return 0;
}

/* What the machine could still give, but for a margin: others want some, too. */
void setup_host(struct trainer *t, int here) {
    struct backend_info info;
    t->be->info(t->be->self, &info);
    const int64_t left = here && !info.unified ? sys_free_memory() : 0, most = left - left / 32;
    t->host_bytes = t->o->host_memory && (!most || t->o->host_memory < most) ? t->o->host_memory : most;
}

/* The model's headers; for an estimate its configuration will do. */
static int describe_model(struct trainer *t, const struct model_config *config, struct err *e) {
    const struct train_options *o = t->o;
    struct ckpt *c;
    t->how = (struct model_how){.quantization_bit = o->quantization_bit, .q_type = o->quantization_type,
                                .q_double = o->double_quantization, .filter_4bit = o->filter_4bit,
                                .resident_layers = -1, .page_dir = o->page_dir ? o->page_dir : o->output_dir ? o->output_dir : "."};
    struct backend_info info;
    t->be->info(t->be->self, &info);
    if (!setup_is_lora(t)) t->how.half = o->pure_bf16 || t->copies || info.activation == DT_BF16, t->how.fp32 = !t->how.half;
    t->how.wholes = setup_is_lora(t) ? o->lora.wholes : 0;
    if (setup_is_lora(t) && o->adapter_name_or_path && lora_wholes(o->adapter_name_or_path, &t->how.wholes, e)) return -1;
    if (config) return model_sketch(&t->model, t->be, config, &t->how), 0;
    if (model_open(&t->model, t->be, o->model_name_or_path, &t->how, &c, e)) return -1;
    struct ckpt_quant q = {0};
    char name[80];
    snprintf(name, sizeof name, "model.layers.0.self_attn.%s.weight", proj_name[0]);
    int r = ckpt_quant(c, name, &q, e);
    t->stored_bits = r < 0 ? 0 : q.bits;
    ckpt_close(c);
    return r < 0 ? -1 : 0;
}

int setup_model(struct trainer *t, const struct model_config *config, struct err *e) {
    const struct train_options *o = t->o;
    if (describe_model(t, config, e)) return -1;
    const struct model_config *k = &t->model.config;
    const int32_t ids = t->tok ? tok_count(t->tok) : 0;
    if (ids > k->V)
        return err_set(e, ERR_INPUT,
                       "the tokenizer knows %d ids, the model's vocab_size is %lld; this tokenizer belongs to another model", ids,
                       (long long)k->V);
    if (t->longest + 1 > k->max_positions)
        log_warn("sequences of up to %lld tokens are longer than max_position_embeddings %lld", (long long)t->longest + 1,
                 (long long)k->max_positions);
    if (t->train)
        log_info("attention %s",
                 k->document_mask
                     ? "stops at <eod>: records of a packed row, and turns of a conversation, do not see each other "
                       "(config.json: use_flash_attention false, reset_attention_mask true)"
                     : "is plain causal across a row (config.json: use_flash_attention true, or reset_attention_mask false)");
    if (t->train && o->data.neat_packing) log_info("neat_packing: records of a packed row are apart, whatever config.json says");
    struct params_how how = {.bits8 = o->optimizer == OPT_ADAMW_8BIT, .pure = o->pure_bf16};
    if (adapter_shape(t, e) || trained_weights(o, k, &how, e) ||
        params_describe(&t->params, &t->model, setup_is_lora(t) ? &t->lora : NULL, &how, e))
        return -1;
    if (setup_is_lora(t) && o->loraplus_lr_ratio > 0) params_loraplus(&t->params, o->loraplus_lr_ratio);
    return request(t, e);
}

static int64_t model_numbers(const struct model_config *c) {
    int64_t layer = 4 * c->D * c->D + 3 * c->D * c->F + 2 * c->D * c->D + 3 * c->D / 2 + 3 * c->D;
    return c->L * layer + c->V * c->D * (c->tied ? 1 : 2) + c->D;
}

int64_t setup_checkpoint_bytes(const struct trainer *t, int64_t *result) {
    const struct params *p = &t->params;
    int64_t state = 0, values = 0;
    for (int64_t g = 0; g < p->groups; g++) state += (int64_t)p->state_bytes[g];
    for (int64_t i = 0; i < p->count; i++)
        values += p->p[i].n * (p->p[i].half && !p->p[i].has_master ? 2 : 4), state -= p->p[i].has_master ? p->p[i].n * 4 : 0;
    *result = setup_is_lora(t) ? values : model_numbers(&t->model.config) * (int64_t)dtype_bytes(t->model.config.stored);
    return t->o->save_only_model ? *result : values + state;
}

static void reach(void *params, int64_t l) { params_reach(params, l); }

static int brings(void *params, int64_t l) { return params_brings(params, l); }

int setup_memory(struct trainer *t, struct err *e) {
    struct ckpt *c = ckpt_open(t->o->model_name_or_path, e);
    struct model_file file = {.m = &t->model, .c = c};
    int r = c ? model_load(&t->model, &t->how, c, e) : -1;
    if (!r && t->how.wholes && t->o->adapter_name_or_path) r = model_wholes(&t->model, t->o->adapter_name_or_path, e);
    if (!r && t->o->merged_adapters) r = model_merge(&t->model, t->o->merged_adapters, e);
    if (!r) r = setup_run(t, model_read_file, &file, e);
    ckpt_close(c);
    return r;
}

int setup_run(struct trainer *t, model_reader *read, void *context, struct err *e) {
    const struct plan_choice *k = &t->plan.choice;
    const struct params_place where = place_of(t, k);
    struct engine_config g;
    if (adapter_load(t, e) || params_open(&t->params, &where, e) || params_start(&t->params, read, context, e)) return -1;
    engine_choice(t, k, &g);
    g.adapters = t->params.value;
    if (engine_open(&t->engine, &t->model, &g, e) || batch_open(&t->batch, t->be, g.rows, g.window, t->max_rows, t->max_seqs, e)) return -1;
    t->batch.slice = t->slice;
    t->engine.reach = reach, t->engine.brings = brings, t->engine.context = &t->params;
    if (setup_is_lora(t) && t->lora.config.dora && !t->o->adapter_name_or_path) params_magnitudes(&t->params);
    char a[32], b[32];
    int64_t all = model_numbers(&t->model.config) + (setup_is_lora(t) ? t->params.total : 0);
    log_info("trainable params: %s || all params: %s || trainable%%: %.4f", text_thousands(a, t->params.total),
             text_thousands(b, all), 100.0 * (double)t->params.total / (double)all);
    return 0;
}

void setup_close(struct trainer *t) {
    struct err late = {0};
    (void)state_saved(t, 1, &late); /* only where the run failed already; its own error is the one to tell */
    report_close(t->report);
    batch_close(&t->batch), engine_close(&t->engine), params_close(&t->params), lora_free(&t->lora), model_free(&t->model);
    sampler_close(t->sampler), data_stream_close(t->stream), data_free(t->train), data_free(t->eval), tok_close(t->tok);
    sys_free(t->sequences);
    sys_free(t->counts.rows), sys_free(t->counts.documents), sys_free(t->eval_counts.rows), sys_free(t->eval_counts.documents);
    backend_close(t->be);
}
