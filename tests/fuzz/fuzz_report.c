/* What a run reads back of an earlier one in its folder: trainer_state.json ('s' first), trainer_log.jsonl ('l'), or
 * all_results.json. What is kept must be sound, and what is written must read back. */
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"
#include "train/report.c"

enum { FROM = 5 };

static void history(void) {
    struct report r = {.c = {.from_step = FROM, .state_dir = fuzz_dir}, .best = NAN};
    struct err e = {0};
    int rc = read_history(&r, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    for (int64_t i = 0; !rc && i < r.n; i++)
        if (r.events[i].step < 0 || r.events[i].step > FROM || (isnan(r.events[i].loss) && isnan(r.events[i].eval_loss))) abort();
    forget(&r);
}

static void log_lines(const char *path) {
    struct report r = {.c = {.from_step = FROM}, .best = NAN};
    struct err e = {0};
    char *text;
    size_t n;
    snprintf(r.log_path, sizeof r.log_path, "%s", path);
    int rc = cut_log(&r, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    if (rc || file_read_all(path, 1 << 20, &text, &n, &e)) return;
    if (n && text[n - 1] != '\n') abort();
    sys_free(text);
}

static void results(const char *path) {
    struct report_metrics t = {0};
    struct err e = {0};
    report_set(&t, "train_loss", 1.5);
    int rc = merge_metrics(&t, fuzz_dir, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    struct cJSON *j = rc ? NULL : json_parse_file(path, 1 << 20, &e);
    double x = 0;
    if (!rc && (!j || json_num(j, "train_loss", &x, "fuzz", NULL) != 1 || x < 1.5 || x > 1.5)) abort();
    json_free(j);
}

static char paths[3][80]; /* their writers rename: each file anew for each input */
static void clean(void) {
    for (int i = 0; i < 3; i++) unlink(paths[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"trainer_state.json", "trainer_log.jsonl", "all_results.json"};
    if (!size) return 0;
    log_quiet = 1;
    if (!*paths[0]) {
        fuzz_folder();
        for (int i = 0; i < 3; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", fuzz_dir, names[i]);
        atexit(clean);
    }
    const int kind = *data == 's' ? 0 : *data == 'l' ? 1 : 2;
    const int fd = open(paths[kind], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t)size - 1 || close(fd)) abort();
    if (!kind) history();
    else if (kind == 1) log_lines(paths[1]);
    else results(paths[2]);
    return 0;
}

static const char *const words[] = {"log_history", "step", "epoch", "loss", "eval_loss", "eval_accuracy", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "grad_norm", "learning_rate", "current_steps",
    "total_steps", "train_loss", "train_runtime", "{\"current_steps\": 4}", "{\"current_steps\": 6}", "{\"current_steps\": 5, \"loss\": null}", "null"};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (n < 2 || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return 1 + (*data == 'l' && mutate_pick(&m, 2) ? mutate_lines : mutate_json)(&m, data + 1, n - 1, max - 1, words, sizeof words / sizeof *words);
}
MUTATORS_END
