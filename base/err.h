/* base/err.h - the three kinds of failure.
 *
 * 1. The user's world (files, flags, memory, disk): a function returns -1 (or NULL) and fills `struct err` with one
 *    sentence that says what, where and what to do. The first error wins: later err_set calls do not overwrite it.
 * 2. Our bug: ASSERT, on in release; prints the expression and the values and aborts.
 * 3. The device: CUDA_CHECK in backend/cuda.
 *
 *     struct err e = {0};
 *     if (file_read_all(path, 1 << 20, &text, &n, &e)) return err_print(&e);
 */
#ifndef QLORA_BASE_ERR_H
#define QLORA_BASE_ERR_H

enum { /* struct err.code is the exit code of the program */
    ERR_OK = 0,
    ERR_RUN = 1,       /* the run failed: disk, memory, device */
    ERR_INPUT = 2,     /* the command line or an input file is wrong */
    ERR_NONFINITE = 70 /* training met NaN or infinity too often */
};

struct err {
    int code;
    char text[1200]; /* one sentence, UTF-8, no line feed at the end */
};

/* Fills e (if it is empty; e may be NULL) and returns -1. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* As err_set, with ": strerror(errno)" behind. */
int err_errno(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " in front of the text of a filled error, to say where it happened. Returns -1. */
int err_where(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints "error: text" on standard error, returns the exit code. */
int err_print(const struct err *e);

void assert_failed(const char *file, int line, const char *expr, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 4, 5)));
/* ASSERT(n == m, "n %d, m %d", n, m): the message is required, it carries the values. */
#define ASSERT(cond, ...) ((cond) ? (void)0 : assert_failed(__FILE__, __LINE__, #cond, __VA_ARGS__))

#endif
