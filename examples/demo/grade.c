/* examples/demo/grade.c - counts right answers.
 *
 *     grade held_out.json answers.jsonl
 *
 * held_out.json is the data set (instruction, output), answers.jsonl what `qlora chat --file .. --json` printed for its
 * questions (prompt, answer), in the same order. An answer is right when it is the expected text, to the letter.
 */
#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "base/sys.h"
#include <stdio.h>
#include <string.h>

enum { FILE_MAX_BYTES = 1 << 24, SHOWN = 4 };

/* A column of a table: printf counts bytes, a terminal shows Chinese characters two columns wide. */
static void print_column(const char *text, int columns) {
    const size_t n = strlen(text);
    for (size_t i = 0; i < n; columns--) {
        uint32_t c = 0;
        const int len = utf8_get((const unsigned char *)text + i, n - i, &c);
        i += len ? (size_t)len : 1;
        columns -= c >= 0x1100;
    }
    printf("%s%*s", text, columns > 0 ? columns : 0, "");
}

int main(int argc, char **argv) {
    struct err e = {0};
    struct cJSON *set = NULL, *line = NULL;
    char *answers = NULL;
    size_t n, at = 0;
    int right = 0, count = 0;
    if (argc != 3) return fprintf(stderr, "usage: grade DATA.json ANSWERS.jsonl\n"), ERR_INPUT;
    if (!(set = json_parse_file(argv[1], FILE_MAX_BYTES, &e)) ||
        file_read_all(argv[2], FILE_MAX_BYTES, &answers, &n, &e))
        goto out;
    const int total = cJSON_GetArraySize(set);
    for (const struct cJSON *record = set->child; record; record = record->next, count++) {
        const char *question = "", *want = "", *prompt = "", *answer = "";
        const char *end = memchr(answers + at, '\n', n - at);
        if (!end) {
            err_set(&e, ERR_INPUT, "%s: %d answers to %d questions", argv[2], count, total);
            goto out;
        }
        line = json_parse(answers + at, (size_t)(end - answers) - at, argv[2], &e);
        at = (size_t)(end - answers) + 1;
        if (!line || json_str(record, "instruction", &question, argv[1], &e) < 0 ||
            json_str(record, "output", &want, argv[1], &e) < 0 ||
            json_str(line, "prompt", &prompt, argv[2], &e) < 0 ||
            json_str(line, "answer", &answer, argv[2], &e) < 0)
            goto out;
        if (strcmp(question, prompt)) {
            err_set(&e, ERR_INPUT, "%s line %d answers another question: %s", argv[2], count + 1, prompt);
            goto out;
        }
        const int is_right = !strcmp(want, answer);
        right += is_right;
        if (count % (total / SHOWN + 1) == 0) { /* a few, of different kinds */
            fputs("   ", stdout);
            print_column(question, 38);
            print_column(answer, 28);
            printf("%s%s\n", is_right ? "right" : "wrong: ", is_right ? "" : want);
        }
        json_free(line);
        line = NULL;
    }
    printf("   %d of %d answers are right: %.1f %%\n", right, count, count ? 100.0 * right / count : 0);
out:
    json_free(line);
    json_free(set);
    sys_free(answers);
    return e.code ? err_print(&e) : 0;
}
