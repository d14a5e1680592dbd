/* Pillow's bilinear filter with antialias for one square crop, fed row by row. See _filter.c. */

#ifndef DIST_ALEXNET_FILTER_H
#define DIST_ALEXNET_FILTER_H

#include <stdint.h>

enum { X_BYTES = 4 }; /* of a pixel: R, G, B and one that is not used */

/* What one axis of the crop takes from the picture. */
struct axis {
    int begin, end;     /* pixels of the picture that any pixel of the crop needs */
    int whole;          /* each is one pixel of the picture, and its neighbour the next */
    int *first, *count; /* of each pixel of the crop: which it is the weighted mean of */
    int most;           /* the largest count there may be */
    int32_t *weights;   /* [pixel of the crop][most] */
};

struct filter {
    struct axis x, y;
    int side;             /* of the crop */
    int seen;             /* rows */
    uint8_t *band, *rows; /* rows still to be filtered across; and those that are, y.end - y.begin of them */
    uint8_t *line;
};

/* A crop of `side` x `side` pixels out of the box (left, top, right, bottom) of a picture; NULL where the box is not
   inside the picture, or memory is short. */
struct filter *filter_new(int width, int height, const float *box, int side);

/* The next row from y.begin on; `line` is its pixel x.begin. */
void filter_row(struct filter *filter, const uint8_t *line);

/* After the row before y.end: the crop, as planes R, G, B. */
void filter_planes(struct filter *filter, uint8_t *out);

void filter_free(struct filter *filter);

#endif
