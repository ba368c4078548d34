/* What stands between a patch's number and its decoded pixels: its row in the index, its key, the checksum of its bytes,
 * the size that its JPEG claims. In Python that takes longest between two decodings, which leave nothing of it in the
 * processor's caches, and other threads wait for Python's lock meanwhile.
 *
 * Only what is as it should be is read here. For anything else the answer is no, and Store.read_into does it in Python:
 * it opens the shard, checks the block of the index, converts the picture, or says what is wrong.
 *
 * JPEGs are decoded by simplejpeg, through Python, or by libjpeg-turbo itself where it was found: then many are without
 * Python's lock, which simplejpeg takes twice a picture, and without a decoder made anew for each. */

#include "libjpeg.h"

/* --------------------------------------------------------------------------------------------------- checksum */

/* XXH3-64, as its specification has it, for the two lengths that matter here: keys, and payloads of more than 240 bytes.
 * xxhash itself can be called from Python only. */

enum { KEY_BYTES = 17, CHECKSUM_BYTES = 8, LEAST_PAYLOAD = 241, SECRET_BYTES = 192, STRIPE = 64, LANES = 8 };

/* Stripes until the lanes are scrambled: each takes the secret 8 bytes further on. */
enum { STRIPES_A_BLOCK = (SECRET_BYTES - STRIPE) / 8 };

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

static uint64_t fold_product(uint64_t one, uint64_t other)
{
    unsigned __int128 product = (unsigned __int128)one * other;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t avalanche(uint64_t hash)
{
    hash ^= hash >> 37;
    hash *= 0x165667919E3779F9u;
    return hash ^ hash >> 32;
}

/* Returns the hash of a key, without a seed. */
static uint64_t hash_key(const uint8_t key[KEY_BYTES])
{
    uint64_t hash = KEY_BYTES * prime64[1];

    hash += fold_product(load_little64(key) ^ load_little64(secret), load_little64(key + 8) ^ load_little64(secret + 8));
    key += KEY_BYTES - 16;
    hash += fold_product(load_little64(key) ^ load_little64(secret + 16), load_little64(key + 8) ^ load_little64(secret + 24));
    return avalanche(hash);
}

static inline void take_stripe(uint64_t *restrict lanes, const uint8_t *restrict data, const uint8_t *restrict keys)
{
    for (int i = 0; i < LANES; i++) {
        const uint64_t value = load_little64(data + 8 * i), keyed = value ^ load_little64(keys + 8 * i);

        lanes[i ^ 1] += value;
        lanes[i] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
    }
}

/* Takes whole stripes, and scrambles after each block of them. */
VECTORS static void take_stripes(uint64_t *restrict lanes, const uint8_t *restrict data, size_t stripes,
                                 const uint8_t *restrict keys)
{
    for (size_t at = 0; at < stripes; at++) {
        take_stripe(lanes, data + STRIPE * at, keys + 8 * (at % STRIPES_A_BLOCK));
        if (at % STRIPES_A_BLOCK == STRIPES_A_BLOCK - 1)
            for (int i = 0; i < LANES; i++) {
                lanes[i] ^= lanes[i] >> 47 ^ load_little64(keys + SECRET_BYTES - STRIPE + 8 * i);
                lanes[i] *= prime32[1];
            }
    }
}

/* Returns the hash of a payload of LEAST_PAYLOAD bytes or more. */
static uint64_t hash_payload(const uint8_t *data, size_t size, uint64_t seed)
{
    uint64_t lanes[LANES] = {prime32[3], prime64[1], prime64[2], prime64[3], prime64[4], prime32[2], prime64[5], prime32[1]};
    uint64_t keys[SECRET_BYTES / 8], hash = size * prime64[1];
    const uint8_t *key_bytes = (const uint8_t *)keys;

    for (int i = 0; i < SECRET_BYTES / 8; i++) {
        const uint64_t key = load_little64(secret + 8 * i) + (i % 2 ? 0 - seed : seed);

        keys[i] = load_little64((const uint8_t *)&key);
    }
    take_stripes(lanes, data, (size - 1) / STRIPE, key_bytes);
    take_stripe(lanes, data + size - STRIPE, key_bytes + SECRET_BYTES - STRIPE - 7);
    for (int i = 0; i < LANES; i += 2)
        hash += fold_product(lanes[i] ^ load_little64(key_bytes + 11 + 8 * i),
                             lanes[i + 1] ^ load_little64(key_bytes + 19 + 8 * i));
    return avalanche(hash);
}

/* ------------------------------------------------------------------------------------------------------- JPEG */

typedef struct {
    size_t height, width;
} PictureSize;

/* Whether brightness is sampled in one of the ways that have names, and colour once a unit: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1.
 * components: of 3 bytes each, id, sampling and table. */
static int is_named_sampling(const uint8_t *components)
{
    const uint8_t sampling = components[1];

    return components[4] == 0x11 && components[7] == 0x11 &&
           (sampling == 0x11 || sampling == 0x21 || sampling == 0x12 || sampling == 0x22 || sampling == 0x41);
}

/* A part of a JPEG before its picture, without the marker and the two bytes that say its length. */
typedef struct {
    uint8_t marker;
    const uint8_t *content;
    size_t size;
} Segment;

/* Takes the next segment of a JPEG, of those that stand before its picture, and moves behind it; returns 0 for anything else.
 * at is 0 before the first one. */
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
    /* Others between tables, comments and applications' own segments do not stand before the picture. */
    return (segment->marker >= SOF0 && segment->marker <= SOF2) ||
           segment->marker == DHT || (segment->marker >= SOS && segment->marker <= COM);
}

/* Returns the size of a JPEG that simplejpeg decodes to RGB as it is, by its frame header; zeros for any other. */
static PictureSize size_of_jpeg(const uint8_t *data, size_t size)
{
    Segment segment;
    size_t at = 0, components;

    do {
        if (!next_segment(data, size, &at, &segment) || segment.marker == SOS)
            return (PictureSize){0};
    } while (segment.marker > SOF2);
    components = segment.size >= 6 ? segment.content[5] : 0;
    if (segment.size != 6 + 3 * components || (components != 1 && components != 3) ||
        (components == 3 && !is_named_sampling(segment.content + 6)))
        return (PictureSize){0};
    return (PictureSize){(size_t)segment.content[1] << 8 | segment.content[2],
                         (size_t)segment.content[3] << 8 | segment.content[4]};
}

/* Marks the tables that a segment defines: quantization tables as 4 bits, Huffman's as 4 of DC and 4 of AC. Returns 0 where
 * the segment is not made as it should be. */
static int mark_tables(const Segment *segment, unsigned *tables)
{
    const uint8_t *content = segment->content;
    size_t left = segment->size;

    while (left > 0) {
        const unsigned kind = content[0] >> 4, number = content[0] & 0x0F;
        size_t length = 1;

        if (number > 3 || kind > 1)
            return 0;
        if (segment->marker == DHT) {
            length += 16;
            for (size_t i = 1; i <= 16 && i < left; i++)
                length += content[i];
        } else {
            length += kind == 0 ? 64 : 128;
        }
        if (length > left)
            return 0;
        *tables |= 1u << (segment->marker == DHT ? 4 * kind + number : number);
        content += length;
        left -= length;
    }
    return 1;
}

/* Whether a scan has all of a JPEG's components, and only uses Huffman tables that are defined. */
static int is_whole_scan(const Segment *scan, size_t components, unsigned huffman)
{
    if (components == 0 || scan->size != 4 + 2 * components || scan->content[0] != components)
        return 0;
    for (size_t i = 0; i < components; i++) {
        const unsigned dc = scan->content[2 + 2 * i] >> 4, ac = scan->content[2 + 2 * i] & 0x0F;

        if (dc > 3 || ac > 3 || !(huffman >> dc & 1) || !(huffman >> (4 + ac) & 1))
            return 0;
    }
    return 1;
}

/* Whether a JPEG is not progressive, its first scan has all components and uses no table that was not defined before. */
static int brings_its_tables(const uint8_t *data, size_t size)
{
    unsigned quantization = 0, huffman = 0, wanted = 0; /* wanted: of quantization */
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
                wanted |= 1u << (segment.content[8 + 3 * i] & 0x0F);
            break;
        case SOF2:
            return 0;
        case DHT:
        case DQT:
            if (!mark_tables(&segment, segment.marker == DHT ? &huffman : &quantization))
                return 0;
            break;
        case SOS:
            return is_whole_scan(&segment, components, huffman) && (wanted & ~quantization) == 0;
        }
    return 0;
}

/* ----------------------------------------------------------------------------------------------------- reader */

/* A row of the index's table of patches, little-endian: offset and patch id of 8 bytes, then length, image and shard of 4;
 * see index.py. */
enum { ROW_BYTES = 28, BLOCK_BYTES = 4096, BLOCKS_A_CHUNK = 64 };

/* What is fetched ahead of a patch: all of it but for pictures that would not fit into the processor's caches. */
enum { CACHE_LINE = 64, PREFETCH_BYTES = 1 << 16 };

typedef struct {
    PyObject_HEAD
    Py_buffer table;     /* the mapped index */
    Py_buffer chunks;    /* uint64 each: where it starts there */
    Py_buffer checked;   /* a byte for each block, not 0 once its checksum was found right */
    Py_ssize_t count;
    PyObject *shards;    /* Store's: number -> (shard, what to add to an image's number to get its id) */
    PyObject *decode;    /* simplejpeg.decode_jpeg */
    Py_ssize_t max_pixels;
    PyObject *view, *colours, *keywords; /* constant arguments */
    PyObject *find_libjpeg; /* gives a Libjpeg or None; NULL once it did */
    Libjpeg *libjpeg;       /* NULL where there is none */
} PatchReader;

typedef struct {
    uint64_t offset, patch_id;
    uint32_t length, image, shard;
} Row;

/* Finds a patch's row; returns 0 where there is none, or its block was not checked yet. */
static int find_row(const PatchReader *self, Py_ssize_t index, Row *row)
{
    const Py_ssize_t rows_a_block = (BLOCK_BYTES - 8) / ROW_BYTES;
    Py_ssize_t block, chunk;
    uint64_t start;
    const uint8_t *bytes;

    if (index < 0 || index >= self->count)
        return 0;
    block = index / rows_a_block;
    chunk = block / BLOCKS_A_CHUNK;
    if (block >= self->checked.len || !((const uint8_t *)self->checked.buf)[block] || chunk >= self->chunks.len / 8)
        return 0;
    start = ((const uint64_t *)self->chunks.buf)[chunk] + (uint64_t)(block % BLOCKS_A_CHUNK) * BLOCK_BYTES;
    if (start > (uint64_t)self->table.len || (uint64_t)self->table.len - start < BLOCK_BYTES)
        return 0;
    bytes = (const uint8_t *)self->table.buf + start + index % rows_a_block * ROW_BYTES;
    *row = (Row){load_little64(bytes), load_little64(bytes + 8), load_little32(bytes + 16), load_little32(bytes + 20),
                 load_little32(bytes + 24)};
    return 1;
}

/* Returns a new reference to the memoryview of a row's shard and sets the image's id; NULL where the shard is not open. */
static PyObject *find_shard(const PatchReader *self, const Row *row, uint64_t *image_id)
{
    PyObject *number = PyLong_FromUnsignedLong(row->shard), *open, *view = NULL;
    long long added;

    if (number == NULL)
        return NULL;
    open = PyDict_GetItemWithError(self->shards, number);
    Py_DECREF(number);
    if (open == NULL || !PyTuple_Check(open) || PyTuple_GET_SIZE(open) != 2)
        return NULL;
    Py_INCREF(open); /* another thread may close the shard while Python runs */
    added = PyLong_AsLongLong(PyTuple_GET_ITEM(open, 1));
    if (!PyErr_Occurred() && added >= -(long long)row->image && added <= INT64_MAX - (long long)row->image) {
        *image_id = (uint64_t)(added + (long long)row->image);
        view = PyObject_GetAttr(PyTuple_GET_ITEM(open, 0), self->view);
        if (view != NULL && !PyMemoryView_Check(view))
            Py_CLEAR(view);
    }
    Py_DECREF(open);
    return view;
}

/* Returns the size of a row's picture; zeros unless its bytes are those that were stored under its key, and a JPEG that
 * decodes as it is. */
static PictureSize check_picture(const PatchReader *self, const Py_buffer *shard, const Row *row, uint64_t image_id)
{
    const uint8_t *payload;
    const uint64_t size = (uint64_t)shard->len;
    uint8_t key[KEY_BYTES];
    PictureSize picture;

    if (row->length < LEAST_PAYLOAD || row->offset < CHECKSUM_BYTES || row->offset > size || row->length > size - row->offset)
        return (PictureSize){0};
    payload = (const uint8_t *)shard->buf + row->offset;
    store_big64(key, image_id);
    key[8] = 2; /* Kind.PATCH */
    store_big64(key + 9, row->patch_id);
    if (load_little64(payload - CHECKSUM_BYTES) != hash_payload(payload, row->length, hash_key(key)))
        return (PictureSize){0};
    picture = size_of_jpeg(payload, row->length);
    if (picture.width == 0 || (long long)(picture.height * picture.width) > self->max_pixels)
        return (PictureSize){0};
    return picture;
}

typedef struct {
    PyObject *shard; /* a memoryview, new; NULL where there is none */
    Row row;
    PictureSize picture; /* zeros where it is not as it should be */
} Patch;

/* Finds a patch and checks it; errors of Python may be set where it is not as it should be. */
static Patch find_patch(const PatchReader *self, Py_ssize_t index)
{
    Patch patch = {0};
    Py_buffer shard;
    uint64_t image_id;

    if (!find_row(self, index, &patch.row))
        return patch;
    patch.shard = find_shard(self, &patch.row, &image_id);
    if (patch.shard == NULL || PyObject_GetBuffer(patch.shard, &shard, PyBUF_SIMPLE) < 0) /* it was let go of */
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

/* Returns whether a patch was decoded into an array; errors of Python may be set where it was not. */
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
        PyObject *args[] = {encoded, self->colours, array};

        decoded = PyObject_Vectorcall(self->decode, args, 2, self->keywords);
        Py_DECREF(encoded);
    }
    if (decoded != NULL) {
        is_done = has_shape(decoded, out->shape);
        Py_DECREF(decoded);
    }
    return is_done;
}

/* Lets the processor fetch a row's bytes from memory, meanwhile; a hint. */
static void prefetch_payload(const Py_buffer *shard, const Row *row)
{
    if (row->offset <= (uint64_t)shard->len && row->length <= (uint64_t)shard->len - row->offset)
        for (size_t at = 0; at < row->length && at < PREFETCH_BYTES; at += CACHE_LINE)
            __builtin_prefetch((const uint8_t *)shard->buf + row->offset + at, 0, 2);
}

/* Does so with those of a patch. */
static void prefetch(const PatchReader *self, Py_ssize_t index)
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

/* Returns whether a patch was decoded into an object; errors of Python may be set where it was not. */
static int decode_into_array(const PatchReader *self, Py_ssize_t index, PyObject *array)
{
    Py_buffer out;
    int is_done;

    if (!get_pixels(array, &out))
        return 0;
    is_done = decode_into(self, index, array, &out);
    PyBuffer_Release(&out);
    return is_done;
}

/* Returns an int of a list; -1, which no patch has, where there is none or it is too large. */
static Py_ssize_t int_at(PyObject *list, Py_ssize_t position)
{
    Py_ssize_t value = -1;

    if (position < PyList_GET_SIZE(list) && PyLong_CheckExact(PyList_GET_ITEM(list, position)))
        value = PyLong_AsSsize_t(PyList_GET_ITEM(list, position));
    PyErr_Clear();
    return value;
}

/* --------------------------------------------------------------------------------- many, without Python's lock */

/* A patch and where it goes, held on to while they are used without Python's lock. */
typedef struct {
    Py_buffer shard, out; /* whose obj is NULL where there is none */
    Row row;
    uint64_t image_id;
} HeldPatch;

static void let_go(HeldPatch *held)
{
    PyBuffer_Release(&held->shard);
    PyBuffer_Release(&held->out);
}

/* Holds on to a patch and an array; returns whether they are there. Errors of Python may be set where they are not. */
static int hold(const PatchReader *self, Py_ssize_t index, PyObject *array, HeldPatch *held)
{
    PyObject *view;
    int is_held = 0;

    if (!get_pixels(array, &held->out))
        return 0;
    if (find_row(self, index, &held->row) && (view = find_shard(self, &held->row, &held->image_id)) != NULL) {
        is_held = PyObject_GetBuffer(view, &held->shard, PyBUF_SIMPLE) == 0;
        Py_DECREF(view);
    }
    if (!is_held)
        let_go(held);
    return is_held;
}

/* Finds libjpeg-turbo the first time; returns 0 after setting an error. */
static int have_libjpeg_found(PatchReader *self)
{
    PyObject *find = self->find_libjpeg, *found;

    if (find == NULL)
        return 1;
    Py_INCREF(find); /* another thread may have found it meanwhile */
    found = PyObject_CallNoArgs(find);
    Py_DECREF(find);
    if (found == NULL)
        return 0;
    if (found != Py_None && !is_libjpeg(found)) {
        Py_DECREF(found);
        PyErr_SetString(PyExc_TypeError, "find_libjpeg must return a Libjpeg or None");
        return 0;
    }
    if (found == Py_None || self->libjpeg != NULL)
        Py_DECREF(found);
    else
        self->libjpeg = (Libjpeg *)found;
    Py_CLEAR(self->find_libjpeg);
    return 1;
}

/* Returns whether libjpeg-turbo decoded a patch; Python's lock need not be held.
 *
 * It is not asked about JPEGs that use tables of pictures before, which a decoder still has, nor about progressive ones: what
 * is made of those that lack scans is not the same in all versions. */
static int decode_held(const PatchReader *self, JpegDecoder *decoder, const HeldPatch *held)
{
    const PictureSize picture = check_picture(self, &held->shard, &held->row, held->image_id);
    const Py_ssize_t height = (Py_ssize_t)picture.height, width = (Py_ssize_t)picture.width;
    const size_t size = held->row.length;
    const uint8_t *data;

    if (height == 0 || height != held->out.shape[0] || width != held->out.shape[1])
        return 0;
    data = (const uint8_t *)held->shard.buf + held->row.offset;
    return brings_its_tables(data, size) &&
           decode_jpeg(decoder, data, size, held->out.buf, (unsigned)height, (unsigned)width);
}

/* Returns a new reference to an object of a list, NULL where that is shorter: other threads may change it meanwhile. */
static PyObject *object_at(PyObject *list, Py_ssize_t position)
{
    return position < PyList_GET_SIZE(list) ? Py_NewRef(PyList_GET_ITEM(list, position)) : NULL;
}

enum { MOST_HELD = 64 };

/* Lets libjpeg-turbo decode patches from one on, at most MOST_HELD. Returns how many it was asked about, and sets for each
 * whether it was done. */
static Py_ssize_t decode_together(PatchReader *self, PyObject *indices, PyObject *outs, Py_ssize_t first, char *is_done)
{
    HeldPatch patches[MOST_HELD] = {0};
    Py_ssize_t held = 0;
    PyObject *out;
    JpegDecoder *decoder = borrow_decoder(self->libjpeg);

    if (decoder == NULL)
        return 0;
    while (held < MOST_HELD && (out = object_at(outs, first + held)) != NULL) {
        const int is_held = hold(self, int_at(indices, first + held), out, &patches[held]);

        Py_DECREF(out);
        if (!is_held)
            break;
        held++;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < held; i++) {
        if (i + 1 < held)
            prefetch_payload(&patches[i + 1].shard, &patches[i + 1].row);
        is_done[i] = (char)decode_held(self, decoder, &patches[i]);
    }
    Py_END_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < held; i++)
        let_go(&patches[i]);
    return_decoder(self->libjpeg, decoder);
    return held;
}

/* ------------------------------------------------------------------------------------------------ from Python */

/* Whether an interrupt is set as Python's error; any other is cleared. */
static int is_interrupted(void)
{
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return 1;
    PyErr_Clear();
    return 0;
}

/* Returns what an error that may be set leaves to say: nothing, or NULL for an interrupt. */
static PyObject *no_or_interrupt(PyObject *no)
{
    return is_interrupted() ? NULL : Py_NewRef(no);
}

PyDoc_STRVAR(row_doc, "row($self, index, /)\n--\n\n"
             "Return what PatchRow names of a patch; None where there is none, or its block was not checked yet.");

static PyObject *row(PatchReader *self, PyObject *number)
{
    Py_ssize_t index = PyNumber_AsSsize_t(number, PyExc_IndexError);
    Row found;

    if (PyErr_Occurred() || !find_row(self, index, &found))
        return no_or_interrupt(Py_None);
    return Py_BuildValue("KKIII", (unsigned long long)found.offset, (unsigned long long)found.patch_id, found.length,
                         found.image, found.shard);
}

PyDoc_STRVAR(read_into_doc, "read_into($self, index, out, /)\n--\n\n"
             "Decode a patch into an array, uint8 (H, W, 3); return whether it could be done.\n\n"
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
    return is_done ? Py_NewRef(Py_True) : no_or_interrupt(Py_False);
}

PyDoc_STRVAR(read_all_into_doc, "read_all_into($self, indices, outs, /)\n--\n\n"
             "Decode patches into arrays, uint8 (H, W, 3), one after another; return how many could be.\n\n"
             "indices are ints. Reading ends with the first that could not be; from there on what arrays hold is undefined.");

static PyObject *read_all_into(PatchReader *self, PyObject *args)
{
    PyObject *indices, *outs, *out;
    char is_done[MOST_HELD];
    Py_ssize_t done, first = 0, asked = 0; /* libjpeg-turbo was asked about so many from the first on */

    if (!PyArg_ParseTuple(args, "O!O!:read_all_into", &PyList_Type, &indices, &PyList_Type, &outs) ||
        !have_libjpeg_found(self))
        return NULL;
    for (done = 0; done < PyList_GET_SIZE(outs); done++) {
        int is_read;

        if (self->libjpeg != NULL && done >= first + asked) {
            if (done > 0 && PyErr_CheckSignals() < 0)
                return NULL;
            first = done;
            asked = decode_together(self, indices, outs, first, is_done);
            if (is_interrupted())
                return NULL;
        }
        if (done < first + asked && is_done[done - first])
            continue;
        if ((out = object_at(outs, done)) == NULL)
            break;
        prefetch(self, int_at(indices, done + 1));
        is_read = decode_into_array(self, int_at(indices, done), out);
        Py_DECREF(out);
        if (!is_read)
            break;
    }
    return is_interrupted() ? NULL : PyLong_FromSsize_t(done);
}

PyDoc_STRVAR(claimed_size_doc, "claimed_size($self, index, /)\n--\n\n"
             "Return the height and width of a patch that read_into can decode; None for any other.");

static PyObject *claimed_size(PatchReader *self, PyObject *number)
{
    Py_ssize_t index = PyNumber_AsSsize_t(number, PyExc_IndexError);
    Patch patch = {0};

    if (!PyErr_Occurred())
        patch = find_patch(self, index);
    Py_XDECREF(patch.shard);
    if (patch.picture.height == 0)
        return no_or_interrupt(Py_None);
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
    Py_XDECREF(self->colours);
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

    if (!has_no_keywords(type, keywords))
        return NULL;
    self = (PatchReader *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*nO!On|O:PatchReader", &self->table, &self->chunks, &self->checked, &self->count,
                          &PyDict_Type, &self->shards, &self->decode, &self->max_pixels, &self->find_libjpeg)) {
        self->shards = self->decode = self->find_libjpeg = NULL; /* were borrowed */
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(self->shards);
    Py_INCREF(self->decode);
    if (self->find_libjpeg == Py_None)
        self->find_libjpeg = NULL;
    Py_XINCREF(self->find_libjpeg);
    self->view = PyUnicode_InternFromString("view");
    self->colours = PyUnicode_FromString("RGB");
    self->keywords = Py_BuildValue("(s)", "buffer");
    if (self->view == NULL || self->colours == NULL || self->keywords == NULL)
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
             "Reads patches of a store whose index is mapped.\n\n"
             "table is the mapped index, chunks uint64 offsets of the patch table's chunks in it, checked a byte for each of\n"
             "its blocks, count the number of rows. shards are those that are open, as Store has them, decode is\n"
             "simplejpeg.decode_jpeg, max_pixels the number of pixels above which a picture is not decoded. find_libjpeg is\n"
             "called before many patches are read: it returns the Libjpeg that decodes them, or None.");

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
    if (key.len != KEY_BYTES || payload.len < LEAST_PAYLOAD)
        PyErr_Format(PyExc_ValueError, "keys have %d bytes, and payloads at least %d", KEY_BYTES, LEAST_PAYLOAD);
    else
        result = PyLong_FromUnsignedLongLong(hash_payload(payload.buf, (size_t)payload.len, hash_key(key.buf)));
    PyBuffer_Release(&key);
    PyBuffer_Release(&payload);
    return result;
}

PyDoc_STRVAR(checksum_doc, "checksum(key, payload, /)\n--\n\n"
             "Return what keys.value_checksum does, for payloads of at least 241 bytes.");

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

DEFINE_MODULE(patch_reader, "dlas_store._native.patch_reader", "Reading patches in C; see Store.read_into.", functions,
              module_slots)
