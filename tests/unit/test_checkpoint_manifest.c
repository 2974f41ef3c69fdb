/* Directories with a MANIFEST: any change is found, and no failure or kill loses the older one. */
#include "base/file.h"
#include "base/sha1.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "tests/test.h"
#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[40];

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

static const char *in(const char *name) {
    static char path[8][300];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, 300, "%s/%s", dir, name);
    return p;
}

/* A checkpoint of two files; the content depends on the step. */
static int save(const char *name, int step, struct err *e) {
    char tmp[300], path[400], facts[60], text[64];
    if (manifest_begin(dir, name, tmp, sizeof tmp, e)) return -1;
    snprintf(facts, sizeof facts, "{\"step\": %d,\n \"hash\": \"ab\"}", step);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", tmp, i ? "weights.safetensors" : "a file");
        snprintf(text, sizeof text, "content %d of step %d", i, step);
        if (file_write_all(path, text, strlen(text), e)) goto fail;
    }
    if (!manifest_commit(dir, name, tmp, facts, e)) return 0;
fail:
    manifest_abort(tmp);
    return -1;
}

static int step_of(const char *name) { /* of a valid checkpoint, otherwise 0 */
    struct err e = {0};
    char *facts;
    int step = 0;
    if (manifest_verify(in(name), &facts, &e) == 1) sscanf(facts, "{\"step\": %d", &step);
    sys_free(facts);
    return step;
}

static int entries(void) {
    char **names;
    int n = -1;
    if (dir_list(dir, &names, &n, NULL)) return -1;
    dir_list_free(names, n);
    return n;
}

TEST(saves_and_replaces) {
    struct err e = {0};
    char *facts = NULL;
    set_up();
    REQUIRE(!save("checkpoint-1", 7, &e), "%s", e.text);
    CHECK(manifest_verify(in("checkpoint-1"), &facts, &e) == 1 &&
              !strcmp(facts, "{\"step\": 7,  \"hash\": \"ab\"}"),
          "%s: %s", facts ? facts : "", e.text);
    sys_free(facts);
    REQUIRE(!save("checkpoint-1", 8, &e) && step_of("checkpoint-1") == 8 && entries() == 1, "%s", e.text);
    REQUIRE(!save("checkpoint-2", 9, &e) && step_of("checkpoint-1") == 8 && step_of("checkpoint-2") == 9,
            "%s", e.text);
}

/* Every bit of every file, the manifest included. */
TEST(any_flipped_bit_is_found) {
    struct err e = {0};
    char **names, *text;
    int count, flips = 0;
    size_t n;
    set_up();
    REQUIRE(!save("c", 7, &e) && !dir_list(in("c"), &names, &count, &e) && count == 3, "%s", e.text);
    for (int i = 0; i < count; i++) {
        char path[400];
        snprintf(path, sizeof path, "%s/c/%s", dir, names[i]);
        REQUIRE(!file_read_all(path, 1 << 20, &text, &n, &e), "%s", e.text);
        for (size_t k = 0; k < n * 8; k++, flips++) {
            text[k / 8] = (char)(text[k / 8] ^ 1 << k % 8);
            FILE *f = fopen(path, "w");
            REQUIRE(f && fwrite(text, 1, n, f) == n && !fclose(f), "cannot write");
            text[k / 8] = (char)(text[k / 8] ^ 1 << k % 8);
            struct err mine = {0};
            char *facts;
            int rc = manifest_verify(in("c"), &facts, &mine);
            CHECK(rc == 0 && !facts && mine.code == ERR_INPUT && strstr(mine.text, "/c"),
                  "%s, bit %zu: %d %s", names[i], k, rc, mine.text);
        }
        FILE *f = fopen(path, "w");
        REQUIRE(f && fwrite(text, 1, n, f) == n && !fclose(f), "cannot write");
        sys_free(text);
    }
    CHECK(step_of("c") == 7 && flips > 1000, "%d flips", flips);
    dir_list_free(names, count);
}

TEST(missing_added_and_shortened_files_are_found) {
    static const struct {
        const char *what, *command, *message;
    } cases[] = {{"missing", "rm '%s/c/a file'", "a file is missing"},
                 {"last missing", "rm '%s/c/weights.safetensors'", "weights.safetensors is missing"},
                 {"added in front", "touch '%s/c/A'", "c/A is not in its MANIFEST"},
                 {"added behind", "touch '%s/c/z'", "c/z is not in its MANIFEST"},
                 {"folder added", "mkdir '%s/c/folder'", "c/folder is not in its MANIFEST"},
                 {"shortened", "truncate -s 5 '%s/c/a file'", "a file has 5 bytes, 19 were written"},
                 {"manifest missing", "rm '%s/c/MANIFEST'", "has no MANIFEST"},
                 {"manifest empty", "truncate -s 0 '%s/c/MANIFEST'", "MANIFEST is damaged"},
                 {"manifest shortened", "truncate -s 120 '%s/c/MANIFEST'", "MANIFEST is damaged"},
                 {"line added", "echo >> '%s/c/MANIFEST'", "MANIFEST is damaged"},
                 {"manifest a folder", "rm '%s/c/MANIFEST'; mkdir '%s/c/MANIFEST'", "has no MANIFEST"},
                 {"file a folder", "rm '%s/c/a file'; mkdir '%s/c/a file'", "a file is missing"},
                 {"file a pipe", "rm '%s/c/a file'; mkfifo '%s/c/a file'", "a file is missing"},
                 {"all gone", "rm -r '%s/c'", "has no MANIFEST"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        char command[200], *facts;
        set_up();
        REQUIRE(!save("c", 7, &e), "%s", e.text);
        snprintf(command, sizeof command, cases[i].command, dir, dir);
        REQUIRE(!system(command), "%s", command);
        CHECK(!manifest_verify(in("c"), &facts, &e) && !facts && strstr(e.text, cases[i].message), "%s: %s",
              cases[i].what, e.text);
    }
}

/* A folder with a file that a ckpt_writer wrote: `content` fills it. */
static int save_tensors(const char *name, float content, int spoil, struct err *e) {
    char tmp[300], command[400];
    float x[1000];
    int64_t n = 1000;
    struct ckpt_writer *w = manifest_begin(dir, name, tmp, sizeof tmp, e) ? NULL : ckpt_create(tmp, "weights", 0, e);
    for (int i = 0; i < 1000; i++) x[i] = content;
    if (!w || ckpt_declare(w, "x", DT_F32, 1, &n, e) || ckpt_write(w, x, 1000, e) || ckpt_write(w, x + 250, 3000, e)) return -1;
    if (ckpt_commit(w, e)) return -1;
    snprintf(command, sizeof command, spoil == 1 ? "printf xy | dd of=%s/weights.safetensors bs=1 seek=500 conv=notrunc status=none" : "printf xy >> %s/weights.safetensors", tmp);
    if (spoil && system(command)) return -1;
    return manifest_commit(dir, name, tmp, "{}", e);
}

/* What a writer wrote is not read again: the checksum is that of what was handed over, as a later reading of the file finds it; and
 * content that is changed behind the writer's back, or a file that changes its size, is told from it. */
TEST(files_are_hashed_while_they_are_written) {
    struct err e = {0};
    char *facts = NULL;
    set_up();
    REQUIRE(!save_tensors("c", 1, 0, &e), "%s", e.text);
    CHECK(manifest_verify(in("c"), &facts, &e) == 1, "%s", e.text);
    sys_free(facts);
    sys_fault = (struct sys_fault){.kinds = "r", .at = INT64_MAX};
    REQUIRE(!save_tensors("c", 2, 0, &e), "%s", e.text);
    int64_t reads = sys_fault.calls;
    sys_fault = (struct sys_fault){.at = 0};
    CHECK(!reads, "%lld reads", (long long)reads);
    CHECK(manifest_verify(in("c"), &facts, &e) == 1, "%s", e.text);
    sys_free(facts);
    REQUIRE(!save_tensors("c", 3, 1, &e), "%s", e.text);
    CHECK(!manifest_verify(in("c"), &facts, &e) && strstr(e.text, "is damaged"), "a file that was changed meanwhile: %s", e.text);
    e = (struct err){0};
    REQUIRE(!save_tensors("c", 4, 2, &e), "%s", e.text);
    CHECK(manifest_verify(in("c"), &facts, &e) == 1, "one that grew is read: %s", e.text);
    sys_free(facts);
}

static int64_t bytes_checked(const char *name, int *valid) { /* read calls beside those for the MANIFEST, one */
    struct err e = {0};
    sys_fault = (struct sys_fault){.kinds = "r", .at = INT64_MAX};
    *valid = manifest_check(in(name), &e);
    int64_t reads = sys_fault.calls - 1;
    sys_fault = (struct sys_fault){.at = 0};
    return reads;
}

/* A look is enough for what this process wrote or read; not for what another one wrote, nor for a MANIFEST that changed. */
TEST(own_folders_are_not_read_again) {
    struct err e = {0};
    int valid, status;
    set_up();
    REQUIRE(!save("c", 7, &e), "%s", e.text);
    CHECK(!bytes_checked("c", &valid) && valid == 1, "own: %d", valid);
    REQUIRE(truncate(in("c/a file"), 5) == 0, "cannot cut");
    CHECK(!bytes_checked("c", &valid) && !valid, "shortened");
    pid_t child = fork();
    if (!child) _exit(save("d", 8, &e) != 0);
    REQUIRE(waitpid(child, &status, 0) == child && !status, "the child failed");
    CHECK(bytes_checked("d", &valid) == 2 && valid == 1, "another's is read");
    CHECK(!bytes_checked("d", &valid) && valid == 1, "once");
    child = fork();
    if (!child) _exit(save("d", 9, &e) != 0);
    REQUIRE(waitpid(child, &status, 0) == child && !status, "the child failed");
    CHECK(bytes_checked("d", &valid) == 2 && valid == 1, "another one of the same name is read");
}

/* A manifest that was made to deceive may name no file outside its directory. */
TEST(hostile_manifests) {
    static const char *const lines[] = {"file %s 0 ../outside\n",
                                        "file %s 0 /etc/hostname\n",
                                        "file %s 0 ..\n",
                                        "file %s 0 \n",
                                        "file %s -1 x\n",
                                        "file %s 99999999999999999999 x\n",
                                        "file zz 0 x\n",
                                        "%s\n",
                                        "\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct err e = {0};
        char text[600], line[200], *facts, hex[41];
        set_up();
        REQUIRE(!dir_make(in("c"), &e) && !file_write_all(in("outside"), "", 0, &e), "%s", e.text);
        REQUIRE(!sha1_file(in("outside"), hex, &e), "%s", e.text);
        snprintf(line, sizeof line, lines[i], hex);
        int n = snprintf(text, sizeof text, "qlora manifest 1\nfacts {}\n%s", line);
        struct sha1 s;
        sha1_init(&s);
        sha1_add(&s, text, (size_t)n);
        sha1_hex(&s, hex);
        n += snprintf(text + n, sizeof text - (size_t)n, "end %s\n", hex);
        REQUIRE(!file_write_all(in("c/MANIFEST"), text, (size_t)n, &e), "%s", e.text);
        int rc = manifest_verify(in("c"), &facts, &e);
        CHECK(!rc && !facts && e.text[0], "'%s': %d %s", line, rc, e.text);
    }
}

TEST(leftovers_of_the_dead_are_removed) {
    struct err e = {0};
    char tmp[300], mine[100];
    int status;
    pid_t child = fork();
    if (!child) _exit(0);
    REQUIRE(waitpid(child, &status, 0) == child, "no child"); /* its number belongs to nobody now */
    set_up();
    char dead[60], dead_old[60];
    snprintf(dead, sizeof dead, ".tmp-checkpoint-3.%d", (int)child);
    snprintf(dead_old, sizeof dead_old, ".tmp-checkpoint-4.%d.old", (int)child);
    snprintf(mine, sizeof mine, ".tmp-other.%d", (int)getppid());
    REQUIRE(!dir_make(in(dead), &e) && !dir_make(in(dead_old), &e) && !dir_make(in(mine), &e) &&
                !dir_make(in(".tmp-"), &e) && !manifest_begin(dir, "checkpoint-9", tmp, sizeof tmp, &e),
            "%s", e.text);
    CHECK(!path_exists(in(dead)) && !path_exists(in(dead_old)), "leftovers stay");
    CHECK(path_exists(in(mine)) && path_exists(in(".tmp-")) && path_is_dir(tmp),
          "somebody else's were removed");
    manifest_abort(tmp);
    CHECK(!path_exists(tmp), "abort leaves it");
}

/* Each call fails: the older checkpoint or the newer one is valid under its name, and an error is reported.
 * */
TEST(faults) {
    static const struct {
        const char *kinds;
        int error, sticky;
    } faults[] = {{"w", ENOSPC, 0}, {"w", ENOSPC, 1}, {"w", SYS_SHORT, 1}, {"s", EIO, 0},
                  {"s", EIO, 1},    {"n", EIO, 0},    {"m", ENOSPC, 0},    {"o", EMFILE, 0},
                  {"a", ENOMEM, 0}, {"r", EIO, 0},    {"u", EIO, 0}};
    for (size_t f = 0; f < sizeof faults / sizeof *faults; f++)
        for (int64_t n = 1, done = 0; !done; n++) {
            struct err e = {0}, mine = {0};
            set_up();
            REQUIRE(!save("c", 1, &e), "%s", e.text);
            sys_fault = (struct sys_fault){.at = n, .error = faults[f].error, .sticky = faults[f].sticky};
            strcpy(sys_fault.kinds, faults[f].kinds);
            int rc = save("c", 2, &mine);
            done = sys_fault.calls < n;
            sys_fault.at = 0;
            REQUIRE(n < 1000, "no end");
            int step = step_of("c");
            if (!rc)
                CHECK(step == 2, "%s at %lld: done, but step %d", faults[f].kinds, (long long)n, step);
            else
                CHECK(mine.code == ERR_RUN && mine.text[0], "%s at %lld: %s", faults[f].kinds, (long long)n,
                      mine.text);
            if (done || faults[f].error == SYS_SHORT)
                CHECK(!rc, "%s at %lld: %s", faults[f].kinds, (long long)n, mine.text);
            CHECK(step, "%s at %lld: no valid checkpoint is left (%s)", faults[f].kinds, (long long)n,
                  mine.text);
        }
}

/* Nothing is renamed that the disk may not have: the two files as they are written, each with its folder, and again under the
 * manifest's eyes, MANIFEST with its folder, that folder, and the one around it. */
TEST(everything_is_synced) {
    struct err e = {0};
    set_up();
    sys_fault = (struct sys_fault){.kinds = "s", .at = INT64_MAX};
    int rc = save("c", 1, &e);
    int64_t calls = sys_fault.calls;
    sys_fault.at = 0;
    CHECK(!rc && calls == 10, "%lld calls of fsync: %s", (long long)calls, e.text);
}

/* The process dies at every system call in turn. Between two renames the older one lies beside under a
 * temporary name; at all other times a valid one has its name, and the next save works. */
TEST(kills) {
    int between = 0;
    for (int64_t n = 1, done = 0; !done; n++) {
        struct err e = {0};
        int status = 0;
        set_up();
        REQUIRE(!save("c-1", 1, &e) && !save("c-2", 2, &e), "%s", e.text);
        pid_t child = fork();
        if (!child) {
            sys_fault = (struct sys_fault){.kinds = "owscnum", .at = n, .error = SYS_KILL};
            _exit(save("c-2", 3, &e) != 0);
        }
        REQUIRE(child > 0 && waitpid(child, &status, 0) == child && n < 1000, "no child");
        done = WIFEXITED(status);
        int step = step_of("c-2");
        between += !step && !path_exists(in("c-2"));
        CHECK(step || !path_exists(in("c-2")), "killed at %lld: c-2 is there but not valid", (long long)n);
        CHECK(step_of("c-1") == 1, "killed at %lld: c-1 is damaged", (long long)n);
        if (done) CHECK(step == 3, "step %d", step);
        REQUIRE(!save("c-2", 4, &e) && step_of("c-2") == 4 && entries() == 2,
                "killed at %lld: %d entries, %s", (long long)n, entries(), e.text);
    }
    CHECK(between == 1, "without c-2 at %d calls", between); /* the second of the two renames */
}

TEST_MAIN
