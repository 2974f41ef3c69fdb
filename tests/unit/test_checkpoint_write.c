/* Writing: round trips, shards and index, and what is left on disk after any call has failed. */
#include "base/file.h"
#include "base/json.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "tests/test.h"
#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[40];

/* An empty directory, in memory where there is one: the sweeps sync thousands of times. */
static void set_up(void) {
    if (*dir) {
        if (dir_remove(dir, NULL) || dir_make(dir, NULL)) abort();
        return;
    }
    strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/qlora-test-XXXXXX" : "/dev/shm/qlora-test-XXXXXX");
    if (!mkdtemp(dir)) abort();
}

__attribute__((destructor)) static void tear_down(void) {
    if (*dir) dir_remove(dir, NULL);
}

enum { TENSORS = 9 };
static const struct {
    const char *name;
    enum dtype type;
    int rank;
    int64_t shape[3];
    int joined;
} tensors[TENSORS] = {{"z.weight", DT_BF16, 2, {16, 8}, 0}, {"b", DT_F32, 1, {7}, 0},
                      {"q.weight", DT_U8, 2, {100, 1}, 0},  {"q.weight.absmax", DT_F32, 1, {50}, 1},
                      {"q.weight.state", DT_U8, 1, {3}, 1}, {"scalar", DT_I64, 0, {0}, 0},
                      {"empty", DT_F16, 2, {0, 5}, 0},      {"a \"name\" \xc3\xa9", DT_BOOL, 3, {2, 3, 4}, 0},
                      {"last", DT_F64, 1, {20}, 0}};

static int64_t bytes_of(int i) {
    int64_t n = (int64_t)dtype_bytes(tensors[i].type);
    for (int k = 0; k < tensors[i].rank; k++) n *= tensors[i].shape[k];
    return n;
}

static unsigned char byte_of(int i, int64_t k, int seed) {
    return (unsigned char)(i * 31 + k * 7 + seed);
}

/* Writes the model above; payload in pieces of an odd size, across tensors. */
static int save(const char *name, int64_t shard_bytes, int seed, struct err *e) {
    unsigned char all[4096];
    int64_t n = 0;
    struct ckpt_writer *w = ckpt_create(dir, name, shard_bytes, e);
    if (!w) return -1;
    for (int i = 0; i < TENSORS; i++) {
        if (tensors[i].joined) ckpt_same_shard(w);
        if (ckpt_declare(w, tensors[i].name, tensors[i].type, tensors[i].rank, tensors[i].shape, e))
            goto fail;
        for (int64_t k = 0; k < bytes_of(i); k++) all[n++] = byte_of(i, k, seed);
    }
    for (int64_t at = 0, piece; at < n; at += piece) {
        piece = n - at < 61 ? n - at : 61;
        if (ckpt_write(w, all + at, piece, e)) goto fail;
    }
    return ckpt_commit(w, e);
fail:
    ckpt_abort(w);
    return -1;
}

/* 1 if the model in dir reads back as save wrote it with this seed. */
static int is_saved(const char *file, int seed, int shards) {
    struct err e = {0};
    char path[200], seen[TENSORS][200];
    int ok = 1, files = 0;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    struct ckpt *c = ckpt_open(path, &e);
    if (!c) return 0;
    ok = ckpt_count(c) == TENSORS;
    for (int i = 0; i < TENSORS; i++) {
        unsigned char got[400];
        const struct ckpt_tensor *t = ckpt_find(c, tensors[i].name);
        if (!t || t->type != tensors[i].type || t->rank != tensors[i].rank ||
            ckpt_read_all(c, t, t->type, got, &e)) {
            ok = 0;
            break;
        }
        for (int k = 0; k < t->rank; k++) ok &= t->shape[k] == tensors[i].shape[k];
        for (int64_t k = 0; k < bytes_of(i); k++) ok &= got[k] == byte_of(i, k, seed);
        int known = 0;
        for (int k = 0; k < files; k++) known |= !strcmp(seen[k], ckpt_file(c, t));
        if (!known) snprintf(seen[files++], sizeof seen[0], "%s", ckpt_file(c, t));
        if (tensors[i].joined) ok &= t->file == ckpt_find(c, tensors[i - 1].name)->file;
    }
    ckpt_close(c);
    return ok && (!shards || files == shards);
}

static int entries(void) {
    char **names;
    int n = -1;
    if (dir_list(dir, &names, &n, NULL)) return -1;
    dir_list_free(names, n);
    return n;
}

TEST(one_file) {
    struct err e = {0};
    set_up();
    REQUIRE(!save("model", 0, 1, &e), "%s", e.text);
    CHECK(is_saved("model.safetensors", 1, 1) && is_saved("", 1, 1), "not the same");
    CHECK(entries() == 1, "%d files", entries());
    char *text, path[200];
    size_t n;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    REQUIRE(!file_read_all(path, 1 << 20, &text, &n, &e), "%s", e.text);
    CHECK(text[0] % 8 == 0 &&
              strstr(text + 8, "{\"__metadata__\":{\"format\":\"pt\"},\"z.weight\":") == text + 8,
          "%.100s", text + 8);
    sys_free(text);
    REQUIRE(!save("model", 1 << 30, 2, &e) && is_saved("", 2, 1) && entries() == 1,
            "a large limit gives one file");
}

TEST(payloads_begin_at_multiples_of_8) {
    for (int length = 1; length <= 8; length++) {
        struct err e = {0};
        char name[9] = "abcdefgh", path[200], *text;
        size_t n;
        name[length] = 0;
        set_up();
        struct ckpt_writer *w = ckpt_create(dir, "model", 0, &e);
        REQUIRE(w && !ckpt_declare(w, name, DT_U8, 1, (int64_t[]){3}, &e) && !ckpt_write(w, "abc", 3, &e) && !ckpt_commit(w, &e), "%s", e.text);
        snprintf(path, sizeof path, "%s/model.safetensors", dir);
        REQUIRE(!file_read_all(path, 1 << 20, &text, &n, &e), "%s", e.text);
        CHECK(text[0] % 8 == 0 && n % 8 == 3 && !memcmp(text + n - 3, "abc", 3), "a name of %d bytes: a header of %d", length, text[0]);
        sys_free(text);
    }
}

TEST(a_shard_takes_what_fits_exactly) {
    struct err e = {0};
    char path[200];
    set_up();
    struct ckpt_writer *w = ckpt_create(dir, "model", 8, &e);
    REQUIRE(w, "%s", e.text);
    for (int i = 0; i < 4; i++) REQUIRE(!ckpt_declare(w, (const char *const[]){"a", "b", "c", "d"}[i], DT_U8, 1, (int64_t[]){4}, &e), "%s", e.text);
    REQUIRE(!ckpt_write(w, "0123456789abcdef", 16, &e) && !ckpt_commit(w, &e), "%s", e.text);
    snprintf(path, sizeof path, "%s/model-00002-of-00002.safetensors", dir);
    CHECK(path_exists(path) && entries() == 3, "%d entries", entries());
}

TEST(shards) {
    struct err e = {0};
    char path[200];
    int64_t total = 0, got = 0;
    set_up();
    REQUIRE(!save("model", 300, 3, &e), "%s", e.text);
    /* 256+28 | 100+200+3 | 8+0+24+160: the quantised matrix is larger than a shard and stays together */
    CHECK(is_saved("", 3, 3) && is_saved("model.safetensors.index.json", 3, 3), "not the same");
    CHECK(entries() == 4, "%d files", entries());
    for (int i = 0; i < TENSORS; i++) total += bytes_of(i);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    struct cJSON *j = json_parse_file(path, 1 << 20, &e);
    REQUIRE(j, "%s", e.text);
    CHECK(json_int(json_get(j, "metadata"), "total_size", 0, 1 << 20, &got, "", &e) == 1 && got == total,
          "total %lld", (long long)got);
    const struct cJSON *map = json_get(j, "weight_map"), *first = map ? map->child : NULL;
    CHECK(cJSON_GetArraySize(map) == TENSORS && first && !strcmp(first->string, tensors[7].name),
          "sorted by name");
    json_free(j);
    snprintf(path, sizeof path, "%s/model-00002-of-00003.safetensors", dir);
    REQUIRE(!unlink(path), "no second shard");
    CHECK(!ckpt_open(dir, &e) && strstr(e.text, "model-00002-of-00003.safetensors"), "%s", e.text);
}

/* A save in the other form leaves nothing that a reader could take for the model. */
TEST(forms_replace_each_other) {
    struct err e = {0};
    set_up();
    REQUIRE(!save("model", 300, 1, &e) && !save("model", 0, 2, &e), "%s", e.text);
    CHECK(is_saved("", 2, 1), "the old index is still taken");
    REQUIRE(!save("model", 300, 3, &e), "%s", e.text);
    CHECK(is_saved("", 3, 3) && !is_saved("model.safetensors", 2, 1), "the old file is still there");
    REQUIRE(!save("model", 300, 4, &e) && is_saved("", 4, 3), "same names again: %s", e.text);
}

TEST(no_tensors) {
    struct err e = {0};
    set_up();
    struct ckpt_writer *w = ckpt_create(dir, "model", 0, &e);
    REQUIRE(w && !ckpt_commit(w, &e), "%s", e.text);
    struct ckpt *c = ckpt_open(dir, &e);
    CHECK(c && !ckpt_count(c), "%s", e.text);
    ckpt_close(c);
}

TEST(too_large_for_the_disk) {
    struct err e = {0};
    const int64_t shape[] = {1ll << 60};
    set_up();
    struct ckpt_writer *w = ckpt_create(dir, "model", 0, &e);
    REQUIRE(w && !ckpt_declare(w, "w", DT_U8, 1, shape, &e), "%s", e.text);
    CHECK(ckpt_write(w, "x", 1, &e) && e.code == ERR_RUN && strstr(e.text, dir) &&
              strstr(e.text, "1152921504606847"),
          "%s", e.text);
    ckpt_abort(w);
    CHECK(!entries(), "%d files", entries());
    w = ckpt_create(dir, "model", 0, &e);
    REQUIRE(w, "%s", e.text);
    e.code = 0;
    CHECK(ckpt_declare(w, "w", DT_F64, 1, shape, &e), "2^63 bytes are accepted");
    ckpt_abort(w);
}

/* Every call of every kind fails, once and for good: the model that was there is intact, or (rename, unlink:
 * the end of a sharded commit) there is none, but never a mixture; no temporary file is left unless removing
 * itself failed. */
static void sweep(const char *name, int64_t shard_bytes, const char *kinds, int error, int sticky) {
    struct err e = {0};
    int shards = shard_bytes ? 3 : 1;
    for (int64_t n = 1, done = 0; !done; n++) {
        set_up();
        REQUIRE(!save(name, shard_bytes, 1, &e), "%s", e.text);
        int before = entries();
        struct err mine = {0};
        sys_fault = (struct sys_fault){.at = n, .error = error, .sticky = sticky};
        snprintf(sys_fault.kinds, sizeof sys_fault.kinds, "%s", kinds);
        int rc = save(name, shard_bytes, 2, &mine);
        done = sys_fault.calls < n;
        sys_fault.at = 0;
        REQUIRE(n < 3000, "no end");
        if (done || error == SYS_SHORT) {
            CHECK(!rc && is_saved("", 2, shards), "%s at %lld: %s", kinds, (long long)n, mine.text);
            continue;
        }
        if (rc)
            CHECK(mine.code == ERR_RUN && mine.text[0], "%s at %lld: no message", kinds, (long long)n);
        else
            CHECK(is_saved("", 2, shards), "%s at %lld: reported as done", kinds, (long long)n);
        if (rc && strchr("awo", *kinds) && !strstr(mine.text, "memory"))
            CHECK(strstr(mine.text, dir), "%s at %lld: '%s' does not name the path", kinds, (long long)n,
                  mine.text);
        int old = is_saved("", 1, shards), new = is_saved("", 2, shards);
        if (shards == 1 || !strchr("naocsu", *kinds))
            CHECK(old || new, "%s at %lld: the model is gone", kinds, (long long)n);
        if (!old && !new)
            CHECK(!ckpt_open(dir, &mine), "%s at %lld: a mixture can be opened", kinds, (long long)n);
        if (*kinds != 'u')
            CHECK(entries() <= before, "%s at %lld: %d files, %d before", kinds, (long long)n, entries(),
                  before);
    }
}

TEST(faults_of_one_file) {
    sweep("model", 0, "w", ENOSPC, 0), sweep("model", 0, "w", EIO, 1), sweep("model", 0, "w", SYS_SHORT, 1);
    sweep("model", 0, "s", EIO, 0), sweep("model", 0, "c", EIO, 0), sweep("model", 0, "n", EIO, 0);
    sweep("model", 0, "o", EMFILE, 0), sweep("model", 0, "a", ENOMEM, 0), sweep("model", 0, "u", EIO, 0);
}

TEST(faults_of_shards) {
    sweep("model", 300, "w", ENOSPC, 0), sweep("model", 300, "w", EIO, 1),
        sweep("model", 300, "w", SYS_SHORT, 1);
    sweep("model", 300, "s", EIO, 0), sweep("model", 300, "c", EIO, 0), sweep("model", 300, "n", EIO, 0);
    sweep("model", 300, "o", EMFILE, 0), sweep("model", 300, "a", ENOMEM, 0),
        sweep("model", 300, "u", EIO, 0);
}

/* The process dies at every system call in turn. */
TEST(kills) {
    for (int sharded = 0; sharded < 2; sharded++)
        for (int64_t n = 1, done = 0; !done; n++) {
            struct err e = {0};
            int status = 0;
            set_up();
            REQUIRE(!save("model", sharded * 300, 1, &e), "%s", e.text);
            pid_t child = fork();
            if (!child) {
                sys_fault = (struct sys_fault){.kinds = "owscnu", .at = n, .error = SYS_KILL};
                _exit(save("model", sharded * 300, 2, &e) != 0);
            }
            REQUIRE(child > 0 && waitpid(child, &status, 0) == child && n < 3000, "no child");
            done = WIFEXITED(status);
            int old = is_saved("", 1, sharded ? 3 : 1), new = is_saved("", 2, sharded ? 3 : 1);
            if (done)
                CHECK(new && !WEXITSTATUS(status), "not killed, not saved");
            else if (!sharded)
                CHECK(old || new, "killed at %lld: the model is gone", (long long)n);
            else if (!old && !new)
                CHECK(!ckpt_open(dir, NULL), "killed at %lld: a mixture can be opened", (long long)n);
        }
}

TEST_MAIN
