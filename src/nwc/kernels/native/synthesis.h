/* What the synthesis of all instruction sets shares. */

#ifndef NWC_SYNTHESIS_H
#define NWC_SYNTHESIS_H

#include <string.h>

#include "nwc.h"

/* Restores rows [row, row_stop) of columns [column, column_stop), element by element. */
typedef void synthesise(const nwc_synthesis *s);

void nwc_synthesise_part(const nwc_synthesis *s, int64_t column, int64_t column_stop, int64_t row,
                         int64_t row_stop);
synthesise nwc_synthesise_avx2, nwc_synthesise_avx512;

NWC_INLINE unsigned char *nwc_place(const nwc_synthesis *s, int64_t row, int64_t column) {
    int64_t element = s->by_column ? column * s->stride + row : row * s->stride + column;
    return s->out + element * (s->dtype == DTYPE_F32 ? 4 : 2);
}

#endif
