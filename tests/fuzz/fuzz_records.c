/* tests/fuzz/fuzz_records.c - a data file of any bytes, from the scanner to ids. The first byte chooses the
 * shape of the file, the format of its records and the era. What comes out must be consistent, whatever it
 * is. */
#include "base/log.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static struct tok *small_tok(void) {
    static struct tok *t;
    if (t) return t;
    const struct tok_piece piece[] = {
        {"\xe2\x96\x81", -1}, {"<eod>", 0}, {"<sep>", 0}, {"a", -2}, {"b", -3}, {"ab", -4}};
    struct str model = {0};
    if (!tok_model_write(piece, 6, &model, NULL)) t = tok_parse(model.p, model.n, "fuzz", NULL);
    str_free(&model);
    need(t != NULL, "no tokenizer");
    return t;
}

static const struct source sources[4] = {
    {.format = FORMAT_ALPACA,
     .column = {[COL_PROMPT] = "instruction",
                [COL_QUERY] = "input",
                [COL_RESPONSE] = "output",
                [COL_HISTORY] = "history",
                [COL_SYSTEM] = "system"}},
    {.format = FORMAT_SHAREGPT,
     .column = {[COL_MESSAGES] = "conversations", [COL_SYSTEM] = "system", [COL_TOOLS] = "tools"},
     .tag = {"from", "value", "human", "gpt", "observation", "function_call", "system"}},
    {.format = FORMAT_IDS},
    {.format = FORMAT_ALPACA, .column = {[COL_PROMPT] = "text"}},
};

/* In place of the last one for JSON. */
static const struct source openai = {
    .format = FORMAT_SHAREGPT, .openai = 1,
    .column = {[COL_MESSAGES] = "messages", [COL_TOOLS] = "tools"},
    .tag = {"role", "content", "user", "assistant", "tool", "function_call", "system"}};

static void check_encoded(const struct encoded *x) {
    int32_t labelled = 0;
    need(x->ids.n == x->labels.n && (size_t)x->row.n == x->ids.n, "ids and labels differ in number");
    for (size_t i = 0; i < x->ids.n; i++) {
        need(x->ids.p[i] >= 0 && x->ids.p[i] < tok_count(small_tok()), "an id outside the vocabulary");
        need(x->labels.p[i] >= 0 ? x->labels.p[i] < tok_count(small_tok()) : x->labels.p[i] == IGNORE_LABEL,
             "a label");
        labelled += x->labels.p[i] != IGNORE_LABEL;
    }
    need(labelled == x->row.labelled, "labels are counted wrong");
    need(!x->row.drop || (!x->row.n && *x->why), "a dropped record has ids, or no reason");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e = {0};
    struct record r;
    int64_t count = 0, line = 0, bytes = 0;
    int found = -1;
    log_quiet = 1;
    if (!size) return 0;
    const char *path = fuzz_file("records", data + 1, size - 1);
    const int choice = data[0];
    static const enum shape shapes[4] = {SHAPE_LINES, SHAPE_CSV, SHAPE_TEXT, SHAPE_ROWS};
    struct data_config c = {.compat_new = choice >> 4 & 1,
                            .stage = choice >> 5 & 1 ? STAGE_PT : STAGE_SFT,
                            .mask_history = choice >> 6 & 1,
                            .train_on_prompt = choice >> 7 & 1,
                            .cutoff_len = 60};
    struct encoder k;
    encoder_init(&k, &c, small_tok());
    struct reader *reader = reader_open(path, shapes[choice & 3], &e);
    while (reader && (found = reader_next(reader, &r, &e)) > 0) {
        struct encoded x = {0};
        need(r.number == ++count && r.line >= line && r.column >= 1 && r.n > 0, "numbers of a record");
        line = r.line;
        bytes += r.verbatim ? (int64_t)r.n : 0;
        encode_record(&k, (choice & 15) == 12 ? &openai : sources + (choice >> 2 & 3), &r, &x);
        need(x.e.code == 0 || (x.e.code == ERR_INPUT && strstr(x.e.text, ": record ")),
             "an error without its place");
        if (!x.e.code) check_encoded(&x);
        encoded_free(&x);
    }
    need(bytes <= (int64_t)size, "more than the file holds");
    need((found < 0) == (e.code != 0), "verdict and error disagree");
    reader_close(reader);
    return 0;
}

static const char *const words[] = {"instruction", "input", "output", "history", "system", "conversations", "tools", "from", "value", "human", "gpt", "observation", "function_call", "system", "text", "ids", "labels", "<eod>",
    "<sep>", "a b", "", "\\n", "[{\\\"name\\\":\\\"f\\\",\\\"arguments\\\":{}}]", "{{content}}", "role", "content", "messages", "user", "assistant", "tool", "tool_calls", "function", "name", "arguments", "{\\\"x\\\":[1.5e3,\\\"\\\\n\\\"]}", "-100", "\xe4\xbd\xa0"};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (n < 2 || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return 1 + (data[0] & 3 ? mutate_lines : mutate_json)(&m, data + 1, n - 1, max - 1, words, sizeof words / sizeof *words);
}
MUTATORS_END
