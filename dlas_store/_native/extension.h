/* What the extensions in C have in common. Each is left out where it cannot be compiled, and Python does the same. */

#ifndef DLAS_STORE_EXTENSION_H
#define DLAS_STORE_EXTENSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* A compiler's x86-64 is that of 2003: a second version of a function is there for processors with more, and chosen when it is
 * loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_TARGET(feature) __attribute__((target_clones(feature, "default")))
#else
#define FOR_TARGET(feature)
#endif

#define VECTORS FOR_TARGET("avx2")

/* Whether a type is called without keywords; returns 0 after setting an error. */
static inline int has_no_keywords(PyTypeObject *type, PyObject *keywords)
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

/* Takes the memory of an array that pictures are decoded into, uint8 (H, W, 3); returns 0 for anything else, and an error of
 * Python may be set. */
static inline int get_pixels(PyObject *array, Py_buffer *out)
{
    if (PyObject_GetBuffer(array, out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT) < 0)
        return 0;
    if (out->ndim == 3 && out->shape[2] == 3 && out->itemsize == 1 && strcmp(out->format, "B") == 0)
        return 1;
    PyBuffer_Release(out);
    return 0;
}

/* Adds a type to a module that is being loaded; returns -1 after setting an error. */
static inline int add_type(PyObject *module, PyType_Spec *specification)
{
    PyObject *type = PyType_FromSpec(specification);
    int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);

    Py_XDECREF(type);
    return result;
}

#endif
