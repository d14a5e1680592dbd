/* Pillow's bilinear filter with antialias for one square crop, to the bit: with weights in fixed-point numbers, each of
   two passes rounded to a byte. They are integers, so that every processor gives the same. Always first across, then
   down, as decode.py has Pillow do it, which from version 13 on would choose by the picture's shape. */

#include "_filter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The same loops compiled twice; which copy runs is decided by the processor when the library is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define EVERY_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define EVERY_PROCESSOR
#endif

enum { BITS = 32 - 8 - 2, HALF = 1 << (BITS - 1) }; /* of the weights, as in Pillow */
enum { MAX_SIDE = 4096, BAND = 8 };

/* Pillow's precompute_coeffs and normalize_coeffs_8bpc for its triangle. 0: memory is short. */
static int lay_out(struct axis *axis, int size, float begin, float end, int side)
{
    double scale = (double)(end - begin) / side, reach = scale < 1.0 ? 1.0 : scale;
    axis->most = (int)ceil(reach) * 2 + 1;
    axis->first = calloc(side, sizeof(int));
    axis->count = calloc(side, sizeof(int));
    axis->weights = calloc((size_t)side * axis->most, sizeof(int32_t));
    double *exact = calloc(axis->most, sizeof(double));
    if (axis->first == NULL || axis->count == NULL || axis->weights == NULL || exact == NULL) {
        free(exact);
        return 0;
    }
    axis->begin = size, axis->end = 0, axis->whole = 1;
    for (int i = 0; i < side; i++) {
        double centre = begin + (i + 0.5) * scale, sum = 0.0;
        int first = (int)(centre - reach + 0.5), last = (int)(centre + reach + 0.5);
        first = first < 0 ? 0 : first;
        last = last > size ? size : last;
        if (last - first > axis->most || last <= first) { /* cannot be, inside the picture */
            free(exact);
            return 0;
        }
        for (int k = 0; k < last - first; k++) {
            double distance = fabs((k + first - centre + 0.5) * (1.0 / reach));
            sum += exact[k] = distance < 1.0 ? 1.0 - distance : 0.0;
        }
        int32_t *weights = axis->weights + (size_t)i * axis->most;
        for (int k = 0; k < last - first; k++)
            weights[k] = (int32_t)(0.5 + (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << BITS));
        int none = 0; /* pixels without weight at either end need not be decoded */
        while (none < last - first - 1 && weights[none] == 0)
            none++;
        while (last - first > none + 1 && weights[last - first - 1] == 0)
            last--;
        first += none;
        memmove(weights, weights + none, (last - first) * sizeof(int32_t));
        axis->first[i] = first;
        axis->count[i] = last - first;
        axis->begin = first < axis->begin ? first : axis->begin;
        axis->end = last > axis->end ? last : axis->end;
        axis->whole = axis->whole && last - first == 1 && first == axis->first[0] + i;
    }
    free(exact);
    return 1;
}

/* One row of `count` pixels into a band, in which the pixels of BAND rows that stand in one column lie together. */
static void interleave(const uint8_t *restrict line, int count, uint8_t *restrict band)
{
    for (int i = 0; i < count; i++)
        memcpy(band + (size_t)i * BAND * X_BYTES, line + (size_t)i * X_BYTES, X_BYTES);
}

/* A band to BAND rows of `side` pixels. So many rows at once, as the inner loops are then the same for all of them, and
   compilers make vectors of such loops. */
EVERY_PROCESSOR
static void across(const uint8_t *restrict band, const struct axis *axis, int side, uint8_t *restrict out)
{
    enum { TOGETHER = BAND * X_BYTES };
    for (int i = 0; i < side; i++) {
        const uint8_t *from = band + (size_t)(axis->first[i] - axis->begin) * TOGETHER;
        const int32_t *weights = axis->weights + (size_t)i * axis->most;
        int32_t sums[TOGETHER];
        uint8_t pixels[TOGETHER];
        for (int j = 0; j < TOGETHER; j++)
            sums[j] = HALF;
        for (int k = 0; k < axis->count[i]; k++, from += TOGETHER)
            for (int j = 0; j < TOGETHER; j++)
                sums[j] += from[j] * weights[k];
        for (int j = 0; j < TOGETHER; j++)
            pixels[j] = sums[j] >> BITS;
        for (int row = 0; row < BAND; row++)
            memcpy(out + ((size_t)row * side + i) * X_BYTES, pixels + row * X_BYTES, X_BYTES);
    }
}

/* The weighted mean of `count` rows of `length` bytes that lie one after the other. */
EVERY_PROCESSOR
static void down(const uint8_t *restrict rows, const int32_t *weights, int count, int length, uint8_t *restrict out)
{
    enum { PIECE = 64 };
    for (int begin = 0; begin < length; begin += PIECE) {
        int32_t sums[PIECE];
        int width = length - begin < PIECE ? length - begin : PIECE;
        for (int i = 0; i < width; i++)
            sums[i] = HALF;
        for (int k = 0; k < count; k++) {
            const uint8_t *from = rows + (size_t)k * length + begin;
            for (int i = 0; i < width; i++)
                sums[i] += from[i] * weights[k];
        }
        for (int i = 0; i < width; i++)
            out[begin + i] = sums[i] >> BITS;
    }
}

/* One row of the crop to three planes that lie `plane` bytes apart. */
EVERY_PROCESSOR
static void split(const uint8_t *restrict line, int side, size_t plane, uint8_t *restrict out)
{
    for (int i = 0; i < side; i++) {
        out[i] = line[X_BYTES * i];
        out[plane + i] = line[X_BYTES * i + 1];
        out[2 * plane + i] = line[X_BYTES * i + 2];
    }
}

struct filter *filter_new(int width, int height, const float *box, int side)
{
    if (!(side > 0 && side <= MAX_SIDE && box[0] >= 0 && box[1] >= 0 && box[2] > box[0] && box[3] > box[1] &&
          box[2] <= width && box[3] <= height)) /* so that a NaN is refused, too */
        return NULL;
    struct filter *filter = calloc(1, sizeof *filter);
    if (filter == NULL)
        return NULL;
    filter->side = side;
    if (lay_out(&filter->x, width, box[0], box[2], side) && lay_out(&filter->y, height, box[1], box[3], side)) {
        size_t rows = filter->y.end - filter->y.begin;
        filter->band = calloc(filter->x.end - filter->x.begin, BAND * X_BYTES);
        filter->rows = malloc((rows + BAND) * side * X_BYTES); /* the last band writes BAND rows, too */
        filter->line = malloc((size_t)side * X_BYTES);
    }
    if (filter->band == NULL || filter->rows == NULL || filter->line == NULL) {
        filter_free(filter);
        return NULL;
    }
    return filter;
}

void filter_row(struct filter *filter, const uint8_t *line)
{
    const struct axis *x = &filter->x, *y = &filter->y;
    size_t length = (size_t)filter->side * X_BYTES;
    int row = filter->seen;
    if (row >= y->end - y->begin)
        return;
    filter->seen++;
    if (x->whole) {
        memcpy(filter->rows + row * length, line, length);
        return;
    }
    interleave(line, x->end - x->begin, filter->band + row % BAND * X_BYTES);
    if (row % BAND == BAND - 1 || filter->seen == y->end - y->begin)
        across(filter->band, x, filter->side, filter->rows + (row - row % BAND) * length);
}

void filter_planes(struct filter *filter, uint8_t *out)
{
    const struct axis *y = &filter->y;
    size_t side = filter->side, length = side * X_BYTES;
    for (size_t i = 0; i < side; i++) {
        const uint8_t *rows = filter->rows + (y->first[i] - y->begin) * length;
        if (!y->whole) {
            down(rows, y->weights + i * y->most, y->count[i], length, filter->line);
            rows = filter->line;
        }
        split(rows, filter->side, side * side, out + i * side);
    }
}

void filter_free(struct filter *filter)
{
    if (filter == NULL)
        return;
    free(filter->x.first), free(filter->x.count), free(filter->x.weights);
    free(filter->y.first), free(filter->y.count), free(filter->y.weights);
    free(filter->band), free(filter->rows), free(filter->line);
    free(filter);
}

/* For pictures that lie decoded in memory, width x height pixels of X_BYTES. 0: done; else `out` is not to be used. */
int filter_crop(const uint8_t *pixels, int width, int height, const float *box, int side, uint8_t *out)
{
    struct filter *filter = filter_new(width, height, box, side);
    if (filter == NULL)
        return 1;
    for (int row = filter->y.begin; row < filter->y.end; row++)
        filter_row(filter, pixels + ((size_t)row * width + filter->x.begin) * X_BYTES);
    filter_planes(filter, out);
    filter_free(filter);
    return 0;
}
