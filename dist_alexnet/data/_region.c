/* One crop of a JPEG, decoding little more than it, by libjpeg-turbo's partial decoding.

   Entropy coding leaves no choice but to read from the first byte on; but rows above the crop and columns beside it are
   not transformed, and what lies below it is not read. The pixels are Pillow's: it uses the same library with the same
   settings, and _filter.c is its filter.

   Whatever is not a plain sound JPEG is left to Pillow (the result is not 0), so that Pillow alone says what is a fault:
   warnings of libjpeg are treated like errors. No state is kept between calls; any number of threads may call. */

#include "_filter.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "partial decoding is libjpeg-turbo's"
#endif

enum { DONE = 0, ASK_PILLOW = 1 };
enum { MAX_PIXELS = 1 << 26, MARGIN = 8 };

struct work {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    jmp_buf leave;
    struct filter *filter;
    uint8_t *line;
};

static void leave(j_common_ptr jpeg) { longjmp(((struct work *)jpeg->client_data)->leave, 1); }

static void on_message(j_common_ptr jpeg, int level)
{
    if (level < 0) /* a warning: the data are damaged */
        leave(jpeg);
}

static void on_output(j_common_ptr jpeg) { (void)jpeg; }

/* What lies below the crop is not decoded: whether the file was cut short, or has in the middle what is no picture's,
   shows by its markers alone. Files of several scans are read to their end, and libjpeg looks for itself. */
static void look_for_end(struct jpeg_decompress_struct *jpeg, const uint8_t *end)
{
    const uint8_t *at = jpeg->src->next_input_byte;
    while ((at = memchr(at, 0xFF, end - at)) != NULL && ++at < end) {
        if (*at == JPEG_EOI)
            return;
        int within = *at == 0 || *at == 0xFF || (*at >= JPEG_RST0 && *at < JPEG_RST0 + 8);
        if (!within && !jpeg_has_multiple_scans(jpeg))
            break;
    }
    leave((j_common_ptr)jpeg);
}

/* Read the header; leaves where the picture is not one for these few lines. */
static void open_picture(struct work *work, const uint8_t *data, size_t bytes)
{
    struct jpeg_decompress_struct *jpeg = &work->jpeg;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, (unsigned char *)data, bytes);
    jpeg_read_header(jpeg, TRUE);
    if (jpeg->data_precision != 8 || jpeg->arith_code || (jpeg->num_components != 1 && jpeg->num_components != 3) ||
        (uint64_t)jpeg->image_width * jpeg->image_height > MAX_PIXELS)
        leave((j_common_ptr)jpeg);
    look_for_end(jpeg, data + bytes);
}

static void cut(struct work *work, const float *box, int side, uint8_t *out)
{
    struct jpeg_decompress_struct *jpeg = &work->jpeg;
    int width = jpeg->image_width;
    work->filter = filter_new(width, jpeg->image_height, box, side);
    if (work->filter == NULL)
        leave((j_common_ptr)jpeg);
    const struct axis *x = &work->filter->x, *y = &work->filter->y;

    jpeg->out_color_space = JCS_EXT_RGBX;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(jpeg);
    /* Upsampling at a cut edge lacks its neighbour: such an edge must lie outside the crop. */
    JDIMENSION offset = x->begin > MARGIN ? x->begin - MARGIN : 0;
    JDIMENSION columns = (x->end + MARGIN < width ? x->end + MARGIN : width) - offset;
    jpeg_crop_scanline(jpeg, &offset, &columns);
    if ((int)offset > x->begin || (int)(offset + columns) < x->end)
        leave((j_common_ptr)jpeg);
    if (y->begin > 0 && (int)jpeg_skip_scanlines(jpeg, y->begin) != y->begin)
        leave((j_common_ptr)jpeg);
    work->line = calloc(columns, X_BYTES);
    if (work->line == NULL)
        leave((j_common_ptr)jpeg);
    for (int row = y->begin; row < y->end; row++) {
        JSAMPROW line = work->line;
        if (jpeg_read_scanlines(jpeg, &line, 1) != 1)
            leave((j_common_ptr)jpeg);
        filter_row(work->filter, line + (size_t)(x->begin - (int)offset) * X_BYTES);
    }
    filter_planes(work->filter, out);
}

/* box NULL: only the size. */
static int run(const uint8_t *data, size_t bytes, const float *box, int side, uint8_t *out, int32_t *size)
{
    volatile int result = ASK_PILLOW;
    struct work *work = calloc(1, sizeof *work);
    if (work == NULL)
        return result;
    work->jpeg.err = jpeg_std_error(&work->errors);
    work->jpeg.client_data = work;
    work->errors.error_exit = leave;
    work->errors.emit_message = on_message;
    work->errors.output_message = on_output;
    if (setjmp(work->leave) == 0) {
        open_picture(work, data, bytes);
        if (box == NULL) {
            size[0] = work->jpeg.image_width;
            size[1] = work->jpeg.image_height;
        } else
            cut(work, box, side, out);
        result = DONE;
    }
    jpeg_destroy_decompress(&work->jpeg);
    filter_free(work->filter);
    free(work->line);
    free(work);
    return result;
}

/* Width and height of the picture to `size`. 0: done. */
int region_size(const uint8_t *data, size_t bytes, int32_t *size) { return run(data, bytes, NULL, 0, NULL, size); }

/* The box (left, top, right, bottom) as R, G, B planes of side x side to `out`. 0: done; else `out` is not to be used. */
int region_crop(const uint8_t *data, size_t bytes, const float *box, int side, uint8_t *out)
{
    return run(data, bytes, box, side, out, NULL);
}
