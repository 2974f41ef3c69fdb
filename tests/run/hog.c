/* tests/run/hog.c - another program on the card: takes its memory but for LEAVE MiB, says so, and holds it until its input ends.
 *
 *     hog PLUGIN LEAVE */
#include "backend/backend.h"
#include <stdio.h>
#include <stdlib.h>

int main(int n, char **arg) {
    struct err e = {0};
    struct backend_info i;
    struct backend *b = n == 3 ? backend_open(arg[1], &e) : NULL;
    if (!b) return fprintf(stderr, "hog PLUGIN LEAVE: %s\n", e.text), 1;
    b->info(b->self, &i);
    const int64_t bytes = i.free_bytes - ((int64_t)atoi(arg[2]) << 20);
    void *p = bytes > 0 ? backend_alloc(b, AT_DEVICE, (size_t)bytes, "the hog", &e) : NULL;
    if (!p) return fprintf(stderr, "hog: %s\n", e.text), 1;
    printf("holds %lld bytes\n", (long long)bytes), fflush(stdout);
    while (getchar() != EOF) {}
    b->release(b->self, AT_DEVICE, p);
    backend_close(b);
    return 0;
}
