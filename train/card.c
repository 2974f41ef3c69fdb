/* train/card.c - README.md of an output folder: the front matter that model hubs read, and what was done. */
#include "base/file.h"
#include "train/report.h"
#include <string.h>

/* A YAML string: a JSON string is one. */
static void put_yaml(struct str *s, const char *key, const char *value) {
    str_printf(s, "%s: ", key);
    str_json(s, value, strlen(value));
    str_putc(s, '\n');
}

int report_card(const char *dir, const char *base_model, const char *method, const char *dataset,
                const char *hyperparameters, struct err *e) {
    struct str s = {0};
    char path[4096];
    const int adapter = strcmp(method, "full") != 0;
    const char *name = strrchr(dir, '/');
    name = name && name[1] ? name + 1 : dir;
    str_puts(&s, "---\n");
    put_yaml(&s, "base_model", base_model);
    str_printf(&s, "library_name: %s\nlicense: other\ntags:\n- llama-factory\n",
               adapter ? "peft" : "transformers");
    str_printf(&s, "- %s\n---\n\n# %s\n\n", method, name);
    str_printf(&s, "%s of `%s`, trained on `%s` (method: %s).\n\n",
               adapter ? "An adapter for the weights" : "A fine-tuned copy", base_model, dataset, method);
    if (adapter)
        str_printf(
            &s,
            "Talk to it: `qlora chat --model_name_or_path %s --adapter_name_or_path %s --template yuan`. "
            "PEFT and LLaMA-Factory load this folder as it is.\n\n",
            base_model, dir);
    str_puts(&s, "## Hyperparameters\n\n");
    for (const char *line = hyperparameters; *line;) {
        const size_t n = strcspn(line, "\n");
        if (n) str_printf(&s, "- %.*s\n", (int)n, line);
        line += n + (line[n] == '\n');
    }
    str_puts(&s, "\n## Results\n\nThe course of the run is in `trainer_log.jsonl` and `trainer_state.json`, "
                 "its summary in "
                 "`all_results.json`.\n");
    int r = path_join(path, sizeof path, dir, "README.md", e);
    if (!r && s.oom) r = err_set(e, ERR_RUN, "out of memory: %s", path);
    if (!r) r = file_write_all(path, s.p, s.n, e);
    str_free(&s);
    return r;
}
