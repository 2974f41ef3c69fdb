/* The files and lines a run leaves: byte for byte where strangers' tools read them (formats: Python's json and repr). */
#include "base/file.h"
#include "base/log.h"
#include "base/sys.h"
#include "tests/test.h"
#include "train/report.h"
#include <dirent.h>
#include <math.h>
#include <unistd.h>
#include <zlib.h>

static char folder[] = "/tmp/qlora-report-XXXXXX";

static const char *in_folder(const char *name) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* A fresh empty folder for each test. */
static int fresh(void) {
    struct err e = {0};
    if (strstr(folder, "XXXXXX")) return mkdtemp(folder) ? 0 : -1;
    return dir_remove(folder, &e) || dir_make(folder, &e) ? -1 : 0;
}

static char *contents(const char *name) {
    static char *text;
    struct err e = {0};
    size_t n;
    sys_free(text);
    text = NULL;
    return file_read_all(in_folder(name), 1 << 24, &text, &n, &e) ? (text = NULL, (char *)"(no file)") : text;
}

/* Standard output goes to a file between catch_begin and catch_end. */
static int saved_stdout;
static void catch_begin(void) {
    fflush(stdout);
    saved_stdout = dup(1);
    if (!freopen(in_folder("stdout"), "w", stdout)) abort();
}
static const char *catch_end(void) {
    fflush(stdout);
    dup2(saved_stdout, 1);
    close(saved_stdout);
    return contents("stdout");
}

static struct report_config config(void) {
    return (struct report_config){.dir = folder,
                                  .logging_steps = 10,
                                  .save_steps = 100,
                                  .eval_steps = 10,
                                  .train_batch_size = 2,
                                  .max_steps = 40,
                                  .epochs = 2};
}
static struct report_event event(int64_t step, double loss) {
    return (struct report_event){.step = step,
                                 .total_steps = 40,
                                 .loss = loss,
                                 .eval_loss = NAN,
                                 .eval_accuracy = NAN,
                                 .learning_rate = 4.95e-05,
                                 .grad_norm = 0.875,
                                 .epoch = (double)step / 20,
                                 .elapsed_seconds = 61.2,
                                 .remaining_seconds = 90000,
                                 .tokens_seen = step * 1000,
                                 .tokens_per_second = 1234.567};
}

static void expect(const char *what, const char *got, const char *want) {
    CHECK(!strcmp(got, want), "%s:\n got %s\nwant %s", what, got, want);
}

TEST(log_lines_new) {
    struct err e = {0};
    struct report_config c = config();
    REQUIRE(!fresh(), "temporary folder");
    catch_begin();
    struct report *r = report_open(&c, &e);
    struct report_event a = event(3, 1.23456), b = event(6, NAN), d = event(9, INFINITY);
    b.learning_rate = b.grad_norm = NAN, b.eval_loss = 2;
    int bad = !r || report_add(r, &a, &e) || report_add(r, &b, &e) || report_add(r, &d, &e);
    report_close(r);
    expect("stdout", catch_end(),
           "{'loss': 1.2346, 'grad_norm': 0.875, 'learning_rate': 4.95e-05, 'epoch': 0.15}\n"
           "{'eval_loss': 2.0, 'epoch': 0.3}\n"
           "{'loss': inf, 'grad_norm': 0.875, 'learning_rate': 4.95e-05, 'epoch': 0.45}\n");
    CHECK(!bad, "%s", e.text);
    expect("trainer_log.jsonl", contents("trainer_log.jsonl"),
           "{\"current_steps\": 3, \"total_steps\": 40, \"loss\": 1.2346, \"lr\": 4.95e-05, \"epoch\": 0.15, "
           "\"percentage\": 7.5, \"elapsed_time\": \"0:01:01\", \"remaining_time\": \"1 day, 1:00:00\"}\n"
           "{\"current_steps\": 6, \"total_steps\": 40, \"eval_loss\": 2.0, \"epoch\": 0.3, "
           "\"percentage\": 15.0, \"elapsed_time\": \"0:01:01\", \"remaining_time\": \"1 day, 1:00:00\"}\n"
           "{\"current_steps\": 9, \"total_steps\": 40, \"loss\": null, \"lr\": 4.95e-05, \"epoch\": 0.45, "
           "\"percentage\": 22.5, \"elapsed_time\": \"0:01:01\", \"remaining_time\": \"1 day, 1:00:00\"}\n");
}

TEST(log_lines_old_and_throughput) {
    struct err e = {0};
    struct report_config c = config();
    REQUIRE(!fresh(), "temporary folder");
    c.compat_old = 1, c.with_throughput = 1;
    catch_begin();
    struct report *r = report_open(&c, &e);
    struct report_event a = event(7, 1);
    a.total_steps = 21, a.epoch = 0.12345;
    int bad = !r || report_add(r, &a, &e);
    report_close(r);
    expect("stdout", catch_end(), "{'loss': 1.0, 'learning_rate': 4.95e-05, 'epoch': 0.12}\n");
    CHECK(!bad, "%s", e.text);
    expect("trainer_log.jsonl", contents("trainer_log.jsonl"),
           "{\"current_steps\": 7, \"total_steps\": 21, \"loss\": 1.0, \"eval_loss\": null, "
           "\"predict_loss\": null, "
           "\"reward\": null, \"learning_rate\": 4.95e-05, \"epoch\": 0.12, \"percentage\": 33.33, "
           "\"elapsed_time\": \"0:01:01\", \"remaining_time\": \"1 day, 1:00:00\", \"throughput\": 1234.57, "
           "\"total_tokens\": 7000}\n");
}

/* Two parts of a run with a kill between leave the log, the state and the history of one undisturbed run. */
TEST(resume_cuts_and_keeps) {
    struct err e = {0};
    struct report_config c = config();
    char checkpoint[300], whole[4000], state[4000];
    REQUIRE(!fresh(), "temporary folder");
    snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint-20", folder);
    REQUIRE(!dir_make(checkpoint, &e), "%s", e.text);
    catch_begin();
    int bad = 0;
    struct report *r = report_open(&c, &e);
    for (int64_t step = 10; step <= 40 && !bad; step += 10) {
        struct report_event ev = event(step, 1.0 / (double)step);
        bad |= !r || report_add(r, &ev, &e) || (step == 20 && report_state(r, checkpoint, 20, 1, &e));
    }
    bad |= report_state(r, folder, 40, 2, &e);
    report_close(r);
    snprintf(whole, sizeof whole, "%s", contents("trainer_log.jsonl"));
    snprintf(state, sizeof state, "%s", contents("trainer_state.json"));

    bad |= file_append_line(in_folder("trainer_log.jsonl"), "{\"current_steps\": 41, \"torn", &e);
    c.append = 1, c.from_step = 20;
    r = report_open(&c, &e);
    for (int64_t step = 30; step <= 40 && !bad; step += 10) {
        struct report_event ev = event(step, 1.0 / (double)step);
        bad |= !r || report_add(r, &ev, &e);
    }
    bad |= !r || report_state(r, folder, 40, 2, &e);
    report_close(r);
    catch_end();
    CHECK(!bad, "%s", e.text);
    expect("trainer_log.jsonl", contents("trainer_log.jsonl"), whole);
    expect("trainer_state.json", contents("trainer_state.json"), state);
    CHECK(strstr(state, "\"loss\": 0.0333,\n      \"step\": 30\n    },\n    {"), "%s", state);
}

TEST(state_file) {
    struct err e = {0};
    struct report_config c = config();
    REQUIRE(!fresh(), "temporary folder");
    catch_begin();
    struct report *r = report_open(&c, &e);
    struct report_event a = event(10, 0.5);
    int bad = !r || report_state(r, folder, 0, 0, &e);
    CHECK(strstr(contents("trainer_state.json"), "\"log_history\": [],\n"), "empty list");
    bad |= report_add(r, &a, &e) || report_state(r, folder, 10, 0.5, &e);
    report_close(r);
    catch_end();
    CHECK(!bad, "%s", e.text);
    expect(
        "trainer_state.json", contents("trainer_state.json"),
        "{\n  \"best_metric\": null,\n  \"best_model_checkpoint\": null,\n  \"epoch\": 0.5,\n  "
        "\"eval_steps\": 10,\n"
        "  \"global_step\": 10,\n  \"is_hyper_param_search\": false,\n  \"is_local_process_zero\": true,\n"
        "  \"is_world_process_zero\": true,\n  \"log_history\": [\n    {\n      \"epoch\": 0.5,\n"
        "      \"grad_norm\": 0.875,\n      \"learning_rate\": 4.95e-05,\n      \"loss\": 0.5,\n      "
        "\"step\": 10\n"
        "    }\n  ],\n  \"logging_steps\": 10,\n  \"max_steps\": 40,\n  \"num_input_tokens_seen\": 10000,\n"
        "  \"num_train_epochs\": 2,\n  \"save_steps\": 100,\n  \"total_flos\": 0.0,\n  \"train_batch_size\": "
        "2,\n"
        "  \"trial_name\": null,\n  \"trial_params\": null\n}\n");
}

TEST(results_and_pictures) {
    struct err e = {0};
    struct report_config c = config();
    REQUIRE(!fresh(), "temporary folder");
    static const char foreign[] = "{\"predict_rouge-l\": 12.5, \"eval_loss\": 9, \"note\": \"x\"}";
    REQUIRE(!file_write_all(in_folder("all_results.json"), foreign, sizeof foreign - 1, &e), "%s", e.text);
    c.plot_loss = 1;
    catch_begin();
    struct report *r = report_open(&c, &e);
    int bad = !r;
    for (int64_t step = 10; step <= 40 && !bad; step += 10) {
        struct report_event ev = event(step, 1.0 / (double)step);
        bad |= report_add(r, &ev, &e);
    }
    struct report_results res = {.epoch = 2,
                                 .train_loss = 0.0520833,
                                 .train_runtime = 123.456,
                                 .total_flos = 3.3e12,
                                 .samples = 80,
                                 .steps = 40,
                                 .eval_loss = 1.5,
                                 .eval_accuracy = NAN,
                                 .eval_runtime = 2,
                                 .eval_samples = 8,
                                 .eval_steps = 4};
    bad |= report_finish(r, &res, &e) || report_state(r, folder, 40, 2, &e);
    report_close(r);
    const char *out = catch_end();
    CHECK(!bad, "%s", e.text);
    CHECK(
        strstr(
            out,
            "{'train_runtime': 123.456, 'train_samples_per_second': 0.648, 'train_steps_per_second': 0.324, "
            "'train_loss': 0.0520833, 'epoch': 2.0}\n"
            "***** train metrics *****\n"
            "  epoch                    =        2.0\n"
            "  total_flos               =     3073GF\n"
            "  train_loss               =     0.0521\n"
            "  train_runtime            = 0:02:03.45\n"
            "  train_samples_per_second =      0.648\n"
            "  train_steps_per_second   =      0.324\n"
            "***** eval metrics *****\n"),
        "%s", out);
    CHECK(strstr(out, "training_loss.png\n"), "%s", out);
    expect("all_results.json", contents("all_results.json"),
           "{\n    \"epoch\": 2.0,\n    \"eval_loss\": 1.5,\n    \"eval_perplexity\": 4.4816890703380645,\n"
           "    \"eval_runtime\": 2.0,\n"
           "    \"eval_samples_per_second\": 4.0,\n    \"eval_steps_per_second\": 2.0,\n    "
           "\"predict_rouge-l\": 12.5,\n"
           "    \"total_flos\": 3300000000000.0,\n    \"train_loss\": 0.0520833,\n    \"train_runtime\": "
           "123.456,\n"
           "    \"train_samples_per_second\": 0.648,\n    \"train_steps_per_second\": 0.324\n}");
    CHECK(strstr(contents("train_results.json"), "\"epoch\"") &&
              !strstr(contents("train_results.json"), "eval"),
          "train");
    CHECK(strstr(contents("eval_results.json"), "eval_loss") &&
              !strstr(contents("eval_results.json"), "train"),
          "eval");
    CHECK(strstr(contents("trainer_state.json"), "\"train_steps_per_second\": 0.324\n    }\n  ],"),
          "results in the state");
    const char *log = contents("trainer_log.jsonl");
    CHECK(strstr(log,
                 "\"total_steps\": 40, \"epoch\": 2.0, \"percentage\": 100.0, \"elapsed_time\": \"0:02:03\", "
                 "\"remaining_time\": \"0:00:00\"}\n"),
          "%s", log);
    CHECK(path_is_file(in_folder("training_loss.png")), "picture");
    CHECK(!path_exists(in_folder("training_eval_loss.png")), "no data, no picture");
}

/* An evaluation's numbers where transformers writes them, kept over a resume; the best of them in the state. */
TEST(evaluations) {
    struct err e = {0};
    struct report_config c = config();
    char checkpoint[300], state[4000];
    REQUIRE(!fresh(), "temporary folder");
    snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint-20", folder);
    REQUIRE(!dir_make(checkpoint, &e), "%s", e.text);
    catch_begin();
    struct report *r = report_open(&c, &e);
    struct report_event ev = event(20, NAN);
    ev.grad_norm = ev.learning_rate = NAN, ev.eval_loss = 2, ev.eval_accuracy = 2.0 / 3, ev.eval_runtime = 0.5;
    ev.eval_samples_per_second = 16, ev.eval_steps_per_second = 4.00049, ev.tokens_seen = 0;
    int bad = !r || report_add(r, &ev, &e);
    if (r) report_best(r, 2, checkpoint);
    bad |= !r || report_state(r, checkpoint, 20, 1, &e);
    report_close(r);
    expect("stdout", catch_end(),
           "{'eval_loss': 2.0, 'eval_accuracy': 0.6667, 'eval_runtime': 0.5, 'eval_samples_per_second': 16.0, "
           "'eval_steps_per_second': 4.0, 'epoch': 1.0}\n");
    snprintf(state, sizeof state, "%s", contents("checkpoint-20/trainer_state.json"));
    char want[600];
    snprintf(want, sizeof want, "{\n  \"best_metric\": 2.0,\n  \"best_model_checkpoint\": \"%s\",\n", checkpoint);
    CHECK(text_starts(state, want), "%s", state);
    CHECK(strstr(state, "{\n      \"epoch\": 1.0,\n      \"eval_accuracy\": 0.6666666666666666,\n      \"eval_loss\": 2.0,\n"
                        "      \"eval_runtime\": 0.5,\n      \"eval_samples_per_second\": 16.0,\n"
                        "      \"eval_steps_per_second\": 4.0,\n      \"step\": 20\n    }"), "%s", state);
    c.append = 1, c.from_step = 20, c.state_dir = checkpoint;
    r = report_open(&c, &e);
    if (r) report_best(r, 2, checkpoint);
    bad |= !r || report_state(r, folder, 20, 1, &e);
    report_close(r);
    CHECK(!bad, "%s", e.text);
    expect("state after a resume", contents("trainer_state.json"), state);
}

/* Numbers of single data sets in every file, and through a resume. */
TEST(evaluations_of_several_sets) {
    struct err e = {0};
    struct report_config c = config();
    char state[4000];
    REQUIRE(!fresh(), "temporary folder");
    catch_begin();
    struct report *r = report_open(&c, &e);
    struct report_part part[2] = {{"a", 1.25, 0.5}, {"my_loss", 3, NAN}};
    struct report_event ev = event(20, NAN);
    ev.grad_norm = ev.learning_rate = NAN, ev.eval_loss = 2, ev.tokens_seen = 0, ev.part = part, ev.parts = 2;
    int bad = !r || report_add(r, &ev, &e);
    part[0].loss = 9; /* a copy was taken */
    bad |= !r || report_state(r, folder, 20, 1, &e);
    struct report_results res = {.train_runtime = 1, .eval_loss = 2, .eval_accuracy = NAN, .eval_runtime = 1};
    snprintf(state, sizeof state, "%s", contents("trainer_state.json"));
    bad |= !r || report_finish(r, &res, &e);
    report_close(r);
    const char *said = catch_end();
    CHECK(!bad && text_starts(said, "{'eval_loss': 2.0, 'eval_a_loss': 1.25, 'eval_a_accuracy': 0.5, 'eval_my_loss_loss': 3.0, 'epoch': 1.0}\n"), "%s%s", e.text, said);
    CHECK(strstr(contents("trainer_log.jsonl"), "\"eval_loss\": 2.0, \"eval_a_loss\": 1.25, \"eval_a_accuracy\": 0.5, \"eval_my_loss_loss\": 3.0, \"epoch\""), "%s", contents("trainer_log.jsonl"));
    CHECK(strstr(state, "\"eval_loss\": 2.0,\n      \"eval_a_loss\": 1.25,\n      \"eval_a_accuracy\": 0.5,\n      \"eval_my_loss_loss\": 3.0,\n      \"step\": 20"), "%s", state);
    CHECK(strstr(contents("eval_results.json"), "\"eval_a_loss\": 1.25,") && strstr(contents("eval_results.json"), "\"eval_my_loss_loss\": 3.0,"), "%s", contents("eval_results.json"));
    CHECK(!file_write_all(in_folder("trainer_state.json"), state, strlen(state), &e), "%s", e.text);
    c.append = 1, c.from_step = 20, c.state_dir = folder;
    r = report_open(&c, &e);
    CHECK(r && !report_state(r, folder, 20, 1, &e), "%s", e.text);
    report_close(r);
    expect("state after a resume", contents("trainer_state.json"), state);
}

TEST(results_of_any_kind) {
    struct err e = {0};
    struct report_metrics t = {.n = 0};
    REQUIRE(!fresh(), "temporary folder");
    report_set(&t, "predict_rouge-l", 12.5), report_set(&t, "predict_bleu-4", 7.25), report_set(&t, "predict_loss", NAN);
    report_set_speed(&t, "predict", 4, 10, 2);
    catch_begin();
    int bad = report_write(&t, folder, "predict", &e);
    expect("stdout", catch_end(),
           "***** predict metrics *****\n"
           "  predict_bleu-4             =       7.25\n"
           "  predict_rouge-l            =       12.5\n"
           "  predict_runtime            = 0:00:04.00\n"
           "  predict_samples_per_second =        2.5\n"
           "  predict_steps_per_second   =        0.5\n");
    CHECK(!bad, "%s", e.text);
    static const char file[] = "{\n    \"predict_bleu-4\": 7.25,\n    \"predict_rouge-l\": 12.5,\n    \"predict_runtime\": 4.0,\n"
                               "    \"predict_samples_per_second\": 2.5,\n    \"predict_steps_per_second\": 0.5\n}";
    expect("predict_results.json", contents("predict_results.json"), file);
    expect("all_results.json", contents("all_results.json"), file);
}

/* ---- TensorBoard ---- */

static uint32_t crc32c(const unsigned char *p, size_t n) { /* bit by bit, from the polynomial */
    uint32_t c = ~0u;
    while (n--) {
        c ^= *p++;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0x82f63b78u : 0);
    }
    return ~c;
}
static uint32_t le32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint32_t masked(uint32_t c) {
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

TEST(events_file) {
    struct err e = {0};
    REQUIRE(!fresh(), "temporary folder");
    CHECK(crc32c((const unsigned char *)"123456789", 9) == 0xe3069283u, "the check value of CRC-32C");
    struct tfevents *t = tfevents_open(folder, 299, &e);
    REQUIRE(t && !tfevents_scalar(t, "train/loss", 300, 0.5, &e), "%s", e.text);
    tfevents_close(t);
    char **names, *text;
    int count;
    size_t n;
    REQUIRE(!dir_list(folder, &names, &count, &e) && count == 1, "%d files, %s", count, e.text);
    CHECK(!strncmp(names[0], "events.out.tfevents.", 20), "%s", names[0]);
    REQUIRE(!file_read_all(in_folder(names[0]), 1 << 20, &text, &n, &e), "%s", e.text);
    /* what follows wall_time (9 bytes) in the three events: step 0 and version; step 300 and START; step 300 and a value */
    static const char version[] = "\x10\x00\x1a\x0d"
                                  "brain.Event:2",
                      start[] = "\x10\xac\x02\x3a\x02\x08\x01",
                      value[] = "\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0a"
                                "train/loss\x15\x00\x00\x00\x3f";
    static const struct {
        const char *bytes;
        size_t n;
    } want[] = {{version, sizeof version - 1}, {start, sizeof start - 1}, {value, sizeof value - 1}};
    const unsigned char *p = (const unsigned char *)text;
    for (size_t i = 0; i < 3; i++) {
        size_t size = 9 + want[i].n;
        REQUIRE(n >= 16 + size && le32(p) == size && le32(p + 4) == 0, "record %zu: %u bytes", i,
                n >= 4 ? le32(p) : 0);
        CHECK(le32(p + 8) == masked(crc32c(p, 8)), "length of record %zu", i);
        CHECK(le32(p + 12 + size) == masked(crc32c(p + 12, size)), "data of record %zu", i);
        CHECK(p[12] == 0x09 && !memcmp(p + 21, want[i].bytes, want[i].n), "record %zu", i);
        p += 16 + size, n -= 16 + size;
    }
    CHECK(n == 0, "%zu bytes behind the last record", n);
    sys_free(text);
    dir_list_free(names, count);
}

/* ---- picture ---- */

TEST(smoothing) {
    /* LLaMA-Factory: weight 1.8 (1/(1+e^-0.05n) - 0.5), n = 3 */
    const double y[3] = {4, 2, 1}, w = 1.8 * (1 / (1 + exp(-0.15)) - 0.5);
    double out[3];
    plot_smooth(y, 3, out);
    CHECK(fabs(out[0] - 4) < 1e-15, "%g", out[0]);
    CHECK(fabs(out[1] - (4 * w + 2 * (1 - w))) < 1e-15, "%g", out[1]);
    CHECK(fabs(out[2] - (out[1] * w + (1 - w))) < 1e-15, "%g", out[2]);
    CHECK(fabs(w - 0.067373722) < 1e-8, "%.9f", w);
}

static uint32_t be32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | (uint32_t)p[3];
}

/* Decodes the picture: chunks with good checksums, 800 x 500 RGB rows, and the curve where its points are. */
TEST(png_is_a_picture_of_the_data) {
    struct err e = {0};
    REQUIRE(!fresh(), "temporary folder");
    double x[200], y[200];
    for (int i = 0; i < 200; i++) x[i] = i, y[i] = i < 100 ? 3 : 1; /* a step down: two flat halves */
    REQUIRE(
        !plot_png(in_folder("p.png"), "title with \xe4\xbd\xa0 and 'quotes'", "step", "loss", x, y, 200, &e),
        "%s", e.text);
    char *text;
    size_t n;
    REQUIRE(!file_read_all(in_folder("p.png"), 1 << 20, &text, &n, &e), "%s", e.text);
    const unsigned char *p = (const unsigned char *)text;
    REQUIRE(n > 57 && !memcmp(p, "\x89PNG\r\n\x1a\n", 8), "signature");
    CHECK(be32(p + 16) == 800 && be32(p + 20) == 500 && p[24] == 8 && p[25] == 2, "header");
    uLongf size = 500 * 2401;
    unsigned char *rgb = malloc(size);
    for (size_t at = 8; at + 12 <= n;) {
        uint32_t bytes = be32(p + at);
        REQUIRE(bytes <= n - at - 12, "chunk at %zu", at);
        CHECK(be32(p + at + 8 + bytes) == crc32(0, p + at + 4, bytes + 4), "checksum of the chunk at %zu",
              at);
        if (!memcmp(p + at + 4, "IDAT", 4)) CHECK(uncompress(rgb, &size, p + at + 8, bytes) == Z_OK, "data");
        at += 12 + bytes;
    }
    CHECK(size == 500 * 2401, "%lu bytes of rows", size);
    /* colour of the dark blue smoothed curve: mostly in the upper quarter on the left, in the lower quarter at the end */
    int left_top = 0, left_bottom = 0, right_top = 0, right_bottom = 0;
    for (int row = 60; row < 438; row++)
        for (int col = 90; col < 770; col++) {
            const unsigned char *q = rgb + row * 2401 + 1 + 3 * col;
            if (q[0] > 60 || q[2] < 150 || row < 110) continue;
            if (row < 250)
                col < 400 ? left_top++ : right_top++;
            else
                col < 400 ? left_bottom++ : right_bottom++;
        }
    CHECK(right_bottom > 200 && left_bottom == 0, "left %d/%d right %d/%d", left_top, left_bottom, right_top,
          right_bottom);
    free(rgb);
    sys_free(text);
    CHECK(!plot_png(in_folder("one.png"), "", "", "", x, y, 1, &e), "%s", e.text);
    y[1] = 1e29, y[2] = -1e29;
    CHECK(!plot_png(in_folder("big.png"), "t", "x", "y", x, y, 3, &e), "%s", e.text);
}

TEST(model_card) {
    struct err e = {0};
    REQUIRE(!fresh(), "temporary folder");
    REQUIRE(!report_card(folder, "base \"x\"", "lora", "alpaca_zh", "learning_rate: 5e-05\nseed: 42\n", &e),
            "%s", e.text);
    const char *card = contents("README.md");
    CHECK(!strncmp(card, "---\nbase_model: \"base \\\"x\\\"\"\nlibrary_name: peft\n", 47), "%s", card);
    CHECK(strstr(card, "\n- learning_rate: 5e-05\n- seed: 42\n"), "%s", card);
}

/* Runs `attempt` with its first, second, .. call of alloc, open, write, sync, rename and read failing, until none fails.
 * Each failure must come back as an error. */
static void sweep(int (*attempt)(struct err *), int (*intact)(void)) {
    int64_t at = 1;
    for (int fired = 1; fired && at < 1000; at++) {
        struct err e = {0};
        sys_fault = (struct sys_fault){.kinds = "aowsnr", .at = at, .error = 28 /* ENOSPC */};
        int bad = attempt(&e);
        fired = sys_fault.calls >= at;
        sys_fault = (struct sys_fault){0};
        CHECK(!bad == !e.code && bad == fired, "call %lld: %d, %s", (long long)at, bad, e.text);
        CHECK(intact(), "call %lld left a broken file", (long long)at);
    }
    CHECK(at < 1000, "the end was reached");
}

static const char log_before[] =
    "{\"current_steps\": 1, \"total_steps\": 2}\n{\"current_steps\": 9, \"total_steps\": 2}\n";

static int whole_run(struct err *e) {
    struct report_config c = config();
    const struct report_part part = {.name = "a", .loss = 1, .accuracy = NAN};
    struct report_event ev = event(10, 1);
    ev.eval_loss = 2, ev.part = &part, ev.parts = 1;
    struct report_results res = {.train_runtime = 1, .eval_loss = 2, .eval_runtime = 1};
    struct sys_fault armed = sys_fault;
    sys_fault = (struct sys_fault){0}; /* preparation does not count */
    if (file_write_all(in_folder("trainer_log.jsonl"), log_before, sizeof log_before - 1, e)) return -2;
    sys_fault = armed;
    c.append = 1, c.from_step = 5;
    struct report *r = report_open(&c, e);
    int bad = !r || report_add(r, &ev, e) || report_state(r, folder, 10, 1, e) || report_finish(r, &res, e) ||
              report_card(folder, "b", "lora", "d", "h: 1", e);
    report_close(r);
    return bad;
}
static int log_is_whole(void) {
    return !strncmp(contents("trainer_log.jsonl"), log_before,
                    strlen("{\"current_steps\": 1, \"total_steps\": 2}\n"));
}

static int draw(struct err *e) {
    const double x[3] = {1, 2, 3}, y[3] = {3, 1, 2};
    return plot_png(in_folder("p.png"), "t", "x", "y", x, y, 3, e) != 0;
}
static int picture_is_whole(void) {
    return path_bytes(in_folder("p.png")) > 1000;
}

TEST(every_failure_is_reported) {
    struct err e = {0};
    REQUIRE(!fresh() && !draw(&e), "%s", e.text);
    log_quiet = 1;
    catch_begin();
    sweep(whole_run, log_is_whole);
    catch_end();
    sweep(draw, picture_is_whole);
}

__attribute__((destructor)) static void clean(void) {
    struct err e = {0};
    if (!strstr(folder, "XXXXXX")) dir_remove(folder, &e);
}
/* In a file: plain lines when nothing was said for a second, the last one always. */
TEST(progress) {
    REQUIRE(!fresh(), "temporary folder");
    struct report_event ev = event(10, 1.23456);
    ev.share = 0.3456, ev.device_bytes = 5LL << 29, ev.remaining_seconds = 3661;
    fflush(stderr);
    int old = dup(2), quiet = log_quiet;
    log_quiet = 0;
    FILE *f = fopen(in_folder("stderr"), "w");
    REQUIRE(f && dup2(fileno(f), 2) == 2, "no file");
    log_info("said");
    report_progress(&ev, 0); /* too soon */
    usleep(1100000);
    report_progress(&ev, 0);
    ev.step = 20;
    report_progress(&ev, 0); /* too soon */
    ev.step = 40, ev.share = 0, ev.device_bytes = 0, ev.loss = INFINITY;
    report_progress(&ev, 1);
    dup2(old, 2), close(old), fclose(f);
    log_quiet = quiet;
    expect("progress", contents("stderr"), "said\n"
                                           "##-------- 10/40  loss 1.2346   1,234 tokens/s  1:01:01 left  lr 4.95e-05  norm 0.875   34.6 % of peak  2.50 GiB\n"
                                           "########## 40/40  loss inf   1,234 tokens/s  lr 4.95e-05  norm 0.875 \n");
}
TEST_MAIN
