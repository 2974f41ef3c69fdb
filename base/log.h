/* base/log.h - talk on standard error: messages, warnings, one progress line. Results go to standard output elsewhere. */
#ifndef QLORA_BASE_LOG_H
#define QLORA_BASE_LOG_H

extern int log_quiet; /* 1: only warnings and errors */
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* One line that replaces itself on a terminal when nothing was said for 0.1 s, and is printed plainly when nothing was for a second
 * (done: always) when standard error is a file. NO_COLOR and TERM=dumb count as "not a terminal". */
void log_progress(int done, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Takes an unfinished progress line off the terminal, so that a result on standard output does not stand behind it. */
void log_make_way(void);
int log_is_terminal(void);
#endif
