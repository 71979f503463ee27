/* Memory for large outputs. */

#if defined(__linux__)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#include <unistd.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* since Linux 5.14; older ones refuse it */
#endif
#endif

#include "nwc.h"

#if defined(__linux__)
static void advise(uintptr_t start, uintptr_t end, uintptr_t page, int advice) {
    start &= ~(page - 1);
    end = (end + page - 1) & ~(page - 1);
    if (start < end) (void)madvise((void *)start, end - start, advice);
}
#endif

/* Wishes, on which nothing depends, for memory that is about to be filled. In pages of 2 MB: 512
   times fewer faults, and rows that lie pages apart need fewer entries of the address cache. And
   at once: threads that touch new memory page by page pay for every fault, and wait for one
   another in it. */
void nwc_prepare_output(void *start, size_t size) {
#if defined(__linux__)
    const uintptr_t first = (uintptr_t)start, last = first + size, large = 1 << 21;
#if defined(MADV_HUGEPAGE)
    if (size >= large) advise(first + large - 1, last - large + 1, large, MADV_HUGEPAGE);
#endif
    advise(first, last, (uintptr_t)sysconf(_SC_PAGESIZE), MADV_POPULATE_WRITE);
#else
    (void)start, (void)size;
#endif
}
