/* CRC32C of several runs of bytes at once. */

#ifndef NWC_CRC_H
#define NWC_CRC_H

#include "nwc.h"

void nwc_crc32c(int level, const unsigned char **starts, const int64_t *sizes, int count,
                uint32_t *found);

#endif
