/* base/stop.h - signals as flags. SIGINT/SIGTERM ask to finish the unit of work, save and leave; a second one, of either
 * kind, leaves at once; SIGUSR1 asks to save and go on. Long loops poll, and nothing waits for input but by stop_wait_input. */
#ifndef QLORA_BASE_STOP_H
#define QLORA_BASE_STOP_H
#include "base/err.h"

void stop_install(void);
int stop_requested(void);      /* signal number, or 0. Exit code is 128 + it */
int stop_save_requested(void); /* 1 once per SIGUSR1 */
/* For work that leaves nothing behind: 0, or -1 and e "stopped WHILE", with the exit code of the signal. */
int stop_check(const char *while_, struct err *e);
/* Waits until fd can be read or has ended. 0, or the signal that came first. */
int stop_wait_input(int fd);
#endif
