/* model/files.h - the small files of a checkpoint beside weights and config.json: tokenizer, generation settings, and the
 * model's own Python code, which other tools run and this program only copies. */
#ifndef QLORA_MODEL_FILES_H
#define QLORA_MODEL_FILES_H
#include "base/err.h"
#include "model/config.h"

/* Copies those of them that `from` has to `to`. */
int model_copy_files(const char *from, const char *to, struct err *e);
/* generation_config.json, where it ends and what it pads with, unless `dir` has one. */
int model_write_generation(const struct model_config *c, const char *dir, struct err *e);
/* Fails when `dir` already holds anything, unless overwrite; makes it otherwise. `from` (may be NULL) must be another
 * folder. */
int model_output_dir(const char *dir, const char *from, int overwrite, struct err *e);
/* Moves the files of the finished folder `tmp` (on the same file system) into `dir`. An older config.json and older weights
 * in `dir` go first and config.json comes last: with it there, the model is complete. Other files of `dir` stay. */
int model_publish(const char *tmp, const char *dir, struct err *e);
#endif
