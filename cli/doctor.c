/* cli/doctor.c - qlora doctor: what this machine has for a run, what is missing, and what to do about it. A row a thing; rows
 * that begin with "!" are problems, each a sentence with its remedy. What is only needed with a card is no problem without one. */
#define _GNU_SOURCE
#include "backend/backend.h"
#include "base/file.h"
#include "base/print.h"
#include "base/sandbox.h"
#include "base/str.h"
#include "base/sys.h"
#include "cli/cli.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
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

/* The first line near the beginning of a file of /proc or /sys that begins with `key`, from behind it and its ":"; NULL without
 * one. Such files have no length, and base/file.h reads files that do. */
static const char *line_of(const char *path, const char *key, char line[400]) {
    char text[8192];
    int fd = sys_open(path, O_RDONLY, 0);
    ssize_t n = fd < 0 ? -1 : sys_read(fd, text, sizeof text - 1);
    if (fd >= 0) sys_close(fd);
    text[n > 0 ? n : 0] = 0;
    for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        if (!text_starts(p, key)) continue;
        snprintf(line, 400, "%.*s", (int)strcspn(p, "\n"), p);
        return line + strlen(key) + strspn(line + strlen(key), " \t:");
    }
    return NULL;
}

static const char *vector_width(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return ", AVX-512";
    if (__builtin_cpu_supports("avx2")) return ", AVX2";
#endif
    return "";
}

static void report_room(struct report *r, const char *key, const char *dir, int64_t least, const char *why) {
    char text[700], a[24], b[24];
    int64_t room = dir_free_bytes(dir);
    snprintf(text, sizeof text, "%s free in %.300s", text_bytes(a, room), dir);
    row(r, key, room < 0 ? "unknown" : text);
    if (room < 0)
        snprintf(text, sizeof text, "%.300s cannot be looked at: is it there?", dir);
    else
        snprintf(text, sizeof text, "less than %s of disk in %.300s: %s", text_bytes(b, least), dir, why);
    if (room < least) problem(r, text);
}

static void report_machine(struct report *r) {
    char text[600], line[400], a[24], b[24], cwd[300] = ".";
    struct utsname u;
    const char *name = line_of("/proc/cpuinfo", "model name", line);
    if (!uname(&u)) {
        snprintf(text, sizeof text, "%s %s, %s", u.sysname, u.release, u.machine);
        row(r, "system", text);
    }
    snprintf(text, sizeof text, "%s, %d threads%s", name ? name : "unknown", sys_threads(), vector_width());
    row(r, "processor", text);
    row(r, "compiler", "not needed to run");
    int64_t all = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), left = sys_free_memory();
    snprintf(text, sizeof text, "%s, %s free", text_bytes(a, all), text_bytes(b, left));
    row(r, "memory", text);
    if (left && left < (int64_t)4 << 30)
        problem(r, "less than 4 GiB of free memory: 2B in 4 bits needs about 3 GiB; end other programs");
#ifdef _OPENMP
    if (sys_threads() < (int)sysconf(_SC_NPROCESSORS_ONLN))
        problem(r, "fewer threads than processors: see the environment variable OMP_NUM_THREADS");
#else
    problem(r, "built without OpenMP, so the CPU backend has one thread: install libgomp (gcc) or libomp-dev (clang), then make "
               "clean; make");
#endif
    if (!getcwd(cwd, sizeof cwd)) snprintf(cwd, sizeof cwd, ".");
    report_room(r, "disk", cwd, (int64_t)10 << 30, "a checkpoint of 2B needs 4 GB; work in another folder or give another output_dir");
    const char *temporary = getenv("TMPDIR");
    report_room(r, "temporary", temporary && *temporary ? temporary : "/tmp", (int64_t)1 << 30,
                "large data sets wait there; set TMPDIR or --temp_dir");
}

static void report_sandbox(struct report *r) {
    char text[100];
    const char *off = getenv("QLORA_SANDBOX");
    snprintf(text, sizeof text, "Landlock %d: commands write only where they were told to", sandbox_version());
    row(r, "sandbox",
        off && !strcmp(off, "off") ? "off by QLORA_SANDBOX"
        : sandbox_version()        ? text
                                   : "none: this kernel has no Landlock, or an old one (before Linux 5.19)");
}

/* The text of programs and models is UTF-8; the terminal is the only one who minds. */
static void report_locale(struct report *r) {
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    const char *value = NULL;
    for (int i = 0; i < 3 && (!value || !*value); i++) value = getenv(names[i]);
    if (!value || !*value) value = "C";
    row(r, "locale", value);
    if (!strcasestr(value, "utf-8") && !strcasestr(value, "utf8"))
        problem(r, "the locale is not UTF-8, and Chinese may be shown as question marks: export LANG=C.UTF-8");
}

/* Is there an NVIDIA display or compute device on the PCI bus? */
static int card_on_bus(void) {
    static const char devices[] = "/sys/bus/pci/devices";
    char path[400], line[400];
    char **names;
    int found = 0, n;
    if (dir_list(devices, &names, &n, NULL)) return 0;
    for (int i = 0; i < n && !found; i++) {
        snprintf(path, sizeof path, "%s/%.200s/vendor", devices, names[i]);
        if (!line_of(path, "0x10de", line)) continue;
        snprintf(path, sizeof path, "%s/%.200s/class", devices, names[i]);
        found = line_of(path, "0x03", line) != NULL;
    }
    dir_list_free(names, n);
    return found;
}

/* What a card needs to work: its driver, the plugin, the toolkit's library, memory that may be locked. Returns whether
 * card and plugin are there, so that it ought to work. */
static int report_card(struct report *r) {
    static const char *const libraries[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"};
    char text[4200], line[400], a[24];
    const char *version = line_of("/proc/driver/nvidia/version", "NVRM version", line);
    int card = version != NULL || card_on_bus() || path_exists("/dev/nvidia0");
    row(r, "driver", version ? version : card ? "none" : "none, and no NVIDIA card on the bus");
    if (!version && card) problem(r, "there is an NVIDIA card, and its driver is not loaded: install it (nvidia-smi must work)");
    if (version && !path_exists("/dev/nvidia0"))
        problem(r, "the driver is loaded, and /dev/nvidia0 is missing: start a container with --gpus all, or nvidia-modprobe -u -c 0");
    int plugin = !backend_find_plugin(text, sizeof text);
    row(r, "plugin", plugin ? text : "none beside the program, none in ../lib/qlora");
    if (!plugin && card)
        problem(r, "the program was built without CUDA: install the CUDA toolkit (nvcc), then make; the card is not used until then");
    void *library = NULL; /* stays loaded: what its start allocated would be lost with it */
    size_t i = 0;
    while (i < sizeof libraries / sizeof *libraries && !(library = sys_library(libraries[i]))) i++;
    row(r, "cublasLt", library ? libraries[i] : "none");
    if (!library && card)
        problem(r, "libcublasLt is not found: install it (libcublas of the CUDA toolkit), or export LD_LIBRARY_PATH=/usr/local/cuda/lib64");
    struct rlimit lock;
    if (getrlimit(RLIMIT_MEMLOCK, &lock)) return card && plugin;
    row(r, "locking", lock.rlim_cur == RLIM_INFINITY ? "unlimited" : text_bytes(a, (int64_t)lock.rlim_cur));
    if (card && lock.rlim_cur < (rlim_t)64 << 20)
        problem(r, "little memory may be locked, and layers that wait in host memory are locked on some systems: ulimit -l unlimited");
    return card && plugin;
}

static void report_backend(struct report *r, const char *name, int must_work, int explain) {
    struct err e = {0};
    struct backend *b = backend_open(name, &e);
    if (!b) {
        row(r, name, must_work ? "not working" : "not found");
        if (explain) problem(r, e.text);
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
    report_locale(&r);
    report_sandbox(&r);
    int usable = report_card(&r);
    report_backend(&r, "cpu", 1, 1);
    if (!o->train.backend)
        report_backend(&r, "cuda", 0, usable);
    else if (strcmp(o->train.backend, "cpu"))
        report_backend(&r, o->train.backend, 1, 1);
    if (!r.json && !r.problems) row(&r, "problems", "none");
    if (r.json) str_puts(&r.s, "}\n");
    if (!r.s.oom) print_bytes(r.s.p, r.s.n);
    int rc = r.s.oom ? err_set(e, ERR_RUN, "out of memory") : 0;
    str_free(&r.s);
    return rc ? e->code : 0;
}
