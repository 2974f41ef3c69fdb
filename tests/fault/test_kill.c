/* A run that is killed in any call that changes files, a power cut that loses or tears what was not synced, a disk that is full:
 * the same command goes on from there and ends with the bytes of the undisturbed run.
 *
 * The power cut is replayed: a diary of a run (base/record.h) is cut after k entries. Writes behind the last sync of their file are
 * kept, lost, halved or zeros; entries of a directory behind its last sync are all there or none. Every state that this gives is laid
 * out and resumed; a few of them in `make test`, all with FAULT_EVERY=1 (make faults). */
#include "tests/fault/fault.h"
#include <sys/mount.h>

static void fresh(void) {
    struct err e = {0};
    if (dir_remove("out", &e)) fprintf(stderr, "%s\n", e.text), abort();
}

/* What the run is for. */
static void result(char hex[41]) {
    if (sha1_file(path_exists("out/adapter_model.safetensors") ? "out/adapter_model.safetensors" : "out/model.safetensors", hex, NULL)) strcpy(hex, "none");
}

static void undisturbed(const char *words, char hex[41], int64_t *calls) {
    struct outcome x;
    fresh();
    fault_run(words, &(struct sys_fault){.kinds = "wscnum"}, &x);
    REQUIRE(!x.code, "%s", x.said);
    *calls = x.calls;
    result(hex);
}

/* Goes on, from step `least` or a later one. */
static void resume(const char *words, const char *want, int least, const char *what) {
    static const char from[] = "Continuing training from global step ";
    struct outcome x;
    char hex[41];
    fault_run(words, NULL, &x);
    result(hex);
    CHECK(!x.code && !strcmp(hex, want), "%s: exit status %d%s\n%s", what, x.code, x.code ? "" : ", another adapter", x.said);
    const char *step = strstr(x.said, from);
    CHECK((step ? atoi(step + strlen(from)) : 0) >= least, "%s: goes on from step %s, although checkpoint-%d was complete\n%s", what, step ? step + strlen(from) : "0", least, x.said);
}

static void kills(const char *words, int64_t points) {
    char want[41], what[80];
    int64_t calls = 0, stride, n;
    undisturbed(words, want, &calls);
    for (n = 1 + (stride = fault_stride(calls, points)) / 2; n <= calls && test_failed < 5; n += stride) {
        struct outcome x;
        fresh();
        fault_run(words, &(struct sys_fault){.kinds = "wscnum", .at = n, .error = SYS_KILL}, &x);
        CHECK(x.signal == SIGKILL, "call %lld of %lld was not reached: exit status %d", (long long)n, (long long)calls, x.code);
        snprintf(what, sizeof what, "killed in call %lld", (long long)n);
        resume(words, want, 0, what);
    }
    printf("  %lld calls, each %lld%s tried\n", (long long)calls, (long long)stride, stride > 1 ? "th" : "st");
}
TEST(killed_in_call_n) {
    fault_world();
    kills(FAULT_LORA, 12);
}
TEST(killed_in_call_n_of_full_training) {
    fault_world();
    kills(FAULT_FULL, 5);
}

/* ---- the replay ---- */

enum { NODES = 4000, ENTRIES = 20000, NAME = 120 };
struct node { int dir; struct str data; }; /* 0 is the current folder */
struct link { int dir, node; char name[NAME]; };
struct tree { struct link at[NODES]; int n; };
enum op_kind { CREATE, WRITE, SYNC, RENAME, UNLINK };
struct op { enum op_kind kind; int node, dir, to_dir; char name[NAME], to[NAME]; const char *bytes; size_t n; int durable; };

static struct node node[NODES];
static struct op op[ENTRIES];
static int nodes = 1, ops;

static struct link *find(struct tree *t, int dir, const char *name) {
    for (int i = 0; i < t->n; i++)
        if (t->at[i].dir == dir && !strcmp(t->at[i].name, name)) return &t->at[i];
    return NULL;
}
static void put_link(struct tree *t, int dir, const char *name, int what) {
    struct link *l = find(t, dir, name);
    if (!l) l = &t->at[t->n++];
    if (t->n > NODES) abort();
    l->dir = dir, l->node = what;
    snprintf(l->name, NAME, "%s", name);
}
static void take_link(struct tree *t, struct link *l) { *l = t->at[--t->n]; }

/* The folder of a path below the world and its last name; -1: elsewhere. */
static int folder_of(struct tree *t, const char *path, char name[NAME]) {
    size_t root = strlen(fault_folder);
    int dir = 0;
    if (strncmp(path, fault_folder, root) || path[root] != '/') return -1;
    for (path += root + 1;;) {
        size_t n = strcspn(path, "/");
        snprintf(name, NAME, "%.*s", (int)n, path);
        if (!path[n]) return dir;
        struct link *l = find(t, dir, name);
        if (!l) return -1;
        dir = l->node, path += n + 1;
    }
}

static void add(struct op o) {
    if (ops == ENTRIES) abort();
    op[ops++] = o;
}

/* The diary as operations on numbered nodes, whatever their names at the time. */
static void read_diary(char *p, size_t n) {
    static struct tree now;
    static int of_fd[4096];
    char *end = p + n, name[NAME], to[NAME];
    now.n = ops = 0, nodes = 1;
    node[0].dir = 1;
    while (p < end) {
        char *line = p, *lf = memchr(p, '\n', (size_t)(end - p));
        if (!lf) break;
        *lf = 0, p = lf + 1;
        if (*line == 'W') {
            int fd;
            size_t bytes;
            if (sscanf(line, "W %d %zu", &fd, &bytes) != 2) abort();
            if (of_fd[fd] > 0) add((struct op){WRITE, .node = of_fd[fd], .bytes = p, .n = bytes});
            p += bytes;
            continue;
        }
        char *path = strchr(line, '/'), *tab = strchr(line, '\t');
        if (!path) continue;
        if (tab) *tab++ = 0;
        int dir = folder_of(&now, path, name), fd = 0, new = 0, to_dir;
        struct link *l = dir < 0 ? NULL : find(&now, dir, name);
        switch (*line) {
        case 'O':
            if (sscanf(line, "O %d %d", &fd, &new) != 2 || fd >= 4096) abort();
            of_fd[fd] = 0;
            if (dir < 0 || (dir == 0 && strcmp(name, "out"))) break;
            if (!l || new) {
                node[nodes] = (struct node){.dir = 0};
                add((struct op){CREATE, .node = nodes, .dir = dir});
                strcpy(op[ops - 1].name, name);
                put_link(&now, dir, name, nodes++);
                l = find(&now, dir, name);
            }
            of_fd[fd] = l->node;
            break;
        case 'M':
            if (dir < 0 || (dir == 0 && strcmp(name, "out"))) break;
            node[nodes] = (struct node){.dir = 1};
            add((struct op){CREATE, .node = nodes, .dir = dir});
            strcpy(op[ops - 1].name, name);
            put_link(&now, dir, name, nodes++);
            break;
        case 'S':
            if (!strcmp(path, fault_folder)) add((struct op){SYNC, .node = 0});
            else if (l) add((struct op){SYNC, .node = l->node});
            break;
        case 'U':
            if (!l) break;
            add((struct op){UNLINK, .node = l->node, .dir = dir});
            strcpy(op[ops - 1].name, name);
            take_link(&now, l);
            break;
        case 'N':
            if (!l || (to_dir = folder_of(&now, tab, to)) < 0) break;
            add((struct op){RENAME, .node = l->node, .dir = dir, .to_dir = to_dir});
            strcpy(op[ops - 1].name, name), strcpy(op[ops - 1].to, to);
            int moved = l->node;
            take_link(&now, l);
            put_link(&now, to_dir, to, moved);
            break;
        }
    }
}

/* Is there a sync of `what` among the operations from i to k? */
static int synced(int i, int k, int what) {
    for (; i < k; i++)
        if (op[i].kind == SYNC && op[i].node == what) return 1;
    return 0;
}

/* The step of the newest checkpoint that is on the disk in front of operation k: renamed, and its folder synced. */
static int durable(int k) {
    int step = 0;
    for (int i = 0; i < k; i++)
        if (op[i].kind == RENAME && text_starts(op[i].to, "checkpoint-") && synced(i, k, op[i].to_dir)) step = atoi(op[i].to + strlen("checkpoint-"));
    return step;
}

enum loss { KEPT, LOST, HALVED, ZEROS, LOSSES };

/* What the disk holds after a cut in front of operation k. */
static void cut(int k, enum loss loss, int entries_lost, struct tree *t) {
    t->n = 0;
    for (int i = 0; i < nodes; i++) str_clear(&node[i].data);
    for (int i = 0; i < k; i++) {
        struct op *o = &op[i];
        struct link *l;
        if (o->kind == WRITE) {
            int safe = loss == KEPT || synced(i, k, o->node);
            if (safe) str_add(&node[o->node].data, o->bytes, o->n);
            else if (loss == HALVED) str_add(&node[o->node].data, o->bytes, o->n / 2);
            for (size_t b = 0; !safe && loss == ZEROS && b < o->n; b++) str_putc(&node[o->node].data, 0);
            continue;
        }
        if (o->kind == SYNC || (entries_lost && !(synced(i, k, o->dir) && (o->kind != RENAME || synced(i, k, o->to_dir))))) continue;
        if (o->kind == CREATE) {
            put_link(t, o->dir, o->name, o->node);
            continue;
        }
        if (!(l = find(t, o->dir, o->name)) || l->node != o->node) continue;
        take_link(t, l);
        if (o->kind == RENAME) put_link(t, o->to_dir, o->to, o->node);
    }
}

/* Makes the files of a folder; with h only adds them up. */
static void lay_out(struct tree *t, int dir, const char *path, struct sha1 *h) {
    struct err e = {0};
    for (int i = 0; i < t->n; i++) {
        char at[PATH_MAX];
        if (t->at[i].dir != dir) continue;
        const struct node *x = &node[t->at[i].node];
        snprintf(at, sizeof at, "%s%s%s", path, *path ? "/" : "", t->at[i].name);
        if (h) sha1_add(h, at, strlen(at) + 1), sha1_add(h, x->data.n ? x->data.p : "", x->data.n);
        else if (x->dir ? dir_make(at, &e) : file_write_all(at, x->data.n ? x->data.p : "", x->data.n, &e)) fprintf(stderr, "%s\n", e.text), abort();
        if (x->dir) lay_out(t, t->at[i].node, at, h);
    }
}


static void replay(const char *words, int64_t points) {
    static struct tree t;
    static char seen[ENTRIES * 8][41];
    static const char *const lossy[] = {"kept", "lost", "halved", "zeros"};
    char want[41], what[200], *diary;
    int64_t calls;
    size_t n;
    int states = 0, tried = 0;
    struct err e = {0};
    undisturbed(words, want, &calls);
    fresh();
    setenv("QLORA_RECORD", "diary", 1);
    fault_must(words);
    unsetenv("QLORA_RECORD");
    REQUIRE(!file_read_all("diary", 1 << 28, &diary, &n, &e), "%s", e.text);
    read_diary(diary, n);
    REQUIRE(ops > 50, "%d operations in %zu bytes of diary", ops, n);
    cut(ops, KEPT, 0, &t); /* the whole diary is what the run left */
    fresh();
    lay_out(&t, 0, "", NULL);
    char hex[41];
    result(hex);
    REQUIRE(!strcmp(hex, want), "the diary is not that of the run");
    int64_t stride = fault_stride(ops * LOSSES * 2, points) | 1, at = 0; /* odd: all kinds of loss */
    for (int k = 1; k <= ops; k++)
        for (int entries_lost = 0; entries_lost < 2; entries_lost++)
            for (int loss = 0; loss < LOSSES && test_failed < 5; loss++) {
                struct sha1 h;
                at++;
                if (stride > 1 && at % stride != stride / 2) continue;
                cut(k, (enum loss)loss, entries_lost, &t);
                sha1_init(&h);
                lay_out(&t, 0, "", &h);
                sha1_hex(&h, seen[states]);
                int known = 0;
                for (int i = 0; i < states && !known; i++) known = !strcmp(seen[i], seen[states]);
                if (known) continue;
                states++, tried++;
                fresh();
                lay_out(&t, 0, "", NULL);
                snprintf(what, sizeof what, "power cut in front of operation %d of %d, unsynced writes %s, entries %s", k, ops, lossy[loss], entries_lost ? "lost" : "kept");
                resume(words, want, durable(k), what);
            }
    printf("  %d operations, %d different states of the disk resumed\n", ops, tried);
    for (int i = 0; i < nodes; i++) str_free(&node[i].data);
    sys_free(diary);
}
TEST(power_cut) {
    fault_world();
    replay(FAULT_LORA "--quiet false", 30);
}
TEST(power_cut_in_full_training) {
    fault_world();
    replay(FAULT_FULL "--quiet false", 10);
}

/* ---- a file system that is full ---- */

static int small_disk(int kib, unsigned long flags) {
    char size[40];
    snprintf(size, sizeof size, "size=%dk", kib);
    return mount("small", "out", "tmpfs", flags, size);
}

TEST(full_disk) {
    char want[41], what[80];
    int64_t calls, complete = 0, stopped = 0;
    fault_world();
    undisturbed(FAULT_LORA, want, &calls);
    for (int kib = 8, step = fault_stride(100, 9) == 1 ? 4 : 24; kib <= 700 && !complete && test_failed < 5; kib += step) {
        struct outcome x;
        fresh();
        if (mkdir("out", 0700) || small_disk(kib, 0)) {
            rmdir("out");
            SKIP("no file system can be mounted here");
        }
        fault_run(FAULT_LORA, NULL, &x);
        complete = !x.code, stopped += x.code != 0;
        CHECK(x.code == 0 || (x.code == ERR_RUN && x.errors == 1 && strstr(x.said, "error: ") && strstr(x.said, "out") && (strstr(x.said, "No space") || strstr(x.said, "the disk has"))), "%d KiB: exit status %d\n%s", kib, x.code, x.said);
        CHECK(!x.blocks && !x.files, "%d KiB: %lld blocks, %d descriptors left", kib, (long long)x.blocks, x.files);
        if (small_disk(10000, MS_REMOUNT)) perror("remount"), abort();
        snprintf(what, sizeof what, "%d KiB, then more", kib);
        resume(FAULT_LORA, want, 0, what);
        if (umount("out")) perror("umount"), abort();
    }
    CHECK(complete && stopped > 2, "%lld sizes were too small", (long long)stopped);
}
TEST_MAIN
