/* What the decoders of all instruction sets share: a place in a tile, and reading words safely. */

#ifndef NWC_DECODE_H
#define NWC_DECODE_H

#include <string.h>

#include "nwc.h"

/* Steps between two looks at how many words are left. A step loads 16 words and uses some. */
enum { BLOCK = 8, STEP_BYTES = 2 * LANES, BLOCK_BYTES = BLOCK * STEP_BYTES };

typedef struct {
    nwc_tile *tile;
    int64_t column; /* to be decoded next */
    const unsigned char *next, *end;
    uint32_t states[LANES], paths[LANES];
    int in_tail, failed;
    unsigned char tail[2 * BLOCK_BYTES];
} cursor;

/* Which tables a step chooses between. */
typedef enum {
    BY_COLUMN, /* rows have no classes: the column decides, for each lane */
    SHARED,    /* the lanes of a class share a table */
    ANY,
} layout;

typedef struct {
    const nwc_tables *tables;
    const uint8_t *rows; /* [chunks, 16] classes */
    int64_t chunks;
    layout layout;
    uint32_t shared_base[2 * LANES]; /* of (class, parity) in layout SHARED */
    int32_t shared_first[2 * LANES];
    uint32_t turn[2 * LANES]; /* next state of the trellis after an even symbol, by state */
} plan;

/* Decodes `columns` columns of `count` tiles, or stops at the first whose words run out. */
typedef void advance(const plan *plan, cursor **cursors, int count, int64_t columns);

advance nwc_advance_plain, nwc_advance_avx2, nwc_advance_avx512;

advance *nwc_advance_at(int level);
void nwc_make_plan(plan *plan, const nwc_tables *tables, const uint8_t *rows, int64_t chunks);
void nwc_begin(cursor *c, nwc_tile *tile);
void nwc_finish(cursor *c);

/* Makes a block of steps safe to read: near the end of the words it goes on in a padded copy. */
NWC_INLINE const unsigned char *nwc_secure(cursor *c, const unsigned char *next) {
    ptrdiff_t left = c->end - next;
    if (left < BLOCK_BYTES && !c->in_tail) {
        memset(c->tail, 0, sizeof c->tail);
        memcpy(c->tail, next, (size_t)left);
        next = c->tail;
        c->end = c->tail + left;
        c->in_tail = 1;
    }
    return next;
}

NWC_INLINE uint32_t nwc_word(const unsigned char *at) { return at[0] | (uint32_t)at[1] << 8; }

#endif
