/* libjpeg-turbo keeps the interface of libjpeg 6b: all builds of version 62 lay out its structures as below, and the
 * library refuses to create a decoder for another version or size. Therefore this file compiles without the library.
 *
 * huffman.h decodes scans that obey the standard: the library calls a function for the next MCU through a pointer, which
 * this file replaces. The library does everything else. */

#include "libjpeg.h"

#include "huffman.h"

#include <dlfcn.h>
#include <setjmp.h>

enum { VERSION = 62, COLOR_SPACE_RGB = 2, REQUIRE_IMAGE = 1 };

/* ---------------------------------------------------------------------------------------------------- layouts */

typedef struct DecompressStruct DecompressStruct;

typedef struct {
    void (*exit)(DecompressStruct *);             /* must not return */
    void (*trace)(DecompressStruct *, int level); /* negative for a warning */
    void (*print)(DecompressStruct *);
    void (*format)(DecompressStruct *, char *message);
    void (*reset)(DecompressStruct *);
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
} ErrorManager;

typedef struct {
    const uint8_t *next;
    size_t remaining_bytes;
} SourceManager; /* functions that read more data follow */

typedef struct {
    uint8_t counts[MAX_CODE_LENGTH + 1], symbols[256];
} HuffmanTable;

typedef struct {
    int id, number, across, down, quantization_table, dc_table, ac_table;
} ComponentInfo; /* members for the component's geometry follow */

typedef int (*DecodeMcu)(DecompressStruct *, int16_t (**blocks)[BLOCK_COEFFICIENTS]);

/* This structure is private to the library, in contrast to the others; its first two members are the same since 1991. */
typedef struct {
    void (*start)(DecompressStruct *);
    DecodeMcu decode_mcu;
} EntropyDecoder; /* further members follow */

struct DecompressStruct {
    ErrorManager *errors;
    void *memory, *progress, *client_data;
    int is_decompressor, state;
    SourceManager *source;
    unsigned width, height; /* size in the JPEG */
    int components, colours, colours_out;
    unsigned scale, scale_denominator;
    double gamma;
    int is_buffered, is_raw, transform, is_upsampled_smoothly, are_blocks_smoothed, is_quantized, dithering, in_two_passes,
        wanted_colours, is_one_pass_enabled, is_external_enabled, is_two_pass_enabled;
    unsigned width_out, height_out;
    int colour_components_out, components_out, buffer_rows, map_colours;
    uint8_t **map;
    unsigned rows_out; /* rows decoded so far */
    int scan_in;
    unsigned mcu_row_in;
    int scan_out;
    unsigned mcu_row_out;
    void *known_bits, *quantization_tables[4];
    HuffmanTable *dc_tables[4], *ac_tables[4];
    int precision;
    ComponentInfo *all_components;
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
    int max_across, max_down, scaled_block;
    unsigned mcu_rows;
    void *limits;
    int scan_component_count;
    ComponentInfo *scan_components[MAX_COMPONENTS_IN_SCAN];
    unsigned mcus_across, mcus_down;
    int block_count, component_of_block[MAX_BLOCKS_IN_MCU], spectral[2], approximation[2], marker;
    void *master, *main, *coefficients, *post, *input, *marker_reader;
    EntropyDecoder *entropy;
    void *inverse_dct, *upsampler, *converter, *quantizer;
};

/* Functions of the library. */
typedef struct {
    void (*create)(DecompressStruct *, int version, size_t size);
    void (*set_source)(DecompressStruct *, const uint8_t *data, unsigned long size);
    int (*read_header)(DecompressStruct *, int is_picture_required);
    int (*start)(DecompressStruct *);
    unsigned (*read_rows)(DecompressStruct *, uint8_t **rows, unsigned count);
    int (*finish)(DecompressStruct *);
    void (*abort)(DecompressStruct *);
    void (*destroy)(DecompressStruct *);
    ErrorManager *(*set_standard_errors)(ErrorManager *);
} Functions;

static const char *const function_names[] = {
    "jpeg_CreateDecompress", "jpeg_mem_src",           "jpeg_read_header",      "jpeg_start_decompress",
    "jpeg_read_scanlines",   "jpeg_finish_decompress", "jpeg_abort_decompress", "jpeg_destroy_decompress",
    "jpeg_std_error",
};

/* --------------------------------------------------------------------------------------------------- decoders */

struct JpegDecoder {
    DecompressStruct jpeg; /* the first member, because callbacks receive its address */
    ErrorManager errors;
    jmp_buf jump_target;
    Functions functions;
    DecodeMcu library_decode_mcu; /* the library's own function; NULL until it is known */
    int is_own_scan;              /* whether huffman.h decodes the current scan */
    ScanDecoder scan;
    DecodeTable dc_tables[4], ac_tables[4];
    unsigned long own_scan_count; /* scans that huffman.h decoded */
    uint8_t *seen_messages;       /* whether each message was given; NULL if the first warning ends the decoding */
};

enum { MAX_MESSAGES = 256 };

/* Notes the current message; returns 0 if messages are not noted. */
static int note_message(DecompressStruct *jpeg)
{
    uint8_t *seen = ((JpegDecoder *)jpeg)->seen_messages;

    if (seen != NULL && jpeg->errors->code >= 0 && jpeg->errors->code < MAX_MESSAGES)
        seen[jpeg->errors->code] = 1;
    return seen != NULL;
}

static void jump_out(DecompressStruct *jpeg)
{
    note_message(jpeg);
    longjmp(((JpegDecoder *)jpeg)->jump_target, 1);
}

static void jump_out_at_warnings(DecompressStruct *jpeg, int level)
{
    if (level < 0 && !note_message(jpeg))
        jump_out(jpeg);
}

static void ignore_message(DecompressStruct *jpeg)
{
    (void)jpeg;
}

static void format_nothing(DecompressStruct *jpeg, char *message)
{
    (void)jpeg;
    *message = '\0';
}

static void reset(DecompressStruct *jpeg)
{
    jpeg->errors->warnings = 0;
    jpeg->errors->code = 0;
}

/* Creates the library's decompressor; returns 0 if the library has another version. */
static int prepare(JpegDecoder *self)
{
    self->errors = (ErrorManager){
        .exit = jump_out, .trace = jump_out_at_warnings, .print = ignore_message, .format = format_nothing, .reset = reset};
    self->jpeg.errors = &self->errors;
    if (setjmp(self->jump_target))
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

static int decode_next_mcu(DecompressStruct *jpeg, int16_t (**blocks)[BLOCK_COEFFICIENTS])
{
    if (!decode_mcu(&((JpegDecoder *)jpeg)->scan, blocks))
        jump_out(jpeg);
    return 1;
}

static int are_in_same_library(const void *first, const void *second)
{
    Dl_info first_info, second_info;

    return dladdr(first, &first_info) && dladdr(second, &second_info) && first_info.dli_fbase == second_info.dli_fbase;
}

/* Returns whether the library defines the functions of the entropy decoder; if not, the structure has another layout. */
static int is_entropy_decoder_as_expected(JpegDecoder *self)
{
    const EntropyDecoder *entropy = self->jpeg.entropy;

    if (self->library_decode_mcu == NULL &&
        are_in_same_library((const void *)entropy->start, (const void *)self->functions.start) &&
        are_in_same_library((const void *)entropy->decode_mcu, (const void *)self->functions.start))
        self->library_decode_mcu = entropy->decode_mcu;
    return self->library_decode_mcu != NULL && self->library_decode_mcu == entropy->decode_mcu;
}

/* Sets tables and component of each block in an MCU; returns 0 if a table defines no code. */
static int set_block_codings(JpegDecoder *self)
{
    const DecompressStruct *jpeg = &self->jpeg;

    for (int i = 0; i < jpeg->block_count; i++) {
        const int number = jpeg->component_of_block[i];
        const ComponentInfo *component = jpeg->scan_components[number];
        const HuffmanTable *dc = jpeg->dc_tables[component->dc_table], *ac = jpeg->ac_tables[component->ac_table];

        self->scan.blocks[i] =
            (BlockCoding){&self->dc_tables[component->dc_table], &self->ac_tables[component->ac_table], number};
        if (dc == NULL || ac == NULL ||
            !build_decode_table(&self->dc_tables[component->dc_table], 1, dc->counts, dc->symbols) ||
            !build_decode_table(&self->ac_tables[component->ac_table], 0, ac->counts, ac->symbols))
            return 0;
    }
    self->scan.block_count = jpeg->block_count;
    return 1;
}

/* Lets huffman.h decode the scan of a JPEG whose header was read, if huffman.h can. */
static void take_over_scan(JpegDecoder *self)
{
    DecompressStruct *jpeg = &self->jpeg;
    size_t scan_bytes;

    if (jpeg->precision != 8 || jpeg->is_progressive || jpeg->is_arithmetic || jpeg->restart_interval != 0 ||
        jpeg->scan_component_count != jpeg->components || !is_entropy_decoder_as_expected(self) || !set_block_codings(self))
        return;
    scan_bytes = start_scan(&self->scan, jpeg->source->next, jpeg->source->remaining_bytes);
    if (scan_bytes == 0)
        return;
    jpeg->source->next += scan_bytes;
    jpeg->source->remaining_bytes -= scan_bytes;
    jpeg->entropy->decode_mcu = decode_next_mcu;
    self->is_own_scan = 1;
}

/* --------------------------------------------------------------------------------------------------- pictures */

enum { ROWS_PER_CALL = 16 };

static int read_rows(JpegDecoder *self, uint8_t *pixels)
{
    DecompressStruct *jpeg = &self->jpeg;
    const size_t row_bytes = (size_t)jpeg->width_out * 3;
    uint8_t *rows[ROWS_PER_CALL];

    while (jpeg->rows_out < jpeg->height_out) {
        const unsigned remaining_rows = jpeg->height_out - jpeg->rows_out;
        const unsigned count = remaining_rows < ROWS_PER_CALL ? remaining_rows : ROWS_PER_CALL;

        for (unsigned i = 0; i < count; i++)
            rows[i] = pixels + row_bytes * (jpeg->rows_out + i);
        if (self->functions.read_rows(jpeg, rows, count) == 0)
            return 0;
    }
    return 1;
}

/* Reads the header and starts to decode to RGB; returns 0 if that fails, or if the picture has another size. */
static int start(JpegDecoder *self, unsigned height, unsigned width)
{
    DecompressStruct *jpeg = &self->jpeg;

    if (self->functions.read_header(jpeg, REQUIRE_IMAGE) != 1 || jpeg->height != height || jpeg->width != width)
        return 0;
    jpeg->colours_out = COLOR_SPACE_RGB;
    return self->functions.start(jpeg) && jpeg->height_out == height && jpeg->width_out == width && jpeg->components_out == 3;
}

/* Decodes a JPEG as decode_jpeg does. may_own_scan: whether huffman.h may decode the scan. */
static int decode_picture(JpegDecoder *self, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height,
                          unsigned width, int may_own_scan)
{
    DecompressStruct *jpeg = &self->jpeg;
    volatile int is_done = 0; /* volatile, because setjmp requires it */

    self->is_own_scan = 0;
    if (setjmp(self->jump_target) == 0) {
        self->functions.set_source(jpeg, data, size);
        if (start(self, height, width)) {
            if (may_own_scan)
                take_over_scan(self);
            is_done = read_rows(self, pixels) && (!self->is_own_scan || is_scan_consumed(&self->scan)) &&
                      self->functions.finish(jpeg);
        }
    }
    trim_scan_buffer(&self->scan);
    if (!is_done)
        self->functions.abort(jpeg);
    return is_done;
}

int decode_jpeg(JpegDecoder *self, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height, unsigned width)
{
    if (decode_picture(self, data, size, pixels, height, width, 1)) {
        self->own_scan_count += (unsigned)self->is_own_scan;
        return 1;
    }
    /* The library accepts some scans that violate the standard. */
    return self->is_own_scan && decode_picture(self, data, size, pixels, height, width, 0);
}

/* Decodes a JPEG without converting its colours, and throws the rows away. seen: receives 1 for each message that the
 * library gave. Returns 0 if the library refused the JPEG, or the JPEG has another size. */
static int note_messages(JpegDecoder *self, const uint8_t *data, size_t size, unsigned height, unsigned width, uint8_t *seen)
{
    DecompressStruct *jpeg = &self->jpeg;
    uint8_t *volatile row = NULL; /* volatile, because setjmp requires it */
    volatile int is_done = 0;

    self->seen_messages = seen;
    if (setjmp(self->jump_target) == 0) {
        self->functions.set_source(jpeg, data, size);
        if (self->functions.read_header(jpeg, REQUIRE_IMAGE) == 1 && jpeg->height == height && jpeg->width == width) {
            jpeg->colours_out = jpeg->colours;
            row = malloc((size_t)width * MAX_COMPONENTS_IN_SCAN);
            if (row != NULL && self->functions.start(jpeg) && jpeg->width_out == width &&
                jpeg->components_out <= MAX_COMPONENTS_IN_SCAN) {
                uint8_t *rows[1] = {row};
                while (jpeg->rows_out < jpeg->height_out)
                    self->functions.read_rows(jpeg, rows, 1);
                is_done = self->functions.finish(jpeg);
            }
        }
    }
    free(row);
    self->seen_messages = NULL;
    if (!is_done)
        self->functions.abort(jpeg);
    return is_done;
}

/* ---------------------------------------------------------------------------------------------------- library */

/* Size of the pool of idle decoders: each reading thread needs one decoder. */
enum { MAX_KEPT_DECODERS = 64 };

struct Libjpeg {
    PyObject_HEAD
    Functions functions;
    JpegDecoder *decoders[MAX_KEPT_DECODERS]; /* guarded by Python's lock */
    int decoder_count;
    unsigned long own_scan_count;
};

JpegDecoder *borrow_decoder(Libjpeg *self)
{
    return self->decoder_count > 0 ? self->decoders[--self->decoder_count] : make_decoder(&self->functions);
}

void return_decoder(Libjpeg *self, JpegDecoder *decoder)
{
    self->own_scan_count += decoder->own_scan_count;
    decoder->own_scan_count = 0;
    if (self->decoder_count < MAX_KEPT_DECODERS)
        self->decoders[self->decoder_count++] = decoder;
    else
        destroy_decoder(decoder);
}

/* Loads a library for the lifetime of the process; returns 0 with a Python error set if that fails. */
static int load(const char *file, Functions *functions)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL), *addresses[sizeof function_names / sizeof *function_names];

    if (library == NULL) {
        PyErr_SetString(PyExc_OSError, dlerror());
        return 0;
    }
    for (size_t i = 0; i < sizeof function_names / sizeof *function_names; i++) {
        addresses[i] = dlsym(library, function_names[i]); /* searches the library and those that it is linked to */
        if (addresses[i] == NULL) {
            PyErr_Format(PyExc_OSError, "%s has no function %s", file, function_names[i]);
            return 0;
        }
    }
    memcpy(functions, addresses, sizeof addresses);
    return 1;
}

_Static_assert(sizeof(Functions) == sizeof function_names, "a name for each function");

PyDoc_STRVAR(decode_doc, "decode($self, data, out, /)\n--\n\n"
             "Decode a JPEG into an array, uint8 (H, W, 3), RGB; return whether that succeeded without a warning.\n\n"
             "After False the array's content is undefined. A JPEG that lacks tables may be decoded with the tables of an\n"
             "earlier JPEG.");

static PyObject *decode(Libjpeg *self, PyObject *args)
{
    Py_buffer data, out;
    PyObject *array;
    JpegDecoder *decoder;
    int is_done = 0;

    if (!PyArg_ParseTuple(args, "y*O:decode", &data, &array))
        return NULL;
    if (!get_rgb_buffer(array, &out)) {
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

PyDoc_STRVAR(messages_doc, "messages($self, data, height, width, /)\n--\n\n"
             "Decode a JPEG of any colours; return (whether that succeeded, the warnings and the error that were given).\n\n"
             "Messages are the library's, without the numbers in them; each comes once. The decoding goes on after warnings.");

static PyObject *list_messages(const Functions *functions, const uint8_t *seen)
{
    ErrorManager errors = {0};
    PyObject *messages = PyList_New(0);

    functions->set_standard_errors(&errors);
    for (int code = 0; messages != NULL && code < MAX_MESSAGES && code <= errors.last_message; code++) {
        PyObject *message;

        if (!seen[code] || errors.messages[code] == NULL)
            continue;
        message = PyUnicode_DecodeLatin1(errors.messages[code], (Py_ssize_t)strlen(errors.messages[code]), NULL);
        if (message == NULL || PyList_Append(messages, message) < 0)
            Py_CLEAR(messages);
        Py_XDECREF(message);
    }
    return messages;
}

static PyObject *get_messages(Libjpeg *self, PyObject *args)
{
    Py_buffer data;
    unsigned height, width;
    uint8_t seen[MAX_MESSAGES] = {0};
    JpegDecoder *decoder;
    PyObject *messages;
    int is_done;

    if (!PyArg_ParseTuple(args, "y*II:messages", &data, &height, &width))
        return NULL;
    decoder = borrow_decoder(self);
    if (decoder == NULL) {
        PyBuffer_Release(&data);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    is_done = note_messages(decoder, data.buf, (size_t)data.len, height, width, seen);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    messages = list_messages(&self->functions, seen);
    return_decoder(self, decoder);
    return messages == NULL ? NULL : Py_BuildValue("NN", PyBool_FromLong(is_done), messages);
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Libjpeg *self;
    PyObject *file;
    int is_loaded;

    if (!check_no_keywords(type, keywords))
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
    return Py_TYPE(object)->tp_dealloc == (destructor)deallocate; /* the type has no subclasses */
}

static PyMethodDef methods[] = {
    {"decode", (PyCFunction)decode, METH_VARARGS, decode_doc},
    {"messages", (PyCFunction)get_messages, METH_VARARGS, messages_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *get_scans(Libjpeg *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(self->own_scan_count);
}

static PyGetSetDef properties[] = {
    {"scans", (getter)get_scans, NULL, "Number of JPEGs whose scan was decoded by huffman.c, not by the library.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(type_doc, "Libjpeg(file, /)\n--\n\n"
             "The libjpeg-turbo in a shared library, or in one that it is linked to.\n\n"
             "The library stays loaded until the process ends. Raises OSError if it cannot be loaded or has no libjpeg-turbo.");

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
