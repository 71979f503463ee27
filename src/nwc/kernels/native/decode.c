/* rANS decoding: tables, the decoder in plain C, and which decoder runs. The oracle is
   nwc.coding.tiling.decode_tile. */

#include "decode.h"

enum { MOST_IN_FLIGHT = 8 };

void nwc_fill_entries(const uint16_t *frequencies, const int64_t *sizes, int64_t tables,
                      uint32_t *entries) {
    for (int64_t t = 0; t < tables; t++, entries += TOTAL) {
        uint32_t slot = 0;
        for (int64_t symbol = 0; symbol < sizes[t]; symbol++) {
            uint32_t f = *frequencies++;
            for (uint32_t offset = 0; offset < f && slot < TOTAL; offset++)
                entries[slot++] = (f - 1) << 20 | (uint32_t)symbol << PRECISION | offset;
        }
    }
}

NWC_INLINE void run(const plan *plan, cursor *c, int64_t columns, const int trellis,
                    const int by_row) {
    const nwc_tables *t = plan->tables;
    const unsigned char *next = c->next;
    uint32_t x[LANES], path[LANES];
    memcpy(x, c->states, sizeof x);
    memcpy(path, c->paths, sizeof path);
    for (int64_t column = c->column; column < c->column + columns; column++) {
        const uint32_t class = c->tile->classes[column];
        int16_t *out = c->tile->integers + column * c->tile->stride;
        for (int64_t chunk = 0; chunk < plan->chunks; chunk++, out += LANES) {
            if (chunk % BLOCK == 0) next = nwc_secure(c, next);
            for (int lane = 0; lane < LANES; lane++) {
                uint32_t group = class, parity = 0;
                if (by_row) group += plan->rows[chunk * LANES + lane];
                if (trellis) parity = path[lane] & 1;
                uint32_t place = (2 * group + parity) * LANES + (uint32_t)lane;
                uint32_t entry = t->entries[t->base[place] + (x[lane] & (TOTAL - 1))];
                uint32_t symbol = (entry >> PRECISION) & 0xFF;
                x[lane] = ((entry >> 20) + 1) * (x[lane] >> PRECISION) + (entry & (TOTAL - 1));
                int32_t integer = t->first[place] + (int32_t)(symbol << trellis);
                out[lane] = (int16_t)integer;
                if (trellis) {
                    /* Without branches, which would be guessed wrong half the time. */
                    uint32_t odd = 0 - ((uint32_t)integer >> 1 & 1);
                    path[lane] = plan->turn[path[lane]] ^ (odd & (uint32_t)t->on_bit);
                }
            }
            for (int lane = 0; lane < LANES; lane++) {
                const uint32_t asks = 0 - (uint32_t)(x[lane] < LOWER);
                x[lane] = x[lane] << (asks & 16) | (asks & nwc_word(next));
                next += asks & 2;
            }
            if (next > c->end) {
                c->failed = 1;
                return;
            }
        }
    }
    c->next = next;
    c->column += columns;
    memcpy(c->states, x, sizeof x);
    memcpy(c->paths, path, sizeof path);
}

void nwc_advance_plain(const plan *plan, cursor **cursors, int count, int64_t columns) {
    const int by_row = plan->layout != BY_COLUMN;
    for (int i = 0; i < count; i++) {
        cursor *c = cursors[i];
        if (plan->tables->states)
            by_row ? run(plan, c, columns, 1, 1) : run(plan, c, columns, 1, 0);
        else
            by_row ? run(plan, c, columns, 0, 1) : run(plan, c, columns, 0, 0);
        if (c->failed) return;
    }
}

void nwc_make_plan(plan *plan, const nwc_tables *t, const uint8_t *rows, int64_t chunks) {
    plan->tables = t;
    plan->rows = rows;
    plan->chunks = chunks;
    plan->layout = BY_COLUMN;
    for (int64_t i = 0; i < chunks * LANES && plan->layout == BY_COLUMN; i++)
        if (rows[i]) plan->layout = SHARED;
    for (int i = 0; i < 2 * t->classes; i++) {
        plan->shared_base[i] = t->base[i * LANES];
        plan->shared_first[i] = t->first[i * LANES];
        for (int lane = 1; lane < LANES && plan->layout == SHARED; lane++)
            if (t->base[i * LANES + lane] != plan->shared_base[i]) plan->layout = ANY;
    }
    for (int i = 2 * t->classes; i < 2 * LANES; i++)
        plan->shared_base[i] = 0, plan->shared_first[i] = 0;
    for (uint32_t path = 0; path < 2 * LANES; path++)
        plan->turn[path] = path >> 1 ^ (path & 1 ? (uint32_t)t->on_parity : 0);
}

void nwc_begin(cursor *c, nwc_tile *tile) {
    tile->read = -2;
    c->tile = tile;
    c->column = 0;
    c->next = tile->words;
    c->end = tile->words + 2 * tile->word_count;
    c->in_tail = c->failed = 0;
    memcpy(c->states, tile->states, sizeof c->states);
    memset(c->paths, 0, sizeof c->paths);
}

void nwc_finish(cursor *c) {
    nwc_tile *tile = c->tile;
    tile->read = tile->word_count - (c->end - c->next) / 2;
    memcpy(tile->states, c->states, sizeof c->states);
}

advance *nwc_advance_at(int level) {
#if defined(__x86_64__)
    if (level == LEVEL_AVX2) return nwc_advance_avx2;
    if (level == LEVEL_AVX512) return nwc_advance_avx512;
#else
    (void)level;
#endif
    return nwc_advance_plain;
}

/* Returns 0, or 1 if the words of a tile run out: its `read` is then -1. */
int nwc_decode(int level, const nwc_tables *tables, nwc_tile *tiles, int64_t count,
               const uint8_t *rows, int64_t chunks) {
    advance *step = nwc_advance_at(level);
    plan plan;
    nwc_make_plan(&plan, tables, rows, chunks);
    cursor cursors[MOST_IN_FLIGHT], *live[MOST_IN_FLIGHT];
    for (int64_t start = 0; start < count; start += MOST_IN_FLIGHT) {
        int left = (int)(count - start < MOST_IN_FLIGHT ? count - start : MOST_IN_FLIGHT);
        for (int i = 0; i < left; i++) {
            nwc_begin(&cursors[i], &tiles[start + i]);
            live[i] = &cursors[i];
        }
        while (left) {
            int64_t columns = live[0]->tile->columns - live[0]->column;
            for (int i = 1; i < left; i++) {
                int64_t others = live[i]->tile->columns - live[i]->column;
                columns = others < columns ? others : columns;
            }
            step(&plan, live, left, columns);
            int kept = 0;
            for (int i = 0; i < left; i++) {
                if (live[i]->failed) {
                    live[i]->tile->read = -1;
                    return 1;
                }
                if (live[i]->column < live[i]->tile->columns)
                    live[kept++] = live[i];
                else
                    nwc_finish(live[i]);
            }
            left = kept;
        }
    }
    return 0;
}
