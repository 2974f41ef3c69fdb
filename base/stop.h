/* base/stop.h - signals as flags. SIGINT/SIGTERM ask to finish the unit of work, save and leave; a second SIGINT leaves
 * at once; SIGUSR1 asks to save and go on. Long loops poll. */
#ifndef QLORA_BASE_STOP_H
#define QLORA_BASE_STOP_H
void stop_install(void);
int stop_requested(void);      /* signal number, or 0. Exit code is 128 + it */
int stop_save_requested(void); /* 1 once per SIGUSR1 */
#endif
