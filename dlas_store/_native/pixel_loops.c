/* Loops over pixels for which OpenCV and numpy pass through memory several times, and take Python's lock in between.
 *
 * Each function lets go of that lock while it works. Where this could not be compiled, datasets/planes.py and
 * datasets/masked_reference.py do the same in Python. Arrays are taken by the buffer protocol, contiguous and in the
 * machine's byte order. */

#include "extension.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* How many bytes add up to no more than a sum of 16 bits can hold. */
#define MOST_ADDENDS 257

/* 1/255 in two parts: the first, times a byte, is exact, so that a byte times both is what the division gives, and faster. */
static const float most_of_inverse = 257.0f / 65536.0f, rest_of_inverse = (float)(1.0 / 255.0 - 257.0 / 65536.0);

VECTORS static void divide_bytes(const uint8_t *restrict in, float *restrict out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (float)in[i] * most_of_inverse + (float)in[i] * rest_of_inverse;
}

VECTORS static void divide_sums(const uint16_t *restrict in, float *restrict out, size_t count, float divisor)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (float)in[i] / divisor;
}

VECTORS static void split_row(const uint8_t *restrict in, uint8_t *restrict red, uint8_t *restrict green,
                              uint8_t *restrict blue, size_t width)
{
    for (size_t x = 0; x < width; x++) {
        red[x] = in[3 * x];
        green[x] = in[3 * x + 1];
        blue[x] = in[3 * x + 2];
    }
}

VECTORS static void add_bytes(const uint8_t *restrict in, uint16_t *restrict sums, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sums[i] = (uint16_t)(sums[i] + in[i]);
}

VECTORS static void add_pairs(const uint16_t *restrict in, uint16_t *restrict sums, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sums[i] = (uint16_t)(in[2 * i] + in[2 * i + 1]);
}

/* Writes averages of factor x factor bytes, divided by 255. sums: of factor bytes each; they and spare are overwritten. */
static void average(uint16_t *sums, uint16_t *spare, float *out, size_t count, size_t factor)
{
    const float divisor = 255.0f * (float)(factor * factor);

    if (factor * factor < MOST_ADDENDS && (factor & (factor - 1)) == 0) {
        for (; factor > 1; factor /= 2) {
            uint16_t *halved = spare;

            add_pairs(sums, halved, count * factor / 2);
            spare = sums;
            sums = halved;
        }
        divide_sums(sums, out, count, divisor);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t sum = 0;

        for (size_t j = 0; j < factor; j++)
            sum += sums[i * factor + j];
        out[i] = (float)sum / divisor;
    }
}

/* A picture that is written: float32, channel by channel, each pixel the average of factor x factor. */
typedef struct {
    float *data;
    size_t height, width, factor;
} Planes;

/* Planes from this size on do not stay in the processor's caches until their batch is read: they are written past them,
 * which would else have to read what is about to be overwritten. Before other threads may see it comes end_writing. */
enum { LARGE_PLANE = 1 << 17 };

static int passes_caches(const Planes *out, const float *to)
{
#ifdef __SSE2__
    return out->height * out->width * sizeof *to >= LARGE_PLANE && (uintptr_t)to % sizeof(__m128) == 0;
#else
    return 0;
#endif
}

/* Writes a part of a row. */
static void write_values(const Planes *out, float *restrict to, const float *restrict values, size_t count)
{
    size_t x = 0;

#ifdef __SSE2__
    if (passes_caches(out, to))
        for (; x + 4 <= count; x += 4)
            _mm_stream_ps(to + x, _mm_loadu_ps(values + x));
#endif
    if (x < count)
        memcpy(to + x, values + x, (count - x) * sizeof *to);
}

#ifdef __SSE2__
static void stream_sixteen_bytes(const uint8_t *restrict bytes, float *restrict to)
{
    const __m128 most = _mm_set1_ps(most_of_inverse), rest = _mm_set1_ps(rest_of_inverse);
    const __m128i zero = _mm_setzero_si128(), all = _mm_loadu_si128((const __m128i *)bytes);
    const __m128i halves[2] = {_mm_unpacklo_epi8(all, zero), _mm_unpackhi_epi8(all, zero)};

    for (int i = 0; i < 4; i++) {
        const __m128i half = halves[i / 2];
        const __m128 four = _mm_cvtepi32_ps(i % 2 ? _mm_unpackhi_epi16(half, zero) : _mm_unpacklo_epi16(half, zero));

        _mm_stream_ps(to + 4 * i, _mm_add_ps(_mm_mul_ps(four, most), _mm_mul_ps(four, rest)));
    }
}
#endif

/* Writes a row of bytes, divided by 255. */
static void write_bytes(const Planes *out, float *restrict to, const uint8_t *restrict bytes)
{
    size_t x = 0;

#ifdef __SSE2__
    if (passes_caches(out, to))
        for (; x + 16 <= out->width; x += 16)
            stream_sixteen_bytes(bytes + x, to + x);
#endif
    divide_bytes(bytes + x, to + x, out->width - x);
}

static void end_writing(void)
{
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* scratch: of 21 * width bytes. */
static void write_pixels(const uint8_t *pixels, size_t height, size_t width, const Planes *out, int count, void *scratch)
{
    float *row = scratch;
    uint16_t *sums[2] = {(uint16_t *)(row + width), (uint16_t *)(row + width) + 3 * width}, *spare = sums[1] + 3 * width;
    uint8_t *channels = (uint8_t *)(spare + width);

    for (size_t y = 0; y < height; y++) {
        split_row(pixels + 3 * width * y, channels, channels + width, channels + 2 * width, width);
        for (int i = 0; i < count; i++) {
            const size_t factor = out[i].factor, plane = out[i].height * out[i].width;
            float *to = out[i].data + y / factor * out[i].width;

            if (factor == 1) {
                for (size_t c = 0; c < 3; c++)
                    write_bytes(&out[i], to + c * plane, channels + c * width);
                continue;
            }
            if (y % factor == 0)
                memset(sums[i], 0, 3 * width * sizeof *sums[i]);
            add_bytes(channels, sums[i], 3 * width);
            if (y % factor == factor - 1)
                for (size_t c = 0; c < 3; c++) {
                    average(sums[i] + c * width, spare, row, out[i].width, factor);
                    write_values(&out[i], to + c * plane, row, out[i].width);
                }
        }
    }
}

/* Writes the first three channels, which are given as bytes or as they are. */
static void write_colors(const Py_buffer *planes, const Planes *out)
{
    for (size_t y = 0; y < 3 * out->height; y++) {
        const size_t start = y * out->width;

        if (planes->format[0] == 'B')
            write_bytes(out, out->data + start, (const uint8_t *)planes->buf + start);
        else
            write_values(out, out->data + start, (const float *)planes->buf + start, out->width);
    }
}

typedef struct {
    size_t top, bottom, left, right;
} Box;

static size_t overlap(size_t start, size_t length, size_t from, size_t to)
{
    size_t first = start > from ? start : from, end = start + length < to ? start + length : to;

    return first < end ? end - first : 0;
}

/* Writes the fourth channel: 1 inside of the box, `outside` elsewhere, and what is between where the box cuts a pixel.
 * scratch: a row. */
static void write_box(Box box, float outside, const Planes *out, float *scratch)
{
    const size_t factor = out->factor;
    const float area = (float)(factor * factor);

    for (size_t y = 0, last = SIZE_MAX; y < out->height; y++) {
        const size_t rows = overlap(y * factor, factor, box.top, box.bottom);

        if (rows != last) { /* else the row is that before */
            size_t x = 0;

            for (; x < (rows ? box.left / factor : out->width); x++)
                scratch[x] = outside;
            for (; x * factor < box.right && x < out->width; x++) {
                float inside = (float)(rows * overlap(x * factor, factor, box.left, box.right));

                scratch[x] = (inside + (area - inside) * outside) / area;
            }
            for (; x < out->width; x++)
                scratch[x] = outside;
            last = rows;
        }
        write_values(out, out->data + (3 * out->height + y) * out->width, scratch, out->width);
    }
}

/* ------------------------------------------------------------------------------------------------ from Python */

/* Takes an array of three dimensions of one of some types ('B', 'f'); returns 0 after setting an error. */
static int take(PyObject *object, Py_buffer *view, const char *types, int flags)
{
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) < 0)
        return 0;
    if (view->ndim == 3 && view->format != NULL && strlen(view->format) == 1 && strchr(types, view->format[0]) != NULL)
        return 1;
    PyErr_Format(PyExc_ValueError, "an array of 3 dimensions and type %s is needed, not of %d and %s", types, view->ndim,
                 view->format == NULL ? "B" : view->format);
    PyBuffer_Release(view);
    return 0;
}

/* Says what is written to an array of some channels, for a picture of a size; returns 0 after setting an error. */
static int plan(const Py_buffer *view, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, Planes *out)
{
    const Py_ssize_t *shape = view->shape, factor = shape[1] > 0 ? height / shape[1] : 0;

    if (shape[0] != channels || factor < 1 || factor > MOST_ADDENDS || shape[1] * factor != height ||
        shape[2] * factor != width) {
        PyErr_Format(PyExc_ValueError, "%zd x %zd pixels in %zd channels are not %zd x %zd in %zd, brought down by at most %d",
                     shape[2], shape[1], shape[0], width, height, channels, MOST_ADDENDS);
        return 0;
    }
    *out = (Planes){view->buf, (size_t)shape[1], (size_t)shape[2], (size_t)factor};
    return 1;
}

/* Arrays that are given to a function, and what it is to do with them while it does without Python's lock. */
typedef struct {
    Py_buffer views[4];
    int taken; /* how many of them are there */
    void *scratch;
} Arrays;

static void let_go(Arrays *arrays)
{
    PyMem_Free(arrays->scratch);
    while (arrays->taken > 0)
        PyBuffer_Release(&arrays->views[--arrays->taken]);
}

/* Takes one more array; see take. */
static int take_one(Arrays *arrays, PyObject *object, const char *types, int flags)
{
    if (!take(object, &arrays->views[arrays->taken], types, flags))
        return 0;
    arrays->taken++;
    return 1;
}

static int make_scratch(Arrays *arrays, size_t size)
{
    arrays->scratch = PyMem_Malloc(size);
    if (arrays->scratch == NULL)
        PyErr_NoMemory();
    return arrays->scratch != NULL;
}

static int check_tuple(PyObject *args)
{
    if (!PyTuple_Check(args))
        PyErr_Format(PyExc_TypeError, "arguments are given as a tuple, not as %s", Py_TYPE(args)->tp_name);
    return PyTuple_Check(args);
}

typedef struct {
    Arrays arrays; /* pixels, then what is written */
    Planes out[2];
} PixelsTask;

/* Takes the arguments of write_pixels; returns 0 after setting an error. What was taken is let go of in any case. */
static int take_pixels(PyObject *args, PixelsTask *task)
{
    PyObject *pixels, *outs[2] = {NULL};
    const Py_ssize_t *shape;

    if (!check_tuple(args) || !PyArg_ParseTuple(args, "OO|O:write_pixels", &pixels, &outs[0], &outs[1]) ||
        !take_one(&task->arrays, pixels, "B", 0))
        return 0;
    shape = task->arrays.views[0].shape;
    if (shape[2] != 3) {
        PyErr_SetString(PyExc_ValueError, "pixels must be RGB");
        return 0;
    }
    for (int i = 0; i < 2 && outs[i] != NULL; i++)
        if (!take_one(&task->arrays, outs[i], "f", PyBUF_WRITABLE) ||
            !plan(&task->arrays.views[1 + i], 3, shape[0], shape[1], &task->out[i]))
            return 0;
    return make_scratch(&task->arrays, 21 * (size_t)shape[1]);
}

static void do_pixels(const PixelsTask *task)
{
    const Py_buffer *pixels = &task->arrays.views[0];

    write_pixels(pixels->buf, (size_t)pixels->shape[0], (size_t)pixels->shape[1], task->out, task->arrays.taken - 1,
                 task->arrays.scratch);
}

enum { REFERENCE, SMALL_REFERENCE, HQ, LQ };

typedef struct {
    Arrays arrays;
    Planes hq, lq;
    Box box;
    float outside;
} ReferenceTask;

/* Takes the arguments of write_reference; see take_pixels. */
static int take_reference(PyObject *args, ReferenceTask *task)
{
    static const char *const types[] = {"Bf", "f", "f", "f"};
    const Py_buffer *views = task->arrays.views;
    PyObject *objects[4];
    Py_ssize_t top, bottom, left, right, height, width;

    if (!check_tuple(args) ||
        !PyArg_ParseTuple(args, "OO(nnnn)f(nn)OO:write_reference", &objects[REFERENCE], &objects[SMALL_REFERENCE], &top,
                          &bottom, &left, &right, &task->outside, &height, &width, &objects[HQ], &objects[LQ]))
        return 0;
    for (int i = 0; i < 4; i++)
        if (!take_one(&task->arrays, objects[i], types[i], i >= HQ ? PyBUF_WRITABLE : 0))
            return 0;
    for (int i = 0; i < 2; i++)
        if (views[i].shape[0] != 3 || memcmp(views[i].shape + 1, views[HQ + i].shape + 1, 2 * sizeof(Py_ssize_t)) != 0) {
            PyErr_SetString(PyExc_ValueError, "references must be RGB and have the sizes of HQ and LQ");
            return 0;
        }
    if (top < 0 || top > bottom || bottom > height || left < 0 || left > right || right > width) {
        PyErr_SetString(PyExc_ValueError, "the box reaches beyond the mask");
        return 0;
    }
    task->box = (Box){(size_t)top, (size_t)bottom, (size_t)left, (size_t)right};
    return plan(&views[HQ], 4, height, width, &task->hq) && plan(&views[LQ], 4, height, width, &task->lq) &&
           make_scratch(&task->arrays, (size_t)width * sizeof(float));
}

static void do_reference(const ReferenceTask *task)
{
    write_colors(&task->arrays.views[REFERENCE], &task->hq);
    write_colors(&task->arrays.views[SMALL_REFERENCE], &task->lq);
    write_box(task->box, task->outside, &task->hq, task->arrays.scratch);
    write_box(task->box, task->outside, &task->lq, task->arrays.scratch);
}

/* Does what write_pixels and write_reference do with each of some tuples of arguments, or nothing after an error. */
static PyObject *write_all(PyObject *const *pixels, Py_ssize_t pixels_count, PyObject *const *references,
                           Py_ssize_t references_count)
{
    PixelsTask *pixels_tasks = PyMem_Calloc((size_t)pixels_count, sizeof *pixels_tasks);
    ReferenceTask *reference_tasks = PyMem_Calloc((size_t)references_count, sizeof *reference_tasks);
    int is_sound = pixels_tasks != NULL && reference_tasks != NULL;

    if (!is_sound)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; is_sound && i < pixels_count; i++)
        is_sound = take_pixels(pixels[i], &pixels_tasks[i]);
    for (Py_ssize_t i = 0; is_sound && i < references_count; i++)
        is_sound = take_reference(references[i], &reference_tasks[i]);
    if (is_sound) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < pixels_count; i++)
            do_pixels(&pixels_tasks[i]);
        for (Py_ssize_t i = 0; i < references_count; i++)
            do_reference(&reference_tasks[i]);
        end_writing();
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t i = 0; pixels_tasks != NULL && i < pixels_count; i++)
        let_go(&pixels_tasks[i].arrays);
    for (Py_ssize_t i = 0; reference_tasks != NULL && i < references_count; i++)
        let_go(&reference_tasks[i].arrays);
    PyMem_Free(pixels_tasks);
    PyMem_Free(reference_tasks);
    return is_sound ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(write_pixels_doc, "write_pixels(pixels, planes, more_planes=None, /)\n--\n\n"
             "Write pixels to one or two arrays, each averaged by a whole factor from 1.\n\n"
             "pixels is uint8 (H, W, 3); planes are float32 (3, H / f, W / f), in [0, 1].");

static PyObject *py_write_pixels(PyObject *Py_UNUSED(module), PyObject *args)
{
    return write_all(&args, 1, NULL, 0);
}

PyDoc_STRVAR(write_reference_doc, "write_reference(reference, small_reference, box, outside, size, hq, lq, /)\n--\n\n"
             "Write a reference and its mask as HQ and as LQ.\n\n"
             "reference is uint8, or float32 in [0, 1], (3, h, w), small_reference float32 (3, h / s, w / s). size is\n"
             "height and width of the mask before it is averaged by whole factors from 1, box (top, bottom, left, right)\n"
             "where it is 1, outside what it is elsewhere. hq is float32 (4, h, w), lq float32 (4, h / s, w / s).");

static PyObject *py_write_reference(PyObject *Py_UNUSED(module), PyObject *args)
{
    return write_all(NULL, 0, &args, 1);
}

PyDoc_STRVAR(write_patches_doc, "write_patches(pixels, references, /)\n--\n\n"
             "Call write_pixels and write_reference with each of some tuples of arguments, giving up Python's lock once.\n\n"
             "Both are tuples of tuples. After an error nothing was written.");

static PyObject *py_write_patches(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *pixels, *references;

    if (!PyArg_ParseTuple(args, "O!O!:write_patches", &PyTuple_Type, &pixels, &PyTuple_Type, &references))
        return NULL;
    return write_all(PySequence_Fast_ITEMS(pixels), PyTuple_GET_SIZE(pixels), PySequence_Fast_ITEMS(references),
                     PyTuple_GET_SIZE(references));
}

static PyMethodDef functions[] = {
    {"write_patches", py_write_patches, METH_VARARGS, write_patches_doc},
    {"write_pixels", py_write_pixels, METH_VARARGS, write_pixels_doc},
    {"write_reference", py_write_reference, METH_VARARGS, write_reference_doc},
    {NULL, NULL, 0, NULL},
};

DEFINE_MODULE(pixel_loops, "dlas_store._native.pixel_loops",
              "Loops over pixels in C; see datasets/planes.py and datasets/masked_reference.py.", functions, NULL)
