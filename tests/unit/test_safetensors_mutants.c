/* tests/unit/test_safetensors_mutants.c - 20,000 damaged .safetensors files, the same ones every time, against what the reference
 * package (safetensors for Python) says of each: never accepted here when refused there, and refused here when accepted there only
 * for one of reasons[]. Its verdicts are in safetensors_verdicts.txt beside this file, with the SHA-1 of all mutants in front.
 *
 *     SAFETENSORS_DUMP=PATH build/tests/unit/test_safetensors_mutants     writes the mutants, u32 length and bytes each
 *     tests/interop/safetensors_verdicts.py                               asks the reference, and writes the verdicts anew */
#include "base/file.h"
#include "base/sha1.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "tests/fuzz/mutate_safetensors.h"
#include "tests/test.h"
#include <unistd.h>

enum { MUTANTS = 20000, ROOM = 4096 };
static const char verdicts_path[] = "tests/unit/safetensors_verdicts.txt";

/* Where this program is stricter on purpose (checkpoint/safetensors.c says why of each). */
static const struct { const char *text, *reason; } reasons[] = {
    {"does not begin with '{'", "blanks in front of the header"}, {"is listed twice", "a name twice"}, {"control character", "a control character in a name or text"}, {"a NUL character", "a NUL in a name or text"}, {"a key other than dtype", "an unknown key"},
    {"the JSON text: expected '{'", "\"__metadata__\": null"}, {"more than 8 dimensions", "more than 8 dimensions"}, {"above 2^63-1", "a number above 2^63-1"}, {"more elements than 64 bits", "a size above 2^63-1"},
    {"which is not read here", "an element type that is not read here"}, {"a name of", "a name of more than 1 KB"}, {"an empty name", "an empty name"}};
enum { REASONS = sizeof reasons / sizeof *reasons, NAME_TWICE = 1 };

/* Plain mutations for mutate.h: bits, bytes and numbers. */
static struct mutator plain = {1};
size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max) {
    if (!n) return 0;
    size_t at = mutate_pick(&plain, n < 300 || mutate_pick(&plain, 2) ? n : 300);
    switch (mutate_pick(&plain, 4)) {
    case 0: data[at] ^= (uint8_t)(1u << mutate_pick(&plain, 8)); return n;
    case 1: data[at] = (uint8_t)"\0\1\"\\{}[]:,0 9-.\n\x7f\xc3\xff"[mutate_pick(&plain, 20)]; return n;
    case 2: return n > 1 ? mutate_splice(data, n, max, at, 1, "", 0) : n;
    default: return mutate_splice(data, n, max, at, 0, data + at, 1);
    }
}

static const char *const bases[] = {
    "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}",
    "{\"__metadata__\":{\"format\":\"pt\"},\"x\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]},\"y\":{\"dtype\":\"I64\",\"shape\":[1,1,1],\"data_offsets\":[1,9]},\"e\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[9,9]}}   ",
    "{\"\\u4f60\":{\"shape\":[3],\"data_offsets\":[2,5],\"dtype\":\"BOOL\"},\"z\":{\"dtype\":\"I8\",\"shape\":[2,1],\"data_offsets\":[0,2]}}",
    "{}", "{ \"one\" : { \"dtype\" : \"F64\" , \"shape\" : [ 2 ] , \"data_offsets\" : [ 0 , 16 ] } }\n"};
static const size_t payloads[] = {32, 9, 5, 0, 16};

/* Mutant k into p: one to three mutations of a base. */
static size_t make_mutant(unsigned k, uint8_t p[ROOM]) {
    const size_t base = k % (sizeof bases / sizeof *bases);
    const uint64_t header = strlen(bases[base]);
    struct mutator m = mutate_begin(k);
    plain = mutate_begin(k ^ 0x5afe);
    memcpy(p, &header, 8), memcpy(p + 8, bases[base], header);
    for (size_t i = 0; i < payloads[base]; i++) p[8 + header + i] = (uint8_t)i;
    size_t n = 8 + header + payloads[base];
    for (size_t times = 1 + mutate_pick(&m, 3); times-- > 0;) n = mutate_pick(&m, 4) ? mutate_safetensors(&m, p, n, ROOM) : LLVMFuzzerMutate(p, n, ROOM);
    return n;
}

static void hash_all(char hex[41], FILE *dump) {
    uint8_t p[ROOM];
    struct sha1 sha;
    sha1_init(&sha);
    for (unsigned k = 0; k < MUTANTS; k++) {
        const uint32_t n = (uint32_t)make_mutant(k, p);
        sha1_add(&sha, &n, 4), sha1_add(&sha, p, n);
        if (dump && (fwrite(&n, 1, 4, dump) != 4 || fwrite(p, 1, n, dump) != n)) perror("dump");
    }
    sha1_hex(&sha, hex);
}

/* The reference keeps the last of two tensors of a name, so what is wrong with the first is nothing to it. */
static int name_twice(const uint8_t *p, size_t n) {
    static struct json_token t[JSON_TOKENS];
    const size_t count = json_tokens(p, n, t);
    for (size_t i = 0; i + 2 < count; i++)
        for (size_t k = 0; t[i].kind == '"' && t[i + 2].kind == '{' && k < i; k++)
            if (t[k].kind == '"' && t[k + 2].kind == '{' && t[k].n == t[i].n && !memcmp(p + t[k].at, p + t[i].at, t[i].n)) return 1;
    return 0;
}

/* "": accepted; else the sentence. */
static void judge(const char *path, const uint8_t *p, size_t n, struct err *e) {
    FILE *f = fopen(path, "w");
    *e = (struct err){0};
    REQUIRE(f && fwrite(p, 1, n, f) == n && !fclose(f), "%s", path);
    struct ckpt *c = ckpt_open(path, e);
    CHECK(!c == (e->code != 0), "verdict and error differ");
    ckpt_close(c);
}

TEST(never_laxer_than_the_reference) {
    uint8_t p[ROOM];
    char path[100], hex[41], *text = NULL;
    size_t n;
    struct err e = {0};
    int64_t both = 0, neither = 0, stricter[REASONS] = {0};
    const char *to = getenv("SAFETENSORS_DUMP");
    FILE *dump = to ? fopen(to, "w") : NULL;
    hash_all(hex, dump);
    if (dump) {
        REQUIRE(!fclose(dump), "%s", to);
        SKIP("the mutants were written");
    }
    REQUIRE(!file_read_all(verdicts_path, 1 << 20, &text, &n, &e), "%s", e.text);
    CHECK(n == 41 + MUTANTS + 1 && !memcmp(text, hex, 40), "the verdicts are of other mutants, those of now have SHA-1 %s: run tests/interop/safetensors_verdicts.py", hex);
    snprintf(path, sizeof path, "%s/qlora-mutant-%ld.safetensors", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (long)getpid());
    for (unsigned k = 0; k < MUTANTS && n == 41 + MUTANTS + 1; k++) {
        const int reference = text[41 + k] == '1';
        const size_t size = make_mutant(k, p);
        judge(path, p, size, &e);
        CHECK(e.code || reference, "mutant %u is accepted, the reference refuses it", k);
        both += !e.code && reference, neither += e.code && !reference;
        if (!e.code || !reference) continue;
        size_t r = 0;
        while (r < REASONS && !strstr(e.text, reasons[r].text) && !(r == NAME_TWICE && name_twice(p + 8, size - 8))) r++;
        CHECK(r < REASONS, "mutant %u is refused for no listed reason: %s", k, e.text);
        if (r < REASONS) stricter[r]++;
    }
    unlink(path);
    printf("  accepted by both %lld, refused by both %lld\n", (long long)both, (long long)neither);
    for (size_t r = 0; r < REASONS; r++)
        if (stricter[r]) printf("  stricter %lld: %s\n", (long long)stricter[r], reasons[r].reason);
    CHECK(both > MUTANTS / 20 && neither > MUTANTS / 20, "the mutants are all of one kind");
    sys_free(text);
}

TEST_MAIN
