/* Crops a JPEG along its blocks without decoding: only the first coefficient of each block, DC, is coded anew, because it
 * is stored as the difference from the block before. The bits of all other coefficients are copied.
 *
 * The input must be a JPEG as libjpeg writes it by default: one baseline scan of three components, without restart markers,
 * with general Huffman codes rather than codes optimized for one picture. */

#include "../../dlas_store/_native/extension.h"

enum { COMPONENTS = 3 };

/* One lookup decodes a code of up to this length, or as many AC coefficients as fit into these bits. */
#define LOOKUP_BITS 11

/* A read at any bit position returns at least this many bits. */
#define READ_BITS 57

/* A read may touch this many bytes beyond the end. */
#define PADDING 8

/* For samples of 8 bits: range of DC, and greatest size of a DC difference and of an AC coefficient, in bits. */
#define MIN_DC (-1024)
#define MAX_DC 1023
#define MAX_DC_BITS 11
#define MAX_AC_BITS 10

/* Greatest length of a coded DC difference: code and value, in bits. */
#define MAX_DC_LENGTH (MAX_CODE_LENGTH + MAX_DC_BITS)

typedef struct {
    uint8_t counts[MAX_CODE_LENGTH + 1]; /* number of codes of each length */
    uint8_t symbols[256];                /* ordered by code */
    uint8_t lengths[256];                /* code length of each symbol; 0 if it has no code */
    uint16_t codes[256];                 /* code of each symbol */
    uint16_t lookup[1 << LOOKUP_BITS];   /* next bits -> length << 8 | symbol; 0 if the code is longer */
    int is_defined;
} HuffmanTable;

/* Whole coefficients in the next bits: their length in bits, their number (zeros and end of block included), and whether the
 * block ends with them. */
typedef struct {
    uint8_t bits, coefficients, is_end;
} RunEntry;

typedef struct {
    int columns, rows; /* blocks in an MCU (minimum coded unit) */
    int dc_table, ac_table;
} Component;

/* Position of a block's AC coefficients in the scan, in bits, and its DC value. */
typedef struct {
    uint32_t start;
    uint16_t bits;
    int16_t dc;
} Block;

typedef struct {
    PyObject_HEAD
    uint8_t *header;                 /* all bytes before the scan */
    size_t header_size, size_offset; /* size_offset: position of height and width in the header */
    uint8_t *scan;                   /* without stuffed zeros */
    size_t scan_size;
    Block *blocks; /* ordered by MCU, row by row */
    HuffmanTable dc[2], ac[2];
    RunEntry runs[2][1 << LOOKUP_BITS]; /* indexed by AC table */
    Component components[COMPONENTS];
    uint8_t component_of[MAX_BLOCKS_IN_MCU]; /* component of each block in an MCU */
    size_t blocks_in_mcu, mcu_height, mcu_width;
    size_t height, width, mcu_rows, mcu_columns;
} JpegBlocks;

/* Returns the bits of a scan from a position on, first bit highest; at least READ_BITS bits are valid. */
static inline uint64_t read_bits(const uint8_t *scan, size_t at)
{
    return load_big64(scan + at / 8) << at % 8;
}

/* ---------------------------------------------------------------------------------------------------- headers */

/* A position in a header. Reading beyond the end returns 0 and moves `at` beyond the end. */
typedef struct {
    const uint8_t *data;
    size_t at, end;
} Cursor;

static unsigned take_byte(Cursor *cursor)
{
    size_t at = cursor->at++;

    return at < cursor->end ? cursor->data[at] : 0;
}

static unsigned take_short(Cursor *cursor)
{
    unsigned high = take_byte(cursor);

    return high << 8 | take_byte(cursor);
}

/* Builds codes and lookup from counts and symbols; returns 0 if they define no code. */
static int build_codes(HuffmanTable *huffman)
{
    unsigned code = 0, symbol = 0;

    for (unsigned length = 1; length <= MAX_CODE_LENGTH; length++, code <<= 1)
        for (unsigned i = 0; i < huffman->counts[length]; i++, code++, symbol++) {
            const uint8_t value = huffman->symbols[symbol];

            if (code >= 1u << length || huffman->lengths[value])
                return 0;
            huffman->lengths[value] = (uint8_t)length;
            huffman->codes[value] = (uint16_t)code;
            if (length <= LOOKUP_BITS)
                for (unsigned suffix = 0; suffix < 1u << (LOOKUP_BITS - length); suffix++)
                    huffman->lookup[code << (LOOKUP_BITS - length) | suffix] = (uint16_t)(length << 8 | value);
        }
    huffman->is_defined = 1;
    return 1;
}

static int read_huffman(JpegBlocks *self, Cursor *segment)
{
    while (segment->at < segment->end) {
        unsigned kind = take_byte(segment), total = 0;
        HuffmanTable *huffman = (kind >> 4 ? self->ac : self->dc) + (kind & 1);

        if (kind & ~0x11u)
            return 0;
        memset(huffman, 0, sizeof *huffman);
        for (unsigned length = 1; length <= MAX_CODE_LENGTH; length++)
            total += huffman->counts[length] = (uint8_t)take_byte(segment);
        if (total > 256)
            return 0;
        for (unsigned i = 0; i < total; i++)
            huffman->symbols[i] = (uint8_t)take_byte(segment);
        if (segment->at > segment->end || !build_codes(huffman))
            return 0;
    }
    return 1;
}

static int read_frame(JpegBlocks *self, Cursor *segment, uint8_t ids[COMPONENTS])
{
    size_t max_rows = 1, max_columns = 1;
    unsigned precision = take_byte(segment);

    self->size_offset = segment->at;
    self->height = take_short(segment);
    self->width = take_short(segment);
    if (precision != 8 || self->height == 0 || self->width == 0 || take_byte(segment) != COMPONENTS)
        return 0;
    for (int c = 0; c < COMPONENTS; c++) {
        unsigned sampling;

        ids[c] = (uint8_t)take_byte(segment);
        sampling = take_byte(segment);
        take_byte(segment); /* quantization table */
        self->components[c].columns = (int)(sampling >> 4);
        self->components[c].rows = (int)(sampling & 15);
        if (sampling >> 4 < 1 || sampling >> 4 > 4 || (sampling & 15) < 1 || (sampling & 15) > 4)
            return 0;
        max_columns = sampling >> 4 > max_columns ? sampling >> 4 : max_columns;
        max_rows = (sampling & 15) > max_rows ? sampling & 15 : max_rows;
    }
    self->mcu_width = 8 * max_columns;
    self->mcu_height = 8 * max_rows;
    self->mcu_columns = (self->width + self->mcu_width - 1) / self->mcu_width;
    self->mcu_rows = (self->height + self->mcu_height - 1) / self->mcu_height;
    return segment->at == segment->end;
}

/* Returns whether every DC difference has a code: a crop has differences that the picture does not have. */
static int codes_every_difference(const HuffmanTable *dc)
{
    for (int size = 0; size <= MAX_DC_BITS; size++)
        if (!dc->lengths[size])
            return 0;
    return dc->is_defined;
}

static int read_scan_header(JpegBlocks *self, Cursor *segment, const uint8_t ids[COMPONENTS])
{
    if (take_byte(segment) != COMPONENTS)
        return 0;
    for (int c = 0; c < COMPONENTS; c++) {
        Component *component = &self->components[c];
        unsigned id = take_byte(segment), tables = take_byte(segment);

        if (id != ids[c] || tables & ~0x11u || !codes_every_difference(&self->dc[tables >> 4]) ||
            !self->ac[tables & 1].is_defined)
            return 0;
        component->dc_table = (int)(tables >> 4);
        component->ac_table = (int)(tables & 1);
        for (int i = 0; i < component->columns * component->rows; i++) {
            if (self->blocks_in_mcu == MAX_BLOCKS_IN_MCU)
                return 0;
            self->component_of[self->blocks_in_mcu++] = (uint8_t)c;
        }
    }
    return take_byte(segment) == 0 && take_byte(segment) == BLOCK_COEFFICIENTS - 1 && take_byte(segment) == 0 &&
           segment->at == segment->end;
}

/* Reads everything before the scan, and returns the scan's offset; 0 if the JPEG is of another kind. */
static size_t read_header(JpegBlocks *self, const uint8_t *data, size_t size)
{
    uint8_t ids[COMPONENTS];
    Cursor file = {data, 0, size};

    if (take_short(&file) != (0xFF00 | SOI))
        return 0;
    for (;;) {
        unsigned marker = take_short(&file), length = take_short(&file);
        Cursor segment = {data, file.at, file.at + length - 2};
        int is_valid = 1;

        if (marker >> 8 != 0xFF || length < 2 || segment.end > size)
            return 0;
        file.at = segment.end;
        marker &= 0xFF;
        if (marker == DHT)
            is_valid = read_huffman(self, &segment);
        else if (marker == SOF0)
            is_valid = self->size_offset == 0 && read_frame(self, &segment, ids);
        else if (marker == SOS)
            return self->size_offset != 0 && read_scan_header(self, &segment, ids) ? file.at : 0;
        else if (marker != DQT && marker != COM && (marker < APP0 || marker > APP15))
            return 0;
        if (!is_valid)
            return 0;
    }
}

/* ------------------------------------------------------------------------------------------------------- scan */

/* Returns length << 8 | symbol of the code at the start of bits; 0 if there is none. */
static inline unsigned find_code(const HuffmanTable *huffman, uint64_t bits)
{
    unsigned match = huffman->lookup[bits >> (64 - LOOKUP_BITS)], first = 0, index = 0;

    if (match)
        return match;
    for (unsigned length = 1; length <= MAX_CODE_LENGTH; length++, first <<= 1) {
        unsigned code = (unsigned)(bits >> (64 - length)), count = huffman->counts[length];

        if (code - first < count && code >= first)
            return length << 8 | huffman->symbols[index + code - first];
        first += count;
        index += count;
    }
    return 0;
}

/* Returns the value that a coefficient's bits code. */
static inline int signed_value(unsigned bits, unsigned size)
{
    return size && bits < 1u << (size - 1) ? (int)bits - (1 << size) + 1 : (int)bits;
}

/* Builds the table of runs for an AC table. */
static void build_run_table(const HuffmanTable *ac, RunEntry *runs)
{
    for (unsigned bits = 0; bits < 1u << LOOKUP_BITS; bits++) {
        RunEntry *run = &runs[bits];

        *run = (RunEntry){0};
        while (!run->is_end) {
            unsigned match = ac->lookup[bits << run->bits & ((1u << LOOKUP_BITS) - 1)], size = match & 0x0F;

            if (!match || size > MAX_AC_BITS || run->bits + (match >> 8) + size > LOOKUP_BITS)
                break;
            run->bits = (uint8_t)(run->bits + (match >> 8) + size);
            run->is_end = (match & 0xFF) == 0;
            run->coefficients = (uint8_t)(run->coefficients + (run->is_end ? 1 : (match >> 4 & 0x0F) + 1));
        }
    }
}

/* Skips a block's AC coefficients from a position on; returns the position behind them, 0 if they are invalid. */
static inline size_t skip_ac_coefficients(const JpegBlocks *self, unsigned table, size_t at)
{
    const size_t end = 8 * self->scan_size;

    for (unsigned k = 1; k < BLOCK_COEFFICIENTS;) {
        uint64_t bits;
        unsigned remaining = READ_BITS, match, size;

        if (at > end)
            return 0;
        bits = read_bits(self->scan, at);
        while (remaining >= LOOKUP_BITS) {
            const RunEntry *run = &self->runs[table][bits >> (64 - LOOKUP_BITS)];

            /* The next block begins behind the last coefficient. */
            if (!run->bits || k + run->coefficients > BLOCK_COEFFICIENTS)
                break;
            at += run->bits;
            if (run->is_end)
                return at > end ? 0 : at;
            k += run->coefficients;
            bits <<= run->bits;
            remaining -= run->bits;
        }
        if (remaining < READ_BITS)
            continue;
        match = find_code(&self->ac[table], bits);
        size = match & 0x0F;
        if (!match || size > MAX_AC_BITS)
            return 0;
        at += (match >> 8) + size;
        if ((match & 0xFF) == 0)
            break;
        k += (match >> 4 & 0x0F) + 1;
        if (k > BLOCK_COEFFICIENTS)
            return 0;
    }
    return at > end ? 0 : at;
}

/* Finds all blocks; returns 0 if the scan is damaged. */
static int read_blocks(JpegBlocks *self)
{
    const size_t mcus = self->mcu_rows * self->mcu_columns, end = 8 * self->scan_size;
    int dc[COMPONENTS] = {0};
    size_t at = 0;
    Block *block = self->blocks;

    for (int table = 0; table < 2; table++)
        build_run_table(&self->ac[table], self->runs[table]);
    for (size_t mcu = 0; mcu < mcus; mcu++)
        for (size_t i = 0; i < self->blocks_in_mcu; i++, block++) {
            const int c = self->component_of[i];
            uint64_t bits = read_bits(self->scan, at);
            unsigned match = find_code(&self->dc[self->components[c].dc_table], bits), size = match & 0xFF;

            if (!match || size > MAX_DC_BITS)
                return 0;
            bits <<= match >> 8;
            dc[c] += signed_value(size ? (unsigned)(bits >> (64 - size)) : 0, size);
            at += (match >> 8) + size;
            if (dc[c] < MIN_DC || dc[c] > MAX_DC)
                return 0;
            block->start = (uint32_t)at;
            block->dc = (int16_t)dc[c];
            at = skip_ac_coefficients(self, (unsigned)self->components[c].ac_table, at);
            if (at == 0)
                return 0;
            block->bits = (uint16_t)(at - block->start);
        }
    return end - at < 8;
}

/* A bit buffer of 64 bits, of which `free` are unused, and the output behind it. */
typedef struct {
    uint8_t *out;
    uint64_t bits;
    unsigned free;
} BitWriter;

static void put_byte(BitWriter *writer, uint8_t byte)
{
    *writer->out++ = byte;
    if (byte == 0xFF)
        *writer->out++ = 0;
}

/* Writes up to READ_BITS bits; all higher bits of the value are 0. */
static inline void put_bits(BitWriter *writer, uint64_t bits, unsigned count)
{
    const uint64_t high_bits = 0x8080808080808080u, ones = 0x0101010101010101u;

    if (count < writer->free) {
        writer->bits = writer->bits << count | bits;
        writer->free -= count;
        return;
    }
    count -= writer->free;
    writer->bits = writer->bits << writer->free | bits >> count;
    if (writer->bits & high_bits & ~(writer->bits + ones)) { /* a byte may be 0xFF */
        for (int shift = 56; shift >= 0; shift -= 8)
            put_byte(writer, (uint8_t)(writer->bits >> shift));
    } else {
        store_big64(writer->out, writer->bits);
        writer->out += sizeof writer->bits;
    }
    writer->bits = bits; /* higher bits were written already, and later shifts drop them */
    writer->free = 64 - count;
}

/* Writes the remaining bits, padded with ones, and the end of the image. */
static void finish_scan(BitWriter *writer)
{
    put_bits(writer, 0x7F, 7);
    for (int shift = 64 - (int)writer->free; shift >= 8;) {
        shift -= 8;
        put_byte(writer, (uint8_t)(writer->bits >> shift));
    }
    *writer->out++ = 0xFF;
    *writer->out++ = EOI;
}

/* Writes a block. before: DC of the block before it, of the same component. */
static inline void put_block(BitWriter *writer, const JpegBlocks *self, const Block *block, const HuffmanTable *dc,
                             int before)
{
    const int difference = block->dc - before;
    const unsigned magnitude = (unsigned)(difference < 0 ? -difference : difference);
    const unsigned size = magnitude ? 32 - (unsigned)__builtin_clz(magnitude) : 0;
    const unsigned value = (unsigned)(difference - (difference < 0)) & ((1u << size) - 1);
    size_t at = block->start;
    unsigned remaining = block->bits;

    put_bits(writer, (uint64_t)dc->codes[size] << size | value, dc->lengths[size] + size);
    for (; remaining > READ_BITS; remaining -= READ_BITS, at += READ_BITS)
        put_bits(writer, read_bits(self->scan, at) >> (64 - READ_BITS), READ_BITS);
    if (remaining)
        put_bits(writer, read_bits(self->scan, at) >> (64 - remaining), remaining);
}

/* Writes the scan of a crop, whose position and size are given in MCUs; returns the end of the scan. */
static uint8_t *write_scan(const JpegBlocks *self, size_t top, size_t left, size_t rows, size_t columns, uint8_t *out)
{
    BitWriter writer = {out, 0, 64};
    int before[COMPONENTS] = {0};

    for (size_t row = top; row < top + rows; row++) {
        const Block *block = self->blocks + (row * self->mcu_columns + left) * self->blocks_in_mcu;

        for (size_t column = 0; column < columns; column++)
            for (size_t i = 0; i < self->blocks_in_mcu; i++, block++) {
                const int c = self->component_of[i];

                put_block(&writer, self, block, &self->dc[self->components[c].dc_table], before[c]);
                before[c] = block->dc;
            }
    }
    finish_scan(&writer);
    return writer.out;
}

/* Returns the maximum bytes of a crop, whose position and size are given in MCUs. */
static size_t max_crop_bytes(const JpegBlocks *self, size_t top, size_t left, size_t rows, size_t columns)
{
    const size_t blocks = rows * columns * self->blocks_in_mcu;
    size_t bits = blocks * MAX_DC_LENGTH;

    for (size_t row = top; row < top + rows; row++) {
        const Block *first = self->blocks + (row * self->mcu_columns + left) * self->blocks_in_mcu;
        const Block *last = first + columns * self->blocks_in_mcu - 1;

        bits += last->start + last->bits - first->start;
    }
    return self->header_size + 2 * (bits / 8 + sizeof(uint64_t)) + 2;
}

/* ------------------------------------------------------------------------------------------------ from Python */

static void deallocate(JpegBlocks *self)
{
    PyMem_Free(self->header);
    PyMem_Free(self->scan);
    PyMem_Free(self->blocks);
    free_object(self);
}

/* Reads a JPEG; on failure sets an exception and returns 0. */
static int read_jpeg(JpegBlocks *self, const uint8_t *data, size_t size)
{
    const size_t scan_at = read_header(self, data, size);
    size_t blocks;
    uint8_t *scan_end;

    if (scan_at == 0) {
        PyErr_SetString(PyExc_ValueError, "not a JPEG of one baseline scan of three components");
        return 0;
    }
    blocks = self->mcu_rows * self->mcu_columns * self->blocks_in_mcu;
    if (size - scan_at > UINT32_MAX / 8 || blocks > 4 * (size - scan_at)) { /* a block has two codes of at least one bit */
        PyErr_SetString(PyExc_ValueError, "its scan is too long, or too short for its size");
        return 0;
    }
    self->header_size = scan_at;
    self->header = PyMem_Malloc(scan_at);
    self->scan = PyMem_Malloc(size - scan_at + PADDING);
    self->blocks = PyMem_Malloc(blocks * sizeof *self->blocks);
    if (self->header == NULL || self->scan == NULL || self->blocks == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    memcpy(self->header, data, scan_at);
    scan_end = self->scan;
    unstuff(data + scan_at, data + size, &scan_end);
    self->scan_size = (size_t)(scan_end - self->scan);
    memset(self->scan + self->scan_size, 0xFF, PADDING);
    if (!read_blocks(self)) {
        PyErr_SetString(PyExc_ValueError, "its scan is damaged");
        return 0;
    }
    return 1;
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    JpegBlocks *self;
    Py_buffer data;
    int is_read;

    if (!check_no_keywords(type, keywords))
        return NULL;
    if (!PyArg_ParseTuple(args, "y*:JpegBlocks", &data))
        return NULL;
    self = (JpegBlocks *)type->tp_alloc(type, 0);
    if (self == NULL) {
        PyBuffer_Release(&data);
        return NULL;
    }
    is_read = read_jpeg(self, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    if (!is_read)
        Py_CLEAR(self);
    return (PyObject *)self;
}

PyDoc_STRVAR(crop_doc, "crop($self, top, left, height, width, /)\n--\n\n"
             "Return a rectangle of the picture as a JPEG.\n\n"
             "All arguments are in pixels and multiples of an MCU's sides: 8 or 16 pixels, by the chroma subsampling.");

static PyObject *crop(JpegBlocks *self, PyObject *args)
{
    Py_ssize_t top, left, height, width;
    const Py_ssize_t mcu_height = (Py_ssize_t)self->mcu_height, mcu_width = (Py_ssize_t)self->mcu_width;
    size_t mcus[4];
    uint8_t *out, *end;
    PyObject *result;

    if (!PyArg_ParseTuple(args, "nnnn:crop", &top, &left, &height, &width))
        return NULL;
    if (top < 0 || left < 0 || height < 1 || width < 1 || height > (Py_ssize_t)self->height ||
        width > (Py_ssize_t)self->width || top > (Py_ssize_t)self->height - height ||
        left > (Py_ssize_t)self->width - width || top % mcu_height || height % mcu_height || left % mcu_width ||
        width % mcu_width)
        return PyErr_Format(PyExc_ValueError,
                            "%zd x %zd pixels from (%zd, %zd) on are not whole units of %zd x %zd in %zu x %zu",
                            width, height, left, top, mcu_width, mcu_height, self->width, self->height);
    mcus[0] = (size_t)(top / mcu_height);
    mcus[1] = (size_t)(left / mcu_width);
    mcus[2] = (size_t)(height / mcu_height);
    mcus[3] = (size_t)(width / mcu_width);
    out = PyMem_Malloc(max_crop_bytes(self, mcus[0], mcus[1], mcus[2], mcus[3]));
    if (out == NULL)
        return PyErr_NoMemory();
    memcpy(out, self->header, self->header_size);
    out[self->size_offset] = (uint8_t)(height >> 8);
    out[self->size_offset + 1] = (uint8_t)height;
    out[self->size_offset + 2] = (uint8_t)(width >> 8);
    out[self->size_offset + 3] = (uint8_t)width;
    end = write_scan(self, mcus[0], mcus[1], mcus[2], mcus[3], out + self->header_size);
    result = PyBytes_FromStringAndSize((char *)out, end - out);
    PyMem_Free(out);
    return result;
}

static PyMethodDef methods[] = {
    {"crop", (PyCFunction)crop, METH_VARARGS, crop_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(type_doc, "JpegBlocks(jpeg, /)\n--\n\n"
             "Blocks of a JPEG, from which rectangles are cropped without loss.\n\n"
             "Raises ValueError if the JPEG is damaged, or not one baseline scan of three components.");

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)type_doc},
    {Py_tp_new, create},
    {Py_tp_dealloc, deallocate},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec specification = {
    .name = "dlas_store.converters.extraction._jpeg_crop.JpegBlocks",
    .basicsize = sizeof(JpegBlocks),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

static int add_blocks(PyObject *module)
{
    return add_type(module, &specification);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, add_blocks},
    {0, NULL},
};

DEFINE_MODULE(_jpeg_crop, "dlas_store.converters.extraction._jpeg_crop",
              "Crops of a JPEG without decoding, for photos.py.", NULL, module_slots)
