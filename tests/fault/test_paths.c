/* Names that lead where they should not, in every file that can hold one: index, MANIFEST, dataset_info.json, and what stands in a
 * model's or adapter's folder. Each is refused with one sentence and exit status 2 (or 1 where the machine says no), without a hang,
 * and nothing outside is read into a result or written. */
#include "tests/fault/fault.h"
#include <sys/stat.h>

static int attacks;

static void refuse(const char *what, const char *words) {
    struct outcome x;
    attacks++;
    fault_run(words, NULL, &x);
    CHECK(!x.signal && (x.code == ERR_INPUT || x.code == ERR_RUN) && x.errors == 1 && !strstr(x.said, "SECRET"), "%s: exit status %d, signal %d, %d sentences\n%s", what, x.code, x.signal, x.errors, x.said);
    CHECK(!x.blocks && !x.files, "%s: %lld blocks, %d descriptors left", what, (long long)x.blocks, x.files);
}

/* JSON texts; the files with these names are there where a file can have the name. */
static const char *const names[] = {
    "../secret.safetensors", "..", ".", "", "/etc/passwd", "/proc/self/mem", "/dev/zero", "/dev/stdin", "sub/model.safetensors", "./model.safetensors",
    "model.safetensors/", "//model.safetensors", "a\\u0000b", "model.safetensors\\u0000.txt", "model\\nsafetensors", "\\u001b[2J", "a\\u007fb", "MODEL.SAFETENSORS",
    "fifo", "folder", "zero", "memory", "nowhere", "circle", "..\\\\secret.safetensors", "%2e%2e/secret.safetensors", "~/secret.safetensors", "$HOME", "C:\\\\secret",
    "file:///etc/passwd", "model.safetensors ", " model.safetensors"};

static void furnish(const char *dir) {
    fault_shell("mkdir -p %s/folder && mkfifo %s/fifo && ln -s /dev/zero %s/zero && ln -s /proc/self/mem %s/memory && ln -s nothing %s/nowhere && ln -s circle %s/circle", dir, dir, dir, dir, dir, dir);
}
static void put(const char *path, const char *fmt, ...) {
    static char text[1 << 16];
    va_list ap;
    struct err e = {0};
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (file_write_all(path, text, strlen(text), &e)) fprintf(stderr, "%s\n", e.text), abort();
}

/* An index of the model's tensors, the first of them in a file of that name. */
static void write_index(const char *path, const char *good, const char *name) {
    static char map[1 << 15];
    struct ckpt *c = ckpt_open("m", NULL);
    size_t n = 0;
    for (int64_t i = 0; i < ckpt_count(c); i++) n += (size_t)snprintf(map + n, sizeof map - n, "%s\"%s\": \"%s\"", i ? ", " : "", ckpt_at(c, i)->name, i ? good : name);
    ckpt_close(c);
    put(path, "{\"metadata\": {}, \"weight_map\": {%s}}", map);
}

static void each_name(const char *index, const char *good) {
    char path[100], what[200], long_name[600];
    struct outcome x;
    snprintf(path, sizeof path, "hostile/%s", index);
    write_index(path, good, good);
    fault_run("score --model_name_or_path hostile --text a --quiet", NULL, &x);
    CHECK(!x.code, "%s without an attack: %s", index, x.said);
    for (size_t i = 0; i <= sizeof names / sizeof *names; i++) {
        memset(long_name, 'x', 500), long_name[500] = 0;
        const char *name = i < sizeof names / sizeof *names ? names[i] : long_name;
        write_index(path, good, name);
        snprintf(what, sizeof what, "%s names \"%.60s\"", index, name);
        refuse(what, "score --model_name_or_path hostile --text a --quiet");
    }
    if (unlink(path)) abort();
}

TEST(names_in_an_index) {
    fault_world();
    fault_shell("mkdir hostile && cp m/config.json m/tokenizer.model m/model.safetensors hostile && cp torch/pytorch_model.bin hostile/pytorch_model-1.bin && cp m/model.safetensors secret.safetensors && mkdir hostile/sub && cp m/model.safetensors hostile/sub");
    furnish("hostile");
    each_name("model.safetensors.index.json", "model.safetensors");
    fault_shell("rm hostile/model.safetensors");
    each_name("pytorch_model.bin.index.json", "pytorch_model-1.bin");
    fault_shell("rm -r hostile");
}

TEST(names_in_dataset_info) {
    static const char *const ways[] = {"../secret.json", "sub/../../secret.json", "/proc/self/environ", "/dev/zero", "", "a\\u0000b", "fifo", "zero", "memory", "nowhere", "circle", "sub/../../../../../../../../etc/passwd",
                                       "..", ".", "questions.json/", "QUESTIONS.JSON"};
    char what[200];
    fault_world();
    fault_shell("mkdir -p d/sub && cp data/questions.json d && echo '[{\"instruction\": \"SECRET\", \"output\": \"SECRET\"}]' >secret.json");
    furnish("d");
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        put("d/dataset_info.json", "{\"x\": {\"file_name\": \"%s\"}}", ways[i]);
        snprintf(what, sizeof what, "dataset_info.json names \"%s\"", ways[i]);
        refuse(what, "preview --model_name_or_path m --dataset_dir d --dataset x --cutoff_len 64 --text --quiet");
    }
}

/* A checkpoint that names others' files is skipped, and the run begins anew. */
TEST(names_in_a_manifest) {
    static const char *const lines[] = {"../../secret.json", "/etc/passwd", ".", "..", "folder/x", "fifo", "zero", "memory", "MANIFEST", "nowhere", "circle", ""};
    fault_world();
    fault_shell("echo SECRET >secret.json");
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct outcome x;
        struct sha1 h;
        char text[1000], hex[41];
        int n = snprintf(text, sizeof text, "qlora manifest 1\nfacts {\"step\": 2}\nfile 0000000000000000000000000000000000000000 7 %s\n", lines[i]);
        sha1_init(&h), sha1_add(&h, text, (size_t)n), sha1_hex(&h, hex);
        fault_shell("rm -rf out && mkdir -p out/checkpoint-2");
        furnish("out/checkpoint-2");
        put("out/checkpoint-2/MANIFEST", "%send %s\n", text, hex);
        attacks++;
        fault_run(FAULT_LORA "--save_steps 1000", NULL, &x);
        CHECK(!x.code && strstr(x.said, "skipping a checkpoint") && !strstr(x.said, "SECRET"), "%s: exit status %d\n%s", lines[i], x.code, x.said);
    }
}

/* Things that are no files, under the names of files. */
TEST(what_stands_in_a_folder) {
    static const char *const things[] = {"mkfifo %s", "mkdir %s", "ln -s /dev/zero %s", "ln -s /proc/self/mem %s", "ln -s circle %s; ln -s %s circle", "ln -s /dev/tty %s", "ln -s /proc/kmsg %s"};
    static const struct { const char *file, *words; } places[] = {
        {"w/config.json", "score --model_name_or_path w --text a --quiet"},
        {"w/model.safetensors", "score --model_name_or_path w --text a --quiet"},
        {"w/tokenizer.model", "tokenize --model_name_or_path w --text a"},
        {"w/adapter_config.json", "score --model_name_or_path m --adapter_name_or_path w --text a --quiet"},
        {"w/adapter_model.safetensors", "score --model_name_or_path m --adapter_name_or_path w --text a --quiet"},
        {"w/dataset_info.json", "preview --model_name_or_path m --dataset_dir w --dataset questions --cutoff_len 64 --quiet"},
        {"w/run.yaml", "train w/run.yaml"},
        {"w/zero2.json", FAULT_LORA "--deepspeed w/zero2.json"},
        {"w/questions.json", "preview --model_name_or_path m --dataset_dir w --dataset questions --cutoff_len 64 --quiet"}};
    char command[400];
    fault_world();
    for (size_t p = 0; p < sizeof places / sizeof *places; p++)
        for (size_t t = 0; t < sizeof things / sizeof *things; t++) {
            fault_shell("rm -rf w circle out && cp -r m w && cp a/adapter* w && cp data/questions.json data/dataset_info.json run.yaml zero2.json w && rm %s", places[p].file);
            snprintf(command, sizeof command, things[t], places[p].file, places[p].file);
            if (t == 4) snprintf(command, sizeof command, "ln -s self %s && ln -sf %s w/self", places[p].file, strrchr(places[p].file, '/') + 1);
            fault_shell("%s", command);
            refuse(command, places[p].words);
        }
    printf("  %d attacks\n", attacks);
    CHECK(attacks >= 40, "only %d attacks", attacks);
}
TEST_MAIN
