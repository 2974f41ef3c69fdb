/* Files: whole or not at all, whatever call fails; links, pipes and directories; checksums. */
#include "base/file.h"
#include "base/sha1.h"
#include "base/sha1_internal.h"
#include "base/sys.h"
#include "tests/test.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[200];

static const char *in_dir(const char *name) { /* two results live at a time */
    static char path[2][400];
    static int k;
    k = !k;
    snprintf(path[k], sizeof path[k], "%s/%s", dir, name);
    return path[k];
}

static void fresh_dir(void) {
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/qlora-test-XXXXXX", tmp && strlen(tmp) < 150 ? tmp : "/tmp");
    if (!mkdtemp(dir)) abort();
}

static int holds(const char *path, const char *want) {
    char *text;
    size_t n;
    if (file_read_all(path, 1 << 20, &text, &n, NULL)) return 0;
    int same = n == strlen(want) && !memcmp(text, want, n);
    sys_free(text);
    return same;
}

static int entries(void) {
    char **names;
    int n = -1;
    if (!dir_list(dir, &names, &n, NULL)) dir_list_free(names, n);
    return n;
}

TEST(writes_and_reads) {
    struct err e = {0};
    fresh_dir();
    struct out *o = out_open(in_dir("f"), &e);
    REQUIRE(o, "%s", e.text);
    CHECK(!out_reserve(o, 10, &e) && !out_write(o, "hello ", 6, &e) && !out_write(o, "you", 3, &e), "%s", e.text);
    CHECK(out_bytes(o) == 9 && !path_exists(in_dir("f")), "the name appears before the commit");
    CHECK(!out_commit(o, &e), "%s", e.text);
    CHECK(holds(in_dir("f"), "hello you") && entries() == 1, "content, or %d entries", entries());

    struct file *f = file_open(in_dir("f"), &e);
    REQUIRE(f, "%s", e.text);
    char buf[4] = "";
    CHECK(f->bytes == 9 && !file_pread(f, buf, 3, 6, &e) && !memcmp(buf, "you", 3), "pread: %s", e.text);
    CHECK(file_pread(f, buf, 4, 6, &e) == -1 && e.code == ERR_INPUT && strstr(e.text, dir), "behind the end: %s", e.text);
    file_close(f);
    char *text;
    size_t n;
    e.code = 0;
    CHECK(file_read_all(in_dir("f"), 8, &text, &n, &e) == -1 && e.code == ERR_INPUT, "larger than allowed: %s", e.text);

    CHECK(!file_copy(in_dir("f"), in_dir("g"), NULL) && holds(in_dir("g"), "hello you"), "copy");
    CHECK(!file_append_line(in_dir("log"), "one", NULL) && !file_append_line(in_dir("log"), "two", NULL) &&
              holds(in_dir("log"), "one\ntwo\n"), "append");
    CHECK(!file_write_all(in_dir("empty"), "", 0, NULL) && holds(in_dir("empty"), ""), "empty file");
    o = out_open(in_dir("f"), NULL);
    out_write(o, "half", 4, NULL);
    out_abort(o);
    CHECK(holds(in_dir("f"), "hello you") && entries() == 4, "an aborted write leaves a trace");
    CHECK(!dir_remove(dir, NULL) && !path_exists(dir), "remove");
}

TEST(leftover_of_a_killed_process) {
    char stale[300];
    fresh_dir();
    snprintf(stale, sizeof stale, "%s/f.tmp.%ld", dir, (long)getpid());
    close(open(stale, O_CREAT | O_WRONLY, 0600));
    CHECK(!file_write_all(in_dir("f"), "x", 1, NULL) && holds(in_dir("f"), "x") && entries() == 1, "a stale file is in the way");
    dir_remove(dir, NULL);
}

/* Every call of every kind fails, once or from then on, in every way: the old file is there whole and nothing beside it,
 * or the new one is. A short write or an interrupted call is no failure. */
TEST(any_failing_call_leaves_the_old_file) {
    static const struct { const char *kinds; int error; } faults[] = {
        {"arwsconum", ENOSPC}, {"arwsconum", EIO}, {"a", ENOMEM}, {"rws", EINTR}, {"rw", SYS_SHORT}};
    int failures = 0, survived = 0;
    fresh_dir();
    for (size_t k = 0; k < sizeof faults / sizeof *faults; k++)
        for (int sticky = 0; sticky < 2; sticky++)
            for (int64_t at = 1;; at++) {
                struct err e = {0};
                if (file_write_all(in_dir("from"), "the new one", 11, NULL) || file_write_all(in_dir("f"), "the old one", 11, NULL)) abort();
                sys_fault = (struct sys_fault){.at = at, .error = faults[k].error, .sticky = sticky};
                strcpy(sys_fault.kinds, faults[k].kinds);
                int rc = file_copy(in_dir("from"), in_dir("f"), &e);
                int reached = sys_fault.calls >= at;
                sys_fault = (struct sys_fault){0};
                int new = holds(in_dir("f"), "the new one");
                CHECK(new || holds(in_dir("f"), "the old one"), "fault %zu at %lld: a half written file", k, (long long)at);
                CHECK(rc ? e.code && (strstr(e.text, dir) || text_starts(e.text, "out of memory")) : new, "fault %zu at %lld: rc %d, %s", k,
                      (long long)at, rc, e.text);
                /* Once the name is changed only the sync of the directory is left; and cleaning up may itself have failed. */
                int cleaned = entries() == 2;
                CHECK(cleaned || sticky, "fault %zu at %lld: %d files are left", k, (long long)at, entries());
                if (!cleaned) dir_remove(dir, NULL), dir_make(dir, NULL);
                if (!reached) break;
                failures += rc != 0, survived += rc == 0;
            }
    CHECK(failures > 40 && survived > 5, "%d failures, %d survived: the sweep is empty", failures, survived);
    dir_remove(dir, NULL);
}

TEST(messages_name_path_and_bytes) {
    struct err e = {0};
    fresh_dir();
    struct out *o = out_open(in_dir("f"), &e);
    REQUIRE(o, "%s", e.text);
    sys_fault = (struct sys_fault){.kinds = "w", .at = 1, .error = ENOSPC};
    CHECK(out_write(o, "12345", 5, &e) == -1 && strstr(e.text, in_dir("f")) && strstr(e.text, "5 bytes") && strstr(e.text, "No space"),
          "%s", e.text);
    sys_fault = (struct sys_fault){.kinds = "w", .at = 1, .error = ENOSPC};
    e.code = 0;
    CHECK(out_reserve(o, 123456, &e) == -1 && strstr(e.text, "123456") && strstr(e.text, in_dir("f")), "%s", e.text);
    sys_fault = (struct sys_fault){0};
    e.code = 0;
    CHECK(out_reserve(o, INT64_MAX / 2, &e) == -1 && e.code == ERR_RUN, "a file larger than any disk: %s", e.text);
    out_abort(o);
    dir_remove(dir, NULL);
}

/* SIGKILL at each call of a write: afterwards the old or the new content, never a mixture. */
TEST(killed_at_any_call) {
    int kills = 0;
    fresh_dir();
    for (int at = 1; at < 100; at++) {
        if (file_write_all(in_dir("f"), "the old one", 11, NULL)) abort();
        pid_t child = fork();
        if (!child) {
            sys_fault = (struct sys_fault){.kinds = "owscn", .at = at, .error = SYS_KILL};
            _exit(file_write_all(in_dir("f"), "the new one", 11, NULL) ? 1 : 0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        CHECK(holds(in_dir("f"), "the old one") || holds(in_dir("f"), "the new one"), "killed at call %d: torn", at);
        if (!WIFSIGNALED(status)) {
            CHECK(WIFEXITED(status) && !WEXITSTATUS(status) && holds(in_dir("f"), "the new one"), "call %d: status %d", at, status);
            break;
        }
        kills++;
    }
    CHECK(kills >= 6, "only %d calls", kills);
    dir_remove(dir, NULL);
}

TEST(refuses_what_is_no_file) {
    struct err e = {0};
    fresh_dir();
    REQUIRE(!mkfifo(in_dir("pipe"), 0600) && !symlink("/dev/zero", in_dir("zero")) && !symlink("nowhere", in_dir("dangling")),
            "%s", strerror(errno));
    static const char *const names[] = {"pipe", "zero", "dangling", "none", ".", "none/f"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) { /* opening a pipe must not wait for a writer */
        e.code = 0;
        CHECK(!file_open(in_dir(names[i]), &e) && e.code == ERR_INPUT && strstr(e.text, names[i]), "%s: %s", names[i], e.text);
    }
    CHECK(!out_open(in_dir("pipe"), NULL) && !out_open(dir, NULL) && !out_open(in_dir("none/f"), NULL), "written to");
    CHECK(file_append_line(in_dir("pipe"), "x", NULL) == -1 && file_append_line(in_dir("zero"), "x", NULL) == -1, "appended to");
    CHECK(!file_write_all(in_dir("f"), "x", 1, NULL) && !symlink("f", in_dir("link")), "link");
    CHECK(holds(in_dir("link"), "x") && path_is_file(in_dir("link")), "a link to a file is followed in reading");
    dir_remove(dir, NULL);
}

TEST(directories) {
    struct err e = {0};
    fresh_dir();
    CHECK(!dir_make(in_dir("a//b/c/"), &e) && path_is_dir(in_dir("a/b/c")) && !dir_make(in_dir("a/b"), &e), "%s", e.text);
    CHECK(!file_write_all(in_dir("f"), "keep", 4, NULL) && dir_make(in_dir("f/x"), &e) == -1 && e.code == ERR_INPUT, "%s", e.text);
    CHECK(dir_make("", NULL) == -1, "the empty name");
    CHECK(!file_write_all(in_dir("a/z"), "", 0, NULL) && !file_write_all(in_dir("a/B"), "", 0, NULL), "files");
    char **names;
    int n;
    REQUIRE(!dir_list(in_dir("a"), &names, &n, NULL), "list");
    CHECK(n == 3 && !strcmp(names[0], "B") && !strcmp(names[1], "b") && !strcmp(names[2], "z"), "%d names", n);
    dir_list_free(names, n);
    CHECK(dir_list(in_dir("f"), &names, &n, NULL) == -1, "a file is listed");
    CHECK(dir_free_bytes(dir) > 0 && dir_free_bytes(in_dir("none")) == -1, "free bytes");
    CHECK(path_bytes(in_dir("f")) == 4 && path_bytes(in_dir("none")) == -1 && !path_is_dir(in_dir("f")), "sizes");

    REQUIRE(!dir_make(in_dir("target"), NULL) && !file_write_all(in_dir("target/precious"), "x", 1, NULL), "target");
    REQUIRE(!symlink("../target", in_dir("a/b/link")) && !symlink("target", in_dir("top")), "links");
    CHECK(!dir_remove(in_dir("a"), &e) && !path_exists(in_dir("a")), "%s", e.text);
    CHECK(path_exists(in_dir("target/precious")), "a link inside was followed");
    CHECK(!dir_remove(in_dir("top/"), &e) && !path_exists(in_dir("top")) && path_exists(in_dir("target/precious")), "the link itself");
    CHECK(!dir_remove(in_dir("none"), &e), "absent: %s", e.text);
    sys_fault = (struct sys_fault){.kinds = "u", .at = 1, .error = EIO};
    e.code = 0;
    CHECK(dir_remove(in_dir("target"), &e) == -1 && strstr(e.text, "precious"), "%s", e.text);
    sys_fault = (struct sys_fault){0};
    CHECK(!dir_remove(dir, NULL) && !path_exists(dir), "all");
}

TEST(paths) {
    char buf[8];
    CHECK(!path_join(buf, sizeof buf, "abc", "def", NULL) && !strcmp(buf, "abc/def"), "%s", buf);
    CHECK(!path_join(buf, sizeof buf, "/", "f", NULL) && !strcmp(buf, "/f"), "%s", buf);
    CHECK(!path_join(buf, sizeof buf, "", "f", NULL) && !strcmp(buf, "f"), "%s", buf);
    CHECK(path_join(buf, sizeof buf, "abcd", "def", NULL) == -1, "one byte too long");
    static const char *const good[] = {"a", "...", "model-00001-of-00002.safetensors", "源.txt", ".hidden", "a b"};
    static const char *const bad[] = {"", ".", "..", "a/b", "/a", "a/", "a\nb", "\x7f", "../x"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK(path_is_basename(good[i]), "%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!path_is_basename(bad[i]), "%s", bad[i]);
}

/* The fast path and the definition, over content that is not uniform and pieces that cross blocks. On a processor without the
 * instructions both are the definition. */
TEST(sha1_fast_path) {
    enum { N = 5000 };
    unsigned char block[N];
    char fast[41], plain[41];
    for (int i = 0; i < N; i++) block[i] = (unsigned char)(i * i * 7 + i / 3);
    for (size_t n = 0; n < N; n += n < 260 ? 1 : 97) {
        for (int portable = 0; portable < 2; portable++) {
            struct sha1 s;
            sha1_portable = portable;
            sha1_init(&s);
            sha1_add(&s, block, n / 3), sha1_add(&s, block + n / 3, n - n / 3);
            sha1_hex(&s, portable ? plain : fast);
        }
        CHECK(!strcmp(fast, plain), "%zu bytes: %s and %s", n, fast, plain);
    }
    sha1_portable = 0;
}

/* FIPS 180 examples, and every length around the block border fed in two pieces. */
TEST(sha1_answers) {
    static const struct { const char *text; int times; const char *hex; } table[] = {
        {"", 1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
        {"abc", 1, "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1, "84983e441c3bd26ebaae4aa1f95129e5e54670f1"},
        {"a", 1000000, "34aa973cd4c4daa4f61eeb2bdbad27316534016f"}};
    struct sha1 s, t;
    char hex[41], other[41], block[200];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        sha1_init(&s);
        for (int k = 0; k < table[i].times; k++) sha1_add(&s, table[i].text, strlen(table[i].text));
        sha1_hex(&s, hex);
        CHECK(!strcmp(hex, table[i].hex), "%s: %s", table[i].text, hex);
    }
    memset(block, 'q', sizeof block);
    for (size_t n = 0; n < sizeof block; n++) {
        sha1_init(&s), sha1_init(&t);
        sha1_add(&s, block, n);
        for (size_t k = 0; k < n; k++) sha1_add(&t, block + k, 1);
        sha1_hex(&s, hex), sha1_hex(&t, other);
        CHECK(!strcmp(hex, other), "%zu bytes at once and one by one differ", n);
    }
    fresh_dir();
    CHECK(!file_write_all(in_dir("f"), "abc", 3, NULL) && !sha1_file(in_dir("f"), hex, NULL) && !strcmp(hex, table[1].hex), "%s", hex);
    CHECK(sha1_file(in_dir("none"), hex, NULL) == -1, "a file that is not there");
    dir_remove(dir, NULL);
}
TEST_MAIN
