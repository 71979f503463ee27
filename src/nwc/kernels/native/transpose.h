/* A square of 16 x 16 integers turned over, in AVX2. */

#ifndef NWC_TRANSPOSE_H
#define NWC_TRANSPOSE_H

#include <immintrin.h>

#include "nwc.h"

/* One round of interleaving: rows i and i + 4 of every 8, in units of `bits`. */
#define NWC_TURN(bits, from, to, step)                                                       \
    for (int i = 0; i < 16; i += 2 * step)                                                   \
        for (int k = 0; k < step; k++) {                                                     \
            to[i + 2 * k] = _mm256_unpacklo_epi##bits(from[i + k], from[i + k + step]);      \
            to[i + 2 * k + 1] = _mm256_unpackhi_epi##bits(from[i + k], from[i + k + step]);  \
        }

/* rows[r] lane c becomes rows[c] lane r. */
__attribute__((target("avx2"))) NWC_INLINE void nwc_transpose(__m256i rows[16]) {
    __m256i a[16], b[16];
    /* Three rounds turn over the four 8 x 8 squares: each interleaves row k with row k + 4. */
    _Pragma("GCC unroll 16") NWC_TURN(16, rows, a, 4);
    _Pragma("GCC unroll 16") NWC_TURN(16, a, b, 4);
    _Pragma("GCC unroll 16") NWC_TURN(16, b, a, 4);
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) {
        rows[i] = _mm256_permute2x128_si256(a[i], a[i + 8], 0x20);
        rows[i + 8] = _mm256_permute2x128_si256(a[i], a[i + 8], 0x31);
    }
}

#endif
