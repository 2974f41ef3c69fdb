/* Multiple-choice questions: a CSV file, or with '{' first a mapping.json. */
#include "base/file.h"
#include "base/log.h"
#include "datasets/questions.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/mutate.h"

static void mapping(const char *path) {
    struct subjects all;
    struct err e = {0};
    int rc = subjects_read(path, &all, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    for (int64_t i = 0; !rc && i < all.n; i++)
        if (!path_is_basename(all.s[i].id) || !all.s[i].name || !all.s[i].category) abort();
    subjects_free(&all);
}

static void questions(const char *path) {
    struct questions v;
    struct err e = {0};
    int rc = questions_read(path, &v, &e);
    if (rc != (e.code ? -1 : 0)) abort();
    for (int64_t i = 0; !rc && i < v.n; i++) {
        if (!*v.q[i].text || v.q[i].answer < -1 || v.q[i].answer >= CHOICES) abort();
        for (int k = 0; k < CHOICES; k++)
            if (!v.q[i].choice[k] || strlen(v.q[i].choice[k]) > 65536) abort();
    }
    questions_free(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = fuzz_file("questions", data, size);
    log_quiet = 1;
    if (size && *data == '{') mapping(path);
    else questions(path);
    return 0;
}

static const char *const words[] = {"question,A,B,C,D,answer", "id,question,A,B,C,D,answer,explanation", "Q,a,b,c,d,A", "\"a \"\"b\"\", c\",1,2,3,4,D", "name", "category", "STEM", "Other", "law", "../law", ".", ",,,,,", "\xef\xbb\xbf"};
MUTATORS_BEGIN
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max, unsigned seed) {
    struct mutator m = mutate_begin(seed);
    if (!n || mutate_plain(&m)) return LLVMFuzzerMutate(data, n, max);
    return (*data == '{' ? mutate_json : mutate_lines)(&m, data, n, max, words, sizeof words / sizeof *words);
}
MUTATORS_END
