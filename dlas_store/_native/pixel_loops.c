/* Loops over pixels. OpenCV and NumPy run over the memory several times for the same work, and take Python's lock in between.
 *
 * Each function releases Python's lock while it works. Without this extension transforms/resize.py and
 * datasets/references.py do the same in Python. Arrays are passed by the buffer protocol, C-contiguous and in native byte
 * order. */

#include "extension.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Number of bytes whose sum always fits into 16 bits. */
#define MAX_ADDENDS 257

/* 1/255 in two parts: a byte times the first part is exact, so that the sum of both products equals the byte divided by 255.
 * Two products are faster than a division. */
static const float inverse_high = 257.0f / 65536.0f, inverse_low = (float)(1.0 / 255.0 - 257.0 / 65536.0);

AVX2_CLONES static void divide_bytes(const uint8_t *restrict in, float *restrict out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (float)in[i] * inverse_high + (float)in[i] * inverse_low;
}

AVX2_CLONES static void divide_sums(const uint16_t *restrict in, float *restrict out, size_t count, float divisor)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (float)in[i] / divisor;
}

AVX2_CLONES static void split_row(const uint8_t *restrict in, uint8_t *restrict red, uint8_t *restrict green,
                                  uint8_t *restrict blue, size_t width)
{
    for (size_t x = 0; x < width; x++) {
        red[x] = in[3 * x];
        green[x] = in[3 * x + 1];
        blue[x] = in[3 * x + 2];
    }
}

AVX2_CLONES static void add_bytes(const uint8_t *restrict in, uint16_t *restrict sums, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sums[i] = (uint16_t)(sums[i] + in[i]);
}

AVX2_CLONES static void add_pairs(const uint16_t *restrict in, uint16_t *restrict sums, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sums[i] = (uint16_t)(in[2 * i] + in[2 * i + 1]);
}

/* Writes averages of factor x factor bytes, divided by 255. sums: sums of factor bytes each. Overwrites sums and spare. */
static void average(uint16_t *sums, uint16_t *spare, float *out, size_t count, size_t factor)
{
    const float divisor = 255.0f * (float)(factor * factor);

    if (factor * factor < MAX_ADDENDS && (factor & (factor - 1)) == 0) {
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

/* An output image: float32, CHW, each value the average of factor x factor values. */
typedef struct {
    float *data;
    size_t height, width, factor;
} ChwImage;

/* Channels of this size or more are written with non-temporal stores: they would leave the processor's caches before their
 * batch is read, and a cached store would first read the memory that it overwrites. fence_stores makes such stores visible
 * to other threads. */
enum { NON_TEMPORAL_BYTES = 1 << 17 };

static int is_non_temporal(const ChwImage *out, const float *to)
{
#ifdef __SSE2__
    return out->height * out->width * sizeof *to >= NON_TEMPORAL_BYTES && (uintptr_t)to % sizeof(__m128) == 0;
#else
    return 0;
#endif
}

/* Writes a part of a row. */
static void write_values(const ChwImage *out, float *restrict to, const float *restrict values, size_t count)
{
    size_t x = 0;

#ifdef __SSE2__
    if (is_non_temporal(out, to))
        for (; x + 4 <= count; x += 4)
            _mm_stream_ps(to + x, _mm_loadu_ps(values + x));
#endif
    if (x < count)
        memcpy(to + x, values + x, (count - x) * sizeof *to);
}

#ifdef __SSE2__
static void stream_16_bytes(const uint8_t *restrict bytes, float *restrict to)
{
    const __m128 high = _mm_set1_ps(inverse_high), low = _mm_set1_ps(inverse_low);
    const __m128i zero = _mm_setzero_si128(), vector = _mm_loadu_si128((const __m128i *)bytes);
    const __m128i halves[2] = {_mm_unpacklo_epi8(vector, zero), _mm_unpackhi_epi8(vector, zero)};

    for (int i = 0; i < 4; i++) {
        const __m128i half = halves[i / 2];
        const __m128 values = _mm_cvtepi32_ps(i % 2 ? _mm_unpackhi_epi16(half, zero) : _mm_unpacklo_epi16(half, zero));

        _mm_stream_ps(to + 4 * i, _mm_add_ps(_mm_mul_ps(values, high), _mm_mul_ps(values, low)));
    }
}
#endif

/* Writes a row of bytes, divided by 255. */
static void write_bytes(const ChwImage *out, float *restrict to, const uint8_t *restrict bytes)
{
    size_t x = 0;

#ifdef __SSE2__
    if (is_non_temporal(out, to))
        for (; x + 16 <= out->width; x += 16)
            stream_16_bytes(bytes + x, to + x);
#endif
    divide_bytes(bytes + x, to + x, out->width - x);
}

static void fence_stores(void)
{
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Writes uint8 pixels (height, width, 3) to one or two outputs, each averaged by its factor. scratch: 21 * width bytes. */
static void write_pixels(const uint8_t *pixels, size_t height, size_t width, const ChwImage *out, int count, void *scratch)
{
    float *row = scratch;
    uint16_t *sums[2] = {(uint16_t *)(row + width), (uint16_t *)(row + width) + 3 * width}, *spare = sums[1] + 3 * width;
    uint8_t *channels = (uint8_t *)(spare + width);

    for (size_t y = 0; y < height; y++) {
        split_row(pixels + 3 * width * y, channels, channels + width, channels + 2 * width, width);
        for (int i = 0; i < count; i++) {
            const size_t factor = out[i].factor, channel_size = out[i].height * out[i].width;
            float *to = out[i].data + y / factor * out[i].width;

            if (factor == 1) {
                for (size_t c = 0; c < 3; c++)
                    write_bytes(&out[i], to + c * channel_size, channels + c * width);
                continue;
            }
            if (y % factor == 0)
                memset(sums[i], 0, 3 * width * sizeof *sums[i]);
            add_bytes(channels, sums[i], 3 * width);
            if (y % factor == factor - 1)
                for (size_t c = 0; c < 3; c++) {
                    average(sums[i] + c * width, spare, row, out[i].width, factor);
                    write_values(&out[i], to + c * channel_size, row, out[i].width);
                }
        }
    }
}

/* Writes the first three channels; the input is uint8, to be divided by 255, or float32. */
static void write_colors(const Py_buffer *chw, const ChwImage *out)
{
    for (size_t y = 0; y < 3 * out->height; y++) {
        const size_t start = y * out->width;

        if (chw->format[0] == 'B')
            write_bytes(out, out->data + start, (const uint8_t *)chw->buf + start);
        else
            write_values(out, out->data + start, (const float *)chw->buf + start, out->width);
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

/* Writes the fourth channel: 1 inside the box, `outside` elsewhere, and a mean of both for pixels that the box's border cuts.
 * scratch: a row. */
static void write_box(Box box, float outside, const ChwImage *out, float *scratch)
{
    const size_t factor = out->factor;
    const float area = (float)(factor * factor);

    for (size_t y = 0, last_rows = SIZE_MAX; y < out->height; y++) {
        const size_t rows = overlap(y * factor, factor, box.top, box.bottom);

        if (rows != last_rows) { /* otherwise the row equals the one before */
            size_t x = 0;

            for (; x < (rows ? box.left / factor : out->width); x++)
                scratch[x] = outside;
            for (; x * factor < box.right && x < out->width; x++) {
                float inside = (float)(rows * overlap(x * factor, factor, box.left, box.right));

                scratch[x] = (inside + (area - inside) * outside) / area;
            }
            for (; x < out->width; x++)
                scratch[x] = outside;
            last_rows = rows;
        }
        write_values(out, out->data + (3 * out->height + y) * out->width, scratch, out->width);
    }
}

/* ------------------------------------------------------------------------------------------------ from Python */

/* Gets the buffer of an array with three dimensions and one of some types ('B', 'f'); returns 0 with a Python error set
 * if the object is no such array. */
static int get_array(PyObject *object, Py_buffer *view, const char *types, int flags)
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

/* Sets up an array of some channels as the output for a picture of some size; returns 0 with a Python error set if the
 * sizes do not fit. */
static int set_output(const Py_buffer *view, Py_ssize_t channels, Py_ssize_t height, Py_ssize_t width, ChwImage *out)
{
    const Py_ssize_t *shape = view->shape, factor = shape[1] > 0 ? height / shape[1] : 0;

    if (shape[0] != channels || factor < 1 || factor > MAX_ADDENDS || shape[1] * factor != height ||
        shape[2] * factor != width) {
        PyErr_Format(PyExc_ValueError,
                     "%zd x %zd pixels in %zd channels are not %zd x %zd in %zd, reduced by at most %d",
                     shape[2], shape[1], shape[0], width, height, channels, MAX_ADDENDS);
        return 0;
    }
    *out = (ChwImage){view->buf, (size_t)shape[1], (size_t)shape[2], (size_t)factor};
    return 1;
}

/* Buffers and scratch memory of a call, used without Python's lock. */
typedef struct {
    Py_buffer views[4];
    int count; /* of views in use */
    void *scratch;
} Arrays;

static void release_arrays(Arrays *arrays)
{
    PyMem_Free(arrays->scratch);
    while (arrays->count > 0)
        PyBuffer_Release(&arrays->views[--arrays->count]);
}

/* Adds one array; see get_array for types and flags. */
static int add_array(Arrays *arrays, PyObject *object, const char *types, int flags)
{
    if (!get_array(object, &arrays->views[arrays->count], types, flags))
        return 0;
    arrays->count++;
    return 1;
}

static int allocate_scratch(Arrays *arrays, size_t size)
{
    arrays->scratch = PyMem_Malloc(size);
    if (arrays->scratch == NULL)
        PyErr_NoMemory();
    return arrays->scratch != NULL;
}

static int check_tuple(PyObject *args)
{
    if (!PyTuple_Check(args))
        PyErr_Format(PyExc_TypeError, "arguments are passed as a tuple, not as %s", Py_TYPE(args)->tp_name);
    return PyTuple_Check(args);
}

typedef struct {
    Arrays arrays; /* pixels, then outputs */
    ChwImage out[2];
} PixelsTask;

/* Parses the arguments of write_pixels; returns 0 with a Python error set if they are wrong. The caller releases
 * task->arrays in any case. */
static int parse_pixels_task(PyObject *args, PixelsTask *task)
{
    PyObject *pixels, *outs[2] = {NULL};
    const Py_ssize_t *shape;

    if (!check_tuple(args) || !PyArg_ParseTuple(args, "OO|O:write_pixels", &pixels, &outs[0], &outs[1]) ||
        !add_array(&task->arrays, pixels, "B", 0))
        return 0;
    shape = task->arrays.views[0].shape;
    if (shape[2] != 3) {
        PyErr_SetString(PyExc_ValueError, "pixels must be RGB");
        return 0;
    }
    for (int i = 0; i < 2 && outs[i] != NULL; i++)
        if (!add_array(&task->arrays, outs[i], "f", PyBUF_WRITABLE) ||
            !set_output(&task->arrays.views[1 + i], 3, shape[0], shape[1], &task->out[i]))
            return 0;
    return allocate_scratch(&task->arrays, 21 * (size_t)shape[1]);
}

static void run_pixels_task(const PixelsTask *task)
{
    const Py_buffer *pixels = &task->arrays.views[0];

    write_pixels(pixels->buf, (size_t)pixels->shape[0], (size_t)pixels->shape[1], task->out, task->arrays.count - 1,
                 task->arrays.scratch);
}

enum { REFERENCE, SMALL_REFERENCE, HQ, LQ };

typedef struct {
    Arrays arrays;
    ChwImage hq, lq;
    Box box;
    float outside;
} ReferenceTask;

/* Parses the arguments of write_reference, like parse_pixels_task. */
static int parse_reference_task(PyObject *args, ReferenceTask *task)
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
        if (!add_array(&task->arrays, objects[i], types[i], i >= HQ ? PyBUF_WRITABLE : 0))
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
    return set_output(&views[HQ], 4, height, width, &task->hq) && set_output(&views[LQ], 4, height, width, &task->lq) &&
           allocate_scratch(&task->arrays, (size_t)width * sizeof(float));
}

static void run_reference_task(const ReferenceTask *task)
{
    write_colors(&task->arrays.views[REFERENCE], &task->hq);
    write_colors(&task->arrays.views[SMALL_REFERENCE], &task->lq);
    write_box(task->box, task->outside, &task->hq, task->arrays.scratch);
    write_box(task->box, task->outside, &task->lq, task->arrays.scratch);
}

/* Calls write_pixels and write_reference with each tuple of arguments; after an error nothing was written. */
static PyObject *write_all(PyObject *const *pixels, Py_ssize_t pixels_count, PyObject *const *references,
                           Py_ssize_t references_count)
{
    PixelsTask *pixels_tasks = PyMem_Calloc((size_t)pixels_count, sizeof *pixels_tasks);
    ReferenceTask *reference_tasks = PyMem_Calloc((size_t)references_count, sizeof *reference_tasks);
    int is_sound = pixels_tasks != NULL && reference_tasks != NULL;

    if (!is_sound)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; is_sound && i < pixels_count; i++)
        is_sound = parse_pixels_task(pixels[i], &pixels_tasks[i]);
    for (Py_ssize_t i = 0; is_sound && i < references_count; i++)
        is_sound = parse_reference_task(references[i], &reference_tasks[i]);
    if (is_sound) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < pixels_count; i++)
            run_pixels_task(&pixels_tasks[i]);
        for (Py_ssize_t i = 0; i < references_count; i++)
            run_reference_task(&reference_tasks[i]);
        fence_stores();
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t i = 0; pixels_tasks != NULL && i < pixels_count; i++)
        release_arrays(&pixels_tasks[i].arrays);
    for (Py_ssize_t i = 0; reference_tasks != NULL && i < references_count; i++)
        release_arrays(&reference_tasks[i].arrays);
    PyMem_Free(pixels_tasks);
    PyMem_Free(reference_tasks);
    return is_sound ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(write_pixels_doc, "write_pixels(pixels, chw, second_chw=None, /)\n--\n\n"
             "Write pixels to one or two arrays, each averaged by a whole factor of at least 1.\n\n"
             "pixels: uint8 (H, W, 3), RGB. chw, second_chw: float32 (3, H / f, W / f), in [0, 1].");

static PyObject *py_write_pixels(PyObject *Py_UNUSED(module), PyObject *args)
{
    return write_all(&args, 1, NULL, 0);
}

PyDoc_STRVAR(write_reference_doc, "write_reference(reference, small_reference, box, outside, size, hq, lq, /)\n--\n\n"
             "Write a reference and its mask to HQ and to LQ.\n\n"
             "reference: uint8, or float32 in [0, 1], (3, h, w). small_reference: float32 (3, h / s, w / s). box: top, bottom,\n"
             "left and right of the area where the mask is 1. outside: the mask's value elsewhere. size: height and width of\n"
             "the mask before it is averaged by whole factors of at least 1. hq: float32 (4, h, w). lq: float32\n"
             "(4, h / s, w / s).");

static PyObject *py_write_reference(PyObject *Py_UNUSED(module), PyObject *args)
{
    return write_all(NULL, 0, &args, 1);
}

PyDoc_STRVAR(write_patches_doc, "write_patches(pixels, references, /)\n--\n\n"
             "Call write_pixels and write_reference with each tuple of arguments, and release Python's lock once.\n\n"
             "pixels: tuple of arguments of write_pixels. references: tuple of arguments of write_reference. After an error\n"
             "nothing was written.");

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
              "Loops over pixels in C, for transforms/resize.py and datasets/references.py.", functions, NULL)
