#include "entropy_step.h"

#include <dlfcn.h>
#ifdef __linux__
#include <link.h>
#endif

/* The versions with which `pytest --release` has run the tests of the decoders. */
static const char *const tested_versions[] = {"2.1.5", "3.0.4", "3.1.0", "3.1.1", "3.1.2", "3.1.3", "3.1.4.1", "3.2.0"};

/* ---------------------------------------------------------------------------------------------------- library */

#ifdef __linux__

typedef struct {
    EntropyStep *step;
    uintptr_t address; /* of a function of the library */
} Search;

/* Sets the version that a segment names, as in "libjpeg-turbo version 3.1.2 (build 20251010)". */
static void find_version(EntropyStep *step, const char *segment, size_t size)
{
    static const char before[] = "libjpeg-turbo version ", after[] = " (build ";
    const char *const text = memmem(segment, size, before, sizeof before - 1), *version, *end;

    if (text == NULL)
        return;
    version = text + sizeof before - 1;
    end = memmem(version, size - (size_t)(version - segment), after, sizeof after - 1);
    if (end == NULL || (size_t)(end - version) >= sizeof step->version)
        return;
    memcpy(step->version, version, (size_t)(end - version));
    step->version[end - version] = '\0';
}

/* Describes the library if it has the function; returns 1 to end the search. */
static int describe_if_it_is(struct dl_phdr_info *info, size_t size, void *argument)
{
    Search *search = argument;
    int is_found = 0;

    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, end = start + info->dlpi_phdr[i].p_filesz;

        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X && search->address >= start &&
            search->address < end) {
            search->step->code_start = start;
            search->step->code_end = end;
            is_found = 1;
        }
    }
    for (int i = 0; is_found && i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_R)
            find_version(search->step, (const char *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr),
                         info->dlpi_phdr[i].p_filesz);
    return is_found;
}

static void find_code(EntropyStep *step, const void *function)
{
    Search search = {step, (uintptr_t)function};

    dl_iterate_phdr(describe_if_it_is, &search);
}

#else

static void find_code(EntropyStep *step, const void *function)
{
    (void)step;
    (void)function;
}

#endif

static int is_tested(const char *version)
{
    for (size_t i = 0; i < sizeof tested_versions / sizeof *tested_versions; i++)
        if (strcmp(version, tested_versions[i]) == 0)
            return 1;
    return 0;
}

void describe_library(EntropyStep *step, const void *function)
{
    Dl_info info;

    *step = (EntropyStep){.refusal = NULL};
    if (dladdr(function, &info) && info.dli_fname != NULL && strlen(info.dli_fname) < sizeof step->file)
        strcpy(step->file, info.dli_fname);
    find_code(step, function);
    if (step->version[0] == '\0')
        step->refusal = "the library does not say which version of libjpeg-turbo it is";
    else if (!is_tested(step->version))
        step->refusal = "this version of libjpeg-turbo is not on the list of tested versions";
}

/* --------------------------------------------------------------------------------------------------- functions */

static int is_code(const EntropyStep *step, uintptr_t address)
{
    return address >= step->code_start && address < step->code_end;
}

static int is_structure(const EntropyDecoder *entropy)
{
    return entropy != NULL && (uintptr_t)entropy % _Alignof(EntropyDecoder) == 0;
}

/* Returns whether the entropy decoder's functions are two of the library's. */
static int has_functions_of_library(const EntropyStep *step, const EntropyDecoder *entropy)
{
    return is_structure(entropy) && is_code(step, (uintptr_t)entropy->start) &&
           is_code(step, (uintptr_t)entropy->decode_mcu) && (uintptr_t)entropy->start != (uintptr_t)entropy->decode_mcu;
}

/* Returns whether the entropy decoder is the one that the check of the library has seen: a lossless or arithmetic scan has
 * another decoder, which may leave the pointers uninitialized. */
static int has_functions_of_check(const EntropyStep *step, const EntropyDecoder *entropy)
{
    return is_structure(entropy) && entropy->start == step->start && entropy->decode_mcu == step->decode_mcu;
}

/* ------------------------------------------------------------------------------------------------------- scans */

/* Returns whether the scan is the JPEG's only one, is baseline, and has no restart markers. The kind alone is not enough:
 * for a lossless scan `spectral` begins with the predictor and ends with 0. */
static int is_baseline(const DecompressStruct *jpeg)
{
    return jpeg->precision == 8 && !jpeg->is_progressive && !jpeg->is_arithmetic && jpeg->restart_interval == 0 &&
           jpeg->spectral[0] == 0 && jpeg->spectral[1] == BLOCK_COEFFICIENTS - 1 && jpeg->approximation[0] == 0 &&
           jpeg->approximation[1] == 0;
}

/* Returns whether the scan has all components of the JPEG, and at most as many as the arrays have room for. */
static int is_complete(const DecompressStruct *jpeg)
{
    return jpeg->scan_component_count == jpeg->components && jpeg->components >= 1 &&
           jpeg->components <= MAX_COMPONENTS_IN_SCAN && jpeg->block_count >= 1 && jpeg->block_count <= MAX_BLOCKS_IN_MCU;
}

/* Returns whether the library stands at the first byte of the first scan. */
static int is_at_start(const OwnScan *own, const DecompressStruct *jpeg)
{
    const SourceManager *source = jpeg->source;

    return jpeg->scan_in == 1 && jpeg->mcu_row_in == 0 && jpeg->unread_marker == 0 && source != NULL &&
           source->remaining_bytes <= own->size && source->next == own->data + (own->size - source->remaining_bytes);
}

/* Builds the tables of a component; returns 0 if a table is missing or defines no code. */
static int build_tables(OwnScan *own, const DecompressStruct *jpeg, const ComponentInfo *component)
{
    const unsigned dc_number = (unsigned)component->dc_table, ac_number = (unsigned)component->ac_table;
    const HuffmanTable *dc, *ac;

    if (dc_number >= TABLES_OF_A_KIND || ac_number >= TABLES_OF_A_KIND)
        return 0;
    dc = jpeg->dc_tables[dc_number];
    ac = jpeg->ac_tables[ac_number];
    return dc != NULL && ac != NULL && build_decode_table(&own->dc_tables[dc_number], 1, dc->counts, dc->symbols) &&
           build_decode_table(&own->ac_tables[ac_number], 0, ac->counts, ac->symbols);
}

/* Sets tables and component of each block in an MCU; returns 0 if the scan has no such tables. */
static int set_block_codings(OwnScan *own, const DecompressStruct *jpeg)
{
    for (int i = 0; i < jpeg->block_count; i++) {
        const unsigned number = (unsigned)jpeg->component_of_block[i];
        const ComponentInfo *component;

        if (number >= (unsigned)jpeg->scan_component_count)
            return 0;
        component = jpeg->scan_components[number];
        if (component == NULL || !build_tables(own, jpeg, component))
            return 0;
        own->scan.blocks[i] =
            (BlockCoding){&own->dc_tables[component->dc_table], &own->ac_tables[component->ac_table], (int)number};
    }
    own->scan.block_count = jpeg->block_count;
    return 1;
}

static int decode_next_mcu(DecompressStruct *jpeg, int16_t (**blocks)[BLOCK_COEFFICIENTS])
{
    if (!decode_mcu(&((OwnScan *)jpeg->client_data)->scan, blocks))
        jpeg->errors->exit(jpeg);
    return 1;
}

void take_over_scan(OwnScan *own, DecompressStruct *jpeg)
{
    SourceManager *const source = jpeg->source;
    size_t scan_bytes;

    if (!is_baseline(jpeg) || !is_complete(jpeg) || !is_at_start(own, jpeg) ||
        !has_functions_of_check(own->step, jpeg->entropy) || !set_block_codings(own, jpeg))
        return;
    scan_bytes = start_scan(&own->scan, source->next, source->remaining_bytes);
    if (scan_bytes == 0)
        return;
    source->next += scan_bytes;
    source->remaining_bytes -= scan_bytes;
    jpeg->entropy->decode_mcu = decode_next_mcu;
    own->is_taken = 1;
}

/* ------------------------------------------------------------------------------------------------------- check */

enum { PROBE_SCAN_BYTES = 95, PROBE_BLOCKS = 6 };

/* A JPEG of three components, 4:2:0, with two tables of each kind. The scan has codes of 1 to 9 bits, zeros before coefficients,
 * and blocks beyond the edges. */
const uint8_t probe_jpeg[] = {
    0xff, 0xd8, 0xff, 0xdb, 0x00, 0x43, 0x00, 0x08, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06,
    0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06,
    0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06,
    0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0x06, 0xff, 0xc0, 0x00, 0x11, 0x08, 0x00, 0x14, 0x00, 0x28,
    0x03, 0x01, 0x22, 0x00, 0x02, 0x11, 0x00, 0x03, 0x11, 0x00, 0xff, 0xc4, 0x00, 0x18, 0x00, 0x00, 0x03, 0x01, 0x01, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x03, 0x05, 0xff, 0xc4, 0x00, 0x17,
    0x01, 0x01, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02,
    0x04, 0xff, 0xc4, 0x00, 0x1d, 0x10, 0x00, 0x02, 0x01, 0x02, 0x01, 0x02, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x01, 0x02, 0x11, 0x03, 0x21, 0xf0, 0x12, 0x31, 0x41, 0xff, 0xc4, 0x00, 0x1d, 0x11, 0x00, 0x01, 0x03,
    0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x41, 0x31, 0x12, 0xf0, 0x21, 0x03, 0x11,
    0x02, 0x01, 0x00, 0xff, 0xda, 0x00, 0x0c, 0x03, 0x01, 0x00, 0x02, 0x11, 0x03, 0x10, 0x00, 0x3f, 0x00, 0x53, 0xcd, 0xc9,
    0x8d, 0xc7, 0x26, 0x46, 0x13, 0xc9, 0x95, 0xa1, 0x86, 0x4c, 0xd5, 0xf6, 0xed, 0xfa, 0xd6, 0x3a, 0x52, 0xf3, 0x65, 0xa5,
    0xc9, 0x8e, 0xdd, 0x0a, 0x96, 0x4c, 0x83, 0x0f, 0xbe, 0xdf, 0xae, 0x4c, 0x58, 0xca, 0xa1, 0x86, 0x90, 0x8c, 0x99, 0x74,
    0x12, 0xfb, 0x7e, 0xd6, 0x86, 0x68, 0xf2, 0x63, 0xd0, 0xc9, 0x91, 0x84, 0xf2, 0x64, 0x4b, 0x1c, 0x99, 0x1f, 0x7e, 0xde,
    0x86, 0x24, 0x5d, 0x65, 0xe9, 0x73, 0x6d, 0x80, 0xd0, 0x17, 0xd4, 0xbf, 0x6b, 0x26, 0x19, 0x32, 0xb4, 0x67, 0x4c, 0x99,
    0x5a, 0x36, 0x47, 0x0d, 0x0c, 0x05, 0xf1, 0xd7, 0xeb, 0x3c, 0x74, 0x87, 0xff, 0xd9,
};
const size_t probe_bytes = sizeof probe_jpeg;

/* Returns whether the library reads the JPEG's header as it was written, and thereby whether the layout is right. */
static int is_probe(const OwnScan *own, const DecompressStruct *jpeg)
{
    static const int component_of_block[PROBE_BLOCKS] = {0, 0, 0, 0, 1, 2};

    if (!is_baseline(jpeg) || !is_complete(jpeg) || !is_at_start(own, jpeg) || jpeg->components != 3 ||
        jpeg->block_count != PROBE_BLOCKS || jpeg->source->remaining_bytes != PROBE_SCAN_BYTES + 2 ||
        memcmp(jpeg->component_of_block, component_of_block, sizeof component_of_block) != 0)
        return 0;
    for (int i = 0; i < 3; i++) {
        const ComponentInfo *component = jpeg->scan_components[i];

        if (component == NULL || component->number != i || component->dc_table != (i > 0) || component->ac_table != (i == 1))
            return 0;
    }
    return 1;
}

static int are_blocks_zero(int16_t (*const *blocks)[BLOCK_COEFFICIENTS])
{
    for (int i = 0; i < PROBE_BLOCKS; i++)
        for (int at = 0; at < BLOCK_COEFFICIENTS; at++)
            if ((*blocks[i])[at] != 0)
                return 0;
    return 1;
}

/* Decodes an MCU in both ways; the library's coefficients are the result. */
static int compare_mcu(DecompressStruct *jpeg, int16_t (**blocks)[BLOCK_COEFFICIENTS])
{
    OwnScan *own = jpeg->client_data;
    int16_t coefficients[PROBE_BLOCKS][BLOCK_COEFFICIENTS] = {{0}}, (*own_blocks[PROBE_BLOCKS])[BLOCK_COEFFICIENTS];
    int result;

    for (int i = 0; i < PROBE_BLOCKS; i++)
        own_blocks[i] = &coefficients[i];
    if (!are_blocks_zero(blocks))
        own->refusal = "the library gives blocks that are not zeroed";
    result = own->step->decode_mcu(jpeg, blocks);
    own->mcu_count++;
    if (!result || !decode_mcu(&own->scan, own_blocks)) {
        own->refusal = "an MCU cannot be decoded in both ways";
        return result;
    }
    for (int i = 0; i < PROBE_BLOCKS; i++)
        if (memcmp(coefficients[i], *blocks[i], sizeof coefficients[i]) != 0)
            own->refusal = "the library decodes to other coefficients";
    return result;
}

void watch_scan(OwnScan *own, DecompressStruct *jpeg)
{
    if (!is_probe(own, jpeg))
        own->refusal = "the library's public structures have another layout";
    else if (!set_block_codings(own, jpeg))
        own->refusal = "the library's Huffman tables have another layout";
    else if (!has_functions_of_library(own->step, jpeg->entropy))
        own->refusal = "the library's private structure for entropy decoding has another layout";
    else if (start_scan(&own->scan, jpeg->source->next, jpeg->source->remaining_bytes) != PROBE_SCAN_BYTES)
        own->refusal = "memory is short";
    if (own->refusal != NULL)
        return;
    own->step->start = jpeg->entropy->start;
    own->step->decode_mcu = jpeg->entropy->decode_mcu;
    jpeg->entropy->decode_mcu = compare_mcu;
}

const char *end_watching(const OwnScan *own)
{
    if (own->refusal != NULL)
        return own->refusal;
    if (own->mcu_count != PROBE_MCUS || !is_scan_consumed(&own->scan))
        return "the library does not call the function for each MCU";
    return NULL;
}
