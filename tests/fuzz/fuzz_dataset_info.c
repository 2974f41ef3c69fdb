/* tests/fuzz/fuzz_dataset_info.c - dataset_info.json of any bytes. Up to three of its data sets are opened;
 * whatever it says, no file outside the folder is touched, and what is accepted can be worked with. */
#include "base/log.h"
#include "base/sys.h"
#include "datasets/datasets_internal.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static const char *const dir = fuzz_dir;
static char sub[60], table[80];
static void clean(void) { unlink(table), rmdir(sub); }

static void prepare(void) {
    static const char json[] = "[{\"instruction\":\"a\",\"output\":\"b\"}]", csv[] = "instruction,output\na,b\n";
    fuzz_file("a.json", json, sizeof json - 1);
    snprintf(sub, sizeof sub, "%s/sub", dir), snprintf(table, sizeof table, "%s/b.csv", sub);
    atexit(clean); /* runs before the removal of the folder */
    need(!mkdir(sub, 0700), "mkdir");
    const int fd = open(table, O_WRONLY | O_CREAT, 0600);
    need(fd >= 0 && write(fd, csv, sizeof csv - 1) == sizeof csv - 1 && !close(fd), "cannot write");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct str names = {0};
    struct err e = {0};
    struct catalog k;
    const struct cJSON *v;
    int n = 0;
    if (!*sub) prepare();
    log_quiet = 1;
    fuzz_file("dataset_info.json", data, size);
    struct cJSON *j = json_parse((const char *)data, size, "fuzz", NULL);
    cJSON_ArrayForEach(v, j) if (v->string && n++ < 3) str_printf(&names, "%s,", v->string);
    str_puts(&names, n ? "" : "x");
    json_free(j);
    struct data_config c = {.dataset_dir = dir, .compat_new = 1, .stage = size & 1 ? STAGE_PT : STAGE_SFT};
    int rc = catalog_open(&k, &c, names.p, &e);
    need(!rc == !e.code, "verdict and error disagree");
    for (int i = 0; !rc && i < k.count; i++) {
        const struct source *s = k.source + i;
        need(s->file_count > 0 && s->name && *s->name, "a data set without a file");
        for (int f = 0; f < s->file_count; f++) {
            need(!strncmp(s->files[f], dir, strlen(dir)) && !strstr(s->files[f], "/../"),
                 "a file outside the folder");
            need(reader_shape(s->files[f], NULL) != SHAPE_UNKNOWN, "a file that cannot be read");
        }
        if (s->format == FORMAT_SHAREGPT)
            need(s->column[COL_MESSAGES] && s->tag[TAG_ROLE] && s->tag[TAG_CONTENT] && s->tag[TAG_USER] &&
                     s->tag[TAG_ASSISTANT],
                 "sharegpt without its keys");
        if (s->format == FORMAT_ALPACA)
            need(s->column[COL_PROMPT] || s->column[COL_QUERY], "alpaca without a prompt");
    }
    catalog_close(&k);
    str_free(&names);
    return 0;
}

static const char *const words[] = {"file_name", "a.json", "sub/b.csv", "sub", "../a.json", "/etc/passwd", "script_url", "hf_hub_url", "ms_hub_url", "file_sha1", "formatting", "alpaca", "sharegpt", "columns", "prompt", "query",
    "response", "history", "system", "tools", "messages", "conversations", "tags", "role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag", "ranking", "subset", "split", "folder",
    "num_samples", "instruction", "output", "human", "gpt", "value", "from"};
MUTATE_WITH(mutate_json, words)
