/* examples/demo/make_data.c - a small made-up world in two languages, as data sets.
 *
 * World: 60 creatures with invented names; each has a colour, a home and a food, drawn once from a fixed seed, so nothing
 * about them can be known from elsewhere.
 *
 *     world.json      beginnings of sentences and how they go on, about all creatures      what the base model learns
 *     questions.json  questions and answers about 40 creatures                              what the adapter learns
 *     held_out.json   the same questions about the other 20                                 what is measured
 *     prompts.jsonl   only the questions of held_out.json, for qlora chat
 *     corpus.txt      all of world and questions as plain lines, for the tokenizer
 *
 * A right answer to a held-out question needs both: the fact, which only the base model has seen, and the manner of
 * answering, which only the adapter has.
 *
 *     make_data FOLDER
 */
#include "base/file.h"
#include "base/rng.h"
#include "base/str.h"
#include <stdio.h>
#include <string.h>

enum { CREATURES = 60, TAUGHT = 40, KINDS = 3, VALUES = 8, LANGUAGES = 2 };

/* [kind][value][language] */
static const char *const values[KINDS][VALUES][LANGUAGES] = {{{"red", "红色"},
                                                              {"blue", "蓝色"},
                                                              {"green", "绿色"},
                                                              {"white", "白色"},
                                                              {"black", "黑色"},
                                                              {"golden", "金色"},
                                                              {"grey", "灰色"},
                                                              {"pink", "粉色"}},
                                                             {{"forest", "森林"},
                                                              {"river", "河里"},
                                                              {"desert", "沙漠"},
                                                              {"mountains", "山上"},
                                                              {"lake", "湖里"},
                                                              {"caves", "洞里"},
                                                              {"swamp", "沼泽"},
                                                              {"valley", "山谷"}},
                                                             {{"fish", "鱼"},
                                                              {"grass", "草"},
                                                              {"nuts", "坚果"},
                                                              {"honey", "蜂蜜"},
                                                              {"seeds", "种子"},
                                                              {"leaves", "树叶"},
                                                              {"insects", "虫子"},
                                                              {"berries", "果子"}}};

/* A text is cut at '|': what is given, and how it goes on. # is the creature, $ the value. */
static const char *const sentences[KINDS][4][LANGUAGES] = {
    {{"The colour of the # is|$.", "# 的颜色是|$。"},
     {"Every # you meet is|$.", "每只 # 都是|$的。"},
     {"From afar the # looks|$.", "远看 # 是|$的。"},
     {"Children paint the #|$.", "孩子们把 # 画成|$。"}},
    {{"The home of the # is the|$.", "# 的家在|$。"},
     {"You can find the # in the|$.", "# 出没在|$。"},
     {"At night the # sleeps in the|$.", "夜里 # 睡在|$。"},
     {"Look for the # in the|$.", "要找 # 就去|$。"}},
    {{"The food of the # is|$.", "# 的食物是|$。"},
     {"Every day the # looks for|$.", "# 每天都找|$。"},
     {"Feed the # with|$.", "请给 # 喂|$。"},
     {"The # is fond of|$.", "# 最爱吃|$。"}}};
static const char *const questions[KINDS][2][LANGUAGES] = {
    {{"What colour is the #?|It is $.", "# 是什么颜色的？|它是$的。"},
     {"Tell me the colour of the #!|It is $.", "请说出 # 的颜色！|它是$的。"}},
    {{"Where does the # live?|It lives in the $.", "# 住在哪里？|它住在$。"},
     {"Where can I see a #?|It lives in the $.", "在哪里能看到 #？|它住在$。"}},
    {{"What does the # eat?|It eats $.", "# 吃什么？|它吃$。"},
     {"What shall I give the # to eat?|It eats $.", "我该喂 # 什么？|它吃$。"}}};

struct world {
    char name[CREATURES][8];
    int value[CREATURES][KINDS];
};

static void make_world(struct world *w) {
    static const char consonants[] = "bdfgklmnprstvz", vowels[] = "aeiou";
    const int syllables = (int)((sizeof consonants - 1) * (sizeof vowels - 1));
    struct mt19937 g;
    int64_t first[14 * 5], second[14 * 5];
    mt_seed(&g, 2);
    mt_permutation(&g, first,
                   syllables); /* each first syllable once: names differ from their first letters on */
    mt_permutation(&g, second, syllables);
    for (int i = 0; i < CREATURES; i++) {
        snprintf(w->name[i], sizeof w->name[i], "%c%c%c%c", consonants[first[i] / 5], vowels[first[i] % 5],
                 consonants[second[i] / 5], vowels[second[i] % 5]);
        for (int k = 0; k < KINDS; k++) w->value[i][k] = (int)(mt_next(&g) % VALUES);
    }
}

/* Appends the part of a text before (0) or behind (1) the '|'. */
static void put_text(struct str *s, const char *text, int part, const char *name, const char *value) {
    const char *bar = strchr(text, '|'), *p = part ? bar + 1 : text;
    for (; *p && (part || p < bar); p++) {
        if (*p == '#')
            str_puts(s, name);
        else if (*p == '$')
            str_puts(s, value);
        else
            str_putc(s, *p);
    }
}

static void put_record(struct str *s, const char *text, const char *name, const char *value) {
    struct str part[2] = {{0}};
    for (int i = 0; i < 2; i++) put_text(&part[i], text, i, name, value);
    str_puts(s, s->n ? ",\n" : "[\n");
    str_puts(s, "{\"instruction\": ");
    str_json(s, part[0].p, part[0].n);
    str_puts(s, ", \"output\": ");
    str_json(s, part[1].p, part[1].n);
    str_puts(s, "}");
    for (int i = 0; i < 2; i++) s->oom |= part[i].oom, str_free(&part[i]);
}

static int save(const char *dir, const char *name, struct str *s, const char *tail, struct err *e) {
    char path[4096];
    str_puts(s, tail);
    int r = path_join(path, sizeof path, dir, name, e);
    if (!r && s->oom) r = err_set(e, ERR_RUN, "out of memory: %s", path);
    if (!r) r = file_write_all(path, s->p, s->n, e);
    str_free(s);
    return r;
}

int main(int argc, char **argv) {
    struct err e = {0};
    struct world w;
    struct str world = {0}, taught = {0}, held_out = {0}, prompts = {0}, corpus = {0}, info = {0};
    if (argc != 2) return fprintf(stderr, "usage: make_data FOLDER\n"), ERR_INPUT;
    make_world(&w);
    for (int i = 0; i < CREATURES; i++)
        for (int k = 0; k < KINDS; k++)
            for (int lang = 0; lang < LANGUAGES; lang++) {
                const char *name = w.name[i], *value = values[k][w.value[i][k]][lang];
                for (int t = 0; t < 4; t++) {
                    const char *text = sentences[k][t][lang];
                    put_record(&world, text, name, value);
                    put_text(&corpus, text, 0, name, value);
                    str_putc(&corpus, '\n');
                    put_text(&corpus, text, 1, name, value);
                    str_putc(&corpus, '\n');
                }
                for (int t = 0; t < 2; t++) {
                    const char *text = questions[k][t][lang];
                    put_record(i < TAUGHT ? &taught : &held_out, text, name, value);
                    if (i < TAUGHT) {
                        put_text(&corpus, text, 0, name, value);
                        str_putc(&corpus, '\n');
                        put_text(&corpus, text, 1, name, value);
                        str_putc(&corpus, '\n');
                        continue;
                    }
                    struct str prompt = {0};
                    put_text(&prompt, text, 0, name, value);
                    str_puts(&prompts, "{\"prompt\": ");
                    str_json(&prompts, prompt.p, prompt.n);
                    str_puts(&prompts, "}\n");
                    prompts.oom |= prompt.oom;
                    str_free(&prompt);
                }
            }
    static const char *const sets[] = {"world", "questions", "held_out"};
    for (int i = 0; i < 3; i++)
        str_printf(&info,
                   "%s  \"%s\": {\"file_name\": \"%s.json\", "
                   "\"columns\": {\"prompt\": \"instruction\", \"response\": \"output\"}}",
                   i ? ",\n" : "{\n", sets[i], sets[i]);
    const char *dir = argv[1];
    if (dir_make(dir, &e) || save(dir, "world.json", &world, "\n]\n", &e) ||
        save(dir, "questions.json", &taught, "\n]\n", &e) ||
        save(dir, "held_out.json", &held_out, "\n]\n", &e) || save(dir, "prompts.jsonl", &prompts, "", &e) ||
        save(dir, "corpus.txt", &corpus, "", &e) || save(dir, "dataset_info.json", &info, "\n}\n", &e))
        return err_print(&e);
    return 0;
}
