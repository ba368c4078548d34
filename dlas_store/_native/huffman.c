/* A step takes what the next bits stand for from a table, two coefficients where they are short, which most are. Only what the
 * standard allows is decoded: what libjpeg-turbo makes of anything else is left to it. */

#include "huffman.h"

enum {
    LAST = BLOCK_COEFFICIENTS - 1,
    TO_THE_END = 128, /* added to how far a coefficient is, where the block ends with it */
    LONGER = 255,     /* in place of how far it is, where more bits decide */
};

/* Bytes are taken so far ahead of what is decoded. */
enum { AHEAD = sizeof(uint64_t) };

/* Zeros behind a scan's bytes, which a block that is begun before they end cannot use up: it has 64 codes with values, of 31
 * bits at most. */
enum { PADDING = BLOCK_COEFFICIENTS * 4 + 2 * AHEAD };

static const uint8_t natural_order[BLOCK_COEFFICIENTS] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

/* ----------------------------------------------------------------------------------------------------- tables */

/* Returns what a symbol and the bits behind its code stand for. */
static Found found_alone(unsigned symbol, int is_dc, unsigned code_length, uint32_t bits)
{
    const unsigned length = symbol & 15, negative = length > 0 ? ~bits >> (length - 1) & 1 : 0;
    const int16_t value = (int16_t)(bits - (((1u << length) - 1) & (0 - negative)));
    const uint8_t all = (uint8_t)(code_length + length);

    if (is_dc)
        return (Found){value, value, 0, 0, all, all};
    if (length == 0 && symbol != 0xF0) /* which are 16 zeros */
        return (Found){0, 0, 0, TO_THE_END, all, all};
    return (Found){value, value, (uint8_t)((symbol >> 4) + 1), (uint8_t)((symbol >> 4) + 1), all, all};
}

/* Sets what is found for a code and whatever follows. */
static void set_found(CodeTable *table, int is_dc, unsigned code, unsigned length, unsigned symbol)
{
    const unsigned rest = LOOKED_UP - length, value_length = symbol & 15;
    Found *found = &table->found[code << rest];

    if (value_length > rest) {
        for (unsigned i = 0; i < 1u << rest; i++)
            found[i] = (Found){(int16_t)symbol, 0, LONGER, LONGER, (uint8_t)length, 0};
        return;
    }
    for (unsigned bits = 0; bits < 1u << value_length; bits++) {
        const Found alone = found_alone(symbol, is_dc, length, bits);

        for (unsigned i = 0; i < 1u << (rest - value_length); i++)
            *found++ = alone;
    }
}

/* Adds the coefficient behind each that is found, or the end of the block. */
static void add_second(CodeTable *table)
{
    Found alone[1 << LOOKED_UP];

    memcpy(alone, table->found, sizeof alone);
    for (unsigned bits = 0; bits < 1u << LOOKED_UP; bits++) {
        const Found first = alone[bits], second = alone[bits << first.length & ((1u << LOOKED_UP) - 1)];

        if (first.to_last >= TO_THE_END || second.to_last == LONGER || first.length + second.length > LOOKED_UP)
            continue;
        table->found[bits].last = second.value;
        table->found[bits].to_last = first.to_last + second.to_last;
        table->found[bits].both = first.length + second.length;
    }
}

int make_table(CodeTable *table, int is_dc, const uint8_t *counts, const uint8_t *symbols)
{
    unsigned code = 0, at = 0;

    if (table->is_made && memcmp(table->counts, counts, sizeof table->counts) == 0 &&
        memcmp(table->symbols, symbols, sizeof table->symbols) == 0)
        return 1;
    table->is_made = 0;
    for (unsigned bits = 0; bits < 1u << LOOKED_UP; bits++)
        table->found[bits] = (Found){0, 0, LONGER, LONGER, 0, 0};
    for (unsigned length = 1; length <= MAX_CODE_LENGTH; length++) {
        table->offsets[length] = (int32_t)at - (int32_t)code;
        for (unsigned i = 0; i < counts[length]; i++, code++, at++) {
            if (at >= sizeof table->symbols || code >= 1u << length || (is_dc && symbols[at] > 15))
                return 0;
            if (length <= LOOKED_UP)
                set_found(table, is_dc, code, length, symbols[at]);
        }
        table->ends[length] = code << (MAX_CODE_LENGTH - length);
        code <<= 1;
    }
    if (!is_dc)
        add_second(table);
    memcpy(table->counts, counts, sizeof table->counts);
    memcpy(table->symbols, symbols, sizeof table->symbols);
    table->is_made = 1;
    return 1;
}

/* -------------------------------------------------------------------------------------------------------- bits */

/* What changes in a scan from step to step. */
typedef struct {
    uint64_t bits;
    unsigned count;
    const uint8_t *next;
} Reader;

/* Takes bytes until there are 56 bits or more. */
static inline void refill(Reader *reader)
{
    reader->bits |= load_big64(reader->next) >> reader->count;
    reader->next += (63 - reader->count) >> 3;
    reader->count |= 56;
}

static inline void drop(Reader *reader, unsigned count)
{
    reader->bits <<= count;
    reader->count -= count;
}

static inline const Found *look_up(const Reader *reader, const CodeTable *table)
{
    return &table->found[reader->bits >> (64 - LOOKED_UP)];
}

/* Returns what is found where more bits decide than are looked up, of which there must be 31; a length of 0 for no code. */
static Found find_longer(const CodeTable *table, int is_dc, uint64_t bits)
{
    const Found *found = &table->found[bits >> (64 - LOOKED_UP)];
    unsigned length = found->length, symbol = (unsigned)found->value, value_length;

    if (length == 0) {
        const unsigned next = (unsigned)(bits >> (64 - MAX_CODE_LENGTH));

        for (length = LOOKED_UP + 1; next >= table->ends[length]; length++)
            if (length == MAX_CODE_LENGTH)
                return (Found){0};
        symbol = table->symbols[(int32_t)(next >> (MAX_CODE_LENGTH - length)) + table->offsets[length]];
    }
    value_length = symbol & 15;
    bits <<= length;
    return found_alone(symbol, is_dc, length, value_length > 0 ? (uint32_t)(bits >> (64 - value_length)) : 0);
}

/* -------------------------------------------------------------------------------------------------------- scan */

/* Makes room for a scan's bytes; returns 0 where there is none. */
static int allocate(Scan *scan, size_t size)
{
    if (scan->allocated >= size)
        return 1;
    free(scan->bytes);
    scan->bytes = malloc(size);
    scan->allocated = scan->bytes != NULL ? size : 0;
    return scan->bytes != NULL;
}

enum { KEPT_BYTES = 1 << 20 };

void end_scan(Scan *scan)
{
    if (scan->allocated > KEPT_BYTES) {
        free(scan->bytes);
        scan->bytes = NULL;
        scan->allocated = 0;
    }
}

size_t begin_scan(Scan *scan, const uint8_t *data, size_t size)
{
    const uint8_t *const end = data + size, *marker;
    uint8_t *to;

    if (!allocate(scan, size + PADDING))
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

/* Takes one or two coefficients of a block; returns 0 at anything else. at: the coefficient before, in the order of coding. */
static inline int take_plain(Reader *reader, const CodeTable *table, int16_t *block, unsigned *at)
{
    const Found *found = look_up(reader, table);
    const unsigned value = *at + found->to_value, last = *at + found->to_last;

    if (last >= LAST)
        return 0;
    block[natural_order[value]] = found->value;
    block[natural_order[last]] = found->last;
    drop(reader, found->both);
    *at = last;
    return 1;
}

/* Takes the end of a block, with the coefficient before it where that was found as well; returns 0 at anything else. */
static inline int take_end(Reader *reader, const CodeTable *table, int16_t *block, unsigned at)
{
    const Found *found = look_up(reader, table);
    const unsigned value = at + found->to_value;

    if (found->to_last < TO_THE_END || found->to_last == LONGER || value >= LAST)
        return 0;
    block[natural_order[value]] += found->value; /* 0 to the one before where there is none */
    drop(reader, found->both);
    return 1;
}

/* Takes one coefficient, of any length and up to the last one, or an end; returns 0 where there is none. */
static inline int take_any(Reader *reader, const CodeTable *table, int16_t *block, unsigned *at)
{
    Found found = *look_up(reader, table);

    if (found.to_value == LONGER) {
        refill(reader);
        found = find_longer(table, 0, reader->bits);
    }
    if (found.length == 0)
        return 0;
    drop(reader, found.length);
    if (found.to_value == 0) {
        *at = LAST;
        return 1;
    }
    *at += found.to_value;
    if (*at > LAST)
        return 0;
    block[natural_order[*at]] = found.value;
    return 1;
}

static inline int decode_block(Reader *reader, const CodedBlock *coded, uint32_t *last_dc, int16_t *block)
{
    Found dc;
    unsigned at = 0;

    refill(reader);
    dc = *look_up(reader, coded->dc);
    if (dc.to_value == LONGER)
        dc = find_longer(coded->dc, 1, reader->bits);
    if (dc.length == 0)
        return 0;
    drop(reader, dc.length);
    *last_dc += (uint32_t)(int32_t)dc.value;
    block[0] = (int16_t)*last_dc;
    while (at < LAST) {
        refill(reader); /* which suffices for two */
        if (take_plain(reader, coded->ac, block, &at) && take_plain(reader, coded->ac, block, &at))
            continue;
        if (take_end(reader, coded->ac, block, at))
            break;
        if (!take_any(reader, coded->ac, block, &at))
            return 0;
    }
    return 1;
}

/* Shifts by any count are one instruction with BMI2, three without. */
FOR_TARGET("bmi2") int decode_unit(Scan *scan, int16_t (*const *blocks)[BLOCK_COEFFICIENTS])
{
    Reader reader = {scan->bits, scan->bit_count, scan->next};

    for (int i = 0; i < scan->block_count; i++) {
        const CodedBlock *coded = &scan->blocks[i];

        if (reader.next > scan->end + AHEAD || !decode_block(&reader, coded, &scan->last_dc[coded->component], *blocks[i]))
            return 0;
    }
    scan->bits = reader.bits;
    scan->bit_count = reader.count;
    scan->next = reader.next;
    return 1;
}

int is_used_up(const Scan *scan)
{
    const ptrdiff_t left = (scan->end - scan->next) * 8 + (ptrdiff_t)scan->bit_count;

    return left >= 0 && left < 8;
}
