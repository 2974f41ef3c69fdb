/* Free memory under control groups of both versions, from a made-up tree; jobs of several threads and their errors. */
#include "base/file.h"
#include "base/jobs.h"
#include "base/sys.h"
#include "tests/test.h"
#include <unistd.h>

static struct err e;
static char root[200];

static void file(const char *path, const char *text) {
    char all[400], *cut;
    snprintf(all, sizeof all, "%s/%s", root, path);
    if ((cut = strrchr(all, '/'))) {
        *cut = 0;
        CHECK(!dir_make(all, &e), "%s", e.text);
        *cut = '/';
    }
    CHECK(!file_write_all(all, text, strlen(text), &e), "%s", e.text);
}
static int64_t room(const char *groups) {
    char path[400];
    file("groups", groups);
    snprintf(path, sizeof path, "%s/groups", root);
    return sys_group_memory(path, root);
}

TEST(memory_of_groups) {
    char name[] = "/tmp/qlora-test-sys-XXXXXX";
    REQUIRE(mkdtemp(name), "no folder");
    snprintf(root, sizeof root, "%s", name);
    CHECK(sys_group_memory("/nowhere", root) == INT64_MAX, "no groups");
    CHECK(room("0::/a/b\n") == INT64_MAX, "no limits");
    file("a/b/memory.max", "max\n"), file("a/b/memory.current", "500\n");
    CHECK(room("0::/a/b\n") == INT64_MAX, "max is no limit");
    file("a/memory.max", "1000\n"), file("a/memory.current", "700\n");
    CHECK(room("0::/a/b\n") == 300, "%lld", (long long)room("0::/a/b\n")); /* of the group above */
    file("a/b/memory.max", "600\n"), file("a/b/memory.stat", "anon 1\ninactive_file 150\n");
    CHECK(room("0::/a/b\n") == 250, "%lld", (long long)room("0::/a/b\n")); /* cached files give way */
    file("a/b/memory.current", "900\n");
    CHECK(room("0::/a/b\n") == 0, "%lld", (long long)room("0::/a/b\n"));
    file("memory.max", "90\n"), file("memory.current", "9\n");
    CHECK(room("0::/elsewhere\n") == 81, "%lld", (long long)room("0::/elsewhere\n")); /* a container's own root */
    file("memory/x/memory.limit_in_bytes", "5000\n"), file("memory/x/memory.usage_in_bytes", "4500\n"), file("memory/x/memory.stat", "total_inactive_file 100\n");
    CHECK(room("3:cpu,memory:/x\n2:cpuset:/a\n") == 600, "%lld", (long long)room("3:cpu,memory:/x\n2:cpuset:/a\n"));
    CHECK(room("12:cpuset:/x\nnonsense\n") == INT64_MAX, "no memory group");
    CHECK(sys_free_memory() > 0, "this machine");
    CHECK(!dir_remove(root, &e), "%s", e.text);
}

struct work { int64_t bad, worse; int seen[1000], most; };
static int mark(void *context, int64_t i, int thread, struct err *why) {
    struct work *w = context;
    __atomic_add_fetch(&w->seen[i], 1, __ATOMIC_RELAXED);
    if (thread < 0 || thread >= w->most) return err_set(why, 1, "thread %d", thread);
    if (w->worse >= 0 && i > w->worse) usleep(2000); /* so that the failures are known long before the last job's turn */
    if (i != w->bad && i != w->worse) return 0;
    if (i == w->bad) usleep(3000); /* the later one fails first */
    return err_set(why, ERR_RUN, "job %lld", (long long)i);
}

TEST(jobs_run_once_and_the_first_error_counts) {
    for (int threads = 1; threads <= 8; threads += 3) {
        struct work w = {.bad = -1, .worse = -1, .most = threads};
        CHECK(!jobs_run(1000, threads, mark, &w, &e), "%s", e.text);
        for (int i = 0; i < 1000; i++) CHECK(w.seen[i] == 1, "job %d ran %d times", i, w.seen[i]);
        CHECK(!jobs_run(0, threads, mark, &w, &e), "%s", e.text);
        struct err why = {0};
        w = (struct work){.bad = 500, .worse = 502, .most = threads};
        CHECK(jobs_run(1000, threads, mark, &w, &why) && !strcmp(why.text, "job 500"), "%s", why.text);
        for (int i = 0; i <= 500; i++) CHECK(w.seen[i] == 1, "job %d ran %d times", i, w.seen[i]);
        CHECK(!w.seen[999], "it went on");
        w = (struct work){.bad = 3, .most = threads};
        CHECK(jobs_run(10, threads, mark, &w, NULL), "without words");
    }
    CHECK(jobs_threads() >= 4 && jobs_threads() <= JOBS_THREADS, "%d", jobs_threads());
}
TEST_MAIN
