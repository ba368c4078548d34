/* Reader of patches: it finds a patch's row in the store's index, makes the key, checks the payload's checksum and the size
 * in the JPEG's header, and decodes the pixels. In Python the steps before the decoding take most of the time between two
 * decodings, because decoding evicts the interpreter's data from the processor's caches, and other threads wait for Python's
 * lock meanwhile.
 *
 * The reader handles sound input only. It refuses anything else, and Store.decode_into does the work in Python: it opens
 * the shard, checks the block of the index, converts the picture, or raises an error that says what is wrong.
 *
 * libjpeg-turbo decodes JPEGs directly, if it was found; otherwise simplejpeg decodes them, through Python. The direct way
 * decodes many JPEGs with one decoder and without Python's lock; simplejpeg creates a decoder and takes the lock twice for
 * each JPEG. */

#include "libjpeg.h"

/* --------------------------------------------------------------------------------------------------- checksum */

/* XXH3-64 by its specification, for two lengths: keys, and payloads of more than 240 bytes. The xxhash package can only
 * be called from Python. */

enum { KEY_BYTES = 17, CHECKSUM_BYTES = 8, MIN_PAYLOAD_BYTES = 241, SECRET_BYTES = 192, STRIPE = 64, LANES = 8 };

/* Number of stripes before the lanes are scrambled: each stripe starts 8 bytes further in the secret. */
enum { STRIPES_PER_BLOCK = (SECRET_BYTES - STRIPE) / 8 };

static const uint32_t prime32[] = {0, 0x9E3779B1u, 0x85EBCA77u, 0xC2B2AE3Du};
static const uint64_t prime64[] = {0, 0x9E3779B185EBCA87u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u,
                                   0x85EBCA77C2B2AE63u, 0x27D4EB2F165667C5u};

static const uint8_t secret[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static uint64_t multiply_and_fold(uint64_t first, uint64_t second)
{
    unsigned __int128 product = (unsigned __int128)first * second;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t avalanche(uint64_t hash)
{
    hash ^= hash >> 37;
    hash *= 0x165667919E3779F9u;
    return hash ^ hash >> 32;
}

/* Returns the hash of a key, with seed 0. */
static uint64_t hash_key(const uint8_t key[KEY_BYTES])
{
    uint64_t hash = KEY_BYTES * prime64[1];

    hash += multiply_and_fold(load_little64(key) ^ load_little64(secret),
                              load_little64(key + 8) ^ load_little64(secret + 8));
    key += KEY_BYTES - 16;
    hash += multiply_and_fold(load_little64(key) ^ load_little64(secret + 16),
                              load_little64(key + 8) ^ load_little64(secret + 24));
    return avalanche(hash);
}

static inline void accumulate_stripe(uint64_t *restrict lanes, const uint8_t *restrict data, const uint8_t *restrict keys)
{
    for (int i = 0; i < LANES; i++) {
        const uint64_t value = load_little64(data + 8 * i), keyed = value ^ load_little64(keys + 8 * i);

        lanes[i ^ 1] += value;
        lanes[i] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
    }
}

/* Accumulates whole stripes, and scrambles the lanes after each block of stripes. */
AVX2_CLONES static void accumulate_stripes(uint64_t *restrict lanes, const uint8_t *restrict data, size_t stripes,
                                           const uint8_t *restrict keys)
{
    for (size_t at = 0; at < stripes; at++) {
        accumulate_stripe(lanes, data + STRIPE * at, keys + 8 * (at % STRIPES_PER_BLOCK));
        if (at % STRIPES_PER_BLOCK == STRIPES_PER_BLOCK - 1)
            for (int i = 0; i < LANES; i++) {
                lanes[i] ^= lanes[i] >> 47 ^ load_little64(keys + SECRET_BYTES - STRIPE + 8 * i);
                lanes[i] *= prime32[1];
            }
    }
}

/* Returns the hash of a payload of at least MIN_PAYLOAD_BYTES bytes. */
static uint64_t hash_payload(const uint8_t *data, size_t size, uint64_t seed)
{
    uint64_t lanes[LANES] = {prime32[3], prime64[1], prime64[2], prime64[3], prime64[4], prime32[2], prime64[5], prime32[1]};
    uint64_t keys[SECRET_BYTES / 8], hash = size * prime64[1];
    const uint8_t *key_bytes = (const uint8_t *)keys;

    for (int i = 0; i < SECRET_BYTES / 8; i++) {
        const uint64_t key = load_little64(secret + 8 * i) + (i % 2 ? 0 - seed : seed);

        keys[i] = load_little64((const uint8_t *)&key);
    }
    accumulate_stripes(lanes, data, (size - 1) / STRIPE, key_bytes);
    accumulate_stripe(lanes, data + size - STRIPE, key_bytes + SECRET_BYTES - STRIPE - 7);
    for (int i = 0; i < LANES; i += 2)
        hash += multiply_and_fold(lanes[i] ^ load_little64(key_bytes + 11 + 8 * i),
                                  lanes[i + 1] ^ load_little64(key_bytes + 19 + 8 * i));
    return avalanche(hash);
}

/* ------------------------------------------------------------------------------------------------------- JPEG */

typedef struct {
    size_t height, width;
} ImageSize;

/* Returns whether simplejpeg has a name for the sampling of three components: luma as 4:4:4, 4:2:2, 4:4:0, 4:2:0 or 4:1:1,
 * and chroma once an MCU. components: 3 bytes each, id, sampling and table. */
static int is_named_sampling(const uint8_t *components)
{
    const uint8_t sampling = components[1];

    return components[4] == 0x11 && components[7] == 0x11 &&
           (sampling == 0x11 || sampling == 0x21 || sampling == 0x12 || sampling == 0x22 || sampling == 0x41);
}

/* A segment of a JPEG's header, without its marker and its length of two bytes. */
typedef struct {
    uint8_t marker;
    const uint8_t *content;
    size_t size;
} Segment;

/* Reads the next segment of a JPEG's header, and moves `at` behind it; returns 0 at anything else. `at` is 0 before the first
 * segment. */
static int next_segment(const uint8_t *data, size_t size, size_t *at, Segment *segment)
{
    size_t length;

    if (*at == 0) {
        if (size < 2 || data[0] != 0xFF || data[1] != SOI)
            return 0;
        *at = 2;
    }
    if (size - *at < 4 || data[*at] != 0xFF)
        return 0;
    length = (size_t)data[*at + 2] << 8 | data[*at + 3];
    if (length < 2 || length > size - *at - 2)
        return 0;
    *segment = (Segment){data[*at + 1], data + *at + 4, length - 2};
    *at += 2 + length;
    /* The only other segments of a header are tables, comments and application segments. */
    return (segment->marker >= SOF0 && segment->marker <= SOF2) ||
           segment->marker == DHT || (segment->marker >= SOS && segment->marker <= COM);
}

/* Returns the size in a JPEG's frame header; zeros unless simplejpeg decodes such a JPEG to RGB (images/decode.py leaves
 * the others to Pillow). */
static ImageSize jpeg_size(const uint8_t *data, size_t size)
{
    Segment segment;
    size_t at = 0, components;

    do {
        if (!next_segment(data, size, &at, &segment) || segment.marker == SOS)
            return (ImageSize){0};
    } while (segment.marker > SOF2);
    components = segment.size >= 6 ? segment.content[5] : 0;
    if (segment.size != 6 + 3 * components || (components != 1 && components != 3) ||
        (components == 3 && !is_named_sampling(segment.content + 6)))
        return (ImageSize){0};
    return (ImageSize){(size_t)segment.content[1] << 8 | segment.content[2],
                         (size_t)segment.content[3] << 8 | segment.content[4]};
}

/* Marks the tables that a segment defines: 4 bits for quantization tables; for Huffman tables 4 bits for DC and 4 for AC.
 * Returns 0 if the segment is malformed. */
static int mark_tables(const Segment *segment, unsigned *tables)
{
    const uint8_t *content = segment->content;
    size_t remaining_bytes = segment->size;

    while (remaining_bytes > 0) {
        const unsigned kind = content[0] >> 4, number = content[0] & 0x0F;
        size_t length = 1;

        if (number > 3 || kind > 1)
            return 0;
        if (segment->marker == DHT) {
            length += 16;
            for (size_t i = 1; i <= 16 && i < remaining_bytes; i++)
                length += content[i];
        } else {
            length += kind == 0 ? 64 : 128;
        }
        if (length > remaining_bytes)
            return 0;
        *tables |= 1u << (segment->marker == DHT ? 4 * kind + number : number);
        content += length;
        remaining_bytes -= length;
    }
    return 1;
}

/* Returns whether a scan has all of a JPEG's components, and uses no undefined Huffman table. */
static int has_all_components(const Segment *scan, size_t components, unsigned defined_huffman)
{
    if (components == 0 || scan->size != 4 + 2 * components || scan->content[0] != components)
        return 0;
    for (size_t i = 0; i < components; i++) {
        const unsigned dc = scan->content[2 + 2 * i] >> 4, ac = scan->content[2 + 2 * i] & 0x0F;

        if (dc > 3 || ac > 3 || !(defined_huffman >> dc & 1) || !(defined_huffman >> (4 + ac) & 1))
            return 0;
    }
    return 1;
}

/* Returns whether a JPEG is not progressive, and its first scan has all components and uses no undefined table. */
static int is_self_contained(const uint8_t *data, size_t size)
{
    unsigned defined_quantization = 0, defined_huffman = 0, used_quantization = 0; /* bits of table numbers */
    size_t at = 0, components = 0;
    Segment segment;

    while (next_segment(data, size, &at, &segment))
        switch (segment.marker) {
        case SOF0:
        case SOF1:
            components = segment.size >= 6 ? segment.content[5] : 0;
            if (segment.size != 6 + 3 * components)
                return 0;
            for (size_t i = 0; i < components; i++)
                used_quantization |= 1u << (segment.content[8 + 3 * i] & 0x0F);
            break;
        case SOF2:
            return 0;
        case DHT:
        case DQT:
            if (!mark_tables(&segment, segment.marker == DHT ? &defined_huffman : &defined_quantization))
                return 0;
            break;
        case SOS:
            return has_all_components(&segment, components, defined_huffman) &&
                   (used_quantization & ~defined_quantization) == 0;
        }
    return 0;
}

/* ----------------------------------------------------------------------------------------------------- reader */

/* Row of the index's patch table, little-endian: offset and patch id of 8 bytes; length, image and shard of 4.
 * PATCH_ROW in storage/shard.py defines it. */
enum { ROW_BYTES = 28, BLOCK_BYTES = 4096, BLOCKS_PER_CHUNK = 64 };

/* Bytes of a patch to prefetch: all of them, unless the picture is too large for the processor's caches. */
enum { CACHE_LINE = 64, PREFETCH_BYTES = 1 << 16 };

typedef struct {
    PyObject_HEAD
    Py_buffer table;   /* the mapped index */
    Py_buffer chunks;  /* uint64: offset of each chunk in the table */
    Py_buffer checked; /* one byte for each block, not 0 after its checksum was verified */
    Py_ssize_t count;
    PyObject *shards; /* of the Store: number -> (shard, difference between an image's id and its number) */
    PyObject *decode; /* simplejpeg.decode_jpeg */
    Py_ssize_t max_pixels;
    PyObject *view, *color_space, *keywords; /* constant arguments */
    PyObject *find_libjpeg;                  /* returns a Libjpeg or None; NULL after it was called */
    Libjpeg *libjpeg;                        /* NULL if find_libjpeg found none */
} PatchReader;

typedef struct {
    uint64_t offset, patch_id;
    uint32_t length, image, shard;
} Row;

/* Finds a patch's row; returns 0 if there is none, or if its block is not verified yet. */
static int find_row(const PatchReader *self, Py_ssize_t index, Row *row)
{
    const Py_ssize_t rows_per_block = (BLOCK_BYTES - 8) / ROW_BYTES;
    Py_ssize_t block, chunk;
    uint64_t start;
    const uint8_t *bytes;

    if (index < 0 || index >= self->count)
        return 0;
    block = index / rows_per_block;
    chunk = block / BLOCKS_PER_CHUNK;
    if (block >= self->checked.len || !((const uint8_t *)self->checked.buf)[block] || chunk >= self->chunks.len / 8)
        return 0;
    start = ((const uint64_t *)self->chunks.buf)[chunk] + (uint64_t)(block % BLOCKS_PER_CHUNK) * BLOCK_BYTES;
    if (start > (uint64_t)self->table.len || (uint64_t)self->table.len - start < BLOCK_BYTES)
        return 0;
    bytes = (const uint8_t *)self->table.buf + start + index % rows_per_block * ROW_BYTES;
    *row = (Row){load_little64(bytes), load_little64(bytes + 8), load_little32(bytes + 16), load_little32(bytes + 20),
                 load_little32(bytes + 24)};
    return 1;
}

/* Returns a new reference to the memoryview of a row's shard, and sets the image's id; NULL if the shard is not open. */
static PyObject *find_shard(const PatchReader *self, const Row *row, uint64_t *image_id)
{
    PyObject *number = PyLong_FromUnsignedLong(row->shard), *open_shard, *view = NULL;
    long long id_offset;

    if (number == NULL)
        return NULL;
    open_shard = PyDict_GetItemWithError(self->shards, number);
    Py_DECREF(number);
    if (open_shard == NULL || !PyTuple_Check(open_shard) || PyTuple_GET_SIZE(open_shard) != 2)
        return NULL;
    Py_INCREF(open_shard); /* another thread may close the shard while Python runs */
    id_offset = PyLong_AsLongLong(PyTuple_GET_ITEM(open_shard, 1));
    if (!PyErr_Occurred() && id_offset >= -(long long)row->image && id_offset <= INT64_MAX - (long long)row->image) {
        *image_id = (uint64_t)(id_offset + (long long)row->image);
        view = PyObject_GetAttr(PyTuple_GET_ITEM(open_shard, 0), self->view);
        if (view != NULL && !PyMemoryView_Check(view))
            Py_CLEAR(view);
    }
    Py_DECREF(open_shard);
    return view;
}

/* Returns the size of a row's picture; zeros unless the payload matches its checksum, and jpeg_size and max_pixels accept
 * it. */
static ImageSize check_picture(const PatchReader *self, const Py_buffer *shard, const Row *row, uint64_t image_id)
{
    const uint8_t *payload;
    const uint64_t size = (uint64_t)shard->len;
    uint8_t key[KEY_BYTES];
    ImageSize picture;

    if (row->length < MIN_PAYLOAD_BYTES || row->offset < CHECKSUM_BYTES || row->offset > size ||
        row->length > size - row->offset)
        return (ImageSize){0};
    payload = (const uint8_t *)shard->buf + row->offset;
    store_big64(key, image_id);
    key[8] = 2; /* Kind.PATCH */
    store_big64(key + 9, row->patch_id);
    if (load_little64(payload - CHECKSUM_BYTES) != hash_payload(payload, row->length, hash_key(key)))
        return (ImageSize){0};
    picture = jpeg_size(payload, row->length);
    if (picture.width == 0 || (long long)(picture.height * picture.width) > self->max_pixels)
        return (ImageSize){0};
    return picture;
}

typedef struct {
    PyObject *shard; /* new reference to a memoryview, or NULL */
    Row row;
    ImageSize picture; /* zeros if the patch is not sound */
} Patch;

/* Finds and checks a patch; a Python error may be set if it is not sound. */
static Patch find_patch(const PatchReader *self, Py_ssize_t index)
{
    Patch patch = {0};
    Py_buffer shard;
    uint64_t image_id;

    if (!find_row(self, index, &patch.row))
        return patch;
    patch.shard = find_shard(self, &patch.row, &image_id);
    if (patch.shard == NULL || PyObject_GetBuffer(patch.shard, &shard, PyBUF_SIMPLE) < 0) /* another thread closed it */
        return patch;
    patch.picture = check_picture(self, &shard, &patch.row, image_id);
    PyBuffer_Release(&shard);
    return patch;
}

static int has_shape(PyObject *array, const Py_ssize_t *shape)
{
    Py_buffer view;
    int is_same;

    if (PyObject_GetBuffer(array, &view, PyBUF_ND) < 0)
        return 0;
    is_same = view.ndim == 3 && memcmp(view.shape, shape, 3 * sizeof *shape) == 0;
    PyBuffer_Release(&view);
    return is_same;
}

/* Returns whether a patch was decoded into an array's buffer; a Python error may be set if not. */
static int decode_into(const PatchReader *self, Py_ssize_t index, PyObject *array, const Py_buffer *out)
{
    const Patch patch = find_patch(self, index);
    const size_t height = patch.picture.height, width = patch.picture.width;
    PyObject *encoded = NULL, *decoded = NULL;
    int is_done = 0;

    if (height > 0 && height == (size_t)out->shape[0] && width == (size_t)out->shape[1])
        encoded = PySequence_GetSlice(patch.shard, (Py_ssize_t)patch.row.offset,
                                      (Py_ssize_t)(patch.row.offset + patch.row.length));
    Py_XDECREF(patch.shard);
    if (encoded != NULL) {
        PyObject *args[] = {encoded, self->color_space, array};

        decoded = PyObject_Vectorcall(self->decode, args, 2, self->keywords);
        Py_DECREF(encoded);
    }
    if (decoded != NULL) {
        is_done = has_shape(decoded, out->shape);
        Py_DECREF(decoded);
    }
    return is_done;
}

/* Prefetches a row's payload into the processor's caches. */
static void prefetch_payload(const Py_buffer *shard, const Row *row)
{
    if (row->offset <= (uint64_t)shard->len && row->length <= (uint64_t)shard->len - row->offset)
        for (size_t at = 0; at < row->length && at < PREFETCH_BYTES; at += CACHE_LINE)
            __builtin_prefetch((const uint8_t *)shard->buf + row->offset + at, 0, 2);
}

/* Prefetches a patch's payload. */
static void prefetch_patch(const PatchReader *self, Py_ssize_t index)
{
    PyObject *view;
    Py_buffer shard;
    uint64_t image_id;
    Row row;

    if (!find_row(self, index, &row) || (view = find_shard(self, &row, &image_id)) == NULL) {
        PyErr_Clear();
        return;
    }
    if (PyObject_GetBuffer(view, &shard, PyBUF_SIMPLE) == 0) {
        prefetch_payload(&shard, &row);
        PyBuffer_Release(&shard);
    }
    PyErr_Clear();
    Py_DECREF(view);
}

/* Returns whether a patch was decoded into an array; a Python error may be set if not. */
static int decode_into_array(const PatchReader *self, Py_ssize_t index, PyObject *array)
{
    Py_buffer out;
    int is_done;

    if (!get_rgb_buffer(array, &out))
        return 0;
    is_done = decode_into(self, index, array, &out);
    PyBuffer_Release(&out);
    return is_done;
}

/* Returns an int of a list; -1, which is no patch's index, if the list is shorter, or the item no int or too large. */
static Py_ssize_t int_at(PyObject *list, Py_ssize_t position)
{
    Py_ssize_t value = -1;

    if (position < PyList_GET_SIZE(list) && PyLong_CheckExact(PyList_GET_ITEM(list, position)))
        value = PyLong_AsSsize_t(PyList_GET_ITEM(list, position));
    PyErr_Clear();
    return value;
}

/* ------------------------------------------------------------------------------ batches, without Python's lock */

/* A patch and its output array, whose buffers stay valid without Python's lock. */
typedef struct {
    Py_buffer shard, out; /* their obj is NULL if unused */
    Row row;
    uint64_t image_id;
} PinnedPatch;

static void unpin(PinnedPatch *pinned)
{
    PyBuffer_Release(&pinned->shard);
    PyBuffer_Release(&pinned->out);
}

/* Pins a patch and an output array; returns whether both exist. A Python error may be set if not. */
static int pin(const PatchReader *self, Py_ssize_t index, PyObject *array, PinnedPatch *pinned)
{
    PyObject *view;
    int is_pinned = 0;

    if (!get_rgb_buffer(array, &pinned->out))
        return 0;
    if (find_row(self, index, &pinned->row) && (view = find_shard(self, &pinned->row, &pinned->image_id)) != NULL) {
        is_pinned = PyObject_GetBuffer(view, &pinned->shard, PyBUF_SIMPLE) == 0;
        Py_DECREF(view);
    }
    if (!is_pinned)
        unpin(pinned);
    return is_pinned;
}

/* Calls find_libjpeg the first time; returns 0 with a Python error set if that fails. */
static int load_libjpeg(PatchReader *self)
{
    PyObject *find = self->find_libjpeg, *library;

    if (find == NULL)
        return 1;
    Py_INCREF(find); /* another thread may clear the member meanwhile */
    library = PyObject_CallNoArgs(find);
    Py_DECREF(find);
    if (library == NULL)
        return 0;
    if (library != Py_None && !is_libjpeg(library)) {
        Py_DECREF(library);
        PyErr_SetString(PyExc_TypeError, "find_libjpeg must return a Libjpeg or None");
        return 0;
    }
    if (library == Py_None || self->libjpeg != NULL)
        Py_DECREF(library);
    else
        self->libjpeg = (Libjpeg *)library;
    Py_CLEAR(self->find_libjpeg);
    return 1;
}

/* Returns whether libjpeg-turbo decoded a patch; does not need Python's lock.
 *
 * Two kinds of JPEG are refused: those that lack tables, because a decoder keeps the tables of earlier pictures, and
 * progressive ones, because versions of the library smooth missing scans differently. */
static int decode_pinned(const PatchReader *self, JpegDecoder *decoder, const PinnedPatch *pinned)
{
    const ImageSize picture = check_picture(self, &pinned->shard, &pinned->row, pinned->image_id);
    const Py_ssize_t height = (Py_ssize_t)picture.height, width = (Py_ssize_t)picture.width;
    const size_t size = pinned->row.length;
    const uint8_t *data;

    if (height == 0 || height != pinned->out.shape[0] || width != pinned->out.shape[1])
        return 0;
    data = (const uint8_t *)pinned->shard.buf + pinned->row.offset;
    return is_self_contained(data, size) &&
           decode_jpeg(decoder, data, size, pinned->out.buf, (unsigned)height, (unsigned)width);
}

/* Returns a new reference to an item of a list; NULL if the list is shorter, since other threads may change it. */
static PyObject *object_at(PyObject *list, Py_ssize_t position)
{
    return position < PyList_GET_SIZE(list) ? Py_NewRef(PyList_GET_ITEM(list, position)) : NULL;
}

enum { MAX_PINNED = 64 };

/* Decodes at most MAX_PINNED patches by libjpeg-turbo, from position batch_start on. Returns the number of patches tried,
 * and sets is_done for each. */
static Py_ssize_t decode_pinned_batch(PatchReader *self, PyObject *indices, PyObject *outs, Py_ssize_t batch_start,
                                      char *is_done)
{
    PinnedPatch patches[MAX_PINNED] = {0};
    Py_ssize_t pinned_count = 0;
    PyObject *out;
    JpegDecoder *decoder = borrow_decoder(self->libjpeg);

    if (decoder == NULL)
        return 0;
    while (pinned_count < MAX_PINNED && (out = object_at(outs, batch_start + pinned_count)) != NULL) {
        const int is_pinned = pin(self, int_at(indices, batch_start + pinned_count), out, &patches[pinned_count]);

        Py_DECREF(out);
        if (!is_pinned)
            break;
        pinned_count++;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < pinned_count; i++) {
        if (i + 1 < pinned_count)
            prefetch_payload(&patches[i + 1].shard, &patches[i + 1].row);
        is_done[i] = (char)decode_pinned(self, decoder, &patches[i]);
    }
    Py_END_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < pinned_count; i++)
        unpin(&patches[i]);
    return_decoder(self->libjpeg, decoder);
    return pinned_count;
}

/* ------------------------------------------------------------------------------------------------ from Python */

/* Returns whether the Python error that is set is an interrupt; clears any other error. */
static int is_interrupted(void)
{
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return 1;
    PyErr_Clear();
    return 0;
}

/* Returns a new reference to a value, or NULL if an interrupt is set. */
static PyObject *unless_interrupted(PyObject *value)
{
    return is_interrupted() ? NULL : Py_NewRef(value);
}

PyDoc_STRVAR(row_doc, "row($self, index, /)\n--\n\n"
             "Return the fields of a patch's PatchRow; None if there is no such patch, or its block is not verified yet.");

static PyObject *row(PatchReader *self, PyObject *number)
{
    Py_ssize_t index = PyNumber_AsSsize_t(number, PyExc_IndexError);
    Row fields;

    if (PyErr_Occurred() || !find_row(self, index, &fields))
        return unless_interrupted(Py_None);
    return Py_BuildValue("KKIII", (unsigned long long)fields.offset, (unsigned long long)fields.patch_id, fields.length,
                         fields.image, fields.shard);
}

PyDoc_STRVAR(read_into_doc, "read_into($self, index, out, /)\n--\n\n"
             "Decode a patch into an array, uint8 (H, W, 3); return whether that succeeded.\n\n"
             "After False the array's content is undefined.");

static PyObject *read_into(PatchReader *self, PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t index;
    int is_done = 0;

    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "read_into takes 2 arguments, not %zd", count);
    index = PyNumber_AsSsize_t(args[0], PyExc_IndexError);
    if (!PyErr_Occurred())
        is_done = decode_into_array(self, index, args[1]);
    return is_done ? Py_NewRef(Py_True) : unless_interrupted(Py_False);
}

PyDoc_STRVAR(read_all_into_doc, "read_all_into($self, indices, outs, /)\n--\n\n"
             "Decode patches into arrays, uint8 (H, W, 3), one after another; return the number of patches decoded.\n\n"
             "indices: a list of ints. outs: a list of as many arrays. Reading stops at the first patch that fails; the\n"
             "content of its array and of all later ones is undefined.");

static PyObject *read_all_into(PatchReader *self, PyObject *args)
{
    PyObject *indices, *outs, *out;
    char is_done[MAX_PINNED];
    Py_ssize_t read_count, batch_start = 0, batch_count = 0; /* the batch of patches that libjpeg-turbo tried */

    if (!PyArg_ParseTuple(args, "O!O!:read_all_into", &PyList_Type, &indices, &PyList_Type, &outs) ||
        !load_libjpeg(self))
        return NULL;
    for (read_count = 0; read_count < PyList_GET_SIZE(outs); read_count++) {
        int is_read;

        if (self->libjpeg != NULL && read_count >= batch_start + batch_count) {
            if (read_count > 0 && PyErr_CheckSignals() < 0)
                return NULL;
            batch_start = read_count;
            batch_count = decode_pinned_batch(self, indices, outs, batch_start, is_done);
            if (is_interrupted())
                return NULL;
        }
        if (read_count < batch_start + batch_count && is_done[read_count - batch_start])
            continue;
        if ((out = object_at(outs, read_count)) == NULL)
            break;
        prefetch_patch(self, int_at(indices, read_count + 1));
        is_read = decode_into_array(self, int_at(indices, read_count), out);
        Py_DECREF(out);
        if (!is_read)
            break;
    }
    return is_interrupted() ? NULL : PyLong_FromSsize_t(read_count);
}

PyDoc_STRVAR(claimed_size_doc, "claimed_size($self, index, /)\n--\n\n"
             "Return the height and width in the header of a patch that read_into can decode; None for any other patch.");

static PyObject *claimed_size(PatchReader *self, PyObject *number)
{
    Py_ssize_t index = PyNumber_AsSsize_t(number, PyExc_IndexError);
    Patch patch = {0};

    if (!PyErr_Occurred())
        patch = find_patch(self, index);
    Py_XDECREF(patch.shard);
    if (patch.picture.height == 0)
        return unless_interrupted(Py_None);
    return Py_BuildValue("nn", (Py_ssize_t)patch.picture.height, (Py_ssize_t)patch.picture.width);
}

static void deallocate(PatchReader *self)
{
    PyObject_GC_UnTrack(self);
    PyBuffer_Release(&self->table);
    PyBuffer_Release(&self->chunks);
    PyBuffer_Release(&self->checked);
    Py_XDECREF(self->shards);
    Py_XDECREF(self->decode);
    Py_XDECREF(self->find_libjpeg);
    Py_XDECREF(self->libjpeg);
    Py_XDECREF(self->view);
    Py_XDECREF(self->color_space);
    Py_XDECREF(self->keywords);
    free_object(self);
}

static int traverse(PatchReader *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->shards);
    Py_VISIT(self->decode);
    Py_VISIT(self->find_libjpeg);
    Py_VISIT(self->libjpeg);
    return 0;
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PatchReader *self;

    if (!check_no_keywords(type, keywords))
        return NULL;
    self = (PatchReader *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*nO!On|O:PatchReader", &self->table, &self->chunks, &self->checked, &self->count,
                          &PyDict_Type, &self->shards, &self->decode, &self->max_pixels, &self->find_libjpeg)) {
        self->shards = self->decode = self->find_libjpeg = NULL; /* borrowed references */
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(self->shards);
    Py_INCREF(self->decode);
    if (self->find_libjpeg == Py_None)
        self->find_libjpeg = NULL;
    Py_XINCREF(self->find_libjpeg);
    self->view = PyUnicode_InternFromString("view");
    self->color_space = PyUnicode_FromString("RGB");
    self->keywords = Py_BuildValue("(s)", "buffer");
    if (self->view == NULL || self->color_space == NULL || self->keywords == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"row", (PyCFunction)row, METH_O, row_doc},
    {"claimed_size", (PyCFunction)claimed_size, METH_O, claimed_size_doc},
    {"read_all_into", (PyCFunction)read_all_into, METH_VARARGS, read_all_into_doc},
    {"read_into", (PyCFunction)(void (*)(void))read_into, METH_FASTCALL, read_into_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(type_doc, "PatchReader(table, chunks, checked, count, shards, decode, max_pixels, find_libjpeg=None, /)\n--\n\n"
             "Reader of the patches of a store whose index is mapped.\n\n"
             "table: the mapped index. chunks: uint64, offsets of the patch table's chunks in it. checked: one byte for each\n"
             "block of the table, not 0 after its checksum was verified. count: number of rows. shards: open shards, as Store\n"
             "holds them. decode: simplejpeg.decode_jpeg. max_pixels: a larger picture is not decoded. find_libjpeg: a\n"
             "function, called before the first read_all_into; it returns the Libjpeg for decoding, or None.");

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)type_doc},
    {Py_tp_new, create},
    {Py_tp_dealloc, deallocate},
    {Py_tp_traverse, traverse},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec specification = {
    .name = "dlas_store._native.patch_reader.PatchReader",
    .basicsize = sizeof(PatchReader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

static PyObject *checksum(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer key, payload;
    PyObject *result = NULL;

    if (!PyArg_ParseTuple(args, "y*y*:checksum", &key, &payload))
        return NULL;
    if (key.len != KEY_BYTES || payload.len < MIN_PAYLOAD_BYTES)
        PyErr_Format(PyExc_ValueError, "keys have %d bytes, and payloads at least %d", KEY_BYTES, MIN_PAYLOAD_BYTES);
    else
        result = PyLong_FromUnsignedLongLong(hash_payload(payload.buf, (size_t)payload.len, hash_key(key.buf)));
    PyBuffer_Release(&key);
    PyBuffer_Release(&payload);
    return result;
}

PyDoc_STRVAR(checksum_doc, "checksum(key, payload, /)\n--\n\n"
             "Return the same checksum as records.value_checksum, for payloads of at least 241 bytes.");

static PyMethodDef functions[] = {
    {"checksum", checksum, METH_VARARGS, checksum_doc},
    {NULL, NULL, 0, NULL},
};

static int add_types(PyObject *module)
{
    return add_type(module, &libjpeg_specification) < 0 ? -1 : add_type(module, &specification);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, add_types},
    {0, NULL},
};

DEFINE_MODULE(patch_reader, "dlas_store._native.patch_reader", "Reader of patches in C; Store.decode_into calls it.", functions,
              module_slots)
