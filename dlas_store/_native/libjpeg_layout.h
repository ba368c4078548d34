/* Layout of libjpeg-turbo's structures, and the functions that are called.
 *
 * libjpeg-turbo keeps the interface of libjpeg 6b: all builds of version 62 lay out its structures as below, and the library
 * refuses to create a decoder for another version or size. Therefore the extension compiles without the library. */

#ifndef DLAS_STORE_LIBJPEG_LAYOUT_H
#define DLAS_STORE_LIBJPEG_LAYOUT_H

#include "huffman.h"

enum { LIBJPEG_VERSION = 62, COLOR_SPACE_RGB = 2, REQUIRE_IMAGE = 1, TABLES_OF_A_KIND = 4 };

typedef struct DecompressStruct DecompressStruct;

typedef struct {
    void (*exit)(DecompressStruct *);             /* must not return */
    void (*trace)(DecompressStruct *, int level); /* negative for a warning */
    void (*print)(DecompressStruct *);
    void (*format)(DecompressStruct *, char *message);
    void (*reset)(DecompressStruct *);
    int code;
    union {
        int numbers[8];
        char text[80];
    } arguments;
    int trace_level;
    long warnings;
    const char *const *messages;
    int last_message;
    const char *const *more_messages;
    int first_of_more, last_of_more;
} ErrorManager;

typedef struct {
    const uint8_t *next;
    size_t remaining_bytes;
} SourceManager; /* functions that read more data follow */

typedef struct {
    uint8_t counts[MAX_CODE_LENGTH + 1], symbols[256];
} HuffmanTable;

typedef struct {
    int id, number, across, down, quantization_table, dc_table, ac_table;
} ComponentInfo; /* members for the component's geometry follow */

typedef int (*DecodeMcu)(DecompressStruct *, int16_t (**blocks)[BLOCK_COEFFICIENTS]);

typedef void (*StartPass)(DecompressStruct *);

/* This structure is private to the library, in contrast to the others. entropy_step.c checks what it says. */
typedef struct {
    StartPass start;
    DecodeMcu decode_mcu;
} EntropyDecoder; /* further members follow */

struct DecompressStruct {
    ErrorManager *errors;
    void *memory, *progress, *client_data;
    int is_decompressor, state;
    SourceManager *source;
    unsigned width, height; /* size in the JPEG */
    int components, colours, colours_out;
    unsigned scale, scale_denominator;
    double gamma;
    int is_buffered, is_raw, transform, is_upsampled_smoothly, are_blocks_smoothed, is_quantized, dithering, in_two_passes,
        wanted_colours, is_one_pass_enabled, is_external_enabled, is_two_pass_enabled;
    unsigned width_out, height_out;
    int colour_components_out, components_out, buffer_rows, map_colours;
    uint8_t **map;
    unsigned rows_out; /* rows decoded so far */
    int scan_in;
    unsigned mcu_row_in;
    int scan_out;
    unsigned mcu_row_out;
    void *known_bits, *quantization_tables[4];
    HuffmanTable *dc_tables[TABLES_OF_A_KIND], *ac_tables[TABLES_OF_A_KIND];
    int precision;
    ComponentInfo *all_components;
    int is_progressive, is_arithmetic;
    uint8_t arithmetic[3][16];
    unsigned restart_interval;
    int is_jfif;
    uint8_t jfif_version[2], density_unit;
    uint16_t density[2];
    int is_adobe;
    uint8_t adobe_transform;
    int is_cosited;
    void *markers;
    int max_across, max_down, scaled_block;
    unsigned mcu_rows;
    void *limits;
    int scan_component_count;
    ComponentInfo *scan_components[MAX_COMPONENTS_IN_SCAN];
    unsigned mcus_across, mcus_down;
    int block_count, component_of_block[MAX_BLOCKS_IN_MCU], spectral[2], approximation[2], unread_marker;
    void *master, *main, *coefficients, *post, *input, *marker_reader;
    EntropyDecoder *entropy;
    void *inverse_dct, *upsampler, *converter, *quantizer;
};

/* Functions of the library. */
typedef struct {
    void (*create)(DecompressStruct *, int version, size_t size);
    void (*set_source)(DecompressStruct *, const uint8_t *data, unsigned long size);
    int (*read_header)(DecompressStruct *, int is_picture_required);
    int (*start)(DecompressStruct *);
    unsigned (*read_rows)(DecompressStruct *, uint8_t **rows, unsigned count);
    int (*finish)(DecompressStruct *);
    void (*abort)(DecompressStruct *);
    void (*destroy)(DecompressStruct *);
    ErrorManager *(*set_standard_errors)(ErrorManager *);
} Functions;

#endif
