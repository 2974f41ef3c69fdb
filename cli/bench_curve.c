/* cli/bench_curve.c - qlora bench --plot: speed over memory, as SVG or PNG. */
#include "base/file.h"
#include "base/sys.h"
#include "cli/bench_rows.h"
#include "train/report.h"
#include <math.h>
#include <stdio.h>

/* Speed over memory as SVG: a dot for each run, the axes from 0. */
static void svg(const struct bench_row *x, int n, const struct bench_machine *m, struct str *s) {
    enum { W = 640, H = 400, LEFT = 80, RIGHT = 24, TOP = 56, BOTTOM = 56 };
    double most_bytes = 1, most_speed = 1;
    for (int i = 0; i < n; i++) {
        most_bytes = fmax(most_bytes, (double)bench_row_bytes(&x[i]));
        most_speed = fmax(most_speed, bench_row_speed(&x[i]));
    }
    const char *name = most_bytes < 0x1p30 ? "MiB" : "GiB";
    const double unit = most_bytes < 0x1p30 ? 0x1p20 : 0x1p30, step_x = exp2(ceil(log2(most_bytes / unit / 8))),
                 step_y = pow(10, floor(log10(most_speed)));
    const double right = ceil(most_bytes / unit / step_x) * step_x, top = ceil(most_speed / step_y) * step_y;
    str_printf(s,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
               "font-size=\"12\">\n<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n",
               W, H, W, H);
    str_printf(s, "<text x=\"%d\" y=\"22\" font-size=\"14\">%s, %s</text>\n<text x=\"%d\" y=\"40\" fill=\"#666\">", LEFT,
               x->model, x->method, LEFT);
    for (const char *c = m->name; *c; c++) {
        if (*c == '<') str_puts(s, "&lt;");
        else if (*c == '&') str_puts(s, "&amp;");
        else str_printf(s, "%c", *c);
    }
    str_puts(s, "</text>\n");
    for (double v = 0; v <= right * 1.001; v += step_x) {
        double at = LEFT + v / right * (W - LEFT - RIGHT);
        str_printf(s, "<path d=\"M%.1f %d V%d\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
                   at, TOP, H - BOTTOM, at, H - BOTTOM + 18, v);
    }
    for (double v = 0; v <= top * 1.001; v += step_y) {
        double at = H - BOTTOM - v / top * (H - TOP - BOTTOM);
        str_printf(s, "<path d=\"M%d %.1f H%d\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.0f</text>\n",
                   LEFT, at, W - RIGHT, LEFT - 8, at + 4, v);
    }
    str_printf(s,
               "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">memory of the card, %s</text>\n<text transform=\"translate(18 %d) "
               "rotate(-90)\" text-anchor=\"middle\">tokens a second</text>\n<path d=\"",
               (LEFT + W - RIGHT) / 2, H - 14, name, (TOP + H - BOTTOM) / 2);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < n; i++) {
            double bytes = (double)bench_row_bytes(&x[i]);
            double at = LEFT + bytes / unit / right * (W - LEFT - RIGHT),
                   up = H - BOTTOM - bench_row_speed(&x[i]) / top * (H - TOP - BOTTOM);
            if (!pass) str_printf(s, "%c%.1f %.1f ", i ? 'L' : 'M', at, up);
            else
                str_printf(s,
                           "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" stroke=\"#1f6feb\"><title>%.2f %s: %.0f "
                           "tokens/s%s</title></circle>\n",
                           at, up, x[i].measured ? "#1f6feb" : "white", bytes / unit, name, bench_row_speed(&x[i]),
                           x[i].measured ? "" : " (estimated)");
        }
        if (!pass) str_puts(s, "\" fill=\"none\" stroke=\"#1f6feb\" stroke-width=\"1.5\"/>\n");
    }
    str_puts(s, "</svg>\n");
}

static int png(const char *path, const struct bench_row *x, int n, struct err *e) {
    char title[160];
    double *at = sys_alloc_array((size_t)n, 2 * sizeof *at, "points of a curve", e), most = 0;
    int *hollow = sys_alloc_array((size_t)n, sizeof *hollow, "points of a curve", e);
    int r = -1;
    if (at && hollow) {
        for (int i = 0; i < n; i++) most = fmax(most, (double)bench_row_bytes(&x[i]));
        const double unit = most < 0x1p30 ? 0x1p20 : 0x1p30;
        for (int i = 0; i < n; i++)
            at[i] = (double)bench_row_bytes(&x[i]) / unit, at[n + i] = bench_row_speed(&x[i]), hollow[i] = !x[i].measured;
        snprintf(title, sizeof title, "%s, %s", x->model, x->method);
        r = plot_dots_png(path, title, most < 0x1p30 ? "memory of the card, MiB" : "memory of the card, GiB", "tokens a second",
                          at, at + n, hollow, n, e);
    }
    sys_free(at), sys_free(hollow);
    return r;
}

int bench_curve(const char *path, const struct bench_row *x, int n, const struct bench_machine *m, struct err *e) {
    struct str s = {0};
    if (text_ends(path, ".png")) return png(path, x, n, e);
    svg(x, n, m, &s);
    int r = s.oom ? err_set(e, ERR_RUN, "out of memory: the curve") : file_write_all(path, s.p, s.n, e);
    str_free(&s);
    return r;
}
