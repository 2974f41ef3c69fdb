/* checkpoint/pickle.c - reads the pickle of a torch .bin as data.
 *
 * A pickle is a program for a stack machine whose GLOBAL and REDUCE fetch and call anything Python can. Here
 * nothing is ever called: 31 opcodes and 13 names are known, REDUCE on _rebuild_tensor_v2 records a tensor,
 * and everything else is refused with its name and place. There is no way to turn that off.
 *
 * A value is a 64-bit word, 4 bits of tag and 60 of content; tuples, dictionaries and tensors live on a heap
 * of words. Nothing is walked recursively, every opcode takes constant time or consumes what it walks, and
 * stack, memo and heap are capped, so time and memory are bounded by the size of the file.
 *
 * The machine is stricter than Python: protocol 2 only, SETITEM(S) and BUILD only on a dictionary, APPEND(S)
 * only on a list, PUT within reach, no second value left at STOP, no text behind it. */
#include "base/sys.h"
#include "checkpoint/checkpoint_internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { STACK_MAX = 1 << 16, MEMO_MAX = 1 << 20, HEAP_MAX = 3 << 20 }; /* words */

enum tag {
    MARK,
    NONE,
    BOOL,
    NUMBER,  /* negative, fractional, above 2^59: content not kept, no tensor needs it */
    INT,     /* content: the number */
    STRING,  /* offset in the text << 30 | bytes */
    TUPLE,   /* heap: length, items */
    LIST,    /* content not kept */
    DICT,    /* heap: the newest pair, or 0 */
    GLOBAL,  /* enum global */
    STORAGE, /* index of the zip member << 8 | enum dtype */
    TENSOR   /* heap: STORAGE, offset INT, sizes TUPLE, strides TUPLE */
};
enum { PAIR_WORDS = 3 }; /* key, value, the pair before or 0 */

static const char *const kinds[] = {"a mark",  "None",   "a bool",       "a number", "a number",  "a string",
                                    "a tuple", "a list", "a dictionary", "a name",   "a storage", "a tensor"};

enum global { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, FIRST_STORAGE };
static const struct {
    const char *name; /* as the opcode has it */
    enum dtype type;
} globals[] = {{"collections\nOrderedDict\n", 0},         {"torch._utils\n_rebuild_tensor_v2\n", 0},
               {"torch._utils\n_rebuild_parameter\n", 0}, {"torch\nFloatStorage\n", DT_F32},
               {"torch\nBFloat16Storage\n", DT_BF16},     {"torch\nHalfStorage\n", DT_F16},
               {"torch\nDoubleStorage\n", DT_F64},        {"torch\nLongStorage\n", DT_I64},
               {"torch\nIntStorage\n", DT_I32},           {"torch\nShortStorage\n", DT_I16},
               {"torch\nCharStorage\n", DT_I8},           {"torch\nByteStorage\n", DT_U8},
               {"torch\nBoolStorage\n", DT_BOOL}};

/* Names of the opcodes that are refused, for the message. */
static const char *const refused[256] = {['0'] = "POP",
                                         ['1'] = "POP_MARK",
                                         ['2'] = "DUP",
                                         ['B'] = "BINBYTES",
                                         ['C'] = "SHORT_BINBYTES",
                                         ['F'] = "FLOAT",
                                         ['I'] = "INT",
                                         ['L'] = "LONG",
                                         ['P'] = "PERSID",
                                         ['S'] = "STRING",
                                         ['T'] = "BINSTRING",
                                         ['U'] = "SHORT_BINSTRING",
                                         ['V'] = "UNICODE",
                                         ['d'] = "DICT",
                                         ['g'] = "GET",
                                         ['i'] = "INST",
                                         ['l'] = "LIST",
                                         ['o'] = "OBJ",
                                         ['p'] = "PUT",
                                         [0x81] = "NEWOBJ",
                                         "EXT1",
                                         "EXT2",
                                         "EXT4",
                                         [0x8b] = "LONG4",
                                         "SHORT_BINUNICODE",
                                         "BINUNICODE8",
                                         "BINBYTES8",
                                         "EMPTY_SET",
                                         "ADDITEMS",
                                         "FROZENSET",
                                         "NEWOBJ_EX",
                                         "STACK_GLOBAL",
                                         "MEMOIZE",
                                         "FRAME",
                                         "BYTEARRAY8",
                                         "NEXT_BUFFER",
                                         "READONLY_BUFFER"};

struct words {
    uint64_t *p;
    size_t n, cap;
};
struct machine {
    struct ckpt *c;
    int file;
    const char *root; /* folder in the zip, with its '/' */
    size_t root_bytes;
    char *text;
    size_t n, i, opcode; /* next byte; where the running opcode stands */
    struct words stack, memo, heap;
    struct err *e;
};

static uint64_t value(enum tag tag, uint64_t content) {
    return content << 4 | tag;
}
static enum tag tag_of(uint64_t v) {
    return (enum tag)(v & 15);
}
static uint64_t content(uint64_t v) {
    return v >> 4;
}

__attribute__((format(printf, 2, 3))) static int refuse(struct machine *m, const char *fmt, ...) {
    char what[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set(m->e, ERR_INPUT, "%s: byte %zu of its pickle: %s", m->c->shards[m->file].file->path,
                   m->opcode, what);
}

static int reserve(struct machine *m, struct words *w, size_t more, size_t max, const char *what) {
    if (more > max || w->n > max - more) return refuse(m, "%s of more than %zu values, refused", what, max);
    if (w->cap - w->n >= more) return 0;
    size_t cap = w->cap ? w->cap : 64;
    while (cap - w->n < more) cap *= 2;
    if (cap > max) cap = max;
    uint64_t *p = sys_grow(w->p, cap * sizeof *p, "reading of a pickle", m->e);
    if (!p) return -1;
    w->p = p, w->cap = cap;
    return 0;
}

static int push(struct machine *m, enum tag tag, uint64_t x) {
    if (reserve(m, &m->stack, 1, STACK_MAX, "a stack")) return -1;
    m->stack.p[m->stack.n++] = value(tag, x);
    return 0;
}

/* Takes n words; *index is where they stand. */
static int heap_take(struct machine *m, size_t n, uint64_t *index) {
    if (reserve(m, &m->heap, n, HEAP_MAX, "structures")) return -1;
    *index = m->heap.n;
    m->heap.n += n;
    return 0;
}

static int pop(struct machine *m, uint64_t *v) {
    if (!m->stack.n) return refuse(m, "takes a value from an empty stack");
    *v = m->stack.p[--m->stack.n];
    return tag_of(*v) == MARK ? refuse(m, "takes a value where a mark is") : 0;
}

/* Pops what is above the nearest mark, and the mark: *items points to them until the next push. */
static int pop_mark(struct machine *m, const uint64_t **items, size_t *count) {
    size_t i = m->stack.n;
    while (i && tag_of(m->stack.p[i - 1]) != MARK) i--;
    if (!i) return refuse(m, "a mark is missing");
    *items = m->stack.p + i, *count = m->stack.n - i;
    m->stack.n = i - 1;
    return 0;
}

/* The value on top must have this tag. */
static int top_is(struct machine *m, enum tag tag, uint64_t *v) {
    if (!m->stack.n || tag_of(m->stack.p[m->stack.n - 1]) != tag)
        return refuse(m, "acts on %s, %s is needed",
                      m->stack.n ? kinds[tag_of(m->stack.p[m->stack.n - 1])] : "nothing", kinds[tag]);
    *v = m->stack.p[m->stack.n - 1];
    return 0;
}

static int push_tuple(struct machine *m, const uint64_t *items, size_t n) {
    uint64_t at;
    if (heap_take(m, 1 + n, &at)) return -1;
    m->heap.p[at] = n;
    if (n) memcpy(m->heap.p + at + 1, items, n * sizeof *items);
    return push(m, TUPLE, at);
}

static int push_small_tuple(struct machine *m, size_t n) {
    uint64_t items[3];
    for (size_t k = n; k-- > 0;)
        if (pop(m, &items[k])) return -1;
    return push_tuple(m, items, n);
}

static int push_dict(struct machine *m) {
    uint64_t at;
    if (heap_take(m, 1, &at)) return -1;
    m->heap.p[at] = 0;
    return push(m, DICT, at);
}

static int set_items(struct machine *m, const uint64_t *items, size_t n) {
    uint64_t dict, at;
    if (n % 2) return refuse(m, "a key without a value");
    if (top_is(m, DICT, &dict)) return -1;
    for (size_t k = 0; k < n; k += 2) {
        if (heap_take(m, PAIR_WORDS, &at)) return -1;
        uint64_t *pair = m->heap.p + at, *newest = m->heap.p + content(dict);
        pair[0] = items[k], pair[1] = items[k + 1], pair[2] = *newest;
        *newest = at;
    }
    return 0;
}

/* Items of a tuple, or NULL if v is something else. */
static const uint64_t *tuple(const struct machine *m, uint64_t v, size_t *n) {
    if (tag_of(v) != TUPLE) return NULL;
    *n = m->heap.p[content(v)];
    return m->heap.p + content(v) + 1;
}

static int is_text(const struct machine *m, uint64_t v, const char *text) {
    size_t n = strlen(text);
    return tag_of(v) == STRING && (content(v) & 0x3fffffff) == n &&
           !memcmp(m->text + (content(v) >> 30), text, n);
}

static int load_global(struct machine *m) {
    const char *first = m->text + m->i, *end = m->text + m->n;
    const char *line = memchr(first, '\n', (size_t)(end - first));
    const char *stop = line ? memchr(line + 1, '\n', (size_t)(end - line - 1)) : NULL;
    if (!stop) return refuse(m, "the text ends inside a name");
    size_t n = (size_t)(stop + 1 - first);
    m->i += n;
    for (size_t g = 0; g < sizeof globals / sizeof *globals; g++)
        if (n == strlen(globals[g].name) && !memcmp(first, globals[g].name, n)) return push(m, GLOBAL, g);
    char module[100], name[100];
    return refuse(
        m, "names '%s.%s', which is not among the %zu allowed: not a plain file of weights, refused",
        ckpt_printable(module, first, (size_t)(line - first)),
        ckpt_printable(name, line + 1, (size_t)(stop - line - 1)), sizeof globals / sizeof *globals);
}

/* ('storage', class, key, location, count) -> STORAGE */
static int load_storage(struct machine *m) {
    const struct zip *z = &m->c->shards[m->file].zip;
    char path[400], shown[100];
    uint64_t id;
    size_t n = 0;
    if (pop(m, &id)) return -1;
    const uint64_t *part = tuple(m, id, &n);
    if (!part || n != 5 || !is_text(m, part[0], "storage") || tag_of(part[1]) != GLOBAL ||
        content(part[1]) < FIRST_STORAGE || tag_of(part[2]) != STRING || tag_of(part[3]) != STRING ||
        tag_of(part[4]) != INT)
        return refuse(m, "a storage that is not ('storage', class, key, location, count)");
    const char *key = m->text + (content(part[2]) >> 30);
    size_t key_bytes = content(part[2]) & 0x3fffffff, path_bytes = m->root_bytes + 5 + key_bytes;
    ckpt_printable(shown, key, key_bytes);
    if (path_bytes > sizeof path) return refuse(m, "a storage called '%s'", shown);
    memcpy(path, m->root, m->root_bytes);
    memcpy(path + m->root_bytes, "data/", 5);
    memcpy(path + m->root_bytes + 5, key, key_bytes);
    struct zip_member *member = ckpt_zip_find(z, path, path_bytes);
    if (!member) return refuse(m, "storage '%s' is not in the file", shown);
    enum dtype type = globals[content(part[1])].type;
    uint64_t bytes;
    if (__builtin_mul_overflow(content(part[4]), dtype_bytes(type), &bytes) ||
        bytes != (uint64_t)member->bytes)
        return refuse(m, "storage '%s' should have %llu elements of %zu bytes, the file holds %lld bytes",
                      shown, (unsigned long long)content(part[4]), dtype_bytes(type),
                      (long long)member->bytes);
    return push(m, STORAGE, (uint64_t)(member - z->members) << 8 | type);
}

/* (storage, offset, sizes, strides, requires_grad, hooks[, metadata]) -> TENSOR, checked to lie inside its
 * storage. */
static int rebuild_tensor(struct machine *m, const uint64_t *arg, size_t n) {
    size_t rank = 0, strides = 0;
    if (n < 6 || n > 7 || tag_of(arg[0]) != STORAGE || tag_of(arg[1]) != INT || tag_of(arg[2]) != TUPLE ||
        tag_of(arg[3]) != TUPLE)
        return refuse(m, "a tensor that is not (storage, offset, sizes, strides, ...)");
    const struct zip_member *member = &m->c->shards[m->file].zip.members[content(arg[0]) >> 8];
    uint64_t held = (uint64_t)member->bytes / dtype_bytes((enum dtype)(content(arg[0]) & 255));
    const uint64_t *size = tuple(m, arg[2], &rank), *stride = tuple(m, arg[3], &strides);
    if (rank > CKPT_RANK || rank != strides)
        return refuse(m, "a tensor with %zu sizes and %zu strides, at most %d are allowed", rank, strides,
                      CKPT_RANK);
    uint64_t last = content(arg[1]), span; /* index of the last element */
    int overflow = 0, empty = 0;
    for (size_t k = 0; k < rank; k++) {
        if (tag_of(size[k]) != INT || tag_of(stride[k]) != INT)
            return refuse(m, "a tensor whose size or stride is not a whole number, 0 or more");
        if (content(size[k]))
            overflow |= __builtin_mul_overflow(content(size[k]) - 1, content(stride[k]), &span) ||
                        __builtin_add_overflow(last, span, &last);
        else
            empty = 1;
    }
    if (content(arg[1]) > held || (!empty && (overflow || last >= held)))
        return refuse(m, "a tensor reaches outside its storage of %llu elements", (unsigned long long)held);
    uint64_t at;
    uint64_t copy[4] = {arg[0], arg[1], arg[2], arg[3]}; /* the heap may move */
    if (heap_take(m, 4, &at)) return -1;
    memcpy(m->heap.p + at, copy, sizeof copy);
    return push(m, TENSOR, at);
}

static int reduce(struct machine *m) {
    uint64_t args, what;
    size_t n = 0;
    if (pop(m, &args) || pop(m, &what)) return -1;
    const uint64_t *arg = tuple(m, args, &n);
    if (!arg || tag_of(what) != GLOBAL)
        return refuse(m, "calls %s with %s", kinds[tag_of(what)], kinds[tag_of(args)]);
    switch (content(what)) {
    case ORDERED_DICT:
        return n ? refuse(m, "an OrderedDict with arguments") : push_dict(m);
    case REBUILD_TENSOR:
        return rebuild_tensor(m, arg, n);
    case REBUILD_PARAMETER:
        if (n != 3 || tag_of(arg[0]) != TENSOR)
            return refuse(m, "a parameter that is not (tensor, bool, hooks)");
        return push(m, TENSOR, content(arg[0]));
    default:
        return refuse(m, "calls a storage class");
    }
}

/* The operand of n bytes behind the opcode, or NULL and m->e. */
static const unsigned char *operand(struct machine *m, size_t n) {
    if (n > m->n - m->i) {
        refuse(m, "the pickle ends inside an opcode");
        return NULL;
    }
    m->i += n;
    return (const unsigned char *)m->text + m->i - n;
}

static uint64_t unsigned_of(const unsigned char *p, size_t n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | p[n];
    return v;
}

/* A two's complement number of n bytes. */
static int push_int(struct machine *m, const unsigned char *p, size_t n) {
    int negative = n && p[n - 1] & 0x80;
    while (n > 8 && !p[n - 1]) n--;
    uint64_t v = n > 8 ? UINT64_MAX : unsigned_of(p, n);
    return negative || v >> 59 ? push(m, NUMBER, 0) : push(m, INT, v);
}

static int put(struct machine *m, uint64_t index) {
    if (!m->stack.n) return refuse(m, "stores a value from an empty stack");
    if (index >= MEMO_MAX || index > m->n / 3)
        return refuse(m, "stores a value at place %llu", (unsigned long long)index);
    if (index >= m->memo.n) {
        size_t more = index + 1 - m->memo.n;
        if (reserve(m, &m->memo, more, MEMO_MAX, "a memo")) return -1;
        memset(m->memo.p + m->memo.n, MARK,
               more * sizeof *m->memo.p); /* MARK, which is 0, for "nothing here" */
        m->memo.n += more;
    }
    uint64_t top = m->stack.p[m->stack.n - 1];
    if (tag_of(top) == MARK) return refuse(m, "stores a mark");
    m->memo.p[index] = top;
    return 0;
}

static int get(struct machine *m, uint64_t index) {
    if (index >= m->memo.n || tag_of(m->memo.p[index]) == MARK)
        return refuse(m, "fetches place %llu, which is empty", (unsigned long long)index);
    uint64_t v = m->memo.p[index];
    return push(m, tag_of(v), content(v));
}

/* One opcode; 1 at STOP. */
static int step(struct machine *m) {
    const unsigned char *p;
    const uint64_t *items;
    uint64_t v, pair[2];
    size_t n;
    m->opcode = m->i;
    if (!(p = operand(m, 1))) return -1;
    switch (*p) {
    case 0x80: /* PROTO */
        if (!(p = operand(m, 1))) return -1;
        return *p == 2
                   ? 0
                   : refuse(m, "pickle protocol %d, torch.save writes 2 unless told otherwise; save it again",
                            *p);
    case '.':
        return 1; /* STOP */
    case '(':
        return push(m, MARK, 0);
    case 'N':
        return push(m, NONE, 0);
    case 0x88: /* NEWTRUE */
    case 0x89:
        return push(m, BOOL, 0);
    case ']':
        return push(m, LIST, 0); /* EMPTY_LIST */
    case '}':
        return push_dict(m); /* EMPTY_DICT */
    case ')':
        return push_tuple(m, NULL, 0); /* EMPTY_TUPLE */
    case 0x85:
        return push_small_tuple(m, 1); /* TUPLE1 */
    case 0x86:
        return push_small_tuple(m, 2); /* TUPLE2 */
    case 0x87:
        return push_small_tuple(m, 3); /* TUPLE3 */
    case 't':
        return pop_mark(m, &items, &n) ? -1 : push_tuple(m, items, n); /* TUPLE: push may move items */
    case 'K':
        return (p = operand(m, 1)) ? push(m, INT, *p) : -1; /* BININT1 */
    case 'M':
        return (p = operand(m, 2)) ? push(m, INT, unsigned_of(p, 2)) : -1; /* BININT2 */
    case 'J':
        return (p = operand(m, 4)) ? push_int(m, p, 4) : -1; /* BININT */
    case 'G':
        return operand(m, 8) ? push(m, NUMBER, 0) : -1; /* BINFLOAT */
    case 0x8a:                                          /* LONG1 */
        if (!(p = operand(m, 1))) return -1;
        n = *p;
        return (p = operand(m, n)) ? push_int(m, p, n) : -1;
    case 'X': /* BINUNICODE */
        if (!(p = operand(m, 4))) return -1;
        n = unsigned_of(p, 4);
        return (p = operand(m, n)) ? push(m, STRING, (uint64_t)(p - (unsigned char *)m->text) << 30 | n) : -1;
    case 'q':
        return (p = operand(m, 1)) ? put(m, *p) : -1; /* BINPUT */
    case 'r':
        return (p = operand(m, 4)) ? put(m, unsigned_of(p, 4)) : -1; /* LONG_BINPUT */
    case 'h':
        return (p = operand(m, 1)) ? get(m, *p) : -1; /* BINGET */
    case 'j':
        return (p = operand(m, 4)) ? get(m, unsigned_of(p, 4)) : -1; /* LONG_BINGET */
    case 'c':
        return load_global(m);
    case 'Q':
        return load_storage(m); /* BINPERSID */
    case 'R':
        return reduce(m);
    case 's':
        return pop(m, &pair[1]) || pop(m, &pair[0]) ? -1 : set_items(m, pair, 2); /* SETITEM */
    case 'u':
        return pop_mark(m, &items, &n) ? -1 : set_items(m, items, n); /* SETITEMS */
    case 'a':
        return pop(m, &v) ? -1 : top_is(m, LIST, &v); /* APPEND */
    case 'e':
        return pop_mark(m, &items, &n) ? -1 : top_is(m, LIST, &v); /* APPENDS */
    case 'b':                                                      /* BUILD: attributes of the map */
        if (pop(m, &v)) return -1;
        if (tag_of(v) != DICT) return refuse(m, "BUILD with %s", kinds[tag_of(v)]);
        return top_is(m, DICT, &v);
    default:
        return refuse(m, "opcode 0x%02x%s%s is not one that a file of weights needs, refused", *p,
                      refused[*p] ? " " : "", refused[*p] ? refused[*p] : "");
    }
}

static int add_tensor(struct machine *m, uint64_t key, uint64_t v) {
    char shown[100];
    size_t rank = 0, bytes = content(key) & 0x3fffffff;
    if (tag_of(key) != STRING) return refuse(m, "the outermost map has %s for a key", kinds[tag_of(key)]);
    char *name = m->text + (content(key) >> 30);
    ckpt_printable(shown, name, bytes);
    if (tag_of(v) == DICT)
        return refuse(
            m,
            "'%s' is a map inside the outermost map: a training checkpoint, not a model; save its state_dict",
            shown);
    if (tag_of(v) != TENSOR) return refuse(m, "'%s' is %s, not a tensor", shown, kinds[tag_of(v)]);
    const uint64_t *t = m->heap.p + content(v);
    const struct zip_member *member = &m->c->shards[m->file].zip.members[content(t[0]) >> 8];
    const uint64_t *size = tuple(m, t[2], &rank), *stride = tuple(m, t[3], &rank);
    enum dtype type = (enum dtype)(content(t[0]) & 255);
    int64_t shape[CKPT_RANK];
    for (size_t k = 0; k < rank; k++) shape[k] = (int64_t)content(size[k]);
    struct ckpt_tensor *added = ckpt_add(m->c, m->file, name, bytes, type, (int)rank, shape, m->e);
    if (!added) return -1;
    /* An expanded view (stride 0) may be larger than its storage, but not larger than the file. */
    if (ckpt_tensor_bytes(added) > m->c->shards[m->file].file->bytes)
        return refuse(m, "tensor '%s' claims more bytes than the file has", shown);
    added->offset = member->offset + (int64_t)(content(t[1]) * dtype_bytes(type));
    for (size_t k = 0; added->count && k < rank; k++) added->stride[k] = (int64_t)content(stride[k]);
    name[bytes] = 0; /* an opcode that has been run: strings never touch, and STOP is behind the last */
    return 0;
}

/* Adds the tensors of the map that is left at STOP. */
static int finish(struct machine *m) {
    if (m->i != m->n) return refuse(m, "the pickle goes on behind its STOP");
    if (m->stack.n != 1 || tag_of(m->stack.p[0]) != DICT)
        return refuse(m, "holds %s, a map of names to tensors is needed",
                      m->stack.n == 1 ? kinds[tag_of(m->stack.p[0])] : "not one value");
    for (uint64_t at = m->heap.p[content(m->stack.p[0])]; at; at = m->heap.p[at + 2])
        if (add_tensor(m, m->heap.p[at], m->heap.p[at + 1])) return -1;
    return 0;
}

int ckpt_pickle_read(struct ckpt *c, int file, size_t n, const char *root, size_t root_bytes, struct err *e) {
    struct machine m = {.c = c,
                        .file = file,
                        .root = root,
                        .root_bytes = root_bytes,
                        .text = c->shards[file].text,
                        .n = n,
                        .e = e};
    uint64_t nil;
    int rc = heap_take(&m, 1, &nil); /* so that 0 means "no pair" */
    while (!rc) rc = step(&m);
    if (rc == 1) rc = finish(&m);
    sys_free(m.stack.p);
    sys_free(m.memo.p);
    sys_free(m.heap.p);
    return rc;
}
