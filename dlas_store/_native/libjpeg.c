#include "libjpeg.h"

#include "entropy_step.h"

#include <dlfcn.h>
#include <setjmp.h>

/* In the order of Functions. */
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
    OwnScan own;
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
    self->functions.create(&self->jpeg, LIBJPEG_VERSION, sizeof self->jpeg);
    self->jpeg.client_data = &self->own;
    return 1;
}

static JpegDecoder *make_decoder(const Functions *functions, EntropyStep *step)
{
    JpegDecoder *self = calloc(1, sizeof *self);

    if (self == NULL)
        return NULL;
    self->functions = *functions;
    self->own.step = step;
    if (!prepare(self)) {
        free(self);
        return NULL;
    }
    return self;
}

static void destroy_decoder(JpegDecoder *self)
{
    free(self->own.scan.bytes);
    self->functions.destroy(&self->jpeg);
    free(self);
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

typedef void (*ScanFunction)(OwnScan *, DecompressStruct *);

/* Decodes a JPEG as decode_jpeg does. begin_scan is called before the scan's first MCU; NULL leaves the scan to the library. */
static int decode_picture(JpegDecoder *self, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height,
                          unsigned width, ScanFunction begin_scan)
{
    DecompressStruct *jpeg = &self->jpeg;
    volatile int is_done = 0; /* volatile, because setjmp requires it */

    self->own.is_taken = 0;
    self->own.data = data;
    self->own.size = size;
    if (setjmp(self->jump_target) == 0) {
        self->functions.set_source(jpeg, data, size);
        if (start(self, height, width)) {
            if (begin_scan != NULL)
                begin_scan(&self->own, jpeg);
            is_done = read_rows(self, pixels) && (!self->own.is_taken || is_scan_consumed(&self->own.scan)) &&
                      self->functions.finish(jpeg);
        }
    }
    trim_scan_buffer(&self->own.scan);
    if (!is_done)
        self->functions.abort(jpeg);
    return is_done;
}

int decode_jpeg(JpegDecoder *self, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height, unsigned width)
{
    const ScanFunction begin_scan = self->own.step->refusal == NULL ? take_over_scan : NULL;

    if (decode_picture(self, data, size, pixels, height, width, begin_scan)) {
        self->own_scan_count += (unsigned)self->own.is_taken;
        return 1;
    }
    /* The library accepts some scans that violate the standard. */
    return self->own.is_taken && decode_picture(self, data, size, pixels, height, width, NULL);
}

/* Decodes probe_jpeg in both ways. Returns NULL if huffman.h may decode scans, else the reason why not. */
static const char *check_entropy_step(JpegDecoder *self)
{
    uint8_t expected[PROBE_HEIGHT * PROBE_WIDTH * 3], pixels[sizeof expected];
    const char *refusal;

    if (!decode_picture(self, probe_jpeg, probe_bytes, expected, PROBE_HEIGHT, PROBE_WIDTH, watch_scan) &&
        self->own.refusal == NULL)
        return "the library does not decode the JPEG of the check";
    refusal = end_watching(&self->own);
    if (refusal != NULL)
        return refusal;
    if (!decode_picture(self, probe_jpeg, probe_bytes, pixels, PROBE_HEIGHT, PROBE_WIDTH, take_over_scan) ||
        !self->own.is_taken || memcmp(pixels, expected, sizeof pixels) != 0)
        return "the JPEG of the check gets other pixels";
    return NULL;
}

/* Decodes a JPEG without converting its colours, and throws the rows away. seen, seen_behind: receive 1 for each message
 * that the library gave up to the last row, and behind it. Returns 0 if the library did not decode all rows, or the JPEG
 * has another size. */
static int note_messages(JpegDecoder *self, const uint8_t *data, size_t size, unsigned height, unsigned width,
                         uint8_t *seen, uint8_t *seen_behind)
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
                is_done = 1;
                self->seen_messages = seen_behind;
                self->functions.finish(jpeg);
            }
        }
    }
    free(row);
    self->seen_messages = NULL;
    self->functions.abort(jpeg);
    return is_done;
}

/* ---------------------------------------------------------------------------------------------------- library */

/* Size of the pool of idle decoders: each reading thread needs one decoder. */
enum { MAX_KEPT_DECODERS = 64 };

struct Libjpeg {
    PyObject_HEAD
    Functions functions;
    EntropyStep step;
    JpegDecoder *decoders[MAX_KEPT_DECODERS]; /* guarded by Python's lock */
    int decoder_count;
    unsigned long own_scan_count;
};

JpegDecoder *borrow_decoder(Libjpeg *self)
{
    return self->decoder_count > 0 ? self->decoders[--self->decoder_count] : make_decoder(&self->functions, &self->step);
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
             "Decode a JPEG of any colours; return (whether all rows were decoded, the warnings and the error up\n"
             "to the last row, and those behind it).\n\n"
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
    uint8_t seen_behind[MAX_MESSAGES] = {0};
    PyObject *messages, *behind;
    int is_done;

    if (!PyArg_ParseTuple(args, "y*II:messages", &data, &height, &width))
        return NULL;
    decoder = borrow_decoder(self);
    if (decoder == NULL) {
        PyBuffer_Release(&data);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    is_done = note_messages(decoder, data.buf, (size_t)data.len, height, width, seen, seen_behind);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    messages = list_messages(&self->functions, seen);
    behind = list_messages(&self->functions, seen_behind);
    return_decoder(self, decoder);
    if (messages == NULL || behind == NULL) {
        Py_XDECREF(messages);
        Py_XDECREF(behind);
        return NULL;
    }
    return Py_BuildValue("NNN", PyBool_FromLong(is_done), messages, behind);
}

/* Decides whether huffman.h decodes scans. */
static void choose_entropy_step(Libjpeg *self, int is_wanted)
{
    JpegDecoder *decoder;

    describe_library(&self->step, (const void *)self->functions.create);
    if (!is_wanted)
        self->step.refusal = "it is switched off";
    if (self->step.refusal != NULL)
        return;
    decoder = borrow_decoder(self);
    if (decoder == NULL) {
        self->step.refusal = "the library refuses to create a decoder";
        return;
    }
    self->step.refusal = check_entropy_step(decoder);
    return_decoder(self, decoder);
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Libjpeg *self;
    PyObject *file, *is_wanted = Py_True;
    int is_loaded;

    if (!check_no_keywords(type, keywords))
        return NULL;
    if (!PyArg_ParseTuple(args, "O&|O!:Libjpeg", PyUnicode_FSConverter, &file, &PyBool_Type, &is_wanted))
        return NULL;
    self = (Libjpeg *)type->tp_alloc(type, 0);
    is_loaded = self != NULL && load(PyBytes_AS_STRING(file), &self->functions);
    Py_DECREF(file);
    if (is_loaded)
        choose_entropy_step(self, is_wanted == Py_True);
    else
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

static PyObject *get_file(Libjpeg *self, void *closure)
{
    (void)closure;
    return PyUnicode_DecodeFSDefault(self->step.file);
}

static PyObject *get_version(Libjpeg *self, void *closure)
{
    (void)closure;
    return PyUnicode_DecodeASCII(self->step.version, (Py_ssize_t)strlen(self->step.version), "replace");
}

static PyObject *get_refusal(Libjpeg *self, void *closure)
{
    (void)closure;
    if (self->step.refusal == NULL)
        Py_RETURN_NONE;
    return PyUnicode_FromString(self->step.refusal);
}

static PyGetSetDef properties[] = {
    {"file", (getter)get_file, NULL, "File of the library; empty if unknown.", NULL},
    {"version", (getter)get_version, NULL, "Version of libjpeg-turbo, such as 3.1.2; empty if unknown.", NULL},
    {"refusal", (getter)get_refusal, NULL, "Reason why huffman.c decodes no scan; None if it does.", NULL},
    {"scans", (getter)get_scans, NULL, "Number of JPEGs whose scan was decoded by huffman.c, not by the library.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(type_doc, "Libjpeg(file, own_huffman=True, /)\n--\n\n"
             "The libjpeg-turbo in a shared library, or in one that it is linked to.\n\n"
             "huffman.c decodes the scans if own_huffman is true and the library passes the checks in entropy_step.c; the\n"
             "attribute refusal is the reason if it does not.\n\n"
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
