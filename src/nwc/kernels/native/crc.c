/* CRC32C (polynomial 0x1EDC6F41 reflected, start and end inverted), as RFC 3720 has it. */

#include <string.h>

#include "crc.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SLICES = 8 };

/* What a byte, 0 to 7 bytes before the end of eight, adds to the remainder. */
static uint32_t slices[SLICES][256];

__attribute__((constructor)) static void make_slices(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t r = byte;
        for (int bit = 0; bit < 8; bit++) r = r >> 1 ^ (0x82F63B78 & (0 - (r & 1)));
        slices[0][byte] = r;
    }
    for (int s = 1; s < SLICES; s++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t r = slices[s - 1][byte];
            slices[s][byte] = r >> 8 ^ slices[0][r & 255];
        }
}

static uint32_t plain(uint32_t r, const unsigned char *at, int64_t size) {
    for (; size >= SLICES; at += SLICES, size -= SLICES) {
        unsigned char b[SLICES];
        memcpy(b, at, sizeof b);
        for (int i = 0; i < 4; i++) b[i] ^= (unsigned char)(r >> 8 * i);
        r = 0;
        for (int i = 0; i < SLICES; i++) r ^= slices[SLICES - 1 - i][b[i]];
    }
    for (; size; at++, size--) r = r >> 8 ^ slices[0][(r ^ *at) & 255];
    return r;
}

#if defined(__x86_64__)
#define TARGET __attribute__((target("sse4.2")))

TARGET static uint64_t word(uint64_t r, const unsigned char *at) {
    uint64_t eight;
    memcpy(&eight, at, sizeof eight);
    return _mm_crc32_u64(r, eight);
}

TARGET static uint32_t one(uint64_t r, const unsigned char *at, int64_t size) {
    for (; size >= 8; at += 8, size -= 8) r = word(r, at);
    for (; size; at++, size--) r = _mm_crc32_u8((uint32_t)r, *at);
    return (uint32_t)r;
}

/* The instruction takes three cycles but one begins in each: four runs take turns. */
TARGET static void by_fours(const unsigned char **starts, const int64_t *sizes, int count,
                            uint32_t *found) {
    for (int i = 0; i < count;) {
        uint64_t r[4] = {~0u, ~0u, ~0u, ~0u};
        const int width = count - i >= 4 ? 4 : 1;
        const unsigned char **at = starts + i;
        int64_t common = 0;
        if (width == 4) {
            common = sizes[i] & -8;
            for (int k = 1; k < 4; k++)
                if ((sizes[i + k] & -8) < common) common = sizes[i + k] & -8;
            for (int64_t done = 0; done < common; done += 8) {
                r[0] = word(r[0], at[0] + done);
                r[1] = word(r[1], at[1] + done);
                r[2] = word(r[2], at[2] + done);
                r[3] = word(r[3], at[3] + done);
            }
        }
        for (int k = 0; k < width; k++, i++)
            found[i] = ~one(r[k], at[k] + common, sizes[i] - common);
    }
}
#endif

void nwc_crc32c(int level, const unsigned char **starts, const int64_t *sizes, int count,
                uint32_t *found) {
#if defined(__x86_64__)
    /* Every processor with AVX2 has SSE4.2. */
    if (level >= LEVEL_AVX2) {
        by_fours(starts, sizes, count, found);
        return;
    }
#else
    (void)level;
#endif
    for (int i = 0; i < count; i++) found[i] = ~plain(~0u, starts[i], sizes[i]);
}
