/* Synthesis with AVX2: 16 weights a step in two halves. */

#if defined(__x86_64__)

#include <immintrin.h>

#include "synthesis.h"
#include "transpose.h"

#define TARGET __attribute__((target("avx2,f16c")))

TARGET NWC_INLINE __m256i rounded(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    sum = _mm256_blendv_epi8(sum, _mm256_set1_epi32(0x7FC00000), nan);
    return _mm256_srli_epi32(sum, 16);
}

TARGET NWC_INLINE void store(unsigned char *place, __m256 low, __m256 high, int dtype) {
    const int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if (dtype == DTYPE_F32) {
        _mm256_storeu_ps((float *)place, low);
        _mm256_storeu_ps((float *)place + 8, high);
    } else if (dtype == DTYPE_F16) {
        _mm_storeu_si128((__m128i *)place, _mm256_cvtps_ph(low, nearest));
        _mm_storeu_si128((__m128i *)place + 1, _mm256_cvtps_ph(high, nearest));
    } else {
        const __m256i both = _mm256_packus_epi32(rounded(low), rounded(high));
        _mm256_storeu_si256((__m256i *)place, _mm256_permute4x64_epi64(both, 0xD8));
    }
}

TARGET NWC_INLINE __m256 look_up(const nwc_synthesis *s, __m128i integers, __m256i classes) {
    const __m256i start = _mm256_mullo_epi32(classes, _mm256_set1_epi32((int)s->count));
    const __m256i place = _mm256_add_epi32(_mm256_sub_epi32(start, _mm256_set1_epi32(s->first)),
                                           _mm256_cvtepi16_epi32(integers));
    return _mm256_i32gather_ps(s->values, place, 4);
}

TARGET NWC_INLINE __m256i classes8(const uint8_t *at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at));
}

TARGET static void by_column(const nwc_synthesis *s, int64_t rows) {
    for (int64_t c = 0; c < s->columns; c++) {
        const __m256 scale = _mm256_set1_ps(s->column_scales[c]);
        const __m256i class = _mm256_set1_epi32(s->column_classes[c]);
        const int16_t *integers = s->integers + c * s->step;
        for (int64_t r = 0; r < rows; r += LANES) {
            __m256 value[2];
            for (int h = 0; h < 2; h++) {
                const int64_t at = r + 8 * h;
                const __m128i z = _mm_loadu_si128((const __m128i *)(integers + at));
                const __m256i classes = _mm256_add_epi32(class, classes8(s->row_classes + at));
                value[h] = _mm256_mul_ps(look_up(s, z, classes), scale);
                value[h] = _mm256_mul_ps(value[h], _mm256_loadu_ps(s->row_scales + at));
            }
            store(nwc_place(s, r, c), value[0], value[1], s->dtype);
        }
    }
}

/* Lanes without a column repeat the last one, so that they read nothing else. */
TARGET static void by_row(const nwc_synthesis *s, int64_t rows) {
    const int64_t item = s->dtype == DTYPE_F32 ? 4 : 2;
    for (int64_t c = 0; c < s->columns; c += LANES) {
        const int count = s->columns - c < LANES ? (int)(s->columns - c) : LANES;
        const int16_t *columns[LANES];
        uint8_t column_classes[LANES];
        float scales[LANES];
        for (int i = 0; i < LANES; i++) {
            const int64_t column = c + (i < count ? i : count - 1);
            columns[i] = s->integers + column * s->step;
            column_classes[i] = s->column_classes[column];
            scales[i] = s->column_scales[column];
        }
        for (int64_t r = 0; r < rows; r += LANES) {
            __m256i square[LANES];
            for (int i = 0; i < LANES; i++)
                square[i] = _mm256_loadu_si256((const __m256i *)(columns[i] + r));
            nwc_transpose(square);
            for (int i = 0; i < LANES; i++) {
                const __m256i of_row = _mm256_set1_epi32(s->row_classes[r + i]);
                const __m256 row_scale = _mm256_set1_ps(s->row_scales[r + i]);
                const __m128i halves[2] = {_mm256_castsi256_si128(square[i]),
                                           _mm256_extracti128_si256(square[i], 1)};
                __m256 value[2];
                for (int h = 0; h < 2; h++) {
                    const __m256i classes =
                        _mm256_add_epi32(classes8(column_classes + 8 * h), of_row);
                    value[h] = look_up(s, halves[h], classes);
                    value[h] = _mm256_mul_ps(value[h], _mm256_loadu_ps(scales + 8 * h));
                    value[h] = _mm256_mul_ps(value[h], row_scale);
                }
                unsigned char *place = nwc_place(s, r + i, c);
                if (count == LANES) {
                    store(place, value[0], value[1], s->dtype);
                } else {
                    unsigned char some[LANES * 4];
                    store(some, value[0], value[1], s->dtype);
                    memcpy(place, some, (size_t)(count * item));
                }
            }
        }
    }
}

void nwc_synthesise_avx2(const nwc_synthesis *s) {
    const int64_t rows = s->rows & -LANES;
    if (s->by_column)
        by_column(s, rows);
    else
        by_row(s, rows);
    nwc_synthesise_part(s, 0, s->columns, rows, s->rows);
}

#else
typedef int nwc_no_avx2; /* a file must not be empty */
#endif
