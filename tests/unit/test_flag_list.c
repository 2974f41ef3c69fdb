/* tests/run/flags.tsv: every flag that LLaMA-Factory's users know is used, or accepted with a reason, or refused with one; none
 * is unknown, and none is accepted and then not looked at. */
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli_internal.h"
#include "tests/test.h"
#include <unistd.h>

enum { ROWS_MAX = 400, WORDS = 40 };
static struct { char *flag, *value, *outcome, *with; } rows[ROWS_MAX];
static int row_count;

__attribute__((constructor)) static void read_list(void) {
    static char *text;
    size_t n;
    struct err e = {0};
    char *tab;
    if (file_read_all("tests/run/flags.tsv", 1 << 20, &text, &n, &e)) return;
    for (char *line = strtok(text, "\n"); line && row_count < ROWS_MAX; line = strtok(NULL, "\n")) {
        if (*line == '#') continue;
        char **part[] = {&rows[row_count].flag, &rows[row_count].value, &rows[row_count].outcome, &rows[row_count].with};
        for (int i = 0; i < 4; i++) {
            *part[i] = line;
            if ((tab = strchr(line, '\t'))) *tab = 0, line = tab + 1;
            else line = line + strlen(line);
        }
        row_count++;
    }
}

/* Parses the guide's flags, --flag value, and what goes with it. What is said on standard error is kept. */
static char said[4000];
static int parse(const char *flag, const char *value, const char *with, struct options *o, struct err *e) {
    static char text[2000], spelled[100];
    char *argv[WORDS], *next;
    int argc = 0;
    snprintf(text, sizeof text, "--stage sft --model_name_or_path . --dataset d --output_dir o --lora_target all %s", with);
    for (char *p = strtok_r(text, " ", &next); p; p = strtok_r(NULL, " ", &next)) argv[argc++] = p;
    snprintf(spelled, sizeof spelled, "--%s", flag ? flag : "");
    if (flag) argv[argc++] = spelled, argv[argc++] = (char *)(uintptr_t)value;
    fflush(stderr);
    int old = dup(2), log = fileno(tmpfile());
    dup2(log, 2);
    *e = (struct err){0};
    int rc = options_parse(CMD_TRAIN, argc, argv, o, e);
    fflush(stderr);
    dup2(old, 2);
    close(old);
    ssize_t n = pread(log, said, sizeof said - 1, 0);
    said[n > 0 ? n : 0] = 0;
    return rc;
}

/* The field of a flag as text. */
static const char *field(const struct options *o, const struct flag *f) {
    static char text[2][100];
    static int turn;
    char *t = text[turn ^= 1];
    const void *at = (const char *)o + f->at;
    const char *word = NULL;
    double x;
    int64_t i;
    int k;
    switch (f->kind) {
    case FLAG_BOOL:
    case FLAG_CHOICE: memcpy(&k, at, sizeof k), snprintf(t, 100, "%d", k); return t;
    case FLAG_NUM: memcpy(&x, at, sizeof x), snprintf(t, 100, "%.17g", x); return t;
    case FLAG_WORD:
    case FLAG_LIST:
    case FLAG_TEXT: memcpy(&word, at, sizeof word), snprintf(t, 100, "%s", word ? word : "(none)"); return t;
    default: memcpy(&i, at, sizeof i), snprintf(t, 100, "%lld", (long long)i); return t;
    }
}

static void check_used(int r, const struct flag *f) {
    struct options without, with;
    struct err e;
    char file[] = "/tmp/qlora-flag-XXXXXX";
    const char *value = rows[r].value;
    if (!strcmp(value, "FILE")) {
        int fd = mkstemp(file);
        REQUIRE(fd >= 0 && write(fd, "{}", 2) == 2, "no file");
        close(fd);
        value = file;
    }
    REQUIRE(!parse(NULL, NULL, "", &without, &e), "%s", e.text);
    int rc = parse(rows[r].flag, value, rows[r].with, &with, &e);
    unlink(file);
    CHECK(!rc, "%s %s: %s", rows[r].flag, value, e.text);
    if (!rc && f->fallback && !strcmp(f->fallback, value)) CHECK(!strcmp(field(&with, f), field(&without, f)), "%s", f->name);
    else if (!rc) CHECK(strcmp(field(&with, f), field(&without, f)), "%s %s changes nothing: %s", rows[r].flag, value, field(&with, f));
    CHECK(!strstr(said, "ignored:") || !strstr(said, rows[r].flag) || !strcmp(rows[r].flag, "report_to"), "%s: %s", rows[r].flag, said);
    options_free(&without), options_free(&with);
}

TEST(every_flag_does_what_the_list_says) {
    REQUIRE(row_count > 150, "tests/run/flags.tsv holds %d flags; run from the project's folder", row_count);
    for (int r = 0; r < row_count; r++) {
        struct options o = {0};
        struct err e = {0};
        int no, row = flag_find(CMD_TRAIN, rows[r].flag, &no, &e);
        CHECK(row >= 0, "%s: %s", rows[r].flag, e.text);
        if (row < 0) continue;
        const struct flag *f = &flags[row];
        if (!strcmp(rows[r].outcome, "used")) {
            CHECK(f->status == USED, "%s is not used", f->name);
            if (f->status == USED) check_used(r, f);
        } else if (!strcmp(rows[r].outcome, "inert")) {
            char line[200];
            snprintf(line, sizeof line, "%s (%s)", f->name, f->help);
            int rc = parse(rows[r].flag, rows[r].value, rows[r].with, &o, &e);
            CHECK(!rc && strstr(said, "ignored: ") && strstr(said, line), "%s: \"%s\", %s", rows[r].flag, said, e.text);
            options_free(&o);
        } else if (!strcmp(rows[r].outcome, "refused")) {
            CHECK(parse(rows[r].flag, rows[r].value, rows[r].with, &o, &e) == -1 && e.code == ERR_INPUT && strstr(e.text, f->help) && strstr(e.text, f->name),
                  "%s: %s", rows[r].flag, e.text);
            options_free(&o);
        } else
            CHECK(0, "%s: outcome \"%s\"", rows[r].flag, rows[r].outcome);
    }
}

static int listed(const char *name, size_t n, int begins) {
    for (int r = 0; r < row_count; r++)
        if (!strncmp(rows[r].flag, name, n) && (begins || !rows[r].flag[n])) return 1;
    return 0;
}

/* Words in the first cells of those tables that are no flags: remarks and values. */
static int prose(const char *word, size_t n) {
    static const char *const words[] = {"default", "else", "false", "flag", "for", "from", "hinge", "mid", "mlp", "model", "name", "none", "old",
                                        "removed", "sigmoid", "train", "true", "variants", "very"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strlen(words[i]) == n && !strncmp(words[i], word, n)) return 1;
    return 0;
}

/* The first cells of the tables of sections 1.1 to 1.4 name flags: all words but those of remarks, a trailing * for all that begin so. */
TEST(the_list_is_complete) {
    char path[1200], *text;
    size_t n;
    struct err e = {0};
    int seen = 0;
    if (!shared_dir()) SKIP("no shared folder");
    snprintf(path, sizeof path, "%s/spec/llamafactory.md", shared_dir());
    if (!path_is_file(path)) SKIP("no flag list");
    REQUIRE(!file_read_all(path, 16 << 20, &text, &n, &e), "%s", e.text);
    char *from = strstr(text, "### 1.1"), *to = strstr(text, "## 2."), *next;
    REQUIRE(from && to > from, "sections");
    *to = 0;
    for (char *line = strtok_r(from, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
        if (*line != '|' || text_starts(line, "| flag") || text_starts(line, "|---")) continue;
        char *end = line + 1 + strcspn(line + 1, "|");
        for (char *p = line + 1; p < end;) {
            size_t k = strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789_");
            int star = p[k] == '*', within = p > line + 1 && p[-1] == '*';
            const int word = k > 2 && *p >= 'a' && *p <= 'z' && (p == line + 1 || p[-1] < 'A' || p[-1] > 'Z'), number = strspn(p, "0123456789v") == k;
            if (word && !number && !within && !prose(p, k)) {
                CHECK(listed(p, k, star), "%.*s is not in tests/run/flags.tsv", (int)k, p);
                seen++;
            }
            p += k ? k : 1;
        }
    }
    CHECK(seen > 165, "only %d flags were found in the list", seen);
    sys_free(text);
}
TEST_MAIN
