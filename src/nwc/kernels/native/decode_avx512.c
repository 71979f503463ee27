/* rANS decoding with AVX-512: the 16 states of a tile are one register.

   A step waits some 60 cycles for its gather, product and refill, and then has little to do: up
   to four tiles take turns. Words are handed out by expansion of 16 loaded ones under the mask of
   lanes that ask, which AVX512F does on 32-bit lanes; VBMI2 would save nothing. */

#if defined(__x86_64__)

#include <immintrin.h>

#include "decode.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,popcnt,bmi2")))
#define UNROLL _Pragma("GCC unroll 8")

enum { OR_AND = 0xF8 }; /* ternary logic: a | b & c */

TARGET NWC_INLINE void run(const plan *plan, cursor **cursors, int64_t columns, const int width,
                           const int trellis, const int layout) {
    const nwc_tables *t = plan->tables;
    const int64_t chunks = plan->chunks;
    const __m512i slots = _mm512_set1_epi32(TOTAL - 1), lower = _mm512_set1_epi32(LOWER);
    const __m512i one = _mm512_set1_epi32(1), two = _mm512_set1_epi32(2);
    const __m512i symbols = _mm512_set1_epi32(trellis ? 0x1FE : 0xFF);
    const __m512i on_bit = _mm512_set1_epi32(t->on_bit);
    const __m512i turn0 = _mm512_loadu_si512(plan->turn);
    const __m512i turn1 = _mm512_loadu_si512(plan->turn + LANES);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i bases0 = _mm512_loadu_si512(plan->shared_base);
    const __m512i bases1 = _mm512_loadu_si512(plan->shared_base + LANES);
    const __m512i firsts0 = _mm512_loadu_si512(plan->shared_first);
    const __m512i firsts1 = _mm512_loadu_si512(plan->shared_first + LANES);
    __m512i x[4], path[4], base0[4], base1[4], first0[4], first1[4], group[4];
    const unsigned char *next[4];
    int16_t *out[4];
    UNROLL for (int j = 0; j < width; j++) {
        cursor *c = cursors[j];
        x[j] = _mm512_loadu_si512(c->states);
        path[j] = _mm512_loadu_si512(c->paths);
        next[j] = c->next;
        base0[j] = base1[j] = first0[j] = first1[j] = group[j] = _mm512_setzero_si512();
    }
    for (int64_t column = 0; column < columns; column++) {
        UNROLL for (int j = 0; j < width; j++) {
            const nwc_tile *tile = cursors[j]->tile;
            const int64_t at = cursors[j]->column + column;
            const int class = tile->classes[at];
            out[j] = tile->integers + at * tile->stride;
            const int place = 2 * class * LANES;
            if (layout == BY_COLUMN) {
                base0[j] = _mm512_loadu_si512(t->base + place);
                first0[j] = _mm512_loadu_si512(t->first + place);
                if (trellis) {
                    base1[j] = _mm512_loadu_si512(t->base + place + LANES);
                    first1[j] = _mm512_loadu_si512(t->first + place + LANES);
                }
            } else if (layout == SHARED) {
                group[j] = _mm512_set1_epi32(2 * class);
            } else {
                group[j] = _mm512_add_epi32(_mm512_set1_epi32(place), lanes);
            }
        }
        for (int64_t chunk = 0; chunk < chunks; chunk += BLOCK) {
            const int64_t stop = chunk + BLOCK < chunks ? chunk + BLOCK : chunks;
            UNROLL for (int j = 0; j < width; j++) next[j] = nwc_secure(cursors[j], next[j]);
            for (int64_t at = chunk; at < stop; at++) {
                __m512i row = _mm512_setzero_si512();
                if (layout != BY_COLUMN) {
                    const __m128i *classes = (const __m128i *)(plan->rows + at * LANES);
                    row = _mm512_cvtepu8_epi32(_mm_loadu_si128(classes));
                    row = _mm512_slli_epi32(row, layout == SHARED ? 1 : 5);
                }
                UNROLL for (int j = 0; j < width; j++) {
                    __m512i base = base0[j], first = first0[j];
                    if (layout == BY_COLUMN && trellis) {
                        const __mmask16 odd = _mm512_test_epi32_mask(path[j], one);
                        base = _mm512_mask_mov_epi32(base, odd, base1[j]);
                        first = _mm512_mask_mov_epi32(first, odd, first1[j]);
                    } else if (layout == SHARED) {
                        __m512i place = _mm512_add_epi32(row, group[j]);
                        if (trellis)
                            place = _mm512_ternarylogic_epi32(place, path[j], one, OR_AND);
                        base = _mm512_permutex2var_epi32(bases0, place, bases1);
                        first = _mm512_permutex2var_epi32(firsts0, place, firsts1);
                    } else if (layout == ANY) {
                        __m512i place = _mm512_add_epi32(row, group[j]);
                        if (trellis) {
                            __m512i odd = _mm512_slli_epi32(_mm512_and_si512(path[j], one), 4);
                            place = _mm512_add_epi32(place, odd);
                        }
                        base = _mm512_i32gather_epi32(place, t->base, 4);
                        first = _mm512_i32gather_epi32(place, t->first, 4);
                    }
                    const __m512i slot = _mm512_ternarylogic_epi32(base, x[j], slots, OR_AND);
                    const __m512i entry = _mm512_i32gather_epi32(slot, t->entries, 4);
                    /* f (x >> 12) + offset, with f - 1 at hand */
                    const __m512i high = _mm512_srli_epi32(x[j], PRECISION);
                    const __m512i rest = _mm512_add_epi32(_mm512_and_si512(entry, slots), high);
                    const __m512i f = _mm512_srli_epi32(entry, 20);
                    x[j] = _mm512_add_epi32(_mm512_mullo_epi32(f, high), rest);
                    const __mmask16 asks = _mm512_cmplt_epu32_mask(x[j], lower);
                    const __m256i words = _mm256_loadu_si256((const __m256i *)next[j]);
                    const __m512i each =
                        _mm512_maskz_expand_epi32(asks, _mm512_cvtepu16_epi32(words));
                    x[j] = _mm512_or_si512(_mm512_mask_slli_epi32(x[j], asks, x[j], 16), each);
                    next[j] += 2 * _mm_popcnt_u32(asks);
                    __m512i symbol = _mm512_srli_epi32(entry, trellis ? 11 : 12);
                    symbol = _mm512_add_epi32(_mm512_and_si512(symbol, symbols), first);
                    _mm256_storeu_si256((__m256i *)out[j], _mm512_cvtepi32_epi16(symbol));
                    out[j] += LANES;
                    if (trellis) {
                        const __mmask16 odd = _mm512_test_epi32_mask(symbol, two);
                        path[j] = _mm512_permutex2var_epi32(turn0, path[j], turn1);
                        path[j] = _mm512_mask_xor_epi32(path[j], odd, path[j], on_bit);
                    }
                }
            }
            UNROLL for (int j = 0; j < width; j++) if (next[j] > cursors[j]->end) {
                cursors[j]->failed = 1;
                return;
            }
        }
    }
    UNROLL for (int j = 0; j < width; j++) {
        cursor *c = cursors[j];
        _mm512_storeu_si512(c->states, x[j]);
        _mm512_storeu_si512(c->paths, path[j]);
        c->next = next[j];
        c->column += columns;
    }
}

#define FUNCTION(name, width, trellis, layout)                                           \
    TARGET static void name(const plan *plan, cursor **cursors, int64_t columns) {       \
        run(plan, cursors, columns, width, trellis, layout);                             \
    }
#define WIDTHS(name, trellis, layout)                                                    \
    FUNCTION(name##_1, 1, trellis, layout)                                               \
    FUNCTION(name##_2, 2, trellis, layout)                                               \
    FUNCTION(name##_4, 4, trellis, layout)

WIDTHS(scalar_by_column, 0, BY_COLUMN)
WIDTHS(scalar_shared, 0, SHARED)
WIDTHS(scalar_any, 0, ANY)
WIDTHS(trellis_by_column, 1, BY_COLUMN)
WIDTHS(trellis_shared, 1, SHARED)
WIDTHS(trellis_any, 1, ANY)

typedef void runner(const plan *plan, cursor **cursors, int64_t columns);

#define ROW(name) {name##_1, name##_2, name##_4}
static runner *const runners[2][3][3] = {
    {ROW(scalar_by_column), ROW(scalar_shared), ROW(scalar_any)},
    {ROW(trellis_by_column), ROW(trellis_shared), ROW(trellis_any)},
};

void nwc_advance_avx512(const plan *plan, cursor **cursors, int count, int64_t columns) {
    runner *const *of_width = runners[plan->tables->states != 0][plan->layout];
    for (int i = 0; i < count;) {
        const int width = count - i >= 4 ? 4 : count - i >= 2 ? 2 : 1;
        of_width[width / 2](plan, cursors + i, columns);
        for (int j = 0; j < width; j++)
            if (cursors[i + j]->failed) return;
        i += width;
    }
}

#else
typedef int nwc_no_avx512; /* a file must not be empty */
#endif
