/* huffman.h in the place of a libjpeg-turbo's own Huffman decoder.
 *
 * The library calls a function for the next MCU through a pointer in a private structure. entropy_step.c replaces the
 * pointer, in versions on a list of tested ones only. What it assumes of the library is checked once for each library, by
 * decoding a JPEG in both ways, and again for each scan. The library does everything else. */

#ifndef DLAS_STORE_ENTROPY_STEP_H
#define DLAS_STORE_ENTROPY_STEP_H

#include "libjpeg_layout.h"

/* Facts about a library. */
typedef struct {
    char version[24]; /* of libjpeg-turbo, such as 3.1.2; empty if unknown */
    char file[4096];  /* empty if unknown */
    uintptr_t code_start, code_end;
    StartPass start; /* functions of the library's decoder of baseline scans; NULL until the check */
    DecodeMcu decode_mcu;
    const char *refusal; /* reason why huffman.h decodes no scan; NULL if it does */
} EntropyStep;

/* Decoding of scans; the client data of the library's decoder. */
typedef struct {
    EntropyStep *step; /* constant after the check of the library */
    const uint8_t *data; /* the JPEG */
    size_t size;
    int is_taken; /* whether huffman.h decodes the current scan */
    ScanDecoder scan;
    DecodeTable dc_tables[TABLES_OF_A_KIND], ac_tables[TABLES_OF_A_KIND];
    /* For the check of a library. */
    unsigned mcu_count;
    const char *refusal;
} OwnScan;

/* Finds file, version and code of the library that defines a function, and decides by the version. */
void describe_library(EntropyStep *step, const void *function);

/* Lets huffman.h decode the scan of a JPEG whose decoding was started, if huffman.h can. */
void take_over_scan(OwnScan *own, DecompressStruct *jpeg);

/* A JPEG of probe_height by probe_width pixels for the check of a library. */
extern const uint8_t probe_jpeg[];
extern const size_t probe_bytes;
enum { PROBE_HEIGHT = 20, PROBE_WIDTH = 40, PROBE_MCUS = 6 };

/* First step of the check, with probe_jpeg: lets both decoders decode each MCU of the scan, and compares the coefficients.
 * Sets own->refusal if an assumption does not hold, and then leaves the scan to the library. */
void watch_scan(OwnScan *own, DecompressStruct *jpeg);

/* Returns what the scan that was watched showed: NULL if huffman.h may decode, else the reason why not. */
const char *end_watching(const OwnScan *own);

#endif
