/* checkpoint/manifest.c - directories that appear whole or not at all.
 *
 * MANIFEST is text, one line each, and the last line covers the ones before it:
 *
 *     qlora manifest 1
 *     facts {"step": 100}
 *     file 2fd4e1c67a2d28fced849ee1bb76e7391b93eb12 1234 adapter_model.safetensors
 *     end 5ba93c9db0cff93f52b521d7420e43f6eda2784f
 *
 * with the SHA-1 and size of every other file of the directory (plain files only), sorted by name. SHA-1
 * finds damage; it does not protect against somebody who wants to deceive. Order of a commit: every file
 * synced, MANIFEST written and synced, directory synced, renamed, parent synced. An older directory of the
 * same name steps aside first and is removed last; if the rename fails it comes back.
 *
 * Nothing is read twice that this process wrote or read before: large files are hashed while they are written
 * (write.c tells their checksums), and a directory that was committed or verified here needs a look at names,
 * sizes and MANIFEST only to be rotated (manifest_check). What is known is a table of the last few hundred
 * facts; one that was pushed out costs a reading, nothing else. */
#include "base/json.h"
#include "base/sha1.h"
#include "base/str.h"
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char NAME[] = "MANIFEST", HEAD[] = "qlora manifest 1\nfacts ", TEMPORARY[] = ".tmp-";
enum { MANIFEST_MAX = 1 << 20, HEX = 40 };

/* ---- what this process knows ---- */

enum fact { FILLING, WRITTEN, WHOLE }; /* a folder after manifest_begin; a file of it; a folder whose files agreed with its MANIFEST */
enum { FACTS = 512 };
static struct memory {
    char key[HEX + 1], hex[HEX + 1]; /* of WRITTEN: the file's checksum; of WHOLE: that of the MANIFEST */
    int64_t number;                  /* of WRITTEN: its bytes; of FILLING: which filling it is */
} memory[FACTS];
static int64_t remembered, fillings;
static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

static void sha1_text(const char *p, size_t n, char hex[HEX + 1]) {
    struct sha1 sha;
    sha1_init(&sha);
    sha1_add(&sha, p, n);
    sha1_hex(&sha, hex);
}

static void key_of(enum fact fact, int64_t filling, const char *dir, const char *name, char key[HEX + 1]) {
    char text[4500];
    int n = snprintf(text, sizeof text, "%d %lld %s/%s", (int)fact, (long long)filling, dir, name);
    sha1_text(text, n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1, key);
}

/* memory_lock is held. */
static struct memory *find(const char key[HEX + 1]) {
    for (int i = 0; i < FACTS; i++)
        if (!strcmp(memory[i].key, key)) return &memory[i];
    return NULL;
}

static void remember(enum fact fact, int64_t filling, const char *dir, const char *name, int64_t number, const char *hex) {
    struct memory m = {.number = number};
    key_of(fact, filling, dir, name, m.key);
    snprintf(m.hex, sizeof m.hex, "%s", hex);
    pthread_mutex_lock(&memory_lock);
    struct memory *at = find(m.key);
    if (!at) at = &memory[remembered++ % FACTS];
    *at = m;
    pthread_mutex_unlock(&memory_lock);
}

/* 1 and *out, if it is known. */
static int recall(enum fact fact, int64_t filling, const char *dir, const char *name, struct memory *out) {
    char key[HEX + 1];
    key_of(fact, filling, dir, name, key);
    pthread_mutex_lock(&memory_lock);
    const struct memory *at = find(key);
    if (at) *out = *at;
    pthread_mutex_unlock(&memory_lock);
    return at != NULL;
}

int manifest_filling(const char *dir) {
    struct memory m;
    return recall(FILLING, 0, dir, "", &m);
}

void manifest_note(const char *dir, const char *name, int64_t bytes, const char hex[41]) {
    struct memory m;
    if (recall(FILLING, 0, dir, "", &m)) remember(WRITTEN, m.number, dir, name, bytes, hex);
}

/* Removes what killed processes left in parent: ".tmp-NAME.PID" and ".tmp-NAME.PID.old" of a PID that is not
 * running. What cannot be removed stays: it is in nobody's way. */
static void sweep(const char *parent) {
    char **names, path[4096];
    int count;
    if (dir_list(parent, &names, &count, NULL)) return;
    for (int i = 0; i < count; i++) {
        if (!text_starts(names[i], TEMPORARY)) continue;
        if (text_ends(names[i], ".old")) names[i][strlen(names[i]) - 4] = 0;
        const char *dot = strrchr(names[i], '.');
        long pid = strtol(dot + 1, NULL, 10);
        if (pid <= 0 || pid > INT32_MAX || !kill((pid_t)pid, 0) || errno != ESRCH) continue;
        if (path_join(path, sizeof path - 4, parent, names[i], NULL)) continue;
        dir_remove(path, NULL);
        dir_remove(strcat(path, ".old"), NULL);
    }
    dir_list_free(names, count);
}

int manifest_begin(const char *parent, const char *name, char *tmp, size_t tmp_size, struct err *e) {
    char base[300];
    ASSERT(path_is_basename(name) && strlen(name) < 200, "%s", name);
    snprintf(base, sizeof base, "%s%s.%ld", TEMPORARY, name, (long)getpid());
    if (dir_make(parent, e) || path_join(tmp, tmp_size, parent, base, e)) return -1;
    sweep(parent);
    if (dir_remove(tmp, e) || dir_make(tmp, e)) return -1; /* of an earlier try of this process, or of its number */
    remember(FILLING, 0, tmp, "", __atomic_add_fetch(&fillings, 1, __ATOMIC_RELAXED), "");
    return 0;
}

static int sync_file(const char *path, struct err *e) {
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0) return err_errno(e, ERR_RUN, "cannot open %s", path);
    int rc = sys_fsync(fd) ? err_errno(e, ERR_RUN, "cannot write %s to the disk", path) : 0;
    sys_close(fd);
    return rc;
}

/* A file of dir is on the disk, and its checksum known: since it was written, or by reading it. */
static int seal_file(const char *dir, const char *name, const char *path, char hex[HEX + 1], struct err *e) {
    struct memory filling, file;
    if (recall(FILLING, 0, dir, "", &filling) && recall(WRITTEN, filling.number, dir, name, &file) && file.number == path_bytes(path))
        return memcpy(hex, file.hex, HEX + 1), 0;
    return sync_file(path, e) || sha1_file(path, hex, e) ? -1 : 0;
}

/* Syncs and hashes the files of dir and writes its MANIFEST; `sum` is the checksum of that. */
static int seal(const char *dir, const char *facts, char sum[HEX + 1], struct err *e) {
    char **names = NULL, path[4096], hex[HEX + 1];
    struct str s = {0};
    int count = 0, rc = -1;
    if (dir_list(dir, &names, &count, e)) return -1;
    str_puts(&s, HEAD);
    for (; *facts; facts++)
        str_putc(&s, *facts == '\n' ? ' ' : *facts); /* in JSON a line feed is white space */
    str_putc(&s, '\n');
    for (int i = 0; i < count; i++) {
        if (!strcmp(names[i], NAME) || !path_is_basename(names[i])) {
            err_set(e, ERR_RUN, "%s holds a file whose name cannot stand in a MANIFEST", dir);
            goto out;
        }
        if (path_join(path, sizeof path, dir, names[i], e) || seal_file(dir, names[i], path, hex, e)) goto out;
        str_printf(&s, "file %s %lld %s\n", hex, (long long)path_bytes(path), names[i]);
    }
    if (!s.oom) sha1_text(s.p, s.n, hex), str_printf(&s, "end %s\n", hex);
    if (s.oom)
        err_set(e, ERR_RUN, "out of memory: a MANIFEST of %d files", count);
    else if (!path_join(path, sizeof path, dir, NAME, e))
        sha1_text(s.p, s.n, sum), rc = file_write_all(path, s.p, s.n, e);
out:
    str_free(&s);
    dir_list_free(names, count);
    return rc;
}

int manifest_commit(const char *parent, const char *name, const char *tmp, const char *facts, struct err *e) {
    char final[4096], old[4096], sum[HEX + 1];
    ASSERT(*facts == '{', "facts %s", facts);
    if (json_check(facts, strlen(facts), NULL, e) || path_join(final, sizeof final, parent, name, e) ||
        seal(tmp, facts, sum, e) || dir_sync(tmp, e))
        return -1;
    snprintf(old, sizeof old, "%s.old", tmp);
    int replaces = path_exists(final);
    if (replaces && (dir_remove(old, e) || sys_rename(final, old)))
        return err_errno(e, ERR_RUN, "cannot move the older %s out of the way", final);
    if (sys_rename(tmp, final)) {
        err_errno(e, ERR_RUN, "cannot rename %s to %s", tmp, final);
        if (replaces && sys_rename(old, final)) err_where(e, "%s is now %s", final, old);
        return -1;
    }
    if (dir_sync(parent, e)) return -1;
    remember(WHOLE, 0, final, "", 0, sum);
    return replaces ? dir_remove(old, e) : 0;
}

void manifest_abort(const char *tmp) {
    dir_remove(tmp, NULL);
}

/* ---- verification ---- */

/* The line at *p, cut off with a NUL; *p moves behind it. NULL at the end. */
static char *next_line(char **p) {
    char *line = *p, *end = strchr(line, '\n');
    if (!end) return NULL;
    *end = 0, *p = end + 1;
    return line;
}

/* "file HEX BYTES NAME": 1 if the file is as the line says; with `glance` its content is not looked at. */
static int check_file(const char *dir, const char *line, int glance, char seen[256], struct err *e) {
    char expected[HEX + 1], hex[HEX + 1], path[4096];
    long long bytes;
    int at = 0;
    if (sscanf(line, "file %40[0-9a-f] %lld %n", expected, &bytes, &at) != 2 || !at ||
        strlen(line + at) > 255 || !path_is_basename(line + at)) {
        err_set(e, ERR_INPUT, "%s/%s: a line that is not understood", dir, NAME);
        return 0;
    }
    strcpy(seen, line + at);
    if (path_join(path, sizeof path, dir, seen, e)) return -1;
    if (!path_is_file(path))
        err_set(e, ERR_INPUT, "%s is missing", path);
    else if (path_bytes(path) != bytes)
        err_set(e, ERR_INPUT, "%s has %lld bytes, %lld were written", path, (long long)path_bytes(path),
                bytes);
    else if (glance)
        return 1;
    else if (sha1_check(path, hex, e))
        return -1;
    else if (strcmp(hex, expected))
        err_set(e, ERR_INPUT, "%s is damaged: its checksum is another one", path);
    else
        return 1;
    return 0;
}

/* Every file of the directory must be in the manifest: names[] of the directory against lines in the same
 * order. */
static int check_files(const char *dir, char *lines, int glance, char **names, int count, struct err *e) {
    char seen[256], *line;
    int i = 0;
    while ((line = next_line(&lines))) {
        if (i < count && !strcmp(names[i], NAME)) i++;
        int rc = check_file(dir, line, glance, seen, e);
        if (rc != 1) return rc;
        if (i == count || strcmp(names[i], seen)) break;
        i++;
    }
    if (i < count && !strcmp(names[i], NAME)) i++;
    if (i == count && !line) return 1;
    err_set(e, ERR_INPUT, "%s/%s is not in its MANIFEST", dir, i < count ? names[i] : seen);
    return 0;
}

/* `trust`: content that agreed before is not read again. */
static int verify(const char *dir, int trust, char **facts, struct err *e) {
    char path[4096], sum[HEX + 1], **names = NULL, *text = NULL, end[HEX + 8];
    size_t n = 0, tail = HEX + 5, start = strlen(HEAD); /* "end HEX\n" */
    int count = 0, rc = -1;
    *facts = NULL;
    if (path_join(path, sizeof path, dir, NAME, e)) return -1;
    if (!path_is_file(path)) {
        err_set(e, ERR_INPUT, "%s has no MANIFEST: it was not finished", dir);
        return 0;
    }
    if (file_read_all(path, MANIFEST_MAX, &text, &n, e) || dir_list(dir, &names, &count, e)) goto out;
    rc = 0;
    struct memory known;
    char hex[HEX + 1];
    sha1_text(text, n > tail ? n - tail : 0, hex);
    sha1_text(text, n, sum);
    snprintf(end, sizeof end, "end %s\n", hex);
    if (n <= tail || memcmp(text + n - tail, end, tail) || !text_starts(text, HEAD)) {
        err_set(e, ERR_INPUT, "%s is damaged: its own checksum is another one", path);
        goto out;
    }
    text[n - tail] = 0;
    char *lines = text + start, *first = next_line(&lines);
    if (!first) {
        err_set(e, ERR_INPUT, "%s has no facts", path);
        goto out;
    }
    trust = trust && recall(WHOLE, 0, dir, "", &known) && !strcmp(known.hex, sum);
    rc = check_files(dir, lines, trust, names, count, e);
    if (rc == 1) remember(WHOLE, 0, dir, "", 0, sum);
    if (rc == 1 && !(*facts = text_copy(first, strlen(first))))
        rc = err_set(e, ERR_RUN, "out of memory: facts of %zu bytes", strlen(first));
out:
    sys_free(text);
    if (names) dir_list_free(names, count);
    return rc;
}

int manifest_verify(const char *dir, char **facts, struct err *e) { return verify(dir, 0, facts, e); }

int manifest_check(const char *dir, struct err *e) {
    char *facts = NULL;
    int rc = verify(dir, 1, &facts, e);
    sys_free(facts);
    return rc;
}
