/* From integers to weights: the value of (class, integer), times the scale of the column, times
   that of the row, in this order, rounded once to the type of the output (to nearest, ties to
   even). Plain C, and which synthesis runs. */

#include "synthesis.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static uint16_t to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static uint16_t to_f16(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFF;
    const uint32_t sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00);
    if (magnitude >= 0x477FF000) return (uint16_t)(sign | 0x7C00); /* rounds to 2^16 or more */
    uint32_t mantissa, drop, half;
    if (magnitude >= 0x38800000) { /* 2^-14: the exponent moves from bias 127 to bias 15 */
        mantissa = magnitude - (112u << 23);
        drop = 13;
    } else if (magnitude >= 0x33000000) { /* 2^-25: units of 2^-24 */
        mantissa = (magnitude & 0x7FFFFF) | 0x800000;
        drop = 126 - (magnitude >> 23);
    } else {
        return (uint16_t)sign;
    }
    half = mantissa >> drop;
    uint32_t rest = mantissa & ((1u << drop) - 1), tie = 1u << (drop - 1);
    half += rest > tie || (rest == tie && (half & 1));
    return (uint16_t)(sign | half);
}

void nwc_synthesise_part(const nwc_synthesis *s, int64_t column, int64_t column_stop, int64_t row,
                         int64_t row_stop) {
    for (int64_t c = column; c < column_stop; c++) {
        const int16_t *integers = s->integers + c * s->step;
        for (int64_t r = row; r < row_stop; r++) {
            int64_t class = s->column_classes[c] + s->row_classes[r];
            float value = s->values[class * s->count + integers[r] - s->first];
            value = value * s->column_scales[c];
            value = value * s->row_scales[r];
            unsigned char *place = nwc_place(s, r, c);
            uint16_t small;
            if (s->dtype == DTYPE_F32) {
                memcpy(place, &value, sizeof value);
                continue;
            }
            small = s->dtype == DTYPE_BF16 ? to_bf16(value) : to_f16(value);
            memcpy(place, &small, sizeof small);
        }
    }
}

static void by_parts(const nwc_synthesis *s) {
    if (s->by_column) {
        nwc_synthesise_part(s, 0, s->columns, 0, s->rows);
        return;
    }
    /* In squares, so that neither side leaves the cache between two visits. */
    enum { SIDE = 32 };
    for (int64_t row = 0; row < s->rows; row += SIDE)
        for (int64_t column = 0; column < s->columns; column += SIDE)
            nwc_synthesise_part(s, column,
                                column + SIDE < s->columns ? column + SIDE : s->columns, row,
                                row + SIDE < s->rows ? row + SIDE : s->rows);
}

int nwc_synthesise(int level, const nwc_synthesis *s) {
#if defined(__x86_64__)
    if (level == LEVEL_AVX2) return nwc_synthesise_avx2(s), 0;
    if (level == LEVEL_AVX512) return nwc_synthesise_avx512(s), 0;
#else
    (void)level;
#endif
    by_parts(s);
    return 0;
}
