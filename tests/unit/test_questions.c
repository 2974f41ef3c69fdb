/* Multiple-choice files: the three published forms, what Excel makes of them, and rows that are no questions. */
#include "base/file.h"
#include "base/sys.h"
#include "datasets/questions.h"
#include "tests/test.h"
#include <errno.h>
#include <unistd.h>

static const char *file_of(const char *text, size_t n) {
    static char path[40];
    struct err e = {0};
    snprintf(path, sizeof path, "/tmp/qlora-questions-%d.csv", (int)getpid());
    if (file_write_all(path, text, n, &e)) abort();
    return path;
}
static int read_text(const char *text, struct questions *v, struct err *e) {
    *e = (struct err){0};
    int r = questions_read(file_of(text, strlen(text)), v, e);
    unlink(file_of("", 0));
    return r;
}

static const struct { const char *what, *text; } forms[] = {
    {"MMLU", "Q one,w,x,y,z,B\nQ two,\"a, \"\"b\"\"\",,c,\"d\ne\",D\n"},
    {"C-Eval", "id,question,A,B,C,D,answer,explanation\n0,Q one,w,x,y,z,B,why\n1,Q two,\"a, \"\"b\"\"\",,c,\"d\ne\",D,\n"},
    {"CMMLU", ",Question,A,B,C,D,Answer\n0,Q one,w,x,y,z,B\n1,Q two,\"a, \"\"b\"\"\",,c,\"d\ne\",D\n"},
    {"byte order mark, CRLF", "\xef\xbb\xbfquestion,A,B,C,D,answer\r\nQ one,w,x,y,z,B\r\n\r\nQ two,\"a, \"\"b\"\"\",,c,\"d\ne\", D \r\n"},
    {"another order, no line end", "Answer,D,C,B,A,QUESTION\nB,z,y,x,w,Q one\nD,\"d\ne\",c,,\"a, \"\"b\"\"\",Q two"},
};

TEST(forms_of_one_file) {
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct questions v;
        struct err e;
        REQUIRE(!read_text(forms[i].text, &v, &e), "%s: %s", forms[i].what, e.text);
        CHECK(v.n == 2, "%s: %d questions", forms[i].what, (int)v.n);
        if (v.n == 2) {
            const struct question *p = &v.q[0], *q = &v.q[1];
            CHECK(!strcmp(p->text, "Q one") && !strcmp(p->choice[0], "w") && !strcmp(p->choice[3], "z") && p->answer == 1, "%s: the first", forms[i].what);
            CHECK(!strcmp(q->text, "Q two") && !strcmp(q->choice[0], "a, \"b\"") && !strcmp(q->choice[1], "") && !strcmp(q->choice[2], "c") &&
                      !strcmp(q->choice[3], "d\ne") && q->answer == 3, "%s: the second", forms[i].what);
        }
        questions_free(&v);
    }
}

TEST(answers_kept_secret) {
    struct questions v;
    struct err e;
    REQUIRE(!read_text("id,question,A,B,C,D\n7,Q,1,2,3,4\n", &v, &e), "%s", e.text);
    CHECK(v.n == 1 && v.q[0].answer == -1, "no column");
    questions_free(&v);
    REQUIRE(!read_text("Q,1,2,3,4\nQ,1,2,3,4,\n", &v, &e), "%s", e.text);
    CHECK(v.n == 2 && v.q[0].answer == -1 && v.q[1].answer == -1, "no cell");
    questions_free(&v);
}

TEST(rows_that_are_no_questions) {
    static const struct { const char *text, *sentence; } bad[] = {
        {"Q,1,2,3,4,E\n", ".csv:1:1: record 1: the answer is \"E\""},
        {"Q,1,2,3,4,A\nQ,1,2,3,4,AB\n", ".csv:2:1: record 2: the answer is \"AB\""},
        {",1,2,3,4,A\n", "there is no question"},
        {"id,question,A,B,C,D,answer\n0,,1,2,3,4,A\n", "record 2: there is no question"},
        {"id,question,A,B,C,answer\n0,q,1,2,3,A\n", "the answer is \"answer\""}, /* no D: not a header */
        {"\"Q,1\n", "never closed"},
        {"Q,\xff,2,3,4,A\n", "is not UTF-8"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct questions v;
        struct err e;
        CHECK(read_text(bad[i].text, &v, &e) == -1 && e.code == ERR_INPUT && strstr(e.text, bad[i].sentence), "%s: %s", bad[i].text, e.text);
        CHECK(!v.n && !v.q, "nothing is left");
    }
}

TEST(no_memory) {
    int failed = 0;
    for (int64_t at = 1; at <= 60; at++) {
        struct questions v;
        struct err e = {0};
        const char *path = file_of(forms[1].text, strlen(forms[1].text));
        sys_fault = (struct sys_fault){.kinds = "aor", .at = at, .error = ENOMEM};
        int r = questions_read(path, &v, &e);
        sys_fault = (struct sys_fault){0};
        failed += r < 0;
        CHECK(r ? e.code != 0 && !v.n : v.n == 2, "call %d: %d %s", (int)at, r, e.text);
        questions_free(&v);
        unlink(path);
    }
    CHECK(failed > 5, "only %d of the calls failed", failed);
}
TEST_MAIN
