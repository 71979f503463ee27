/* Kernels that decode tiles and restore weights: what the files of this folder share.

   Nothing here knows of Python. A caller passes memory that it owns; a kernel reads and writes
   inside it only, whatever the words and states of a tile hold. Tables, classes and shapes have
   been validated by the caller (nwc.coding); words and states have not. */

#ifndef NWC_H
#define NWC_H

#include <stddef.h>
#include <stdint.h>

#define NWC_VERSION 2

#if defined(_WIN32)
#define NWC_EXPORT __declspec(dllexport)
#else
#define NWC_EXPORT __attribute__((visibility("default")))
#endif

#define NWC_INLINE static inline __attribute__((always_inline))

enum { LANES = 16, PRECISION = 12, TOTAL = 1 << PRECISION, LOWER = 1 << 16 };

/* Instruction sets. NEON has no gather and no expanding load, the two things that a step of the
   decoder spends its time on: there plain C is as good, and it is what runs. */
enum { LEVEL_PLAIN, LEVEL_AVX2, LEVEL_AVX512, LEVELS };

/* What the words of a tile are read with. */
typedef struct {
    const uint32_t *entries; /* [tables, 4096]: frequency - 1 << 20 | symbol << 12 | offset */
    const uint32_t *base;    /* [classes, 2, 16] where the table of (parity, lane) begins */
    const int32_t *first;    /* [classes, 2, 16] the integer of that table's first symbol */
    int32_t classes;
    int32_t states;    /* of the trellis; 0 without one, and then parity 0 is all there is */
    int32_t on_parity; /* what an odd state changes in the next one */
    int32_t on_bit;    /* what an odd symbol changes in it */
} nwc_tables;

/* One tile; tiles of one call have the same rows. */
typedef struct {
    const unsigned char *words; /* 16-bit, little-endian, at any address */
    int64_t word_count;
    const uint8_t *classes; /* [columns] */
    int64_t columns;
    int16_t *integers; /* [columns, chunks, 16], `stride` elements from column to column; written */
    int64_t stride;
    uint32_t states[LANES]; /* those of the index; afterwards those that decoding ends at */
    int64_t read;           /* words read; -1 if they ran out, -2 if another tile's did before */
} nwc_tile;

/* How integers become weights: value of (class, integer) * scale of column * scale of row. */
typedef struct {
    const int16_t *integers;       /* [columns, chunks, 16], `step` elements from column to column */
    const uint8_t *column_classes; /* [columns] */
    const uint8_t *row_classes;    /* [rows] */
    const float *column_scales;    /* [columns] */
    const float *row_scales;       /* [rows] */
    const float *values;           /* [classes, count], of the integers first, first + 1, ... */
    const float *steps;            /* [16] by class if a value is integer * step; else NULL */
    unsigned char *out; /* of (row r, column c): element r stride + c, or c stride + r */
    int64_t columns;
    int64_t step;
    int64_t rows; /* without padding, which is never written */
    int64_t count;
    int64_t stride; /* in elements */
    int32_t first;
    int32_t dtype; /* DTYPE_... */
    int32_t by_column; /* out is column by column */
} nwc_synthesis;

enum { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

/* A whole matrix: tiles stand in strips of `tile_columns` columns from left to right, those of a
   strip from top to bottom. Tiles that lie side by side, BAND of them, are decoded together. */
typedef struct {
    const nwc_tables *tables;
    const nwc_synthesis *synthesis; /* of all of it; `integers` and `step` are not read */
    const unsigned char *words;     /* of all tiles, as `nwc_tile` has them */
    const unsigned char *index;     /* [tiles] of INDEX_BYTES, as the stream has them */
    const int64_t *starts;          /* [tiles] first word of each */
    const int64_t *places;          /* [patches] column * 16 chunks + row, ascending */
    const int64_t *values;          /* [patches] integers */
    int64_t patches;
    int64_t chunks; /* of a column, padding included: row_classes has as many rows */
    int64_t tile_columns;
    int64_t tile_chunks;
} nwc_matrix;

/* Number of words, their CRC32C, states: 32-bit, little-endian. */
enum { BAND = 4, INDEX_BYTES = 4 * (2 + LANES) };

NWC_EXPORT int nwc_version(void);
NWC_EXPORT int nwc_level(void);
NWC_EXPORT void nwc_fill_entries(const uint16_t *frequencies, const int64_t *sizes, int64_t tables,
                                 uint32_t *entries);
NWC_EXPORT int nwc_decode(int level, const nwc_tables *tables, nwc_tile *tiles, int64_t count,
                          const uint8_t *rows, int64_t chunks);
NWC_EXPORT void nwc_prepare_output(void *start, size_t size);
NWC_EXPORT int nwc_synthesise(int level, const nwc_synthesis *synthesis);
NWC_EXPORT int64_t nwc_bands(const nwc_matrix *matrix);
NWC_EXPORT int64_t nwc_scratch_size(const nwc_matrix *matrix);
NWC_EXPORT int64_t nwc_restore(int level, const nwc_matrix *matrix, int64_t *next, void *scratch);

#endif
