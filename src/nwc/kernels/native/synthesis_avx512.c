/* Synthesis with AVX-512: 16 weights a step, along rows or along columns as the output lies. */

#if defined(__x86_64__)

#include <immintrin.h>

#include "synthesis.h"
#include "transpose.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c")))

TARGET NWC_INLINE __m256i halved(__m512 value, const int dtype) {
    if (dtype == DTYPE_F16)
        return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    sum = _mm512_mask_mov_epi32(sum, nan, _mm512_set1_epi32(0x7FC00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}

TARGET NWC_INLINE void store(unsigned char *place, __m512 value, const int dtype) {
    if (dtype == DTYPE_F32)
        _mm512_storeu_ps(place, value);
    else
        _mm256_storeu_si256((__m256i *)place, halved(value, dtype));
}

/* What is read of a synthesis over and over. Weights are written as bytes, which might be any of
   its fields for all that a compiler knows. */
typedef struct {
    const int16_t *integers;
    const uint8_t *row_classes;
    const float *row_scales, *values;
    __m512 steps;    /* by class, where a value is integer * step */
    __m512i count, first;
    int64_t step, pitch;
    int past_caches;
} fixed;

/* Of classes, what `value_of` wants to know: theirs alone, or where their values begin. */
TARGET NWC_INLINE __m512i keys_of(const fixed *f, __m512i classes, const int linear) {
    return linear ? classes : _mm512_mullo_epi32(classes, f->count);
}

/* The values of 16 integers; `keys` are those of column and row together. */
TARGET NWC_INLINE __m512 value_of(const fixed *f, __m256i integers, __m512i keys,
                                  const int linear) {
    const __m512i z = _mm512_cvtepi16_epi32(integers);
    if (linear) return _mm512_mul_ps(_mm512_cvtepi32_ps(z), _mm512_permutexvar_ps(keys, f->steps));
    const __m512i place = _mm512_add_epi32(_mm512_sub_epi32(keys, f->first), z);
    return _mm512_i32gather_ps(place, f->values, 4);
}

TARGET NWC_INLINE __m512i classes_at(const uint8_t *at) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at));
}

TARGET NWC_INLINE void by_column(const nwc_synthesis *s, const fixed *f, int64_t rows,
                                 const int linear, const int dtype) {
    for (int64_t c = 0; c < s->columns; c++) {
        const __m512 scale = _mm512_set1_ps(s->column_scales[c]);
        const __m512i class = _mm512_set1_epi32(s->column_classes[c]);
        const int16_t *integers = f->integers + c * f->step;
        unsigned char *place = nwc_place(s, 0, c);
        for (int64_t r = 0; r < rows; r += LANES, place += LANES * (dtype == DTYPE_F32 ? 4 : 2)) {
            const __m512i classes = _mm512_add_epi32(class, classes_at(f->row_classes + r));
            const __m256i z = _mm256_loadu_si256((const __m256i *)(integers + r));
            __m512 value = value_of(f, z, keys_of(f, classes, linear), linear);
            value = _mm512_mul_ps(value, scale);
            value = _mm512_mul_ps(value, _mm512_loadu_ps(f->row_scales + r));
            store(place, value, dtype);
        }
    }
}

/* Whole lines go past the caches if they can: rows are far apart, and fetching each line before it
   is overwritten would cost more than all the rest. */
TARGET NWC_INLINE void store_line(unsigned char *place, __m512i line, int past_caches) {
    if (past_caches)
        _mm512_stream_si512((void *)place, line);
    else
        _mm512_storeu_si512(place, line);
}

/* `squares` times 16 columns, 16 rows at a time; a row's piece is stored at once, and two squares
   of 16-bit weights fill a line of the cache. */
TARGET NWC_INLINE void by_row(const nwc_synthesis *s, const fixed *f, int64_t rows, int64_t start,
                              int64_t stop, const int linear, const int dtype, const int squares) {
    for (int64_t r = 0; r < rows; r += LANES) {
        int32_t row_keys[LANES];
        const __m512i of_rows = classes_at(f->row_classes + r);
        _mm512_storeu_si512(row_keys, keys_of(f, of_rows, linear));
        for (int64_t c = start; c < stop; c += squares * LANES) {
            __m256i square[2][LANES];
            __m512 scale[2];
            __m512i keys[2];
            for (int k = 0; k < squares; k++) {
                const int64_t left = c + k * LANES;
                const int16_t *integers = f->integers + left * f->step + r;
                for (int i = 0; i < LANES; i++, integers += f->step)
                    square[k][i] = _mm256_loadu_si256((const __m256i *)integers);
                nwc_transpose(square[k]);
                scale[k] = _mm512_loadu_ps(s->column_scales + left);
                keys[k] = keys_of(f, classes_at(s->column_classes + left), linear);
            }
            unsigned char *place = nwc_place(s, r, c);
            for (int i = 0; i < LANES; i++, place += f->pitch) {
                const __m512i row_key = _mm512_set1_epi32(row_keys[i]);
                const __m512 row_scale = _mm512_set1_ps(f->row_scales[r + i]);
                __m512 value[2];
                for (int k = 0; k < squares; k++) {
                    const __m512i both = _mm512_add_epi32(keys[k], row_key);
                    value[k] = value_of(f, square[k][i], both, linear);
                    value[k] = _mm512_mul_ps(_mm512_mul_ps(value[k], scale[k]), row_scale);
                }
                if (dtype == DTYPE_F32) {
                    store_line(place, _mm512_castps_si512(value[0]), f->past_caches);
                } else {
                    const __m512i low = _mm512_castsi256_si512(halved(value[0], dtype));
                    const __m256i high = halved(value[1], dtype);
                    store_line(place, _mm512_inserti64x4(low, high, 1), f->past_caches);
                }
            }
        }
    }
}

/* The same for at most 16 columns, which share lines of the cache with others. Lanes without a
   column repeat the last one, so that they read nothing else; they are not stored. */
TARGET NWC_INLINE void few_by_row(const nwc_synthesis *s, const fixed *f, int64_t rows,
                                  int64_t start, int64_t stop, const int linear, const int dtype) {
    const __mmask16 some = (__mmask16)((1u << (stop - start)) - 1);
    const __m512 scale = _mm512_maskz_loadu_ps(some, s->column_scales + start);
    const __m512i classes = _mm512_cvtepu8_epi32(
        _mm_maskz_loadu_epi8(some, s->column_classes + start));
    const __m512i last = _mm512_set1_epi32(s->column_classes[stop - 1]);
    const __m512i keys = keys_of(f, _mm512_mask_mov_epi32(last, some, classes), linear);
    for (int64_t r = 0; r < rows; r += LANES) {
        int32_t row_keys[LANES];
        _mm512_storeu_si512(row_keys, keys_of(f, classes_at(f->row_classes + r), linear));
        __m256i square[LANES];
        for (int i = 0; i < LANES; i++) {
            const int64_t column = start + i < stop ? start + i : stop - 1;
            square[i] = _mm256_loadu_si256((const __m256i *)(f->integers + column * f->step + r));
        }
        nwc_transpose(square);
        unsigned char *place = nwc_place(s, r, start);
        for (int i = 0; i < LANES; i++, place += f->pitch) {
            const __m512i both = _mm512_add_epi32(keys, _mm512_set1_epi32(row_keys[i]));
            __m512 value = _mm512_mul_ps(value_of(f, square[i], both, linear), scale);
            value = _mm512_mul_ps(value, _mm512_set1_ps(f->row_scales[r + i]));
            if (dtype == DTYPE_F32)
                _mm512_mask_storeu_ps(place, some, value);
            else
                _mm256_mask_storeu_epi16(place, some, halved(value, dtype));
        }
    }
}

/* Columns before the first whole line of the cache, whole lines, and columns after them. */
TARGET NWC_INLINE void by_lines(const nwc_synthesis *s, fixed *f, int64_t rows, const int linear,
                                const int dtype) {
    enum { LINE = 64 };
    const int64_t item = dtype == DTYPE_F32 ? 4 : 2, width = LINE / item;
    const int64_t before = -(int64_t)((uintptr_t)s->out % LINE) & (LINE - 1);
    f->past_caches = f->pitch % LINE == 0 && before % item == 0;
    int64_t start = f->past_caches ? before / item : 0;
    if (start > s->columns) start = s->columns;
    const int64_t stop = s->columns - (s->columns - start) % width;
    for (int64_t c = 0; c < start; c += LANES)
        few_by_row(s, f, rows, c, c + LANES < start ? c + LANES : start, linear, dtype);
    by_row(s, f, rows, start, stop, linear, dtype, (int)(width / LANES));
    for (int64_t c = stop; c < s->columns; c += LANES)
        few_by_row(s, f, rows, c, c + LANES < s->columns ? c + LANES : s->columns, linear, dtype);
    _mm_sfence();
}

TARGET NWC_INLINE void whole(const nwc_synthesis *s, const int linear, const int dtype) {
    const int64_t rows = s->rows & -LANES;
    fixed f = {
        .integers = s->integers,
        .row_classes = s->row_classes,
        .row_scales = s->row_scales,
        .values = s->values,
        .steps = linear ? _mm512_loadu_ps(s->steps) : _mm512_setzero_ps(),
        .count = _mm512_set1_epi32((int)s->count),
        .first = _mm512_set1_epi32(s->first),
        .step = s->step,
        .pitch = s->stride * (dtype == DTYPE_F32 ? 4 : 2),
    };
    if (s->by_column)
        by_column(s, &f, rows, linear, dtype);
    else
        by_lines(s, &f, rows, linear, dtype);
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
