/* What is called is the interface of libjpeg 6b, which libjpeg-turbo keeps: all builds of version 62 lay its structures out as
 * below, and the library refuses to make a decoder for another version or size. So it need not be there when this is
 * compiled.
 *
 * Scans are decoded here, see huffman.h, where they are as the standard has them: in place of the function that the library
 * calls for the next unit, which it finds by a pointer. Everything else is the library's. */

#include "libjpeg.h"

#include "huffman.h"

#include <dlfcn.h>
#include <setjmp.h>

enum { VERSION = 62, TO_RGB = 2, WHOLE_PICTURE = 1 };

/* ---------------------------------------------------------------------------------------------------- layouts */

typedef struct Decompression Decompression;

typedef struct {
    void (*exit)(Decompression *); /* must not return */
    void (*trace)(Decompression *, int level); /* negative for a warning */
    void (*print)(Decompression *);
    void (*format)(Decompression *, char *message);
    void (*reset)(Decompression *);
    int code;
    union {
        int numbers[8];
        char text[80];
    } arguments;
    int trace_level;
    long warnings;
    const char *const *messages;
    int last_message;
    const char *const *more_messages;
    int first_of_more, last_of_more;
} ErrorHandler;

typedef struct {
    const uint8_t *next;
    size_t left;
} Source; /* and what reads more */

typedef struct {
    uint8_t counts[MAX_CODE_LENGTH + 1], symbols[256];
} HuffmanTable;

typedef struct {
    int id, number, across, down, quantization_table, dc_table, ac_table;
} Component; /* and what its plane is like */

typedef int (*DecodeUnit)(Decompression *, int16_t (**blocks)[BLOCK_COEFFICIENTS]);

/* Only this structure is the library's own: but its first two members are those of 1991. */
typedef struct {
    void (*start)(Decompression *);
    DecodeUnit decode_unit;
} EntropyDecoder; /* and more */

struct Decompression {
    ErrorHandler *errors;
    void *memory, *progress, *client_data;
    int is_decompressor, state;
    Source *source;
    unsigned width, height; /* of the JPEG */
    int components, colours, colours_out;
    unsigned scale, scale_denominator;
    double gamma;
    int is_buffered, is_raw, transform, is_upsampled_smoothly, are_blocks_smoothed, is_quantized, dithering, in_two_passes,
        wanted_colours, is_one_pass_enabled, is_external_enabled, is_two_pass_enabled;
    unsigned width_out, height_out;
    int colour_components_out, components_out, buffer_rows, map_colours;
    uint8_t **map;
    unsigned rows_out; /* that were given */
    int scan_in;
    unsigned unit_row_in;
    int scan_out;
    unsigned unit_row_out;
    void *known_bits, *quantization_tables[4];
    HuffmanTable *dc_tables[4], *ac_tables[4];
    int precision;
    Component *all_components;
    int is_progressive, is_arithmetic;
    uint8_t arithmetic[3][16];
    unsigned restart_interval;
    int is_jfif;
    uint8_t jfif_version[2], density_unit;
    uint16_t density[2];
    int is_adobe;
    uint8_t adobe_transform;
    int is_cosited;
    void *markers;
    int most_across, most_down, scaled_block;
    unsigned unit_rows;
    void *limits;
    int scan_component_count;
    Component *scan_components[MOST_COMPONENTS];
    unsigned units_across, units_down;
    int block_count, component_of_block[MAX_BLOCKS_IN_MCU], spectral[2], approximation[2], marker;
    void *master, *main, *coefficients, *post, *input, *marker_reader;
    EntropyDecoder *entropy;
    void *inverse_dct, *upsampler, *converter, *quantizer;
};

/* What it calls, by its name in the library. */
typedef struct {
    void (*create)(Decompression *, int version, size_t size);
    void (*set_source)(Decompression *, const uint8_t *data, unsigned long size);
    int (*read_header)(Decompression *, int is_picture_required);
    int (*start)(Decompression *);
    unsigned (*read_rows)(Decompression *, uint8_t **rows, unsigned count);
    int (*finish)(Decompression *);
    void (*abort)(Decompression *);
    void (*destroy)(Decompression *);
} Functions;

static const char *const function_names[] = {
    "jpeg_CreateDecompress", "jpeg_mem_src",           "jpeg_read_header",      "jpeg_start_decompress",
    "jpeg_read_scanlines",   "jpeg_finish_decompress", "jpeg_abort_decompress", "jpeg_destroy_decompress",
};

/* --------------------------------------------------------------------------------------------------- decoders */

struct JpegDecoder {
    Decompression jpeg; /* first: what is called back is given this */
    ErrorHandler errors;
    jmp_buf failed;
    Functions functions;
    DecodeUnit known;  /* the library's, where it was found that it is one; NULL before */
    int is_scan_taken; /* is the last JPEG's scan decoded here? */
    Scan scan;
    CodeTable dc_tables[4], ac_tables[4];
    unsigned long scans; /* that were decoded here */
};

static void fail(Decompression *jpeg)
{
    longjmp(((JpegDecoder *)jpeg)->failed, 1);
}

static void fail_at_warnings(Decompression *jpeg, int level)
{
    if (level < 0)
        fail(jpeg);
}

static void print_nothing(Decompression *jpeg)
{
    (void)jpeg;
}

static void format_nothing(Decompression *jpeg, char *message)
{
    (void)jpeg;
    *message = '\0';
}

static void reset(Decompression *jpeg)
{
    jpeg->errors->warnings = 0;
    jpeg->errors->code = 0;
}

/* Returns 0 where the library's version is another one. */
static int prepare(JpegDecoder *self)
{
    self->errors = (ErrorHandler){
        .exit = fail, .trace = fail_at_warnings, .print = print_nothing, .format = format_nothing, .reset = reset};
    self->jpeg.errors = &self->errors;
    if (setjmp(self->failed))
        return 0;
    self->functions.create(&self->jpeg, VERSION, sizeof self->jpeg);
    return 1;
}

static JpegDecoder *make_decoder(const Functions *functions)
{
    JpegDecoder *self = calloc(1, sizeof *self);

    if (self == NULL)
        return NULL;
    self->functions = *functions;
    if (!prepare(self)) {
        free(self);
        return NULL;
    }
    return self;
}

static void destroy_decoder(JpegDecoder *self)
{
    free(self->scan.bytes);
    self->functions.destroy(&self->jpeg);
    free(self);
}

/* ------------------------------------------------------------------------------------------------------ scans */

static int decode_next_unit(Decompression *jpeg, int16_t (**blocks)[BLOCK_COEFFICIENTS])
{
    if (!decode_unit(&((JpegDecoder *)jpeg)->scan, blocks))
        fail(jpeg);
    return 1;
}

static int are_of_one_library(const void *one, const void *other)
{
    Dl_info info, other_info;

    return dladdr(one, &info) && dladdr(other, &other_info) && info.dli_fbase == other_info.dli_fbase;
}

/* Whether the functions that are to decode a scan are the library's: where they are not, they are laid out otherwise. */
static int is_entropy_decoder_known(JpegDecoder *self)
{
    const EntropyDecoder *entropy = self->jpeg.entropy;

    if (self->known == NULL && are_of_one_library((const void *)entropy->start, (const void *)self->functions.start) &&
        are_of_one_library((const void *)entropy->decode_unit, (const void *)self->functions.start))
        self->known = entropy->decode_unit;
    return self->known != NULL && self->known == entropy->decode_unit;
}

/* Sets how the blocks of a scan are coded; returns 0 where one uses a table that is no code. */
static int set_blocks(JpegDecoder *self)
{
    const Decompression *jpeg = &self->jpeg;

    for (int i = 0; i < jpeg->block_count; i++) {
        const int number = jpeg->component_of_block[i];
        const Component *component = jpeg->scan_components[number];
        const HuffmanTable *dc = jpeg->dc_tables[component->dc_table], *ac = jpeg->ac_tables[component->ac_table];

        self->scan.blocks[i] =
            (CodedBlock){&self->dc_tables[component->dc_table], &self->ac_tables[component->ac_table], number};
        if (dc == NULL || ac == NULL || !make_table(&self->dc_tables[component->dc_table], 1, dc->counts, dc->symbols) ||
            !make_table(&self->ac_tables[component->ac_table], 0, ac->counts, ac->symbols))
            return 0;
    }
    self->scan.block_count = jpeg->block_count;
    return 1;
}

/* Takes over the scan of a JPEG that was started, where that can be decoded here. */
static void take_scan(JpegDecoder *self)
{
    Decompression *jpeg = &self->jpeg;
    size_t taken;

    if (jpeg->precision != 8 || jpeg->is_progressive || jpeg->is_arithmetic || jpeg->restart_interval != 0 ||
        jpeg->scan_component_count != jpeg->components || !is_entropy_decoder_known(self) || !set_blocks(self))
        return;
    taken = begin_scan(&self->scan, jpeg->source->next, jpeg->source->left);
    if (taken == 0)
        return;
    jpeg->source->next += taken;
    jpeg->source->left -= taken;
    jpeg->entropy->decode_unit = decode_next_unit;
    self->is_scan_taken = 1;
}

/* --------------------------------------------------------------------------------------------------- pictures */

enum { ROWS_AT_ONCE = 16 };

static int read_rows(JpegDecoder *self, uint8_t *pixels)
{
    Decompression *jpeg = &self->jpeg;
    const size_t row_bytes = (size_t)jpeg->width_out * 3;
    uint8_t *rows[ROWS_AT_ONCE];

    while (jpeg->rows_out < jpeg->height_out) {
        const unsigned left = jpeg->height_out - jpeg->rows_out, count = left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE;

        for (unsigned i = 0; i < count; i++)
            rows[i] = pixels + row_bytes * (jpeg->rows_out + i);
        if (self->functions.read_rows(jpeg, rows, count) == 0)
            return 0;
    }
    return 1;
}

static int start(JpegDecoder *self, unsigned height, unsigned width)
{
    Decompression *jpeg = &self->jpeg;

    if (self->functions.read_header(jpeg, WHOLE_PICTURE) != 1 || jpeg->height != height || jpeg->width != width)
        return 0;
    jpeg->colours_out = TO_RGB;
    return self->functions.start(jpeg) && jpeg->height_out == height && jpeg->width_out == width && jpeg->components_out == 3;
}

/* is_scan_wanted: whether the scan is to be decoded here, if it can be. */
static int decode_picture(JpegDecoder *self, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height, unsigned width,
                          int is_scan_wanted)
{
    Decompression *jpeg = &self->jpeg;
    volatile int is_done = 0; /* as setjmp wants it */

    self->is_scan_taken = 0;
    if (setjmp(self->failed) == 0) {
        self->functions.set_source(jpeg, data, size);
        if (start(self, height, width)) {
            if (is_scan_wanted)
                take_scan(self);
            is_done = read_rows(self, pixels) && (!self->is_scan_taken || is_used_up(&self->scan)) &&
                      self->functions.finish(jpeg);
        }
    }
    end_scan(&self->scan);
    if (!is_done)
        self->functions.abort(jpeg);
    return is_done;
}

int decode_jpeg(JpegDecoder *self, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height, unsigned width)
{
    if (decode_picture(self, data, size, pixels, height, width, 1)) {
        self->scans += (unsigned)self->is_scan_taken;
        return 1;
    }
    /* The library itself takes some that the standard does not. */
    return self->is_scan_taken && decode_picture(self, data, size, pixels, height, width, 0);
}

/* ---------------------------------------------------------------------------------------------------- library */

/* Decoders that are kept while nobody uses them: there is one for each thread that reads. */
enum { KEPT_DECODERS = 64 };

struct Libjpeg {
    PyObject_HEAD
    Functions functions;
    JpegDecoder *decoders[KEPT_DECODERS]; /* Python's lock guards them */
    int decoder_count;
    unsigned long scans;
};

JpegDecoder *borrow_decoder(Libjpeg *self)
{
    return self->decoder_count > 0 ? self->decoders[--self->decoder_count] : make_decoder(&self->functions);
}

void return_decoder(Libjpeg *self, JpegDecoder *decoder)
{
    self->scans += decoder->scans;
    decoder->scans = 0;
    if (self->decoder_count < KEPT_DECODERS)
        self->decoders[self->decoder_count++] = decoder;
    else
        destroy_decoder(decoder);
}

/* Loads a library, which stays for as long as the process; returns 0 after setting an error. */
static int load(const char *file, Functions *functions)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL), *found[sizeof function_names / sizeof *function_names];

    if (library == NULL) {
        PyErr_SetString(PyExc_OSError, dlerror());
        return 0;
    }
    for (size_t i = 0; i < sizeof function_names / sizeof *function_names; i++) {
        found[i] = dlsym(library, function_names[i]); /* of this library or of those that it needs */
        if (found[i] == NULL) {
            PyErr_Format(PyExc_OSError, "%s has no function %s", file, function_names[i]);
            return 0;
        }
    }
    memcpy(functions, found, sizeof found);
    return 1;
}

_Static_assert(sizeof(Functions) == sizeof function_names, "a name for each function");

PyDoc_STRVAR(decode_doc, "decode($self, data, out, /)\n--\n\n"
             "Decode a JPEG into an array, uint8 (H, W, 3), RGB; return whether it could be, without a warning.\n\n"
             "After False the array's content is undefined. One that lacks tables may be given those of another one.");

static PyObject *decode(Libjpeg *self, PyObject *args)
{
    Py_buffer data, out;
    PyObject *array;
    JpegDecoder *decoder;
    int is_done = 0;

    if (!PyArg_ParseTuple(args, "y*O:decode", &data, &array))
        return NULL;
    if (!get_pixels(array, &out)) {
        PyBuffer_Release(&data);
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "out must be uint8 (H, W, 3)");
        return NULL;
    }
    decoder = borrow_decoder(self);
    if (decoder != NULL) {
        Py_BEGIN_ALLOW_THREADS
        is_done = decode_jpeg(decoder, data.buf, (size_t)data.len, out.buf, (unsigned)out.shape[0], (unsigned)out.shape[1]);
        Py_END_ALLOW_THREADS
        return_decoder(self, decoder);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    return PyBool_FromLong(is_done);
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Libjpeg *self;
    PyObject *file;
    int is_loaded;

    if (!has_no_keywords(type, keywords))
        return NULL;
    if (!PyArg_ParseTuple(args, "O&:Libjpeg", PyUnicode_FSConverter, &file))
        return NULL;
    self = (Libjpeg *)type->tp_alloc(type, 0);
    is_loaded = self != NULL && load(PyBytes_AS_STRING(file), &self->functions);
    Py_DECREF(file);
    if (!is_loaded)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void deallocate(Libjpeg *self)
{
    while (self->decoder_count > 0)
        destroy_decoder(self->decoders[--self->decoder_count]);
    free_object(self);
}

int is_libjpeg(PyObject *object)
{
    return Py_TYPE(object)->tp_dealloc == (destructor)deallocate; /* the type cannot be derived from */
}

static PyMethodDef methods[] = {
    {"decode", (PyCFunction)decode, METH_VARARGS, decode_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *get_scans(Libjpeg *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(self->scans);
}

static PyGetSetDef properties[] = {
    {"scans", (getter)get_scans, NULL, "How many JPEGs' scans were decoded here, not by the library.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(type_doc, "Libjpeg(file, /)\n--\n\n"
             "The libjpeg-turbo of a shared library, or of one that it is linked to.\n\n"
             "It is loaded for as long as the process lives. OSError: it cannot be, or has no libjpeg-turbo.");

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)type_doc},
    {Py_tp_new, create},
    {Py_tp_dealloc, deallocate},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {0, NULL},
};

PyType_Spec libjpeg_specification = {
    .name = "dlas_store._native.patch_reader.Libjpeg",
    .basicsize = sizeof(Libjpeg),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
