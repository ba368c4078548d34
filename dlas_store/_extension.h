/* What the extensions in C have in common. Each is left out where it cannot be compiled, and Python does the same. */

#ifndef DLAS_STORE_EXTENSION_H
#define DLAS_STORE_EXTENSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* A compiler's x86-64 is that of 2003: a second version of a loop is there for AVX2, and chosen when it is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define VECTORS
#endif

/* Adds a type to a module that is being loaded; returns -1 after setting an error. */
static inline int add_type(PyObject *module, PyType_Spec *specification)
{
    PyObject *type = PyType_FromSpec(specification);
    int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);

    Py_XDECREF(type);
    return result;
}

#endif
