/* train/similarity.h - how near an answer comes to the expected one: BLEU-4 and ROUGE-1/2/L, in per cent.
 *
 * Definitions are those that LLaMA-Factory uses (NLTK's sentence_bleu with smoothing 3, rouge_chinese), but for one point:
 * ROUGE counts words, and Chinese is not cut into words by a dictionary (jieba) but into single characters.
 *
 *     struct similarity s;
 *     if (similarity_of(answer, strlen(answer), label, strlen(label), &s, e)) ...
 */
#ifndef QLORA_TRAIN_SIMILARITY_H
#define QLORA_TRAIN_SIMILARITY_H
#include "base/err.h"
#include <stddef.h>

struct similarity { double bleu4, rouge1, rouge2, rougel; }; /* 0 .. 100, rounded to 4 digits as LLaMA-Factory does */
int similarity_of(const char *answer, size_t answer_n, const char *label, size_t label_n, struct similarity *out, struct err *e);
#endif
