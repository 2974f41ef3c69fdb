/* tests/fault/fault.h - commands run inside the test's own process tree: a small world (data, tokenizer, models in every
 * format, adapters, an exam), and whole commands in a forked child where a call of the seam (base/sys.h) fails.
 *
 *     fault_world();                                               once, in a folder of its own
 *     struct outcome x;
 *     fault_run("score --model_name_or_path m --text ab", &(struct sys_fault){.kinds = "r", .at = 3, .error = EIO}, &x);
 *
 * Words of a command are separated by blanks. The current folder is that of the world. FAULT_EVERY=1 asks for every call. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef QLORA_TESTS_FAULT_H
#define QLORA_TESTS_FAULT_H
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/print.h"
#include "base/record.h"
#include "base/sha1.h"
#include "base/stop.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "cli/cli.h"
#include "tests/test.h"
#include "tests/unit/torch_make.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OUTPUT_MAX = 1 << 16 };
static unsigned fault_seconds = 120; /* of a command; then it hangs */

struct outcome {
    int code, signal;       /* exit status, or the signal that ended it */
    int64_t calls, blocks;  /* of the seam; allocations not freed */
    int files;              /* descriptors not closed */
    int errors;             /* lines "error: .." */
    char said[OUTPUT_MAX];  /* standard error */
    char printed[41];       /* SHA-1 of standard output */
};

static const struct { const char *name; enum command_id id; int (*run)(struct options *, struct err *); } fault_commands[] = {
    {"train", CMD_TRAIN, cmd_train}, {"preview", CMD_PREVIEW, cmd_preview}, {"score", CMD_SCORE, cmd_score}, {"chat", CMD_CHAT, cmd_chat},
    {"tokenize", CMD_TOKENIZE, cmd_tokenize}, {"quantize", CMD_QUANTIZE, cmd_quantize}, {"export", CMD_EXPORT, cmd_export}, {"new", CMD_NEW, cmd_new},
    {"doctor", CMD_DOCTOR, cmd_doctor}, {"eval", CMD_EVAL, cmd_eval}, {"estimate", CMD_ESTIMATE, cmd_estimate}};

/* What main does (qlora.c), without its ornaments. */
static inline int fault_main(const char *words) {
    char *line = strdup(words), *argv[100];
    int argc = 0;
    for (char *w = strtok(line, " "); w && argc < 100; w = strtok(NULL, " ")) argv[argc++] = w;
    struct err e = {0};
    struct options o;
    for (size_t i = 0; i < sizeof fault_commands / sizeof *fault_commands; i++) {
        if (strcmp(fault_commands[i].name, argv[0])) continue;
        int code = options_parse(fault_commands[i].id, argc - 1, argv + 1, &o, &e) ? e.code : fault_commands[i].run(&o, &e);
        options_free(&o);
        if (!e.code && print_end(&e)) code = e.code;
        print_flush();
        free(line);
        return e.code ? err_print(&e) : code;
    }
    fprintf(stderr, "no command %s\n", words);
    abort();
}

struct fault_counts { int64_t calls, blocks; int files; };

/* Standard error and output go to err_fd and out_fd; what the seam counted is written to count_fd. Never returns. */
static inline void fault_child(const char *words, const struct sys_fault *f, int err_fd, int out_fd, int count_fd) {
    dup2(err_fd, 2), dup2(out_fd, 1);
    record_env();
    stop_install();
    alarm(fault_seconds);
    int files = sys_open_files();
    int64_t blocks = sys_blocks();
    sys_fault = f ? *f : (struct sys_fault){0};
    if (!sys_fault.at) sys_fault.at = INT64_MAX;
    int code = fault_main(words);
    struct fault_counts c = {.calls = sys_fault.calls, .blocks = sys_blocks() - blocks, .files = sys_open_files() - files};
    sys_fault = (struct sys_fault){0};
    if (write(count_fd, &c, sizeof c) != sizeof c) abort();
    exit(code);
}

static inline void fault_run(const char *words, const struct sys_fault *f, struct outcome *x) {
    int err_fd = memfd_create("stderr", MFD_CLOEXEC), out_fd = memfd_create("stdout", MFD_CLOEXEC), count_fd = memfd_create("counts", MFD_CLOEXEC), status;
    struct fault_counts c = {.calls = -1};
    *x = (struct outcome){0};
    fflush(stdout), fflush(stderr);
    pid_t pid = fork();
    if (pid < 0) perror("fork"), abort();
    if (!pid) fault_child(words, f, err_fd, out_fd, count_fd);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    x->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1, x->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    if (pread(count_fd, &c, sizeof c, 0) == sizeof c) x->calls = c.calls, x->blocks = c.blocks, x->files = c.files;
    ssize_t n = pread(err_fd, x->said, OUTPUT_MAX - 1, 0);
    x->said[n > 0 ? n : 0] = 0;
    for (const char *p = x->said; p; p = strchr(p, '\n'), p += p != NULL) x->errors += !strncmp(p, "error: ", 7);
    struct sha1 h;
    char buf[4096];
    sha1_init(&h);
    for (off_t at = 0; (n = pread(out_fd, buf, sizeof buf, at)) > 0; at += n) sha1_add(&h, buf, (size_t)n);
    sha1_hex(&h, x->printed);
    close(err_fd), close(out_fd), close(count_fd);
}

/* Runs what must work. */
static inline void fault_must(const char *words) {
    struct outcome x;
    fault_run(words, NULL, &x);
    if (!x.code && !x.signal) return;
    fprintf(stderr, "%s: exit status %d, signal %d\n%s", words, x.code, x.signal, x.said);
    abort();
}

static inline void fault_shell(const char *fmt, ...) {
    char line[4000];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (system(line)) fprintf(stderr, "failed: %s\n", line), abort();
}

/* One number for the contents of a folder: names and bytes of all that a rerun writes alike (not logs, times, ids of runs). */
static inline void fault_add_folder(struct sha1 *h, const char *dir) {
    static const char *const same[] = {".safetensors", ".model", "adapter_config.json", "/config.json", "index.json", ".jsonl", ".npz", NULL};
    char **names, path[PATH_MAX], hex[41];
    int n;
    if (!path_is_dir(dir) || dir_list(dir, &names, &n, NULL)) return;
    for (int i = 0; i < n; i++) {
        if (path_join(path, sizeof path, dir, names[i], NULL)) continue;
        int take = 0;
        if (strstr(names[i], ".tmp")) continue; /* of a process that could not even clean up */
        for (int k = 0; same[k]; k++) take |= text_ends(path, same[k]) && !text_ends(path, "trainer_log.jsonl");
        if (path_is_dir(path)) fault_add_folder(h, path);
        else if (take && !sha1_file(path, hex, NULL)) sha1_add(h, path, strlen(path)), sha1_add(h, hex, 40);
    }
    dir_list_free(names, n);
}
static inline void fault_hash(const char *dir, char hex[41]) {
    struct sha1 h;
    sha1_init(&h);
    fault_add_folder(&h, dir);
    sha1_hex(&h, hex);
}

/* Names with ".tmp" below a folder. */
static char fault_left[PATH_MAX]; /* one of them */
static inline int fault_leftovers(const char *dir) {
    char **names, path[PATH_MAX];
    int n, found = 0;
    if (!path_is_dir(dir) || dir_list(dir, &names, &n, NULL)) return 0;
    for (int i = 0; i < n; i++) {
        if (path_join(path, sizeof path, dir, names[i], NULL)) continue;
        if (strstr(names[i], ".tmp")) found++, strcpy(fault_left, path);
        if (path_is_dir(path)) found += fault_leftovers(path);
    }
    dir_list_free(names, n);
    return found;
}

/* The tensors of a folder as torch.save writes them: views of one storage. */
static inline void fault_torch(const char *from, const char *to) {
    struct err e = {0};
    struct ckpt *c = ckpt_open(from, &e);
    struct str pickle = {0};
    struct bin b = {0};
    int64_t held = 0, at = 0;
    if (!c) fprintf(stderr, "%s\n", e.text), abort();
    for (int64_t i = 0; i < ckpt_count(c); i++) held += ckpt_at(c, i)->count;
    uint16_t *all = calloc((size_t)held, 2);
    str_puts(&pickle, "\x80\2}(");
    for (int64_t i = 0; i < ckpt_count(c); i++) {
        const struct ckpt_tensor *t = ckpt_at(c, i);
        pk_text(&pickle, t->name);
        pk_tensor(&pickle, "BFloat16", "0", held, at, t->rank, t->shape, t->stride);
        if (ckpt_read_all(c, t, DT_BF16, all + at, &e)) fprintf(stderr, "%s\n", e.text), abort();
        at += t->count;
    }
    str_puts(&pickle, "u.");
    bin_add(&b, "m/data.pkl", pickle.p, pickle.n), bin_add(&b, "m/data/0", all, (size_t)held * 2), bin_add(&b, "m/version", "3\n", 2);
    bin_end(&b);
    if (file_write_all(to, b.file.p, b.file.n, &e)) fprintf(stderr, "%s\n", e.text), abort();
    free(all), str_free(&pickle), bin_free(&b), ckpt_close(c);
}

/* `points` of 1..n for a short test, spread with an offset; all of them with FAULT_EVERY=1, a third with TEST_SHORT=1. */
static inline int64_t fault_stride(int64_t n, int64_t points) {
    const char *every = getenv("FAULT_EVERY");
    if (getenv("TEST_SHORT")) points = (points + 2) / 3;
    return (every && atoi(every) > 0) || n <= points ? 1 : n / points;
}

#define FAULT_TRAIN \
    "train --do_train --stage sft --template yuan --model_name_or_path m --dataset_dir data --dataset questions --max_samples 16 --cutoff_len 64 " \
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --num_train_epochs 1 --learning_rate 2e-3 --logging_steps 2 --save_steps 2 " \
    "--save_total_limit 2 --quiet --resume_from_checkpoint true --output_dir out "
#define FAULT_LORA FAULT_TRAIN "--lora_target q_proj,down_proj --lora_rank 4 --quantization_bit 4 "
#define FAULT_FULL FAULT_TRAIN "--finetuning_type full --optim paged_adamw_8bit "

static char fault_folder[PATH_MAX];
static inline void fault_remove_world(void) { /* children leave by exit, too */
    static pid_t owner;
    if (!owner) owner = getpid();
    else if (owner == getpid()) dir_remove(fault_folder, NULL);
}

static inline void fault_world(void) {
    const char *tmp = getenv("TMPDIR"), *tools = getenv("TOOLS");
    char bin[PATH_MAX];
    if (*fault_folder) return;
    setenv("OMP_NUM_THREADS", "1", 1); /* of tools; this process has read it already */
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    if (!realpath(tools && *tools ? tools : "build/examples/demo", bin)) perror("TOOLS"), abort();
    snprintf(fault_folder, sizeof fault_folder, "%s/qlora-fault-XXXXXX", tmp && *tmp ? tmp : dir_free_bytes("/dev/shm") > 64 << 20 ? "/dev/shm" : "/tmp"); /* thousands of syncs */
    if (!mkdtemp(fault_folder) || chdir(fault_folder)) perror(fault_folder), abort();
    fault_remove_world();
    atexit(fault_remove_world);
    fault_shell("%s/make_data data >/dev/null && %s/make_tokenizer tok 600 data/corpus.txt >/dev/null 2>&1", bin, bin);
    fault_must("new --config yuan2-tiny --tokenizer tok --output_dir m --override vocab_size=600 --override eod_token=583 --override pad_token_id=583 "
               "--override num_hidden_layers=2 --override max_position_embeddings=256 --quiet");
    fault_must("quantize --model_name_or_path m --output_dir m4 --quantization_bit 4 --quiet");
    fault_must("quantize --model_name_or_path m --output_dir m8 --quantization_bit 8 --quiet");
    fault_must("export --model_name_or_path m --export_dir shards --export_size 0.0001 --quiet");
    fault_shell("mkdir torch && cp m/config.json m/tokenizer.model torch");
    fault_torch("m", "torch/pytorch_model.bin");
    fault_must(FAULT_LORA);
    fault_shell("mv out a && cp -r a resume && rm -r resume/checkpoint-4 resume/adapter* resume/*results.json");
    fault_must(FAULT_FULL);
    fault_shell("mv out f && cp -r f resumef && rm -r resumef/checkpoint-4 resumef/model* resumef/*results.json");
    fault_shell("printf '{\"text\":\"hello world\"}\\n{\"text\":\"What colour is the toni?\"}\\n' >text.jsonl; printf '{\"ids\":[470,259,305]}\\n' >ids.jsonl;"
                "printf '{\"prompt\":\"hello\"}\\n{\"prompt\":\"What is it?\"}\\n' >prompts.jsonl;"
                "printf 'instruction,input,output\\nWhat is red?,,roses\\nWhat flies?,,birds\\n' >table.csv; printf 'some text\\nmore text\\n' >plain.txt;"
                "mkdir -p exam/mmlu && printf 'What flies?,fish,fish,bats,stones,C\\n' | tee exam/mmlu/birds_dev.csv >exam/mmlu/birds_test.csv &&"
                "echo '{\"birds\": {\"name\": \"birds\", \"category\": \"STEM\"}}' >exam/mmlu/mapping.json");
    fault_shell("printf 'stage: sft\\ndo_train: true\\nmodel_name_or_path: m\\ntemplate: yuan\\ndataset_dir: data\\ndataset: questions\\nmax_samples: 8\\ncutoff_len: 64\\n"
                "lora_target: q_proj\\nlora_rank: 4\\nper_device_train_batch_size: 4\\nnum_train_epochs: 1\\nlearning_rate: 1.0e-3\\noutput_dir: out\\n' >run.yaml");
    fault_shell("printf '{\"train_micro_batch_size_per_gpu\": \"auto\", \"gradient_accumulation_steps\": \"auto\", \"zero_optimization\": {\"stage\": 2}, \"bf16\": {\"enabled\": \"auto\"}}' >zero2.json");
}
#endif
