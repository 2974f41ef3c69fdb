/* cli/guide.c - see guide.h */
#include "cli/guide.h"

const struct guide_row guide[GUIDE_ROWS] = {
    {"2B", "yuan2-2b", "full", 40, 0, 0, FT_FULL, 0},        {"2B", "yuan2-2b", "LoRA", 7, 0, 0, FT_LORA, 0},       {"2B", "yuan2-2b", "QLoRA", 5, 4.5, 1, FT_LORA, 4},
    {"51B", "yuan2-51b", "full", 1000, 0, 0, FT_FULL, 0},    {"51B", "yuan2-51b", "LoRA", 120, 0, 0, FT_LORA, 0},   {"51B", "yuan2-51b", "QLoRA", 40, 40, 22, FT_LORA, 4},
    {"102B", "yuan2-102b", "full", 2000, 0, 0, FT_FULL, 0},  {"102B", "yuan2-102b", "LoRA", 230, 0, 0, FT_LORA, 0}, {"102B", "yuan2-102b", "QLoRA", 80, 0, 0, FT_LORA, 4},
};

void guide_apply(const struct guide_row *g, struct train_options *o) {
    o->finetuning = g->finetuning, o->quantization_bit = g->bits;
    if (g->finetuning == FT_FULL) o->filter_4bit = 0; /* of the other rows */
}
