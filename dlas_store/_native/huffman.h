/* Huffman decoder for a JPEG scan, the step on which libjpeg-turbo spends most of its time for a patch. */

#ifndef DLAS_STORE_HUFFMAN_H
#define DLAS_STORE_HUFFMAN_H

#include "extension.h"

enum {
    MAX_COMPONENTS_IN_SCAN = 4, /* set by the standard */
    LOOKUP_BITS = 10,           /* bits that index the lookup table */
};

/* An entry of the lookup table: the coefficient that the next bits code, and the coefficient after it if both fit into
 * LOOKUP_BITS; otherwise the entry holds the first coefficient twice. */
typedef struct {
    int16_t first_value, last_value;
    uint8_t first_step, last_step;  /* distances from the previous coefficient, in zigzag order */
    uint8_t first_bits, total_bits; /* length of the first coefficient, and of both, in bits */
} LookupEntry;

/* A Huffman code for decoding, built from a JPEG's table. */
typedef struct {
    LookupEntry lookup[1 << LOOKUP_BITS]; /* indexed by the next bits */
    /* Both are indexed by length. If the next 16 bits are below the limit, they begin with a code of at most that length. A
     * code plus the offset is the position of its symbol. */
    uint32_t code_limits[MAX_CODE_LENGTH + 1];
    int32_t symbol_offsets[MAX_CODE_LENGTH + 1];
    uint8_t counts[MAX_CODE_LENGTH + 1], symbols[256]; /* the JPEG's table */
    int is_built;
} DecodeTable;

/* Tables and component of one block in each MCU. An MCU (minimum coded unit) is the smallest group of blocks that a scan
 * interleaves. */
typedef struct {
    const DecodeTable *dc, *ac;
    int component; /* index in the scan */
} BlockCoding;

typedef struct {
    BlockCoding blocks[MAX_BLOCKS_IN_MCU];
    int block_count;
    uint32_t last_dc[MAX_COMPONENTS_IN_SCAN];
    uint64_t bits; /* bit buffer; the next bit is the highest one */
    unsigned bit_count;
    const uint8_t *next, *end; /* bytes after those in the bit buffer */
    uint8_t *bytes;            /* the scan without stuffed zeros; owned, of `capacity` bytes */
    size_t capacity;
} ScanDecoder;

/* Builds a decode table from a JPEG's table: the number of codes of each length (index 0 is unused) and the symbols.
 * Keeps a table that was built from the same values. Returns 0 if the values define no code. */
int build_decode_table(DecodeTable *table, int is_dc, const uint8_t *counts, const uint8_t *symbols);

/* Starts to decode a scan at its first byte; its block codings must be set. Returns the scan's size in bytes; 0 if the end
 * of the image does not follow the scan, or if memory is short. */
size_t start_scan(ScanDecoder *scan, const uint8_t *data, size_t size);

/* Decodes an MCU into zeroed blocks, in natural order; returns 0 if the MCU violates the standard. */
int decode_mcu(ScanDecoder *scan, int16_t (*const *blocks)[BLOCK_COEFFICIENTS]);

/* Returns whether decoding ended in the last byte of the scan. */
int is_scan_consumed(const ScanDecoder *scan);

/* Frees the scan's buffer if it is larger than most pictures need. */
void trim_scan_buffer(ScanDecoder *scan);

#endif
