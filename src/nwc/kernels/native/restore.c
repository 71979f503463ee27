/* From the words of a matrix to its weights. Several threads share the work: each takes the next
   band of tiles, decodes some columns into memory of its own that stays in its cache, patches
   them and writes their weights, until no band is left. */

#include "crc.h"
#include "decode.h"
#include "synthesis.h"

enum { CACHED = 1 << 19, FEW = 2 * LANES };

typedef struct {
    int64_t column, columns, chunk, chunks;
    nwc_tile coded[BAND];
    int64_t numbers[BAND];
    uint32_t checksums[BAND];
    int count;
} band;

static uint32_t u32(const unsigned char *at) {
    return nwc_word(at) | nwc_word(at + 2) << 16;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Integers from one column to the next: an odd number of cache lines, so that whoever reads across
   columns finds each in a place of its own, not all in one set of the cache. */
static int64_t stride_of(const nwc_matrix *m) {
    return LANES * (m->tile_chunks + (m->tile_chunks % 4 ? 0 : 2));
}

/* Columns of each tile that are decoded before their weights are written: all if the cache holds
   them, else lines of the output. */
static int64_t slab_of(const nwc_matrix *m) {
    const int64_t most = CACHED / (BAND * 2 * stride_of(m)) & -FEW;
    return least(m->tile_columns, most > FEW ? most : FEW);
}

int64_t nwc_scratch_size(const nwc_matrix *m) { return BAND * 2 * stride_of(m) * slab_of(m); }

static void find_band(const nwc_matrix *m, int64_t number, band *b) {
    const int64_t strips = up(m->synthesis->columns, m->tile_columns);
    const int64_t down = up(m->chunks, m->tile_chunks);
    const int64_t strip = number / down * BAND, row = number % down;
    b->column = strip * m->tile_columns;
    b->chunk = row * m->tile_chunks;
    b->chunks = least(m->tile_chunks, m->chunks - b->chunk);
    b->count = (int)least(BAND, strips - strip);
    b->columns = least(b->count * m->tile_columns, m->synthesis->columns - b->column);
    for (int i = 0; i < b->count; i++) {
        const int64_t tile = (strip + i) * down + row, column = i * m->tile_columns;
        const unsigned char *entry = m->index + tile * INDEX_BYTES;
        nwc_tile *coded = &b->coded[i];
        b->numbers[i] = tile;
        b->checksums[i] = u32(entry + 4);
        coded->words = m->words + 2 * m->starts[tile];
        coded->word_count = u32(entry);
        coded->classes = m->synthesis->column_classes + b->column + column;
        coded->columns = least(m->tile_columns, b->columns - column);
        for (int lane = 0; lane < LANES; lane++)
            coded->states[lane] = u32(entry + 8 + 4 * lane);
    }
}

int64_t nwc_bands(const nwc_matrix *m) {
    return up(up(m->synthesis->columns, m->tile_columns), BAND) * up(m->chunks, m->tile_chunks);
}

/* Number of the first tile whose words are not those that the index was made for; -1 if none. */
static int64_t mismatch(int level, const band *b) {
    const unsigned char *starts[BAND];
    int64_t sizes[BAND];
    uint32_t found[BAND];
    for (int i = 0; i < b->count; i++) {
        starts[i] = b->coded[i].words;
        sizes[i] = 2 * b->coded[i].word_count;
    }
    nwc_crc32c(level, starts, sizes, b->count, found);
    for (int i = 0; i < b->count; i++)
        if (found[i] != b->checksums[i]) return b->numbers[i];
    return -1;
}

/* Puts the patched integers of a rectangle into their places. */
static void patch(const nwc_matrix *m, int16_t *integers, int64_t column, int64_t columns,
                  const band *b, int64_t stride) {
    const int64_t height = m->chunks * LANES, top = b->chunk * LANES, rows = b->chunks * LANES;
    int64_t low = 0, high = m->patches;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (m->places[middle] < column * height)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < m->patches && m->places[low] < (column + columns) * height; low++) {
        const int64_t row = m->places[low] % height - top;
        if (row < 0 || row >= rows) continue;
        integers[(m->places[low] / height - column) * stride + row] = (int16_t)m->values[low];
    }
}

static void put(int level, const nwc_matrix *m, int16_t *integers, int64_t column,
                  int64_t columns, const band *b, int64_t stride) {
    const int64_t row = b->chunk * LANES;
    patch(m, integers, column, columns, b, stride);
    nwc_synthesis s = *m->synthesis;
    s.out = nwc_place(&s, row, column);
    s.integers = integers;
    s.step = stride;
    s.column_classes += column;
    s.column_scales += column;
    s.row_classes += row;
    s.row_scales += row;
    s.columns = columns;
    s.rows = least(b->chunks * LANES, m->synthesis->rows - row);
    nwc_synthesise(level, &s);
}

/* Number of a tile whose words are damaged; -1 if there is none. */
static int64_t restore_band(int level, const nwc_matrix *m, const plan *plan, band *b,
                            int16_t *scratch) {
    const int64_t stride = stride_of(m), slab = slab_of(m);
    advance *step = nwc_advance_at(level);
    cursor cursors[BAND], *live[BAND];
    for (int i = 0; i < b->count; i++) {
        b->coded[i].integers = scratch + i * slab * stride;
        b->coded[i].stride = stride;
        nwc_begin(&cursors[i], &b->coded[i]);
    }
    for (int64_t done = 0; done < m->tile_columns; done += slab) {
        /* Only the last tile may be narrower: the others then go on without it. */
        const int64_t wanted = least(slab, m->tile_columns - done);
        const int64_t last = b->coded[b->count - 1].columns;
        const int64_t together = least(wanted, last);
        for (int i = 0; i < b->count; i++) live[i] = &cursors[i];
        if (together) step(plan, live, b->count, together);
        for (int i = 0; i < b->count; i++)
            if (cursors[i].failed) return b->numbers[i];
        if (together < wanted) step(plan, live, b->count - 1, wanted - together);
        for (int i = 0; i < b->count - 1; i++)
            if (cursors[i].failed) return b->numbers[i];
        if (slab == m->tile_columns)
            put(level, m, scratch, b->column, b->columns, b, stride);
        else
            for (int i = 0; i < b->count; i++)
                if (cursors[i].column)
                    put(level, m, b->coded[i].integers, b->column + i * m->tile_columns + done,
                          cursors[i].column, b, stride);
        for (int i = 0; i < b->count; i++) {
            /* What is left of a tile is a tile that begins in the middle of its words. */
            b->coded[i].classes += cursors[i].column;
            b->coded[i].columns -= cursors[i].column;
            cursors[i].column = 0;
        }
    }
    for (int i = 0; i < b->count; i++) {
        nwc_finish(&cursors[i]);
        if (b->coded[i].read != b->coded[i].word_count) return b->numbers[i];
        for (int lane = 0; lane < LANES; lane++)
            if (b->coded[i].states[lane] != LOWER) return b->numbers[i];
    }
    return -1;
}

/* Takes bands from `*next` on, which all threads share, until none is left. Returns -1, or the
   number of a damaged tile; no band is then begun any more. */
int64_t nwc_restore(int level, const nwc_matrix *m, int64_t *next, void *scratch) {
    const int64_t bands = nwc_bands(m);
    int64_t chunk = -1, bad = -1;
    plan plan;
    for (;;) {
        const int64_t number = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (number >= bands) return bad;
        band b;
        find_band(m, number, &b);
        if (b.chunk != chunk) {
            chunk = b.chunk;
            nwc_make_plan(&plan, m->tables, m->synthesis->row_classes + chunk * LANES, b.chunks);
        }
        bad = mismatch(level, &b);
        if (bad < 0) bad = restore_band(level, m, &plan, &b, scratch);
        if (bad >= 0) __atomic_store_n(next, bands, __ATOMIC_RELAXED);
    }
}
