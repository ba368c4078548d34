/* libjpeg-turbo of a library that was built elsewhere, called without Python's lock. */

#ifndef DLAS_STORE_LIBJPEG_H
#define DLAS_STORE_LIBJPEG_H

#include "extension.h"

/* A decoder, for one thread at a time. */
typedef struct JpegDecoder JpegDecoder;

/* An object of Python: a loaded library, and decoders that nobody uses. */
typedef struct Libjpeg Libjpeg;

extern PyType_Spec libjpeg_specification;

int is_libjpeg(PyObject *object);

/* Returns a decoder, NULL where the library has none of the layout that is known here; Python's lock is held. */
JpegDecoder *borrow_decoder(Libjpeg *library);

void return_decoder(Libjpeg *library, JpegDecoder *decoder);

/* Decodes a JPEG of this size to RGB; returns whether it did, without a warning. Python's lock need not be held.
 *
 * A JPEG that lacks tables is decoded with those of pictures before, which the decoder still has. */
int decode_jpeg(JpegDecoder *decoder, const uint8_t *data, size_t size, uint8_t *pixels, unsigned height, unsigned width);

#endif
