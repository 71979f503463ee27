/* rANS decoding with AVX2: the 16 states of a tile are two registers. */

#if defined(__x86_64__)

#include <immintrin.h>

#include "decode.h"

#define TARGET __attribute__((target("avx2,popcnt")))
#define UNROLL _Pragma("GCC unroll 4")

/* For every mask of 8 lanes: which of the words loaded each lane gets, a byte a lane. */
static uint64_t expansion[256];

__attribute__((constructor)) static void make_expansion(void) {
    for (int mask = 0; mask < 256; mask++) {
        uint64_t word = 0;
        for (int lane = 0; lane < 8; lane++)
            if (mask >> lane & 1) expansion[mask] |= word++ << 8 * lane;
    }
}

TARGET NWC_INLINE void run(const plan *plan, cursor *c, int64_t columns, const int trellis,
                           const int by_row) {
    const nwc_tables *t = plan->tables;
    const int *entries = (const int *)t->entries, *bases = (const int *)t->base;
    const __m256i slots = _mm256_set1_epi32(TOTAL - 1), zero = _mm256_setzero_si256();
    const __m256i one = _mm256_set1_epi32(1), two = _mm256_set1_epi32(2);
    const __m256i symbols = _mm256_set1_epi32(trellis ? 0x1FE : 0xFF);
    const __m256i on_bit = _mm256_set1_epi32(t->on_bit);
    const __m256i on_parity = _mm256_set1_epi32(t->on_parity);
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const unsigned char *next = c->next;
    __m256i x[2], path[2];
    UNROLL for (int h = 0; h < 2; h++) {
        x[h] = _mm256_loadu_si256((const __m256i *)(c->states + 8 * h));
        path[h] = _mm256_loadu_si256((const __m256i *)(c->paths + 8 * h));
    }
    for (int64_t column = 0; column < columns; column++) {
        int16_t *out = c->tile->integers + (c->column + column) * c->tile->stride;
        const int place0 = 2 * LANES * c->tile->classes[c->column + column];
        for (int64_t chunk = 0; chunk < plan->chunks; chunk += BLOCK) {
            const int64_t stop = chunk + BLOCK < plan->chunks ? chunk + BLOCK : plan->chunks;
            next = nwc_secure(c, next);
            for (int64_t at = chunk; at < stop; at++) {
                __m256i symbol[2];
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i base, first;
                    if (by_row || trellis) {
                        __m256i place = _mm256_add_epi32(lanes, _mm256_set1_epi32(place0 + 8 * h));
                        if (by_row) {
                            const __m128i *classes =
                                (const __m128i *)(plan->rows + at * LANES + 8 * h);
                            __m256i row = _mm256_cvtepu8_epi32(_mm_loadl_epi64(classes));
                            place = _mm256_add_epi32(place, _mm256_slli_epi32(row, 5));
                        }
                        if (trellis) {
                            __m256i odd = _mm256_and_si256(path[h], one);
                            place = _mm256_add_epi32(place, _mm256_slli_epi32(odd, 4));
                        }
                        base = _mm256_i32gather_epi32(bases, place, 4);
                        first = _mm256_i32gather_epi32(t->first, place, 4);
                    } else {
                        base = _mm256_loadu_si256((const __m256i *)(bases + place0 + 8 * h));
                        first = _mm256_loadu_si256((const __m256i *)(t->first + place0 + 8 * h));
                    }
                    const __m256i slot =
                        _mm256_add_epi32(base, _mm256_and_si256(x[h], slots));
                    const __m256i entry = _mm256_i32gather_epi32(entries, slot, 4);
                    const __m256i high = _mm256_srli_epi32(x[h], PRECISION);
                    const __m256i rest = _mm256_add_epi32(_mm256_and_si256(entry, slots), high);
                    const __m256i f = _mm256_srli_epi32(entry, 20);
                    x[h] = _mm256_add_epi32(_mm256_mullo_epi32(f, high), rest);
                    const __m256i asks = _mm256_cmpeq_epi32(_mm256_srli_epi32(x[h], 16), zero);
                    const unsigned mask =
                        (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(asks));
                    const __m256i words = _mm256_cvtepu16_epi32(
                        _mm_loadu_si128((const __m128i *)next));
                    const __m256i which = _mm256_cvtepu8_epi32(
                        _mm_loadl_epi64((const __m128i *)&expansion[mask]));
                    const __m256i each = _mm256_permutevar8x32_epi32(words, which);
                    const __m256i filled = _mm256_or_si256(_mm256_slli_epi32(x[h], 16), each);
                    x[h] = _mm256_blendv_epi8(x[h], filled, asks);
                    next += 2 * __builtin_popcount(mask);
                    symbol[h] = _mm256_srli_epi32(entry, trellis ? 11 : 12);
                    symbol[h] = _mm256_add_epi32(_mm256_and_si256(symbol[h], symbols), first);
                    if (trellis) {
                        const __m256i odd = _mm256_cmpeq_epi32(
                            _mm256_and_si256(path[h], one), one);
                        const __m256i bit = _mm256_cmpeq_epi32(
                            _mm256_and_si256(symbol[h], two), two);
                        path[h] = _mm256_xor_si256(_mm256_srli_epi32(path[h], 1),
                                                   _mm256_and_si256(odd, on_parity));
                        path[h] = _mm256_xor_si256(path[h], _mm256_and_si256(bit, on_bit));
                    }
                }
                /* Low halves, as integers wrap; packing would saturate. */
                const __m256i even = _mm256_blend_epi16(symbol[0], zero, 0xAA);
                const __m256i odd = _mm256_blend_epi16(symbol[1], zero, 0xAA);
                const __m256i both = _mm256_packus_epi32(even, odd);
                _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(both, 0xD8));
                out += LANES;
            }
            if (next > c->end) {
                c->failed = 1;
                return;
            }
        }
    }
    c->next = next;
    c->column += columns;
    UNROLL for (int h = 0; h < 2; h++) {
        _mm256_storeu_si256((__m256i *)(c->states + 8 * h), x[h]);
        _mm256_storeu_si256((__m256i *)(c->paths + 8 * h), path[h]);
    }
}

TARGET void nwc_advance_avx2(const plan *plan, cursor **cursors, int count, int64_t columns) {
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

#else
typedef int nwc_no_avx2; /* a file must not be empty */
#endif
