/* Huffman decoder: one lookup decodes two coefficients if their codes are short, as most codes are. The decoder refuses scans
 * that violate the standard; libjpeg-turbo decides about them. */

#include "huffman.h"

enum {
    LAST_COEFFICIENT = BLOCK_COEFFICIENTS - 1,
    END_OF_BLOCK = 128, /* added to the step of a coefficient that ends its block */
    LONG_CODE = 255,    /* replaces the step if the code needs more bits than the lookup has */
};

/* The decoder reads up to this many bytes beyond the bits that it has decoded. */
enum { READ_AHEAD_BYTES = sizeof(uint64_t) };

/* Number of zeros after a scan's bytes. A block that begins before the scan's end cannot use all zeros up: it has 64 codes
 * with values, of at most 31 bits each. */
enum { PADDING = BLOCK_COEFFICIENTS * 4 + 2 * READ_AHEAD_BYTES };

static const uint8_t natural_order[BLOCK_COEFFICIENTS] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

/* ----------------------------------------------------------------------------------------------------- tables */

/* Returns the entry for a symbol and the value bits after its code. */
static LookupEntry make_entry(unsigned symbol, int is_dc, unsigned code_length, uint32_t bits)
{
    const unsigned length = symbol & 15, is_negative = length > 0 ? ~bits >> (length - 1) & 1 : 0;
    const int16_t value = (int16_t)(bits - (((1u << length) - 1) & (0 - is_negative)));
    const uint8_t bit_count = (uint8_t)(code_length + length);

    if (is_dc)
        return (LookupEntry){value, value, 0, 0, bit_count, bit_count};
    if (length == 0 && symbol != 0xF0) /* 0xF0 codes 16 zeros */
        return (LookupEntry){0, 0, 0, END_OF_BLOCK, bit_count, bit_count};
    return (LookupEntry){value, value, (uint8_t)((symbol >> 4) + 1), (uint8_t)((symbol >> 4) + 1), bit_count, bit_count};
}

/* Sets the entries of all lookups that begin with a code. */
static void set_entries(DecodeTable *table, int is_dc, unsigned code, unsigned length, unsigned symbol)
{
    const unsigned free_bits = LOOKUP_BITS - length, value_length = symbol & 15;
    LookupEntry *entry = &table->lookup[code << free_bits];

    if (value_length > free_bits) {
        for (unsigned i = 0; i < 1u << free_bits; i++)
            entry[i] = (LookupEntry){(int16_t)symbol, 0, LONG_CODE, LONG_CODE, (uint8_t)length, 0};
        return;
    }
    for (unsigned bits = 0; bits < 1u << value_length; bits++) {
        const LookupEntry single = make_entry(symbol, is_dc, length, bits);

        for (unsigned i = 0; i < 1u << (free_bits - value_length); i++)
            *entry++ = single;
    }
}

/* Adds to each entry the coefficient or the end of block after it. */
static void pair_entries(DecodeTable *table)
{
    LookupEntry singles[1 << LOOKUP_BITS];

    memcpy(singles, table->lookup, sizeof singles);
    for (unsigned bits = 0; bits < 1u << LOOKUP_BITS; bits++) {
        const LookupEntry first = singles[bits], second = singles[bits << first.first_bits & ((1u << LOOKUP_BITS) - 1)];

        if (first.last_step >= END_OF_BLOCK || second.last_step == LONG_CODE ||
            first.first_bits + second.first_bits > LOOKUP_BITS)
            continue;
        table->lookup[bits].last_value = second.first_value;
        table->lookup[bits].last_step = first.last_step + second.last_step;
        table->lookup[bits].total_bits = first.first_bits + second.first_bits;
    }
}

int build_decode_table(DecodeTable *table, int is_dc, const uint8_t *counts, const uint8_t *symbols)
{
    unsigned code = 0, at = 0;

    if (table->is_built && memcmp(table->counts, counts, sizeof table->counts) == 0 &&
        memcmp(table->symbols, symbols, sizeof table->symbols) == 0)
        return 1;
    table->is_built = 0;
    for (unsigned bits = 0; bits < 1u << LOOKUP_BITS; bits++)
        table->lookup[bits] = (LookupEntry){0, 0, LONG_CODE, LONG_CODE, 0, 0};
    for (unsigned length = 1; length <= MAX_CODE_LENGTH; length++) {
        table->symbol_offsets[length] = (int32_t)at - (int32_t)code;
        for (unsigned i = 0; i < counts[length]; i++, code++, at++) {
            if (at >= sizeof table->symbols || code >= 1u << length || (is_dc && symbols[at] > 15))
                return 0;
            if (length <= LOOKUP_BITS)
                set_entries(table, is_dc, code, length, symbols[at]);
        }
        table->code_limits[length] = code << (MAX_CODE_LENGTH - length);
        code <<= 1;
    }
    if (!is_dc)
        pair_entries(table);
    memcpy(table->counts, counts, sizeof table->counts);
    memcpy(table->symbols, symbols, sizeof table->symbols);
    table->is_built = 1;
    return 1;
}

/* -------------------------------------------------------------------------------------------------------- bits */

/* State of a scan that each decoded coefficient changes; a local copy stays in registers. */
typedef struct {
    uint64_t bits;
    unsigned count;
    const uint8_t *next;
} BitReader;

/* Fills the bit buffer to at least 56 bits. */
static inline void refill(BitReader *reader)
{
    reader->bits |= load_big64(reader->next) >> reader->count;
    reader->next += (63 - reader->count) >> 3;
    reader->count |= 56;
}

static inline void skip_bits(BitReader *reader, unsigned count)
{
    reader->bits <<= count;
    reader->count -= count;
}

static inline const LookupEntry *peek_entry(const BitReader *reader, const DecodeTable *table)
{
    return &table->lookup[reader->bits >> (64 - LOOKUP_BITS)];
}

/* Returns the entry for a code that needs more bits than the lookup has; the entry's length is 0 if no code matches. The bit
 * buffer must hold 31 bits. */
static LookupEntry decode_long_code(const DecodeTable *table, int is_dc, uint64_t bits)
{
    const LookupEntry *entry = &table->lookup[bits >> (64 - LOOKUP_BITS)];
    unsigned length = entry->first_bits, symbol = (unsigned)entry->first_value, value_length;

    if (length == 0) {
        const unsigned next = (unsigned)(bits >> (64 - MAX_CODE_LENGTH));

        for (length = LOOKUP_BITS + 1; next >= table->code_limits[length]; length++)
            if (length == MAX_CODE_LENGTH)
                return (LookupEntry){0};
        symbol = table->symbols[(int32_t)(next >> (MAX_CODE_LENGTH - length)) + table->symbol_offsets[length]];
    }
    value_length = symbol & 15;
    bits <<= length;
    return make_entry(symbol, is_dc, length, value_length > 0 ? (uint32_t)(bits >> (64 - value_length)) : 0);
}

/* -------------------------------------------------------------------------------------------------------- scan */

/* Reserves a buffer for a scan's bytes; returns 0 if memory is short. */
static int reserve_buffer(ScanDecoder *scan, size_t size)
{
    if (scan->capacity >= size)
        return 1;
    free(scan->bytes);
    scan->bytes = malloc(size);
    scan->capacity = scan->bytes != NULL ? size : 0;
    return scan->bytes != NULL;
}

enum { MAX_KEPT_BYTES = 1 << 20 };

void trim_scan_buffer(ScanDecoder *scan)
{
    if (scan->capacity > MAX_KEPT_BYTES) {
        free(scan->bytes);
        scan->bytes = NULL;
        scan->capacity = 0;
    }
}

size_t start_scan(ScanDecoder *scan, const uint8_t *data, size_t size)
{
    const uint8_t *const end = data + size, *marker;
    uint8_t *to;

    if (!reserve_buffer(scan, size + PADDING))
        return 0;
    to = scan->bytes;
    marker = unstuff(data, end, &to);
    if (end - marker < 2 || marker[1] != EOI)
        return 0;
    memset(to, 0, PADDING);
    scan->next = scan->bytes;
    scan->end = to;
    scan->bits = 0;
    scan->bit_count = 0;
    memset(scan->last_dc, 0, sizeof scan->last_dc);
    return (size_t)(marker - data);
}

/* Decodes the one or two coefficients of a lookup; returns 0 at anything else. at: index of the previous coefficient. */
static inline int decode_pair(BitReader *reader, const DecodeTable *table, int16_t *block, unsigned *at)
{
    const LookupEntry *entry = peek_entry(reader, table);
    const unsigned value = *at + entry->first_step, last = *at + entry->last_step;

    if (last >= LAST_COEFFICIENT)
        return 0;
    block[natural_order[value]] = entry->first_value;
    block[natural_order[last]] = entry->last_value;
    skip_bits(reader, entry->total_bits);
    *at = last;
    return 1;
}

/* Decodes an end of block, with the coefficient before it if the lookup has one. Returns 0 at anything else. */
static inline int decode_end_of_block(BitReader *reader, const DecodeTable *table, int16_t *block, unsigned at)
{
    const LookupEntry *entry = peek_entry(reader, table);
    const unsigned value = at + entry->first_step;

    if (entry->last_step < END_OF_BLOCK || entry->last_step == LONG_CODE || value >= LAST_COEFFICIENT)
        return 0;
    block[natural_order[value]] += entry->first_value; /* adds 0 if the lookup has no coefficient */
    skip_bits(reader, entry->total_bits);
    return 1;
}

/* Decodes one coefficient, with a code of any length and at any index, or an end of block; returns 0 at anything else. */
static inline int decode_one(BitReader *reader, const DecodeTable *table, int16_t *block, unsigned *at)
{
    LookupEntry entry = *peek_entry(reader, table);

    if (entry.first_step == LONG_CODE) {
        refill(reader);
        entry = decode_long_code(table, 0, reader->bits);
    }
    if (entry.first_bits == 0)
        return 0;
    skip_bits(reader, entry.first_bits);
    if (entry.first_step == 0) {
        *at = LAST_COEFFICIENT;
        return 1;
    }
    *at += entry.first_step;
    if (*at > LAST_COEFFICIENT)
        return 0;
    block[natural_order[*at]] = entry.first_value;
    return 1;
}

static inline int decode_block(BitReader *reader, const BlockCoding *coding, uint32_t *last_dc, int16_t *block)
{
    LookupEntry dc;
    unsigned at = 0;

    refill(reader);
    dc = *peek_entry(reader, coding->dc);
    if (dc.first_step == LONG_CODE)
        dc = decode_long_code(coding->dc, 1, reader->bits);
    if (dc.first_bits == 0)
        return 0;
    skip_bits(reader, dc.first_bits);
    *last_dc += (uint32_t)(int32_t)dc.first_value;
    block[0] = (int16_t)*last_dc;
    while (at < LAST_COEFFICIENT) {
        refill(reader); /* one refill is enough for two lookups */
        if (decode_pair(reader, coding->ac, block, &at) && decode_pair(reader, coding->ac, block, &at))
            continue;
        if (decode_end_of_block(reader, coding->ac, block, at))
            break;
        if (!decode_one(reader, coding->ac, block, &at))
            return 0;
    }
    return 1;
}

/* A shift by a variable count takes one instruction with BMI2, three without. */
TARGET_CLONES("bmi2") int decode_mcu(ScanDecoder *scan, int16_t (*const *blocks)[BLOCK_COEFFICIENTS])
{
    BitReader reader = {scan->bits, scan->bit_count, scan->next};

    for (int i = 0; i < scan->block_count; i++) {
        const BlockCoding *coding = &scan->blocks[i];

        if (reader.next > scan->end + READ_AHEAD_BYTES ||
            !decode_block(&reader, coding, &scan->last_dc[coding->component], *blocks[i]))
            return 0;
    }
    scan->bits = reader.bits;
    scan->bit_count = reader.count;
    scan->next = reader.next;
    return 1;
}

int is_scan_consumed(const ScanDecoder *scan)
{
    const ptrdiff_t remaining_bits = (scan->end - scan->next) * 8 + (ptrdiff_t)scan->bit_count;

    return remaining_bits >= 0 && remaining_bits < 8;
}
