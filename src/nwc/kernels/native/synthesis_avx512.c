/* Synthesis with AVX-512: 16 weights a step, along rows or along columns as the output lies. */

#if defined(__x86_64__)

#include <immintrin.h>

#include "synthesis.h"
#include "transpose.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c")))

TARGET NWC_INLINE void store(unsigned char *place, __m512 value, const int dtype) {
    if (dtype == DTYPE_F32) {
        _mm512_storeu_ps(place, value);
    } else if (dtype == DTYPE_F16) {
        __m256i half = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256((__m256i *)place, half);
    } else {
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
        const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        sum = _mm512_mask_mov_epi32(sum, nan, _mm512_set1_epi32(0x7FC00000));
        const __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
        _mm256_storeu_si256((__m256i *)place, half);
    }
}

/* The values of 16 integers; `classes` are theirs. */
TARGET NWC_INLINE __m512 look_up(const nwc_synthesis *s, __m256i integers, __m512i classes,
                                 __m512 steps, const int linear) {
    const __m512i z = _mm512_cvtepi16_epi32(integers);
    if (linear) return _mm512_mul_ps(_mm512_cvtepi32_ps(z), _mm512_permutexvar_ps(classes, steps));
    const __m512i start = _mm512_mullo_epi32(classes, _mm512_set1_epi32((int)s->count));
    const __m512i place = _mm512_add_epi32(_mm512_sub_epi32(start, _mm512_set1_epi32(s->first)), z);
    return _mm512_i32gather_ps(place, s->values, 4);
}

TARGET NWC_INLINE void by_column(const nwc_synthesis *s, int64_t rows, __m512 steps,
                                 const int linear, const int dtype) {
    for (int64_t c = 0; c < s->columns; c++) {
        const __m512 scale = _mm512_set1_ps(s->column_scales[c]);
        const __m512i class = _mm512_set1_epi32(s->column_classes[c]);
        const int16_t *integers = s->integers + c * s->chunks * LANES;
        for (int64_t r = 0; r < rows; r += LANES) {
            const __m128i of_rows = _mm_loadu_si128((const __m128i *)(s->row_classes + r));
            const __m512i classes = _mm512_add_epi32(class, _mm512_cvtepu8_epi32(of_rows));
            const __m256i z = _mm256_loadu_si256((const __m256i *)(integers + r));
            __m512 value = look_up(s, z, classes, steps, linear);
            value = _mm512_mul_ps(value, scale);
            value = _mm512_mul_ps(value, _mm512_loadu_ps(s->row_scales + r));
            store(nwc_place(s, r, c), value, dtype);
        }
    }
}

TARGET NWC_INLINE void by_row(const nwc_synthesis *s, int64_t rows, int64_t columns, __m512 steps,
                              const int linear, const int dtype) {
    for (int64_t r = 0; r < rows; r += LANES)
        for (int64_t c = 0; c < columns; c += LANES) {
            __m256i square[LANES];
            const int16_t *integers = s->integers + c * s->chunks * LANES + r;
            for (int i = 0; i < LANES; i++, integers += s->chunks * LANES)
                square[i] = _mm256_loadu_si256((const __m256i *)integers);
            nwc_transpose(square);
            const __m512 scale = _mm512_loadu_ps(s->column_scales + c);
            const __m128i of_columns = _mm_loadu_si128((const __m128i *)(s->column_classes + c));
            const __m512i class = _mm512_cvtepu8_epi32(of_columns);
            unsigned char *place = nwc_place(s, r, c);
            const int64_t next = s->stride * (dtype == DTYPE_F32 ? 4 : 2);
            for (int i = 0; i < LANES; i++, place += next) {
                const __m512i of_row = _mm512_set1_epi32(s->row_classes[r + i]);
                const __m512i classes = _mm512_add_epi32(class, of_row);
                __m512 value = look_up(s, square[i], classes, steps, linear);
                value = _mm512_mul_ps(value, scale);
                value = _mm512_mul_ps(value, _mm512_set1_ps(s->row_scales[r + i]));
                store(place, value, dtype);
            }
        }
}

TARGET NWC_INLINE void whole(const nwc_synthesis *s, const int linear, const int dtype) {
    const int64_t rows = s->rows & -LANES, columns = s->columns & -LANES;
    const __m512 steps = linear ? _mm512_loadu_ps(s->steps) : _mm512_setzero_ps();
    if (s->by_column) {
        by_column(s, rows, steps, linear, dtype);
    } else {
        by_row(s, rows, columns, steps, linear, dtype);
        nwc_synthesise_part(s, columns, s->columns, 0, rows);
    }
    nwc_synthesise_part(s, 0, s->columns, rows, s->rows);
}

#define FUNCTION(name, linear, dtype)                                                    \
    TARGET static void name(const nwc_synthesis *s) { whole(s, linear, dtype); }

FUNCTION(look_up_f32, 0, DTYPE_F32)
FUNCTION(look_up_bf16, 0, DTYPE_BF16)
FUNCTION(look_up_f16, 0, DTYPE_F16)
FUNCTION(linear_f32, 1, DTYPE_F32)
FUNCTION(linear_bf16, 1, DTYPE_BF16)
FUNCTION(linear_f16, 1, DTYPE_F16)

void nwc_synthesise_avx512(const nwc_synthesis *s) {
    static synthesise *const functions[2][3] = {{look_up_f32, look_up_bf16, look_up_f16},
                                                {linear_f32, linear_bf16, linear_f16}};
    functions[s->steps != NULL][s->dtype](s);
}

#else
typedef int nwc_no_avx512; /* a file must not be empty */
#endif
