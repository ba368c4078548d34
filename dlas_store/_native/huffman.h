/* Huffman decoding of a JPEG's scan: no other step of libjpeg-turbo takes as long for a patch. */

#ifndef DLAS_STORE_HUFFMAN_H
#define DLAS_STORE_HUFFMAN_H

#include "extension.h"

enum {
    MOST_COMPONENTS = 4, /* of a scan */
    LOOKED_UP = 10,      /* bits that are looked up at once */
};

/* What the next bits stand for: a coefficient, and the one behind it where both fit into the bits that are looked up. */
typedef struct {
    int16_t value, last;
    uint8_t to_value, to_last; /* how far they are from the coefficient before, in the order of coding */
    uint8_t length, both;      /* bits of the first, and of all that was found */
} Found;

/* A code, and the bits of values behind it. */
typedef struct {
    Found found[1 << LOOKED_UP];       /* by the next bits */
    uint32_t ends[MAX_CODE_LENGTH + 1];   /* by length: 16 bits that are less begin with a code that long or shorter */
    int32_t offsets[MAX_CODE_LENGTH + 1]; /* by length: from a code to the position of its symbol */
    uint8_t counts[MAX_CODE_LENGTH + 1], symbols[256]; /* of the JPEG's table that it was made of */
    int is_made;
} CodeTable;

/* How a block of a unit is coded. */
typedef struct {
    const CodeTable *dc, *ac;
    int component; /* of the scan */
} CodedBlock;

typedef struct {
    CodedBlock blocks[MAX_BLOCKS_IN_MCU];
    int block_count;
    uint32_t last_dc[MOST_COMPONENTS];
    uint64_t bits; /* that come next, the first ones highest */
    unsigned bit_count;
    const uint8_t *next, *end; /* bytes behind those bits */
    uint8_t *bytes;            /* all, without the zeros that stand behind each of 255; allocated */
    size_t allocated;
} Scan;

/* Makes a table of a JPEG's: counts of codes by their length (the first one is not used), and symbols. Nothing is done where it
 * was made of the same ones. Returns 0 where they are no code. */
int make_table(CodeTable *table, int is_dc, const uint8_t *counts, const uint8_t *symbols);

/* Begins a scan, whose blocks are set, at its first byte. Returns how many bytes it has; 0 where it does not end with the
 * JPEG, or memory does not suffice. */
size_t begin_scan(Scan *scan, const uint8_t *data, size_t size);

/* Decodes a unit into blocks of zeros, in natural order; returns 0 where it is not coded as the standard says. */
int decode_unit(Scan *scan, int16_t (*const *blocks)[BLOCK_COEFFICIENTS]);

/* Whether all bytes of a scan were used, and no more. */
int is_used_up(const Scan *scan);

/* Lets go of the memory that a scan took, if only large pictures need as much. */
void end_scan(Scan *scan);

#endif
