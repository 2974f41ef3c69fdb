/* train/plot.c - a line chart as a PNG file: rasteriser, stroke font, axes, PNG writer.
 *
 * Everything on the picture is a stroke with round ends. A stroke is rasterised by distance: the coverage of a pixel is
 * half_width + 1/2 - (distance of its centre), cut to [0,1]. Strokes that belong together (a curve, a word) are collected in
 * a mask by maximum and then blended in one colour, so joints and crossings do not show.
 */
#include "base/file.h"
#include "base/sys.h"
#include "train/report.h"
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

enum { W = 800, H = 500, LEFT = 78, RIGHT = 24, TOP = 46, BOTTOM = 62 }; /* pixels; the margins of the axes */

struct canvas {
    unsigned char rgb[H][1 + 3 * W], mask[H][W];
}; /* a row begins with its PNG filter type, 0 */
struct point {
    double x, y;
};

static const unsigned ink = 0x262626, frame = 0x4d4d4d, grid = 0xe6e6e6, blue = 0x1f77b4; /* RGB */

/* ---- strokes ---- */

static double clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

static void stroke(struct canvas *c, struct point a, struct point b, double half_width) {
    const double reach = half_width + 0.5, dx = b.x - a.x, dy = b.y - a.y, length2 = dx * dx + dy * dy;
    const int x0 = (int)clamp(floor(fmin(a.x, b.x) - reach), 0, W),
              x1 = (int)clamp(ceil(fmax(a.x, b.x) + reach), 0, W);
    const int y0 = (int)clamp(floor(fmin(a.y, b.y) - reach), 0, H),
              y1 = (int)clamp(ceil(fmax(a.y, b.y) + reach), 0, H);
    for (int y = y0; y < y1; y++)
        for (int x = x0; x < x1; x++) {
            const double px = x + 0.5 - a.x, py = y + 0.5 - a.y;
            const double t = length2 > 0 ? clamp((px * dx + py * dy) / length2, 0, 1) : 0;
            const double cover = clamp(reach - hypot(px - t * dx, py - t * dy), 0, 1);
            const unsigned char m = (unsigned char)lrint(cover * 255);
            if (m > c->mask[y][x]) c->mask[y][x] = m;
        }
}

/* Blends the collected strokes in one colour and empties the mask. */
static void ink_in(struct canvas *c, unsigned colour, double alpha) {
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) {
            const double a = alpha * c->mask[y][x] / 255;
            if (a == 0) continue;
            unsigned char *p = &c->rgb[y][1 + 3 * x];
            for (int k = 0; k < 3; k++)
                p[k] = (unsigned char)lrint(p[k] + a * ((double)(colour >> (16 - 8 * k) & 255) - p[k]));
            c->mask[y][x] = 0;
        }
}

static void rule(struct canvas *c, double x0, double y0, double x1, double y1, unsigned colour) {
    stroke(c, (struct point){x0, y0}, (struct point){x1, y1}, 0.5);
    ink_in(c, colour, 1);
}

/* ---- text ----
 * A glyph is its width and its strokes, separated by blanks. A point is x ('0' + x) and y, letters from the cap line 'a'
 * down: x-height 'e', base line 'm', descender 'q'. An upper-case y marks a control point: between points on the line the
 * stroke is a chain of quadratic curves, with a middle point implied between two controls, as in TrueType. */

static const char *const glyphs[95] = {"4",
                                       "1 0a0i 0m0m",
                                       "3 0a0d 3a3d",
                                       "7 2a1m 6a5m 0e7e 0i7i",
                                       "8 7c7A0A0G4g8G8M0M0k 4a4m",
                                       "8 8a0m 2a0A0E4E4A2a 6i4I4M8M8I6i",
                                       "8 8m1d1A6A6d0G0M7M8h",
                                       "0 0a0d",
                                       "3 3a0E0L3p",
                                       "3 0a3E3L0p",
                                       "6 3b3h 0d6g 6d0g",
                                       "8 4e4m 0i8i",
                                       "1 1l1m0o",
                                       "5 0i5i",
                                       "0 0m0m",
                                       "6 0o6a",
                                       "6 3a6A6M0M0A3a",
                                       "6 1c3a3m",
                                       "6 0d0A6A6D5G0m6m",
                                       "6 0c0A6A6F2f3f6F6M0M0k",
                                       "6 4m4a0i6i",
                                       "6 5a1a0f1E6E6M0M0k",
                                       "6 5b5A0A0i0M6M6E0E0i",
                                       "6 0a6a2m",
                                       "6 3f0F0A6A6F3f0F0M6M6F3f",
                                       "6 1l1M6M6e6A0A0I6I6e",
                                       "0 0f0f 0m0m",
                                       "1 1f1f 1l1m0o",
                                       "7 7e0i7m",
                                       "7 0g7g 0k7k",
                                       "7 0e7i0m",
                                       "6 0d0A6A6F3g3i 3m3m",
                                       "9 6f6j7L9j9A0A0O7o 6h6F3F3K6K6h",
                                       "8 0m4a8m 1j7j",
                                       "8 0m0a4a7A7F4f0f 4f8F8M4m0m",
                                       "8 8d8A0A0M8M8j",
                                       "8 0a0m3m8M8A3a0a",
                                       "7 7a0a0m7m 0f6f",
                                       "7 7a0a0m 0f6f",
                                       "8 8d8A0A0M8M8h5h",
                                       "8 0a0m 8a8m 0f8f",
                                       "0 0a0m",
                                       "5 5a5i5M0M0j",
                                       "7 0a0m 7a0h 3e7m",
                                       "6 0a0m6m",
                                       "9 0m0a4j5j9a9m",
                                       "8 0m0a8m8a",
                                       "8 4a0A0M8M8A4a",
                                       "8 0m0a4a8A8G4g0g",
                                       "8 4a0A0M8M8A4a 5j8m",
                                       "8 0m0a4a8A8G4g0g 4g8m",
                                       "8 7c7A0A0G4g8G8M0M0k",
                                       "8 0a8a 4a4m",
                                       "8 0a0h0M8M8h8a",
                                       "8 0a4m8a",
                                       "< 0a3m6a9m<a",
                                       "8 0a8m 8a0m",
                                       "8 0a4f8a 4f4m",
                                       "8 0a8a0m8m",
                                       "3 3a0a0p3p",
                                       "6 0a6o",
                                       "3 0a3a3p0p",
                                       "6 0f3a6f",
                                       "8 0o8o",
                                       "2 0a2c",
                                       "6 6e6m 6i6E0E0M6M6i",
                                       "6 0a0m 0i0E6E6M0M0i",
                                       "6 6f5E0E0M5M6l",
                                       "6 6a6m 6i6E0E0M6M6i",
                                       "6 0i6i6E0E0M5M6k",
                                       "4 4a2A2d2m 0e4e",
                                       "6 6e6n6Q0Q0o 6i6E0E0M6M6i",
                                       "6 0a0m 0i0E6E6i6m",
                                       "0 0e0m 0b0b",
                                       "2 2e2o2Q0q 2b2b",
                                       "6 0a0m 5e0j 2h6m",
                                       "0 0a0m",
                                       ": 0e0m 0h0E5E5h5m 5h5E:E:h:m",
                                       "6 0e0m 0i0E6E6i6m",
                                       "6 3e0E0M6M6E3e",
                                       "6 0e0q 0i0E6E6M0M0i",
                                       "6 6e6q 6i6E0E0M6M6i",
                                       "4 0e0m 0i0E4e",
                                       "6 5f5E0E0I3i6I6M0M0l",
                                       "4 2b2k2M4m 0e4e",
                                       "6 0e0i0M6M6i 6e6m",
                                       "6 0e3m6e",
                                       ": 0e2m5e8m:e",
                                       "6 0e6m 6e0m",
                                       "6 0e3m 6e3m2Q0q",
                                       "6 0e6e0m6m",
                                       "4 4a2A2H0h2H2P4p",
                                       "0 0a0p",
                                       "4 0a2A2H4h2H2P0p",
                                       "7 0j2F4M7h"};
static const char *const box = "6 0a6a6m0m0a"; /* any other character */

struct pen {
    struct point at;
    double unit;
    int upright;
}; /* upright: writes from bottom to top */

static struct point place(const struct pen *p, double x, double y) {
    x *= p->unit, y = (y - 12) * p->unit; /* the pen stands on the base line */
    return p->upright ? (struct point){p->at.x + y, p->at.y - x} : (struct point){p->at.x + x, p->at.y + y};
}

static void draw_glyph(struct canvas *c, const struct pen *p, const char *s, double half_width) {
    while (*s) {
        struct point from = {0}, control = {0};
        int curved = 0;
        for (int k = 0; *s && *s != ' '; s += 2, k++) {
            const int off = s[1] < 'a';
            struct point to = place(p, s[0] - '0', s[1] - (off ? 'A' : 'a')), next = to;
            if (off && curved) to = (struct point){(control.x + to.x) / 2, (control.y + to.y) / 2};
            if (!off || curved) {
                struct point last = from;
                for (int i = 1; k && i <= 8; i++) { /* eighths of a curve are below a pixel at these sizes */
                    const double t = i / 8.0, u = 1 - t;
                    struct point q = to;
                    if (curved)
                        q = (struct point){u * u * from.x + 2 * u * t * control.x + t * t * to.x,
                                           u * u * from.y + 2 * u * t * control.y + t * t * to.y};
                    else
                        i = 8;
                    stroke(c, last, q, half_width);
                    last = q;
                }
                from = to;
            }
            control = next, curved = off;
        }
        s += *s == ' ';
    }
}

/* Next character of UTF-8 text as a glyph; *text moves on. */
static const char *next_glyph(const char **text) {
    const unsigned char ch = (unsigned char)*(*text)++;
    if (ch >= ' ' && ch < 127) return glyphs[ch - ' '];
    while (((unsigned char)**text & 0xc0) == 0x80) ++*text;
    return box;
}

static double text_width(const char *text, double unit) {
    double units = -3;
    while (*text) units += 3 + *next_glyph(&text) - '0';
    return units * unit;
}

/* align: 0 begins at x, 0.5 is centred on it, 1 ends there. size: height of capitals in pixels. */
static void write_text(struct canvas *c, const char *text, double x, double y, double align, double size,
                       int upright) {
    const double unit = size / 12, shift = align * text_width(text, unit);
    struct pen p = {{upright ? x : x - shift, upright ? y + shift : y}, unit, upright};
    while (*text) {
        const char *g = next_glyph(&text);
        if (g[1]) draw_glyph(c, &p, g + 2, 0.055 * size);
        const double advance = (3 + *g - '0') * unit;
        if (upright)
            p.at.y -= advance;
        else
            p.at.x += advance;
    }
    ink_in(c, ink, 1);
}

/* ---- axes ---- */

struct axis {
    double low, high, step;
};

/* Range with 5 % of air, and a tick distance of 1, 2, 2.5 or 5 times a power of ten giving at most `ticks` steps. */
static struct axis fit_axis(const double *v, int64_t n, int ticks) {
    struct axis a = {DBL_MAX, -DBL_MAX, 1};
    for (int64_t i = 0; i < n; i++) a.low = fmin(a.low, v[i]), a.high = fmax(a.high, v[i]);
    double air = (a.high - a.low) * 0.05;
    if (air <= 1e-9 * fmax(fabs(a.low), fabs(a.high))) air = fmax(fabs(a.low) * 0.05, 0.05);
    a.low -= air, a.high += air;
    const double raw = (a.high - a.low) / ticks, power = pow(10, floor(log10(raw)));
    static const double nice[] = {1, 2, 2.5, 5, 10};
    int k = 0;
    while (k < 4 && nice[k] * power < raw * (1 - 1e-9)) k++;
    a.step = nice[k] * power;
    return a;
}

/* From 0 to a little above the largest. */
static struct axis from_zero(const double *v, int64_t n, int ticks) {
    double ends[2] = {0, 0};
    for (int64_t i = 0; i < n; i++) ends[1] = fmax(ends[1], v[i]);
    struct axis a = fit_axis(ends, 2, ticks);
    a.low = 0;
    return a;
}

static double at_axis(const struct axis *a, double v, double from, double to) {
    return from + (v - a->low) / (a->high - a->low) * (to - from);
}

static void tick_label(char *text, size_t size, double v, double step) {
    const double magnitude = fmax(fabs(v), step);
    int digits = 0;
    while (digits < 6 &&
           fabs(step * pow(10, digits) - rint(step * pow(10, digits))) > 1e-6 * step * pow(10, digits))
        digits++;
    if (fabs(v) < step * 1e-6) v = 0;
    if (magnitude >= 1e7 || (step < 1e-5))
        snprintf(text, size, "%.4g", v);
    else
        snprintf(text, size, "%.*f", digits, v);
}

static void draw_axes(struct canvas *c, const struct axis *ax, const struct axis *ay) {
    char text[40];
    for (double k = ceil(ay->low / ay->step); k * ay->step <= ay->high; k++) {
        const double y = floor(at_axis(ay, k * ay->step, H - BOTTOM, TOP)) + 0.5;
        rule(c, LEFT, y, W - RIGHT, y, grid);
        rule(c, LEFT - 5, y, LEFT, y, frame);
        tick_label(text, sizeof text, k * ay->step, ay->step);
        write_text(c, text, LEFT - 10, y + 4.5, 1, 9, 0);
    }
    for (double k = ceil(ax->low / ax->step); k * ax->step <= ax->high; k++) {
        const double x = floor(at_axis(ax, k * ax->step, LEFT, W - RIGHT)) + 0.5;
        rule(c, x, TOP, x, H - BOTTOM, grid);
        rule(c, x, H - BOTTOM, x, H - BOTTOM + 5, frame);
        tick_label(text, sizeof text, k * ax->step, ax->step);
        write_text(c, text, x, H - BOTTOM + 20, 0.5, 9, 0);
    }
    rule(c, LEFT + 0.5, TOP + 0.5, W - RIGHT + 0.5, TOP + 0.5, frame);
    rule(c, LEFT + 0.5, H - BOTTOM + 0.5, W - RIGHT + 0.5, H - BOTTOM + 0.5, frame);
    rule(c, LEFT + 0.5, TOP + 0.5, LEFT + 0.5, H - BOTTOM + 0.5, frame);
    rule(c, W - RIGHT + 0.5, TOP + 0.5, W - RIGHT + 0.5, H - BOTTOM + 0.5, frame);
}

static void draw_curve(struct canvas *c, const struct axis *ax, const struct axis *ay, const double *x,
                       const double *y, int64_t n, double half_width, double alpha) {
    struct point last = {0};
    for (int64_t i = 0; i < n; i++) {
        struct point p = {at_axis(ax, x[i], LEFT, W - RIGHT), at_axis(ay, y[i], H - BOTTOM, TOP)};
        stroke(c, i ? last : p, p, n == 1 ? 3 : half_width);
        last = p;
    }
    ink_in(c, blue, alpha);
}

static void draw_legend(struct canvas *c) {
    static const char *const name[] = {"original", "smoothed"};
    for (int i = 0; i < 2; i++) {
        const double y = TOP + 22 + 20 * i, x = W - RIGHT - 110;
        stroke(c, (struct point){x, y}, (struct point){x + 28, y}, i ? 1.0 : 0.75);
        ink_in(c, blue, i ? 1 : 0.4);
        write_text(c, name[i], x + 38, y + 4.5, 0, 9, 0);
    }
}

/* ---- PNG ---- */

static void put_chunk(struct str *s, const char type[4], const void *data, size_t n) {
    const unsigned char length[4] = {(unsigned char)(n >> 24), (unsigned char)(n >> 16),
                                     (unsigned char)(n >> 8), (unsigned char)n};
    str_add(s, length, 4);
    str_add(s, type, 4);
    str_add(s, data, n);
    const uLong crc = crc32(crc32(0, (const Bytef *)type, 4), data, (uInt)n);
    for (int i = 24; i >= 0; i -= 8) str_putc(s, (char)(crc >> i));
}

static int write_png(const char *path, const struct canvas *c, struct err *e) {
    static const unsigned char head[13] = {
        W >> 24, W >> 16, W >> 8 & 255, W & 255, H >> 24, H >> 16, H >> 8 & 255,
        H & 255, 8,       2 /* RGB */,  0,       0,       0};
    uLongf n = compressBound(sizeof c->rgb);
    unsigned char *packed = sys_alloc(n, "picture", e);
    struct str s = {0};
    if (!packed) return -1;
    int z = compress2(packed, &n, &c->rgb[0][0], sizeof c->rgb, 9);
    str_add(&s, "\x89PNG\r\n\x1a\n", 8);
    put_chunk(&s, "IHDR", head, sizeof head);
    put_chunk(&s, "IDAT", packed, n);
    put_chunk(&s, "IEND", "", 0);
    int r = z != Z_OK || s.oom ? err_set(e, ERR_RUN, "out of memory: %s", path)
                               : file_write_all(path, s.p, s.n, e);
    sys_free(packed);
    str_free(&s);
    return r;
}

void plot_smooth(const double *y, int64_t n, double *out) {
    const double weight = 1.8 * (1 / (1 + exp(-0.05 * (double)n)) - 0.5);
    for (int64_t i = 0; i < n; i++) out[i] = (i ? out[i - 1] : y[0]) * weight + (1 - weight) * y[i];
}

static void blank(struct canvas *c) {
    for (int row = 0; row < H; row++) memset(&c->rgb[row][1], 255, 3 * W);
}

static void draw_labels(struct canvas *c, const char *title, const char *x_label, const char *y_label) {
    const double width = text_width(title, 1), room = W - 40;
    write_text(c, title, (LEFT + W - RIGHT) / 2.0, 29, 0.5, fmin(12, 12 * room / width), 0);
    write_text(c, x_label, (LEFT + W - RIGHT) / 2.0, H - 16, 0.5, 10, 0);
    write_text(c, y_label, 22, (TOP + H - BOTTOM) / 2.0, 0.5, 10, 1);
}

int plot_png(const char *path, const char *title, const char *x_label, const char *y_label, const double *x,
             const double *y, int64_t n, struct err *e) {
    ASSERT(n > 0, "%lld points", (long long)n);
    int r = -1;
    struct canvas *c = sys_alloc(sizeof *c, "picture", e);
    double *smooth = sys_alloc_array((size_t)n, sizeof *smooth, "smoothed curve", e);
    if (!c || !smooth) goto out;
    blank(c);
    plot_smooth(y, n, smooth);
    const struct axis ax = fit_axis(x, n, 8), ay = fit_axis(y, n, 7);
    draw_axes(c, &ax, &ay);
    draw_curve(c, &ax, &ay, x, y, n, 0.75, 0.4);
    draw_curve(c, &ax, &ay, x, smooth, n, 1.0, 1);
    draw_legend(c);
    draw_labels(c, title, x_label, y_label);
    r = write_png(path, c, e);
out:
    sys_free(smooth);
    sys_free(c);
    return r;
}

int plot_dots_png(const char *path, const char *title, const char *x_label, const char *y_label, const double *x, const double *y,
                  const int *hollow, int64_t n, struct err *e) {
    ASSERT(n > 0, "%lld points", (long long)n);
    struct canvas *c = sys_alloc(sizeof *c, "picture", e);
    if (!c) return -1;
    blank(c);
    const struct axis ax = from_zero(x, n, 8), ay = from_zero(y, n, 7);
    draw_axes(c, &ax, &ay);
    if (n > 1) draw_curve(c, &ax, &ay, x, y, n, 1.0, 1);
    for (int64_t i = 0; i < n; i++) {
        const struct point p = {at_axis(&ax, x[i], LEFT, W - RIGHT), at_axis(&ay, y[i], H - BOTTOM, TOP)};
        stroke(c, p, p, 4.5);
        ink_in(c, blue, 1);
        if (!hollow[i]) continue;
        stroke(c, p, p, 3);
        ink_in(c, 0xffffff, 1);
    }
    draw_labels(c, title, x_label, y_label);
    int r = write_png(path, c, e);
    sys_free(c);
    return r;
}
