/* Decoding of JPEGs with the libjpeg-turbo of a shared library, without Python's lock. */

#ifndef DLAS_STORE_LIBJPEG_H
#define DLAS_STORE_LIBJPEG_H

#include "extension.h"

/* A decoder, used by one thread at a time. */
typedef struct JpegDecoder JpegDecoder;

/* A Python object: the loaded library and a pool of its idle decoders. */
typedef struct Libjpeg Libjpeg;

extern PyType_Spec libjpeg_specification;

int is_libjpeg(PyObject *object);

/* Returns a decoder; NULL if the library's structures are laid out differently. Needs Python's lock. */
JpegDecoder *borrow_decoder(Libjpeg *library);

void return_decoder(Libjpeg *library, JpegDecoder *decoder);

/* Decodes a JPEG of a known size to RGB without Python's lock; returns whether it succeeded without a warning.
 *
 * A JPEG that lacks tables is decoded with the tables of earlier pictures, which the decoder keeps. */
int decode_jpeg(JpegDecoder *decoder, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height, unsigned width);

#endif
