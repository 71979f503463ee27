/* Which instruction sets this processor has. */

#include "nwc.h"

int nwc_version(void) { return NWC_VERSION; }

int nwc_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return LEVEL_AVX512;
    /* Every processor with AVX2 has F16C. */
    if (__builtin_cpu_supports("avx2")) return LEVEL_AVX2;
#endif
    return LEVEL_PLAIN;
}
