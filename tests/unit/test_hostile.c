/* Files made to harm: each is refused at opening with one line that names the file and the problem, quickly,
 * and nothing is executed or written. Pickles (what torch's own loaders have fallen for among them), zips,
 * safetensors, index files, quantised matrices. Manifests: test_checkpoint_manifest.c. */
#include "base/file.h"
#include "base/sys.h"
#include "checkpoint/checkpoint.h"
#include "tests/test.h"
#include "tests/unit/torch_make.h"
#include <ctype.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char dir[40];
static int refused; /* how many files so far */

__attribute__((constructor)) static void set_up(void) {
    strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/qlora-test-XXXXXX" : "/dev/shm/qlora-test-XXXXXX");
    if (!mkdtemp(dir)) abort();
}

__attribute__((destructor)) static void tear_down(void) {
    dir_remove(dir, NULL);
}

static const char *in(const char *name) {
    static char path[4][400];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, 400, "%s/%s", dir, name);
    return p;
}

static void write_file(const char *name, const void *p, size_t n) {
    FILE *f = fopen(in(name), "w"); /* not base/file.h, which would wait for the disk */
    CHECK(f && fwrite(p, 1, n, f) == n, "cannot write %s", in(name));
    CHECK(f && !fclose(f), "cannot close %s", in(name));
}

/* The message: code 2, one line, printable, naming `file` and holding `expected`. */
static void check_message(const char *what, const struct err *e, const char *file, const char *expected) {
    int printable = 1;
    for (const char *p = e->text; *p; p++) printable &= !iscntrl((unsigned char)*p);
    CHECK(e->code == ERR_INPUT, "%s: code %d: %s", what, e->code, e->text);
    CHECK(printable, "%s: control characters in the message: %s", what, e->text);
    CHECK(strstr(e->text, file) && strstr(e->text, expected), "%s: '%s' does not say '%s' of %s", what,
          e->text, expected, file);
}

/* Opening dir/name must fail. */
static void check_refused(const char *what, const char *name, const char *file, const char *expected) {
    struct err e = {0};
    char **names;
    int before = 0, after = 0;
    CHECK(!dir_list(dir, &names, &before, &e), "%s", e.text);
    dir_list_free(names, before);
    clock_t start = clock();
    struct ckpt *c = ckpt_open(in(name), &e);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK(!c, "%s: accepted", what);
    if (!c) check_message(what, &e, file, expected);
    ckpt_close(c);
    CHECK(seconds < 5, "%s: %.1f s", what, seconds); /* of the processor; 0.1 s, under valgrind 2 s */
    CHECK(!dir_list(dir, &names, &after, &e) && before == after, "%s: a file appeared", what);
    dir_list_free(names, after);
    refused++;
}

/* ---- pickles ---- */

/* clang-format off */
#define P(text) text, sizeof(text) - 1
#define ORDERED "ccollections\nOrderedDict\n)R"
#define STORAGE_OF(class, key, count) "(X\7\0\0\0storagec" class "\nX\1\0\0\0" key "X\3\0\0\0cpu" count "tQ"
#define STORAGE STORAGE_OF("torch\nFloatStorage", "0", "K\20")
#define REBUILD(storage, offset, size, stride) \
    "ctorch._utils\n_rebuild_tensor_v2\n(" storage offset size stride "\x89" ORDERED "tR"
#define TENSOR REBUILD(STORAGE, "K\0", "K\4K\4\x86", "K\4K\1\x86")
#define W "X\1\0\0\0w"
#define FILE_OF(value) "\x80\2}" W value "s."
#define BIG "\x8a\x08\0\0\0\0\0\0\0\x04" /* 2^58 */

static const struct {
    const char *what, *pickle;
    size_t n;
    const char *expected;
} pickles[] = {
    /* code */
    {"os.system", P("\x80\2cposix\nsystem\n(X\x0b\0\0\0touch ownedtR."), "posix.system"},
    {"builtins.eval", P("\x80\2c__builtin__\neval\n(X\1\0\0\0001tR."), "__builtin__.eval"},
    {"builtins.exec", P("\x80\2}" W "cbuiltins\nexec\n(X\1\0\0\0001tRs."), "builtins.exec"},
    {"subprocess.Popen", P("\x80\2csubprocess\nPopen\n)R."), "subprocess.Popen"},
    {"torch.load", P("\x80\2ctorch\nload\n(X\1\0\0\0xtR."), "torch.load"},
    {"torch.serialization.load", P("\x80\2ctorch.serialization\nload\n)R."), "torch.serialization.load"},
    {"torch.hub.load", P("\x80\2ctorch.hub\nload\n)R."), "torch.hub.load"},
    {"numpy multiarray", P("\x80\2cnumpy.core.multiarray\n_reconstruct\n)R."), "numpy.core.multiarray._reconstruct"},
    {"copyreg", P("\x80\2ccopy_reg\n_reconstructor\n)R."), "copy_reg._reconstructor"},
    {"getattr chain", P("\x80\2cbuiltins\ngetattr\nctorch._utils\n_rebuild_tensor_v2\nX\1\0\0\0x\x86R."), "builtins.getattr"},
    {"_rebuild_device_tensor", P(FILE_OF("ctorch._utils\n_rebuild_device_tensor_from_numpy\n)R")), "_rebuild_device"},
    {"typed storage", P(FILE_OF("ctorch.storage\n_load_from_bytes\n(X\1\0\0\0xtR")), "torch.storage._load_from_bytes"},
    {"name with a terminal escape", P("\x80\2cos\n\x1b[2Jsystem\n)R."), "os.?[2Jsystem"},
    {"very long name", P("\x80\2cAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
                         "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nx\n)R."), "AAA..."},
    {"name that is cut off", P("\x80\2ctorch\nFloat"), "ends inside a name"},
    {"INST", P("\x80\2(X\4\0\0\0trueios\nsystem\n."), "INST"},
    {"OBJ", P("\x80\2(ccollections\nOrderedDict\no."), "OBJ"},
    {"NEWOBJ", P("\x80\2ccollections\nOrderedDict\n)\x81."), "NEWOBJ"},
    {"NEWOBJ_EX", P("\x80\2ccollections\nOrderedDict\n)}\x92."), "NEWOBJ_EX"},
    {"STACK_GLOBAL", P("\x80\2X\2\0\0\0osX\6\0\0\0system\x93)R."), "STACK_GLOBAL"},
    {"EXT1", P("\x80\2\x82\1."), "EXT1"},
    {"EXT4", P("\x80\2\x84\1\0\0\0."), "EXT4"},
    {"PERSID", P("\x80\2P0\n."), "PERSID"},
    {"STRING", P("\x80\2S'x'\n."), "STRING"},
    {"FRAME of protocol 4", P("\x80\4\x95\0\0\0\0\0\0\0\0."), "protocol 4"},
    {"MEMOIZE", P("\x80\2}\x94."), "MEMOIZE"},
    {"LONG4", P("\x80\2\x8b\xff\xff\xff\x7f."), "LONG4"},
    {"BINUNICODE8", P("\x80\2\x8d\xff\xff\xff\xff\xff\xff\xff\xff."), "BINUNICODE8"},
    {"BYTEARRAY8", P("\x80\2\x96\xff\xff\xff\xff\xff\xff\xff\x7f."), "BYTEARRAY8"},
    {"NEXT_BUFFER", P("\x80\2\x97."), "NEXT_BUFFER"},
    {"DUP", P("\x80\2}2."), "DUP"},
    {"POP", P("\x80\2}N0."), "POP"},
    {"unknown opcode", P("\x80\2\xff."), "0xff"},
    /* the machine */
    {"empty", P(""), "ends inside an opcode"},
    {"no STOP", P("\x80\2}"), "ends inside an opcode"},
    {"STOP on an empty stack", P("\x80\2."), "a map of names to tensors is needed"},
    {"two values at STOP", P("\x80\2}}."), "a map of names to tensors is needed"},
    {"text behind STOP", P("\x80\2}.cos\nsystem\n)R."), "goes on behind its STOP"},
    {"SETITEM on a tuple", P("\x80\2)" W "Ns."), "a dictionary is needed"},
    {"SETITEM on a tensor", P("\x80\2" TENSOR "K\0K\1s."), "a dictionary is needed"},
    {"SETITEM on a storage", P("\x80\2" STORAGE "K\0K\1s."), "a dictionary is needed"},
    {"SETITEMS on a list", P("\x80\2](K\0K\1u."), "a dictionary is needed"},
    {"SETITEMS with an odd count", P("\x80\2}(" W "u."), "a key without a value"},
    {"SETITEM without a map", P("\x80\2" W "Ns."), "a dictionary is needed"},
    {"APPEND to a map", P("\x80\2}Na."), "a list is needed"},
    {"APPENDS to a tuple", P("\x80\2)(Ne."), "a list is needed"},
    {"BUILD on a tensor", P("\x80\2" TENSOR "}b."), "a dictionary is needed"},
    {"BUILD with a tuple", P("\x80\2})b."), "BUILD with a tuple"},
    {"BUILD with an object", P("\x80\2}cos\nsystem\nb."), "os.system"},
    {"REDUCE of a string", P("\x80\2" W ")R."), "calls a string"},
    {"REDUCE with a list", P("\x80\2ccollections\nOrderedDict\n]R."), "with a list"},
    {"REDUCE of a storage class", P("\x80\2ctorch\nFloatStorage\n)R."), "calls a storage class"},
    {"OrderedDict of pairs", P("\x80\2ccollections\nOrderedDict\n(]tR."), "OrderedDict with arguments"},
    {"stack underflow", P("\x80\2\x86."), "empty stack"},
    {"mark as a value", P("\x80\2(\x85."), "a mark is"},
    {"missing mark", P("\x80\2Nt."), "mark is missing"},
    {"memo of nothing", P("\x80\2q\0."), "empty stack"},
    {"memo far away", P("\x80\2}r\xff\xff\xff\x7f."), "stores a value at place"},
    {"memo never set", P("\x80\2h\5."), "place 5, which is empty"},
    {"memo of a mark", P("\x80\2(q\0h\0."), "stores a mark"},
    {"string beyond the end", P("\x80\2X\xff\xff\xff\xff."), "ends inside an opcode"},
    {"number beyond the end", P("\x80\2\x8a\xff."), "ends inside an opcode"},
    /* tensors: the storage in the file is 16 floats */
    {"storage larger than its member", P(FILE_OF(REBUILD(STORAGE_OF("torch\nFloatStorage", "0", "M\0\1"), "K\0", "K\4\x85", "K\1\x85"))),
     "should have 256 elements"},
    {"storage smaller than its member", P(FILE_OF(REBUILD(STORAGE_OF("torch\nFloatStorage", "0", "K\1"), "K\0", "K\1\x85", "K\1\x85"))),
     "should have 1 elements"},
    {"storage of another type", P(FILE_OF(REBUILD(STORAGE_OF("torch\nDoubleStorage", "0", "K\20"), "K\0", "K\4\x85", "K\1\x85"))),
     "elements of 8 bytes"},
    {"storage count that wraps round", P(FILE_OF(REBUILD(STORAGE_OF("torch\nFloatStorage", "0", BIG), "K\0", "K\4\x85", "K\1\x85"))),
     "should have"},
    {"storage that is not there", P(FILE_OF(REBUILD(STORAGE_OF("torch\nFloatStorage", "9", "K\20"), "K\0", "K\4\x85", "K\1\x85"))),
     "'9' is not in the file"},
    {"storage outside data/", P("\x80\2(X\7\0\0\0storagectorch\nFloatStorage\nX\13\0\0\0../data.pklX\3\0\0\0cpuK\20tQ."),
     "'../data.pkl' is not in the file"},
    {"storage class that is a function", P("\x80\2(X\7\0\0\0storageccollections\nOrderedDict\nX\1\0\0\0000X\3\0\0\0cpuK\20tQ."),
     "a storage that is not"},
    {"persistent id of a module", P("\x80\2(X\6\0\0\0moduleNNNNtQ."), "a storage that is not"},
    {"persistent id not a tuple", P("\x80\2X\1\0\0\0000Q."), "a storage that is not"},
    {"storage count not a number", P("\x80\2(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuNtQ."), "a storage that is not"},
    {"tensor behind its storage", P(FILE_OF(REBUILD(STORAGE, "K\15", "K\4\x85", "K\1\x85"))), "outside its storage of 16"},
    {"offset behind its storage", P(FILE_OF(REBUILD(STORAGE, "K\21", "K\0\x85", "K\1\x85"))), "outside its storage"},
    {"offset that wraps round", P(FILE_OF(REBUILD(STORAGE, BIG, "K\4\x85", "K\1\x85"))), "outside its storage"},
    {"negative offset", P(FILE_OF(REBUILD(STORAGE, "J\xff\xff\xff\xff", "K\4\x85", "K\1\x85"))), "a tensor that is not"},
    {"negative stride", P(FILE_OF(REBUILD(STORAGE, "K\17", "K\4\x85", "J\xff\xff\xff\xff\x85"))), "not a whole number"},
    {"negative size", P(FILE_OF(REBUILD(STORAGE, "K\0", "J\xff\xff\xff\xff\x85", "K\1\x85"))), "not a whole number"},
    {"stride that wraps round", P(FILE_OF(REBUILD(STORAGE, "K\0", "K\x21\x85", BIG "\x85"))), "outside its storage"},
    {"stride one too large", P(FILE_OF(REBUILD(STORAGE, "K\0", "K\4K\4\x86", "K\5K\1\x86"))), "outside its storage"},
    {"size 2^58", P(FILE_OF(REBUILD(STORAGE, "K\0", BIG "\x85", "K\1\x85"))), "outside its storage"},
    {"expanded to more than the file", P(FILE_OF(REBUILD(STORAGE, "K\0", "\x8a\5\0\0\0\0\1\x85", "K\0\x85"))), "more bytes than the file"},
    {"expanded to more than 64 bits", P(FILE_OF(REBUILD(STORAGE, "K\0", BIG BIG "\x86", "K\0K\0\x86"))), "more elements than 64 bits"},
    {"empty but huge", P(FILE_OF(REBUILD(STORAGE, "K\0", BIG BIG "K\0\x87", "K\0K\0K\0\x87"))), "more elements than 64 bits"},
    {"9 dimensions", P(FILE_OF(REBUILD(STORAGE, "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"))), "9 sizes"},
    {"fewer strides than sizes", P(FILE_OF(REBUILD(STORAGE, "K\0", "K\4K\4\x86", "K\1\x85"))), "2 sizes and 1 strides"},
    {"size not a number", P(FILE_OF(REBUILD(STORAGE, "K\0", "N\x85", "K\1\x85"))), "not a whole number"},
    {"size a list", P(FILE_OF(REBUILD(STORAGE, "K\0", "]", "K\1\x85"))), "a tensor that is not"},
    {"storage a tensor", P(FILE_OF(REBUILD(TENSOR, "K\0", "K\4\x85", "K\1\x85"))), "a tensor that is not"},
    {"too few arguments", P(FILE_OF("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE "tR")), "a tensor that is not"},
    {"parameter of a string", P(FILE_OF("ctorch._utils\n_rebuild_parameter\n(" W "\x88" ORDERED "tR")), "a parameter that is not"},
    /* the map */
    {"root a tensor", P("\x80\2" TENSOR "."), "a map of names to tensors is needed"},
    {"root a list", P("\x80\2]."), "a map of names to tensors is needed"},
    {"training checkpoint", P("\x80\2}X\5\0\0\0model}" W TENSOR "ss."), "'model' is a map"},
    {"value a number", P(FILE_OF("K\1")), "'w' is a number"},
    {"value a storage", P(FILE_OF(STORAGE)), "'w' is a storage"},
    {"key a number", P("\x80\2}K\1" TENSOR "s."), "a number for a key"},
    {"key a tensor", P("\x80\2}" TENSOR TENSOR "s."), "a tensor for a key"},
    {"key twice", P("\x80\2}(" W TENSOR W TENSOR "u."), "listed twice"},
    {"map that holds itself", P("\x80\2}q\0" W "h\0s."), "'w' is a map"},
    {"key with a line feed", P("\x80\2}X\3\0\0\0a\nb" TENSOR "s."), "control character"},
    {"key with a NUL", P("\x80\2}X\3\0\0\0a\0b" TENSOR "s."), "control character"},
    {"key with a terminal escape", P("\x80\2}X\3\0\0\0\x1b[m" TENSOR "s."), "control character"},
    {"key that is not UTF-8", P("\x80\2}X\1\0\0\0\xff" TENSOR "s."), "invalid UTF-8"}};

/* clang-format on */

/* A file with this pickle, a storage of 64 bytes, and whatever patch the caller makes before write_file. */
static struct bin bin_of(const void *pickle, size_t n) {
    static const float data[16] = {1, 2, 3};
    struct bin b = {0};
    bin_add(&b, "m/data.pkl", pickle, n);
    bin_add(&b, "m/data/0", data, sizeof data);
    bin_add(&b, "m/version", "3\n", 2);
    bin_end(&b);
    return b;
}

TEST(the_pieces_of_the_hostile_pickles_are_right) {
    static const char *const good[] = {FILE_OF(TENSOR),
                                       FILE_OF(REBUILD(STORAGE, "K\0", "K\4\x85", "K\5\x85"))};
    static const size_t sizes[] = {sizeof FILE_OF(TENSOR),
                                   sizeof FILE_OF(REBUILD(STORAGE, "K\0", "K\4\x85", "K\5\x85"))};
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        struct bin b = bin_of(good[i], sizes[i] - 1);
        write_file("good.bin", b.file.p, b.file.n);
        struct ckpt *c = ckpt_open(in("good.bin"), &e);
        CHECK(c && ckpt_count(c) == 1, "%d: %s", i, e.text);
        ckpt_close(c);
        bin_free(&b);
    }
}

TEST(pickles_are_refused) {
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++) {
        struct bin b = bin_of(pickles[i].pickle, pickles[i].n);
        write_file("hostile.bin", b.file.p, b.file.n);
        check_refused(pickles[i].what, "hostile.bin", "hostile.bin", pickles[i].expected);
        bin_free(&b);
    }
}

/* The most memory this process ever had; 0 under a sanitizer, which keeps what was freed. */
static int64_t peak_bytes(void) {
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined __SANITIZE_ADDRESS__ || __has_feature(address_sanitizer)
    return 0;
#else
    struct rusage r;
    return getrusage(RUSAGE_SELF, &r) ? 0 : (int64_t)r.ru_maxrss * 1024;
#endif
}

/* Repetition: deep nesting, an endless stack, a flood of structures, and 100,001 tensors. */
TEST(floods_are_refused) {
    static const struct {
        const char *what, *head, *unit;
        size_t unit_bytes;
        int times;
        const char *tail, *expected;
    } floods[] = {{"stack", "\x80\2", P("N"), 1000000, ".", "a stack of more than"},
                  {"marks", "\x80\2", P("("), 1000000, ".", "a stack of more than"},
                  {"nested tuples", "\x80\2N", P("\x85"), 3000000, ".", "structures of more than"},
                  {"maps", "\x80\2}(", P("N}"), 900000, "u.", "a stack of more than"},
                  {"pairs", "\x80\2}", P("NNs"), 2000000, ".", "structures of more than"},
                  {"keys", "\x80\2}", P("NNs"), 500000, ".", "for a key"},
                  {"a pickle of 17 MB", "\x80\2", P("\x80\2"), 17 << 19, "}.", "at most"}};
    for (size_t i = 0; i < sizeof floods / sizeof *floods; i++) {
        struct str s = {0};
        str_puts(&s, floods[i].head);
        for (int k = 0; k < floods[i].times; k++) str_add(&s, floods[i].unit, floods[i].unit_bytes);
        str_puts(&s, floods[i].tail);
        struct bin b = bin_of(s.p, s.n);
        write_file("hostile.bin", b.file.p, b.file.n);
        int64_t before = peak_bytes();
        check_refused(floods[i].what, "hostile.bin", "hostile.bin", floods[i].expected);
        CHECK(peak_bytes() - before < 64 << 20, "%s: %lld bytes", floods[i].what,
              (long long)(peak_bytes() - before));
        bin_free(&b);
        str_free(&s);
    }
    struct str s = {0};
    str_add(&s, P("\x80\2}" W TENSOR "q\0s"));
    for (int i = 0; i < 100000; i++)
        str_putc(&s, 'X'), put_le(&s, 6, 4), str_printf(&s, "%06dh", i), str_add(&s, P("\0s"));
    str_putc(&s, '.');
    struct bin b = bin_of(s.p, s.n);
    write_file("hostile.bin", b.file.p, b.file.n);
    check_refused("100,001 tensors", "hostile.bin", "hostile.bin", "more than 100000 tensors");
    bin_free(&b);
    str_free(&s);
}

/* Each level holds the one before twice, through the memo: whoever walks such a value walks 2^200 of them. */
TEST(doublings_are_refused) {
    static const struct {
        const char *what, *first, *level; /* opcodes, whose memo places and numbers are put in below */
    } cases[] = {{"tuples", ")q", "hh\x86q"},   {"lists", "]q", "](hheq"},       {"maps", "}q", "}(NhKhuq"},
                 {"maps as keys", "}q", "}(hhuq"}, {"attributes", "}q", "}hbhbq"}, {"maps of lists of maps", "}q", "}(N](hheuq"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct str s = {0};
        str_add(&s, P("\x80\2}" W "("));
        str_puts(&s, cases[i].first), str_putc(&s, 0);
        for (int n = 1; n <= 200; n++)
            for (const char *p = cases[i].level; *p; p++) {
                str_putc(&s, *p);
                if (strchr("hKq", *p)) str_putc(&s, (char)(*p == 'h' ? n - 1 : *p == 'q' ? n : 1));
            }
        str_puts(&s, "ts.");
        struct bin b = bin_of(s.p, s.n);
        write_file("hostile.bin", b.file.p, b.file.n);
        check_refused(cases[i].what, "hostile.bin", "hostile.bin", "'w' is a tuple");
        bin_free(&b);
        str_free(&s);
    }
}

/* ---- containers ---- */

enum { LOCAL, CENTRAL, RECORD, LOCATOR, END, SECOND_CENTRAL };

TEST(zips_are_refused) {
    /* clang-format off */
    static const struct {
        const char *what;
        int where, at, bytes;
        uint64_t value;
        const char *expected;
    } patches[] = {{"compressed", CENTRAL, 10, 2, 8, "compressed member"},
                   {"compressed in the local header", LOCAL, 8, 2, 8, "local header differs"},
                   {"encrypted", CENTRAL, 8, 2, 0x809, "encrypted"},
                   {"encrypted in the local header", LOCAL, 6, 2, 0x809, "local header differs"},
                   {"patch data", CENTRAL, 8, 2, 0x828, "encrypted or patched"},
                   {"another name in the local header", LOCAL, 31, 1, 'x', "local header differs"},
                   {"another name length", LOCAL, 26, 2, 5, "local header differs"},
                   {"another size in the local header", LOCAL, 22, 4, 77, "local header differs"},
                   {"another CRC in the local header", LOCAL, 14, 4, 77, "local header differs"},
                   {"local extra field beyond the file", LOCAL, 28, 2, 65535, "outside the file"},
                   {"no local header", LOCAL, 0, 1, 'x', "not a file written by torch.save"},
                   {"two sizes", CENTRAL, 20, 4, 5, "two different sizes"},
                   {"a larger packed size", CENTRAL, 20, 4, 77777, "two different sizes"},
                   {"a piece of the extra field longer than it", LOCAL, 42, 2, 65535, "local header differs"},
                   {"member of 4 GiB", CENTRAL, 20, 8, 0xfffffffefffffffe, "outside the file"},
                   {"saturated without ZIP64", CENTRAL, 20, 8, UINT64_MAX, "outside the file"},
                   {"member behind the file", CENTRAL, 42, 4, 0x7fffffff, "outside the file"},
                   {"member in the middle of another", SECOND_CENTRAL, 42, 4, 1, "local header differs"},
                   {"two members in one place", SECOND_CENTRAL, 42, 4, 0, "local header differs"},
                   {"another disk", CENTRAL, 34, 2, 1, "several disks"},
                   {"name with a NUL", CENTRAL, 46, 1, 0, "impossible name"},
                   {"empty name", CENTRAL, 28, 2, 0, "impossible name"},
                   {"name beyond the directory", CENTRAL, 28, 2, 65535, "wrong central directory"},
                   {"extra beyond the directory", CENTRAL, 30, 2, 65535, "wrong central directory"},
                   {"wrong signature", CENTRAL, 0, 1, 'x', "wrong central directory"},
                   {"damaged pickle", LOCAL, 72, 1, 'z', "is damaged"},
                   {"one member less", RECORD, 24, 8, 2, "ZIP64 end record is wrong"},
                   {"2^63 members", RECORD, 24, 8, 1ull << 63, "ZIP64 end record is wrong"},
                   {"directory elsewhere", RECORD, 48, 8, 0, "two end records differ"},
                   {"record of another size", RECORD, 4, 8, UINT64_MAX, "ZIP64 end record is wrong"},
                   {"record elsewhere", LOCATOR, 8, 8, 0, "ZIP64 end record is wrong"},
                   {"two disks", LOCATOR, 16, 4, 2, "ZIP64 end record is wrong"},
                   {"comment", END, 20, 2, 1, "no end record"},
                   {"no end record", END, 0, 1, 'x', "no end record"},
                   {"end record of another disk", END, 4, 2, 1, "several disks"}};
    /* clang-format on */
    static const char pickle[] = FILE_OF(TENSOR);
    for (size_t i = 0; i < sizeof patches / sizeof *patches; i++) {
        struct bin b = bin_of(pickle, sizeof pickle - 1);
        const size_t places[] = {b.local[0], b.central[0], b.record, b.locator, b.end, b.central[1]};
        size_t at = places[patches[i].where] + (size_t)patches[i].at;
        poke(&b.file, at, patches[i].value, patches[i].bytes);
        if (!strcmp(patches[i].what, "2^63 members")) poke(&b.file, at + 8, patches[i].value - 1, 8);
        write_file("hostile.bin", b.file.p, b.file.n);
        check_refused(patches[i].what, "hostile.bin", "hostile.bin", patches[i].expected);
        bin_free(&b);
    }
}

/* Files that are not patches of a right one. */
TEST(other_containers_are_refused) {
    static const char pickle[] = FILE_OF(TENSOR);
    struct bin whole = bin_of(pickle, sizeof pickle - 1), b[6] = {{.members = 0}};
    float data[16] = {0};
    struct str s = {0};
    write_file("hostile.bin", "", 0);
    check_refused("empty file", "hostile.bin", "hostile.bin", "too few");
    write_file("hostile.bin", pickle, sizeof pickle - 1);
    check_refused("bare pickle", "hostile.bin", "hostile.bin", "torch before 1.6");
    write_file("hostile.bin", P("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"));
    check_refused("git-lfs pointer", "hostile.bin", "hostile.bin", "git lfs pull");
    write_file("hostile.bin", P("<!DOCTYPE html><html></html>"));
    check_refused("web page", "hostile.bin", "hostile.bin", "not a file written by torch.save");
    for (size_t n = 4; n < whole.file.n; n += 97) { /* a download that stopped */
        write_file("hostile.bin", whole.file.p, n);
        check_refused("cut off", "hostile.bin", "hostile.bin", "hostile.bin");
    }
    str_add(&s, whole.file.p, whole.file.n), str_putc(&s, 'x');
    write_file("hostile.bin", s.p, s.n);
    check_refused("byte added", "hostile.bin", "hostile.bin", "no end record");
    str_clear(&s), str_puts(&s, "PK\3\4junk"), str_add(&s, whole.file.p, whole.file.n);
    write_file("hostile.bin", s.p, s.n);
    check_refused("zip behind other data", "hostile.bin", "hostile.bin", "damaged");
    str_clear(&s); /* a gap that nobody checks, in front of the end records */
    str_add(&s, whole.file.p, whole.record), str_puts(&s, "hidden");
    str_add(&s, whole.file.p + whole.record, whole.file.n - whole.record);
    poke(&s, whole.locator + 6 + 8, whole.record + 6, 8);
    write_file("hostile.bin", s.p, s.n);
    check_refused("gap behind the directory", "hostile.bin", "hostile.bin", "does not end where the end record begins");
    bin_add(&b[0], "m/data.pkl", pickle, sizeof pickle - 1), bin_add(&b[0], "m/data/0", data, 64);
    bin_add(&b[0], "m/data.pkl", pickle, sizeof pickle - 1), bin_end(&b[0]);
    write_file("hostile.bin", b[0].file.p, b[0].file.n);
    check_refused("name twice", "hostile.bin", "hostile.bin", "'m/data.pkl' is there twice");
    bin_add(&b[1], "m/data.pkl", pickle, sizeof pickle - 1), bin_add(&b[1], "n/data/0", data, 64),
        bin_end(&b[1]);
    write_file("hostile.bin", b[1].file.p, b[1].file.n);
    check_refused("two folders", "hostile.bin", "hostile.bin", "one folder");
    bin_add(&b[2], "m/data/0", data, 64), bin_end(&b[2]);
    write_file("hostile.bin", b[2].file.p, b[2].file.n);
    check_refused("no pickle", "hostile.bin", "hostile.bin", "no data.pkl");
    bin_add(&b[3], "m/data.pkl", pickle, sizeof pickle - 1), bin_add(&b[3], "m/data/0", data, 64);
    bin_add(&b[3], "m/byteorder", "big", 3), bin_end(&b[3]);
    write_file("hostile.bin", b[3].file.p, b[3].file.n);
    check_refused("big-endian", "hostile.bin", "hostile.bin", "big-endian");
    bin_end(&b[4]);
    str_clear(&s), str_puts(&s, "PK\3\4");
    str_add(&s, b[4].file.p, b[4].file.n);
    write_file("hostile.bin", s.p, s.n);
    check_refused("zip of nothing", "hostile.bin", "hostile.bin", "damaged");
    bin_add(&b[5], "data.pkl", pickle, sizeof pickle - 1), bin_end(&b[5]);
    write_file("hostile.bin", b[5].file.p, b[5].file.n);
    check_refused("no folder", "hostile.bin", "hostile.bin", "one folder");
    for (int i = 0; i < 6; i++) bin_free(&b[i]);

    /* A member inside the contents of another, complete with a local header: the same bytes as two storages. */
    struct bin outer = {0}, inner = {0};
    bin_add(&inner, "m/data/1", data, 64);
    bin_add(&outer, "m/data.pkl", pickle, sizeof pickle - 1);
    bin_add(&outer, "m/data/0", inner.file.p, inner.file.n);
    size_t at = outer.file.n - 16 - inner.file.n; /* in front of the descriptor */
    poke(&inner.directory, 42, at, 4);
    outer.central[outer.members++] = outer.directory.n;
    str_add(&outer.directory, inner.directory.p, inner.directory.n);
    bin_end(&outer);
    write_file("hostile.bin", outer.file.p, outer.file.n);
    check_refused("member inside another", "hostile.bin", "hostile.bin", "two members overlap");
    bin_free(&outer), bin_free(&inner), bin_free(&whole);
    str_free(&s);
}

/* ---- safetensors ---- */

/* clang-format off */
#define U8(name, n, begin, end) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #n "],\"data_offsets\":[" #begin "," #end "]}"

static void safetensors(const char *name, const char *header, size_t n, size_t payload) {
    struct str s = {0};
    put_le(&s, n, 8), str_add(&s, header, n);
    for (size_t i = 0; i < payload; i++) str_putc(&s, (char)i);
    write_file(name, s.p, s.n);
    str_free(&s);
}

TEST(safetensors_are_refused) {
    static const struct {
        const char *what, *header;
        size_t n, payload;
        const char *expected;
    } cases[] = {
        {"not JSON", P("pickle"), 0, "does not begin with '{'"},
        {"blank in front", P(" {}"), 0, "does not begin with '{'"},
        {"cut off", P("{\"a\":"), 0, "expected"},
        {"cut off in a string", P("{\"a"), 0, "ends inside a string"},
        {"text behind", P("{}x"), 0, "behind the last"},
        {"comma behind", P("{" U8("a", 4, 0, 4) ",}"), 4, "expected a string"},
        {"no comma", P("{" U8("a", 4, 0, 4) U8("b", 4, 4, 8) "}"), 8, "expected ','"},
        {"gap", P("{" U8("a", 4, 0, 4) "," U8("b", 4, 5, 9) "}"), 9, "after byte"},
        {"gap in front", P("{" U8("a", 4, 1, 5) "}"), 5, "after byte"},
        {"overlap", P("{" U8("a", 4, 0, 4) "," U8("b", 4, 3, 7) "}"), 7, "inside the data before"},
        {"same bytes twice", P("{" U8("a", 4, 0, 4) "," U8("b", 4, 0, 4) "}"), 4, "inside the data before"},
        {"data behind", P("{" U8("a", 4, 0, 4) "}"), 5, "the tensors end at byte"},
        {"data missing", P("{" U8("a", 4, 0, 4) "}"), 3, "claims bytes 0 to 4 of the 3"},
        {"begin behind end", P("{" U8("a", 4, 4, 0) "}"), 4, "claims bytes 4 to 0"},
        {"shape and size differ", P("{" U8("a", 3, 0, 4) "}"), 4, "needs 3 bytes by its shape, but has 4"},
        {"shape that wraps round", P("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,2],\"data_offsets\":[0,0]}}"), 0,
         "more elements than 64 bits"},
        {"bytes that wrap round", P("{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}"), 0,
         "more elements than 64 bits"},
        {"number above 2^64", P("{" U8("a", 18446744073709551617, 0, 1) "}"), 1, "above 2^63-1"},
        {"number above 2^63", P("{" U8("a", 9223372036854775808, 0, 1) "}"), 1, "above 2^63-1"},
        {"negative size", P("{" U8("a", -4, 0, 4) "}"), 4, "whole number"},
        {"fraction", P("{" U8("a", 4.0, 0, 4) "}"), 4, "expected"},
        {"exponent", P("{" U8("a", 4e0, 0, 4) "}"), 4, "expected"},
        {"leading zero", P("{" U8("a", 04, 0, 4) "}"), 4, "leading zero"},
        {"9 dimensions", P("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}"), 1, "8 dimensions"},
        {"three offsets", P("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}"), 1, "expected ']'"},
        {"unknown dtype", P("{\"a\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,1]}}"), 1, "dtype 'Q4'"},
        {"dtype with a line feed", P("{\"a\":{\"dtype\":\"F32\\n\",\"shape\":[1],\"data_offsets\":[0,1]}}"), 1, "dtype 'F32?'"},
        {"no shape", P("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}"), 1, "lacks"},
        {"key twice", P("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"), 1, "twice"},
        {"unknown key", P("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"code\":\"x\"}}"), 1, "a key other than"},
        {"name twice", P("{" U8("a", 1, 0, 1) "," U8("a", 1, 1, 2) "}"), 2, "'a' is listed twice"},
        {"name twice, once escaped", P("{" U8("a", 1, 0, 1) "," U8("\\u0061", 1, 1, 2) "}"), 2, "'a' is listed twice"},
        {"name with a NUL", P("{" U8("a\\u0000b", 1, 0, 1) "}"), 1, "NUL"},
        {"name with an escape sequence", P("{" U8("a\\u001b[2J", 1, 0, 1) "}"), 1, "control character"},
        {"half a surrogate pair", P("{" U8("a\\ud800", 1, 0, 1) "}"), 1, "surrogate"},
        {"invalid UTF-8", P("{" U8("a\xc0\x80", 1, 0, 1) "}"), 1, "UTF-8"},
        {"unknown escape", P("{" U8("a\\x41", 1, 0, 1) "}"), 1, "unknown escape"},
        {"description a list", P("{\"a\":[]}"), 0, "expected '{'"},
        {"metadata a number", P("{\"__metadata__\":{\"a\":1}}"), 0, "expected a string"},
        {"metadata twice", P("{\"__metadata__\":{},\"__metadata__\":{}}"), 0, "twice"},
        {"nested metadata", P("{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}"), 0, "expected a string"}};
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        safetensors("hostile.safetensors", cases[i].header, cases[i].n, cases[i].payload);
        check_refused(cases[i].what, "hostile.safetensors", "hostile.safetensors", cases[i].expected);
    }
    static const struct {
        const char *what;
        uint64_t n;
        const char *expected;
    } lengths[] = {{"no header", 0, "not a safetensors file"},
                   {"header of 2^64-1", UINT64_MAX, "not a safetensors file"},
                   {"header of 2^63", 1ull << 63, "not a safetensors file"},
                   {"header one too long", 9, "not a safetensors file"}};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct str s = {0};
        put_le(&s, lengths[i].n, 8), str_puts(&s, "{}      ");
        write_file("hostile.safetensors", s.p, s.n);
        check_refused(lengths[i].what, "hostile.safetensors", "hostile.safetensors", lengths[i].expected);
        str_free(&s);
    }
}

/* A header of a million brackets, one of 17 MB, one of 100,001 tensors, and a name of 2 KB. */
TEST(large_headers_are_refused) {
    struct str s = {0};
    str_puts(&s, "{\"a\":{\"shape\":");
    for (int i = 0; i < 1000000; i++) str_putc(&s, '[');
    safetensors("hostile.safetensors", s.p, s.n, 0);
    check_refused("a million brackets", "hostile.safetensors", "hostile.safetensors",
                  "expected a whole number");
    str_clear(&s), str_puts(&s, "{");
    while (s.n < 17 << 20) str_puts(&s, "                                                                ");
    safetensors("hostile.safetensors", s.p, s.n, 0);
    check_refused("17 MB", "hostile.safetensors", "hostile.safetensors", "at most");
    str_clear(&s), str_puts(&s, "{");
    for (int i = 0; i <= 100000; i++)
        str_printf(&s, "%s\"%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "", i);
    str_puts(&s, "}");
    safetensors("hostile.safetensors", s.p, s.n, 0);
    check_refused("100,001 tensors", "hostile.safetensors", "hostile.safetensors",
                  "more than 100000 tensors");
    str_clear(&s), str_puts(&s, "{\"");
    for (int i = 0; i < 2048; i++) str_putc(&s, 'n');
    str_puts(&s, "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    safetensors("hostile.safetensors", s.p, s.n, 0);
    check_refused("name of 2 KB", "hostile.safetensors", "hostile.safetensors", "name of 2048 bytes");
    str_free(&s);
}

/* ---- index files and paths ---- */

TEST(indices_are_refused) {
    /* clang-format off */
    static const struct {
        const char *what, *text, *expected;
    } cases[] = {{"absolute path", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "'/etc/passwd' is not a plain name"},
                 {"parent folder", "{\"weight_map\":{\"a\":\"../a.safetensors\"}}", "not a plain name"},
                 {"parent folder in the middle", "{\"weight_map\":{\"a\":\"x/../../a.safetensors\"}}", "not a plain name"},
                 {"folder", "{\"weight_map\":{\"a\":\"sub/a.safetensors\"}}", "not a plain name"},
                 {"dots", "{\"weight_map\":{\"a\":\"..\"}}", "not a plain name"},
                 {"empty name", "{\"weight_map\":{\"a\":\"\"}}", "not a plain name"},
                 {"name with a line feed", "{\"weight_map\":{\"a\":\"a\\n.safetensors\"}}", "not a plain name"},
                 {"name with a NUL", "{\"weight_map\":{\"a\":\"a.safetensors\\u0000\"}}", "hostile.safetensors.index.json"},
                 {"another kind of file", "{\"weight_map\":{\"a\":\"a.py\"}}", "not a plain name"},
                 {"file that is not there", "{\"weight_map\":{\"a\":\"none.safetensors\"}}", "none.safetensors"},
                 {"a folder as a file", "{\"weight_map\":{\"a\":\"folder.safetensors\"}}", "is a directory"},
                 {"a pipe as a file", "{\"weight_map\":{\"a\":\"pipe.safetensors\"}}", "regular file is needed"},
                 {"a device as a file", "{\"weight_map\":{\"a\":\"device.bin\"}}", "regular file is needed"},
                 {"tensor not in the file", "{\"weight_map\":{\"b\":\"a.safetensors\"}}", "'b' should be in a.safetensors"},
                 {"tensor in another file", "{\"weight_map\":{\"a\":\"c.safetensors\",\"c\":\"c.safetensors\"}}", "'a' should be in"},
                 {"two tensors exchanged", "{\"weight_map\":{\"a\":\"c.safetensors\",\"c\":\"a.safetensors\"}}", "'a' should be in c.safetensors"},
                 {"tensor twice, not listed", "{\"weight_map\":{\"c\":\"c.safetensors\",\"d\":\"d.safetensors\"}}", "twice"},
                 {"name twice", "{\"weight_map\":{\"a\":\"a.safetensors\",\"a\":\"a.safetensors\"}}", "hostile.safetensors.index.json"},
                 {"no map", "{\"metadata\":{}}", "missing or empty"},
                 {"empty map", "{\"weight_map\":{}}", "missing or empty"},
                 {"map a list", "{\"weight_map\":[]}", "expected '{'"},
                 {"file a number", "{\"weight_map\":{\"a\":1}}", "expected a string"},
                 {"not an object", "[]", "expected '{'"},
                 {"not JSON", "weights", "hostile.safetensors.index.json"},
                 {"cut off", "{\"weight_map\":{\"a\":\"a.safe", "hostile.safetensors.index.json"},
                 {"text behind", "{\"weight_map\":{\"a\":\"a.safetensors\"}} x", "hostile.safetensors.index.json"},
                 {"its own index", "{\"weight_map\":{\"a\":\"hostile.safetensors.index.json\"}}", "not a plain name"}};
    /* clang-format on */
    safetensors("a.safetensors", P("{" U8("a", 1, 0, 1) "}"), 1);
    safetensors("c.safetensors", P("{" U8("c", 1, 0, 1) "," U8("x", 1, 1, 2) "}"), 2);
    safetensors("d.safetensors", P("{" U8("d", 1, 0, 1) "," U8("x", 1, 1, 2) "}"), 2);
    REQUIRE(!dir_make(in("folder.safetensors"), NULL) && !mkfifo(in("pipe.safetensors"), 0600) &&
                !symlink("/dev/zero", in("device.bin")),
            "cannot make a folder, a pipe and a link");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file("hostile.safetensors.index.json", cases[i].text, strlen(cases[i].text));
        check_refused(cases[i].what, "hostile.safetensors.index.json", "hostile.safetensors.index.json",
                      cases[i].expected);
    }
    struct str s = {0};
    str_puts(&s, "{\"weight_map\":");
    for (int i = 0; i < 1000000; i++) str_puts(&s, "{\"a\":");
    write_file("hostile.safetensors.index.json", s.p, s.n);
    check_refused("a million braces", "hostile.safetensors.index.json", "hostile.safetensors.index.json", "");
    str_clear(&s);
    str_puts(&s, "{\"weight_map\":{");
    for (int i = 0; i < 2000; i++) {
        char name[40];
        snprintf(name, sizeof name, "s%d.safetensors", i);
        if (i < 1001) safetensors(name, P("{}"), 0);
        str_printf(&s, "%s\"%d\":\"%s\"", i ? "," : "", i, name);
    }
    str_puts(&s, "}}");
    write_file("hostile.safetensors.index.json", s.p, s.n);
    struct err e = {0};
    CHECK(!ckpt_open(in("hostile.safetensors.index.json"), &e),
          "2,000 files are opened"); /* limit or descriptors */
    str_free(&s);
}

/* ---- quantised matrices ---- */

struct part {
    const char *name, *type;
    int64_t rows; /* shape [rows] */
};

/* A file with one NF4 matrix 'q.weight' of 16 x 16, double quantised, changed as the case says. */
static void quantised(const char *state, const struct part *change) {
    struct part parts[7] = {{"q.weight", "U8", 128},
                            {"q.weight.absmax", "U8", 4},
                            {"q.weight.quant_map", "F32", 16},
                            {"q.weight.nested_absmax", "F32", 1},
                            {"q.weight.nested_quant_map", "F32", 256},
                            {"q.weight.quant_state.bitsandbytes__nf4", "U8", (int64_t)strlen(state)}};
    struct str header = {0}, data = {0};
    int64_t at = 0;
    for (struct part *p = parts; p->name; p++) {
        if (change && !strcmp(p->name, change->name)) *p = *change;
        int64_t n = p->rows * (!strcmp(p->type, "F32") ? 4 : !strcmp(p->type, "F64") ? 8 : 1);
        int nan = !strcmp(p->type, "NaN"); /* F32 with all bits set */
        if (nan) p->type = "F32", n *= 4;
        if (p->rows < 0) continue;
        str_printf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld],\"data_offsets\":[%lld,%lld]}",
                   header.n ? "," : "{", p->name, p->type, (long long)p->rows, (long long)at,
                   (long long)(at + n));
        at += n;
        if (strstr(p->name, "quant_state") && p->rows == (int64_t)strlen(state))
            str_puts(&data, state);
        else
            for (int64_t k = 0; k < n; k++) str_putc(&data, nan ? (char)0xff : 0);
    }
    str_puts(&header, "}");
    struct str file = {0};
    put_le(&file, header.n, 8), str_add(&file, header.p, header.n), str_add(&file, data.p, data.n);
    write_file("q.safetensors", file.p, file.n);
    str_free(&file), str_free(&header), str_free(&data);
}

#define STATE(type, block, dtype, shape, nested)                                                             \
    "{\"quant_type\": \"" type "\", \"blocksize\": " block ", \"dtype\": \"" dtype                           \
    "\", \"shape\": " shape nested "}"
#define NESTED ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.5"
#define GOOD   STATE("nf4", "64", "bfloat16", "[16, 16]", NESTED)

TEST(quantised_matrices_are_refused) {
    /* clang-format off */
    static const struct {
        const char *what, *state;
        struct part change;
        const char *expected;
    } cases[] = {
        {"shape that does not fit", STATE("nf4", "64", "bfloat16", "[16, 17]", NESTED), {"", "", 0}, "needs 136"},
        {"shape that wraps round", STATE("nf4", "64", "bfloat16", "[2147483647, 2147483647]", NESTED), {"", "", 0}, "bytes of codes"},
        {"shape above 2^31", STATE("nf4", "64", "bfloat16", "[4294967296, 4294967296]", NESTED), {"", "", 0}, "2^31-1"},
        {"shape of zero", STATE("nf4", "64", "bfloat16", "[0, 16]", NESTED), {"", "", 0}, "2^31-1"},
        {"negative shape", STATE("nf4", "64", "bfloat16", "[-16, -16]", NESTED), {"", "", 0}, "2^31-1"},
        {"fraction", STATE("nf4", "64", "bfloat16", "[16.5, 16]", NESTED), {"", "", 0}, "whole numbers"},
        {"three sizes", STATE("nf4", "64", "bfloat16", "[16, 4, 4]", NESTED), {"", "", 0}, "two numbers"},
        {"no shape", "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\"}", {"", "", 0}, "two numbers"},
        {"other type than its name", STATE("fp4", "64", "bfloat16", "[16, 16]", NESTED), {"", "", 0}, "disagree"},
        {"unknown type", STATE("int3", "64", "bfloat16", "[16, 16]", NESTED), {"", "", 0}, "disagree"},
        {"block of 0", STATE("nf4", "0", "bfloat16", "[16, 16]", NESTED), {"", "", 0}, "blocksize"},
        {"block of 48", STATE("nf4", "48", "bfloat16", "[16, 16]", NESTED), {"", "", 0}, "blocksize"},
        {"block of 2^40", STATE("nf4", "1099511627776", "bfloat16", "[16, 16]", NESTED), {"", "", 0}, "blocksize"},
        {"unknown dtype", STATE("nf4", "64", "complex64", "[16, 16]", NESTED), {"", "", 0}, "dtype"},
        {"nested block of 64", STATE("nf4", "64", "bfloat16", "[16, 16]", ", \"nested_blocksize\": 64, \"nested_dtype\": \"float32\", \"nested_offset\": 0.5"), {"", "", 0}, "nested_blocksize"},
        {"nested dtype", STATE("nf4", "64", "bfloat16", "[16, 16]", ", \"nested_blocksize\": 256, \"nested_dtype\": \"float16\", \"nested_offset\": 0.5"), {"", "", 0}, "some but not all"},
        {"no offset", STATE("nf4", "64", "bfloat16", "[16, 16]", ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\""), {"", "", 0}, "some but not all"},
        {"offset beyond fp32", STATE("nf4", "64", "bfloat16", "[16, 16]", ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 1e300"), {"", "", 0}, "beyond fp32"},
        {"unknown key", STATE("nf4", "64", "bfloat16", "[16, 16]", NESTED ", \"code\": \"x\""), {"", "", 0}, "\"code\""},
        {"unknown key with a line feed", STATE("nf4", "64", "bfloat16", "[16, 16]", NESTED ", \"a\\nb\\u001b[2J\": 0"), {"", "", 0}, "a?b?[2J"},
        {"not JSON", "nf4", {"", "", 0}, "quant_state"},
        {"not an object", "[1]", {"", "", 0}, "quant_state"},
        {"state as numbers", GOOD, {"q.weight.quant_state.bitsandbytes__nf4", "F32", 4}, "is not a short text"},
        {"state of 1 MB", GOOD, {"q.weight.quant_state.bitsandbytes__nf4", "U8", 1 << 20}, "is not a short text"},
        {"codes missing", GOOD, {"q.weight", "U8", 127}, "127 bytes of codes"},
        {"more codes than weights", GOOD, {"q.weight", "U8", 129}, "129 bytes of codes"},
        {"scales missing", GOOD, {"q.weight.absmax", "U8", 3}, "4 of type U8 are needed"},
        {"scales of another type", GOOD, {"q.weight.absmax", "F32", 4}, "4 of type U8 are needed"},
        {"no scales", GOOD, {"q.weight.absmax", "U8", -1}, "'q.weight.absmax' is missing"},
        {"17 levels", GOOD, {"q.weight.quant_map", "F32", 17}, "16 of type F32 are needed"},
        {"no levels", GOOD, {"q.weight.quant_map", "F32", -1}, "'q.weight.quant_map' is missing"},
        {"level that is not a number", GOOD, {"q.weight.quant_map", "NaN", 16}, "nan"},
        {"nested scales", GOOD, {"q.weight.nested_absmax", "F64", 1}, "1 of type F32 are needed"},
        {"nested map", GOOD, {"q.weight.nested_quant_map", "F32", 255}, "256 of type F32 are needed"},
        {"no state", GOOD, {"q.weight.quant_state.bitsandbytes__nf4", "U8", -1}, "is missing"}};
    /* clang-format on */
    struct ckpt_quant q;
    struct err good = {0};
    quantised(GOOD, NULL);
    struct ckpt *c = ckpt_open(in("q.safetensors"), &good);
    REQUIRE(c && !ckpt_quant(c, "q.weight", &q, &good) && q.bits == 4 && q.nested, "%s", good.text);
    ckpt_close(c);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++, refused++) {
        struct err e = {0};
        quantised(cases[i].state, &cases[i].change);
        c = ckpt_open(in("q.safetensors"), &e);
        REQUIRE(c, "%s: %s", cases[i].what, e.text);
        CHECK(ckpt_quant(c, "q.weight", &q, &e), "%s: accepted", cases[i].what);
        check_message(cases[i].what, &e, "q.safetensors", cases[i].expected);
        ckpt_close(c);
    }
}

TEST(int8_matrices_are_refused) {
    /* clang-format off */
    static const struct {
        const char *what, *header;
        size_t n, payload;
        const char *expected;
    } cases[] = {
#define I8 "\"q.weight\":{\"dtype\":\"I8\",\"shape\":[2,4],\"data_offsets\":[0,8]}"
        {"no scales", P("{" I8 "}"), 8, "'q.SCB' is missing"},
        {"scales of other count", P("{" I8 ",\"q.SCB\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[8,20]}}"), 20, "2 of type F32"},
        {"other layout", P("{" I8 ",\"q.SCB\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]},"
                           "\"q.weight_format\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[16,17]}}"), 17, "only 0 (row-major)"},
        {"one dimension", P("{\"q.weight\":{\"dtype\":\"I8\",\"shape\":[8],\"data_offsets\":[0,8]}}"), 8, "2 are needed"},
        {"integers without a meaning", P("{\"q.weight\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}"), 8, "has type I32"},
        {"no such matrix", P("{}"), 0, "'q.weight' is missing"}};
    /* clang-format on */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++, refused++) {
        struct err e = {0};
        struct ckpt_quant q;
        safetensors("q.safetensors", cases[i].header, cases[i].n, cases[i].payload);
        struct ckpt *c = ckpt_open(in("q.safetensors"), &e);
        REQUIRE(c, "%s: %s", cases[i].what, e.text);
        CHECK(ckpt_quant(c, "q.weight", &q, &e), "%s: accepted", cases[i].what);
        check_message(cases[i].what, &e, "q.safetensors", cases[i].expected);
        ckpt_close(c);
    }
}

TEST(there_were_many) {
    CHECK(refused >= 200, "%d hostile files", refused);
}

TEST_MAIN
