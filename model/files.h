/* model/files.h - the small files of a checkpoint beside weights and config.json: tokenizer, generation settings, and the
 * model's own Python code, which other tools run and this program only copies. */
#ifndef QLORA_MODEL_FILES_H
#define QLORA_MODEL_FILES_H
#include "base/err.h"

/* Copies those of them that `from` has to `to`. */
int model_copy_files(const char *from, const char *to, struct err *e);
/* Fails when `dir` already holds weights or a config.json, unless overwrite; makes it otherwise. `from` (may be NULL) must be
 * another folder. */
int model_output_dir(const char *dir, const char *from, int overwrite, struct err *e);
#endif
