/* cli/doctor.c - qlora doctor: what this machine has for a run, what is missing, and what to do about it. */
#define _GNU_SOURCE
#include "backend/backend.h"
#include "base/file.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli.h"
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

struct report { /* rows of text, or one JSON object */
    struct str s;
    int json, problems;
};

static void row(struct report *r, const char *key, const char *text) {
    if (r->json) {
        str_puts(&r->s, r->s.n ? ", " : "{");
        str_json(&r->s, key, strlen(key));
        str_puts(&r->s, ": ");
        str_json(&r->s, text, strlen(text));
    } else {
        str_printf(&r->s, "%-10s %s\n", key, text);
    }
}

static void problem(struct report *r, const char *text) {
    char key[24];
    snprintf(key, sizeof key, r->json ? "problem %d" : "! %d", ++r->problems);
    row(r, key, text);
}

/* The first "model name" of /proc/cpuinfo. */
static void cpu_name(char *out, size_t size) {
    char line[400];
    snprintf(out, size, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "r"); /* a file without a length: base/file.h reads regular ones */
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(out, size, "%s", colon + 2);
        break;
    }
    if (f) fclose(f);
}

static const char *vector_width(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return ", AVX-512";
    if (__builtin_cpu_supports("avx2")) return ", AVX2";
#endif
    return "";
}

static void report_machine(struct report *r) {
    char text[600], name[400], a[24], b[24], cwd[300] = ".";
    struct utsname u;
    cpu_name(name, sizeof name);
    if (!uname(&u)) {
        snprintf(text, sizeof text, "%s %s, %s", u.sysname, u.release, u.machine);
        row(r, "system", text);
    }
    snprintf(text, sizeof text, "%s, %d threads%s", name, sys_threads(), vector_width());
    row(r, "cpu", text);
    int64_t all = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), left = sys_free_memory();
    snprintf(text, sizeof text, "%s, %s free", text_bytes(a, all), text_bytes(b, left));
    row(r, "memory", text);
    if (getcwd(cwd, sizeof cwd)) {
        int64_t room = dir_free_bytes(cwd);
        snprintf(text, sizeof text, "%s free in %s", text_bytes(a, room), cwd);
        row(r, "disk", text);
        if (room >= 0 && room < (int64_t)10 << 30)
            problem(r, "less than 10 GiB of disk: a checkpoint of 2B needs 4 GB");
    }
    if (left && left < (int64_t)4 << 30)
        problem(r, "less than 4 GiB of free memory: 2B in 4 bits needs about 3 GiB");
    if (sys_threads() < (int)sysconf(_SC_NPROCESSORS_ONLN))
        problem(r, "fewer threads than processors: see the environment variable OMP_NUM_THREADS");
}

static void report_backend(struct report *r, const char *name, int must_work) {
    struct err e = {0};
    struct backend *b = backend_open(name, &e);
    if (!b) {
        row(r, name, must_work ? "not working" : "not found");
        if (must_work || path_exists("/dev/nvidia0")) problem(r, e.text);
        return;
    }
    struct backend_info info = {0};
    char text[400], free_text[24], total[24];
    b->info(b->self, &info);
    snprintf(text, sizeof text, "%s, %s of %s free", info.detail, text_bytes(free_text, info.free_bytes),
             text_bytes(total, info.total_bytes));
    row(r, name, text);
    if (backend_failed(b, &e)) problem(r, e.text);
    backend_close(b);
}

int cmd_doctor(struct options *o, struct err *e) {
    struct report r = {.json = o->json};
    row(&r, "qlora", QLORA_VERSION);
    report_machine(&r);
    report_backend(&r, "cpu", 1);
    if (!o->train.backend)
        report_backend(&r, "cuda", 0);
    else if (strcmp(o->train.backend, "cpu"))
        report_backend(&r, o->train.backend, 1);
    if (!r.json && !r.problems) row(&r, "problems", "none");
    if (r.json) str_puts(&r.s, "}\n");
    if (!r.s.oom) fwrite(r.s.p, 1, r.s.n, stdout);
    int rc = r.s.oom ? err_set(e, ERR_RUN, "out of memory") : 0;
    str_free(&r.s);
    return rc ? e->code : 0;
}
