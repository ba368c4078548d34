/* Definitions that the extensions in C share. */

#ifndef DLAS_STORE_EXTENSION_H
#define DLAS_STORE_EXTENSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A compiler's baseline for x86-64 is a processor of 2003. The loader picks a second version of a function, compiled with a
 * feature, on processors that have it. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define TARGET_CLONES(feature) __attribute__((target_clones(feature, "default")))
#else
#define TARGET_CLONES(feature)
#endif

#define AVX2_CLONES TARGET_CLONES("avx2")

/* ------------------------------------------------------------------------------------------------- byte order */

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define FROM_LITTLE32(value) __builtin_bswap32(value)
#define FROM_LITTLE64(value) __builtin_bswap64(value)
#define FROM_BIG64(value) (value)
#else
#define FROM_LITTLE32(value) (value)
#define FROM_LITTLE64(value) (value)
#define FROM_BIG64(value) __builtin_bswap64(value)
#endif

static inline uint32_t load_little32(const uint8_t *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof value);
    return FROM_LITTLE32(value);
}

static inline uint64_t load_little64(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof value);
    return FROM_LITTLE64(value);
}

static inline uint64_t load_big64(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof value);
    return FROM_BIG64(value);
}

static inline void store_big64(uint8_t *bytes, uint64_t value)
{
    value = FROM_BIG64(value);
    memcpy(bytes, &value, sizeof value);
}

/* ------------------------------------------------------------------------------------------------------- JPEG */

/* The second byte of a marker; the first one is 0xFF. */
enum {
    SOF0 = 0xC0, /* start of a baseline frame */
    SOF1 = 0xC1, /* start of an extended sequential frame */
    SOF2 = 0xC2, /* start of a progressive frame */
    DHT = 0xC4,  /* Huffman tables */
    SOI = 0xD8,  /* start of image */
    EOI = 0xD9,  /* end of image */
    SOS = 0xDA,  /* start of scan */
    DQT = 0xDB,  /* quantization tables */
    APP0 = 0xE0,
    APP15 = 0xEF,
    COM = 0xFE, /* comment */
};

/* Limits set by the standard. */
enum {
    BLOCK_COEFFICIENTS = 64,
    MAX_BLOCKS_IN_MCU = 10,
    MAX_CODE_LENGTH = 16, /* bits */
};

/* Copies a scan up to its next marker, drops the zero that is stuffed after each byte 0xFF, and moves *out behind the copy.
 * Returns the position of the marker; if the data has none, its end or a last byte 0xFF. */
static inline const uint8_t *unstuff(const uint8_t *data, const uint8_t *end, uint8_t **out)
{
    const uint8_t *marker;

    while ((marker = memchr(data, 0xFF, (size_t)(end - data))) != NULL && end - marker >= 2 && marker[1] == 0) {
        memcpy(*out, data, (size_t)(marker + 1 - data));
        *out += marker + 1 - data;
        data = marker + 2;
    }
    if (marker == NULL)
        marker = end;
    memcpy(*out, data, (size_t)(marker - data));
    *out += marker - data;
    return marker;
}

/* ----------------------------------------------------------------------------------------------------- Python */

/* Returns whether a type is called without keywords; if not, sets a Python error. */
static inline int check_no_keywords(PyTypeObject *type, PyObject *keywords)
{
    PyObject *name;

    if (keywords == NULL || PyDict_GET_SIZE(keywords) == 0)
        return 1;
    name = PyType_GetName(type);
    if (name != NULL)
        PyErr_Format(PyExc_TypeError, "%U takes no keyword arguments", name);
    Py_XDECREF(name);
    return 0;
}

/* Gets the writable buffer of an array for decoded pixels, uint8 (H, W, 3), RGB. Returns 0 for any other object; a Python
 * error may then be set. */
static inline int get_rgb_buffer(PyObject *array, Py_buffer *out)
{
    if (PyObject_GetBuffer(array, out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT) < 0)
        return 0;
    if (out->ndim == 3 && out->shape[2] == 3 && out->itemsize == 1 && strcmp(out->format, "B") == 0)
        return 1;
    PyBuffer_Release(out);
    return 0;
}

/* Frees an object whose type was made by PyType_FromSpec: such an object holds a reference to its type. */
static inline void free_object(void *object)
{
    PyTypeObject *type = Py_TYPE(object);

    type->tp_free(object);
    Py_DECREF(type);
}

/* Adds a type to a module while the module is loaded; returns 0, or -1 with a Python error set. */
static inline int add_type(PyObject *module, PyType_Spec *specification)
{
    PyObject *type = PyType_FromSpec(specification);
    int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);

    Py_XDECREF(type);
    return result;
}

/* Defines an extension module and the function by which Python loads it. METHODS and SLOTS may be NULL. */
#define DEFINE_MODULE(NAME, FULL_NAME, DOC, METHODS, SLOTS) \
    static struct PyModuleDef module_definition = { \
        .m_base = PyModuleDef_HEAD_INIT, \
        .m_name = FULL_NAME, \
        .m_doc = DOC, \
        .m_methods = METHODS, \
        .m_slots = SLOTS, \
    }; \
\
    PyMODINIT_FUNC PyInit_##NAME(void) \
    { \
        return PyModuleDef_Init(&module_definition); \
    }

#endif
