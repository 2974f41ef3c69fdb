/* cli/confine.c - what a command may write: its output folder, the folder for temporary files, and what a card's driver needs.
 * Applied when the command line has been read and before any other file is opened; --sandbox off leaves it out. */
#include "base/file.h"
#include "base/sandbox.h"
#include "base/str.h"
#include "base/sys.h"
#include "backend/backend.h"
#include "cli/cli_internal.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "a/b/" -> "a", "b" -> "." */
static void parent_of(const char *path, char to[PATH_MAX]) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    while (n && path[n - 1] != '/') n--;
    while (n > 1 && path[n - 1] == '/') n--;
    snprintf(to, PATH_MAX, "%.*s", (int)(n ? n : 1), n ? path : ".");
}

/* A folder that results go to. It is made now, because a rule needs it; cli_release takes it away again if it stays empty. */
static void add_output(struct sandbox *s, struct confined *c, const char *path) {
    char parent[PATH_MAX];
    if (!path || strlen(path) >= PATH_MAX) return;
    const int had = path_exists(path);
    if (!had && dir_make(path, NULL)) return; /* the command will say what is wrong with it */
    if (!had && c->n < CONFINED_MAX) c->made[c->n++] = path;
    parent_of(path, parent);
    sandbox_add(s, path, SANDBOX_FOLDER);
    if (!had) sandbox_add(s, parent, SANDBOX_FORGET);
}

/* What libcuda opens for writing, and where it keeps kernels that it has compiled. */
static void add_card(struct sandbox *s) {
    char path[PATH_MAX], **names;
    const char *cache = getenv("CUDA_CACHE_PATH"), *home = getenv("HOME");
    int n;
    s->network = 1; /* cards of several processes find each other by it */
    if (!dir_list("/dev", &names, &n, NULL)) {
        for (int i = 0; i < n; i++)
            if (text_starts(names[i], "nvidia") && !path_join(path, sizeof path, "/dev", names[i], NULL))
                sandbox_add(s, path, SANDBOX_DEVICE);
        dir_list_free(names, n);
    }
    sandbox_add(s, "/dev/dri", SANDBOX_DEVICE), sandbox_add(s, "/dev/shm", SANDBOX_FOLDER), sandbox_add(s, "/proc", SANDBOX_DEVICE);
    snprintf(path, sizeof path, "%s/.nv", home ? home : "");
    sandbox_add(s, cache && *cache ? cache : path, SANDBOX_FOLDER);
}

void cli_confine(enum command_id cmd, const struct options *o, struct confined *c) {
    const struct train_options *t = &o->train;
    const char *off = getenv("QLORA_SANDBOX"), *tmp = getenv("TMPDIR");
    char plugin[PATH_MAX], parent[PATH_MAX];
    struct sandbox s = {.n = 0};
    *c = (struct confined){.n = 0};
    if (o->sandbox_off || cmd == CMD_DOCTOR || (off && !strcmp(off, "off")) || !sandbox_version()) return;
    const int card = !(t->backend && !strcmp(t->backend, "cpu")) && (t->backend || !backend_find_plugin(plugin, sizeof plugin));
    if (card && !path_exists("/dev/nvidia-uvm") && backend_has_driver()) return; /* who may start a helper to make its devices */
    if (card) add_card(&s);
    add_output(&s, c, cmd == CMD_TRAIN || cmd == CMD_QUANTIZE || cmd == CMD_NEW ? t->output_dir : NULL);
    add_output(&s, c, cmd == CMD_EXPORT ? o->export_dir : NULL);
    add_output(&s, c, cmd == CMD_EVAL ? o->save_dir : NULL);
    add_output(&s, c, cmd == CMD_TRAIN && !data_is_saved(t->data.tokenized_path) ? t->data.tokenized_path : NULL);
    if (o->plot) parent_of(o->plot, parent), sandbox_add(&s, parent, SANDBOX_FOLDER);
    sandbox_add(&s, t->data.temp_dir ? t->data.temp_dir : tmp && *tmp ? tmp : "/tmp", SANDBOX_FOLDER);
    sandbox_add(&s, "/dev/null", SANDBOX_DEVICE), sandbox_add(&s, "/dev/tty", SANDBOX_DEVICE);
    c->active = !sandbox_enter(&s);
}

void cli_release(const struct confined *c) {
    for (int i = 0; i < c->n; i++) sys_rmdir(c->made[i]); /* fails unless it is empty */
}
