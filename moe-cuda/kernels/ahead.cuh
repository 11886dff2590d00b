// Memory that will be read soon sets off to the device's cache, long stretches with one instruction. Only a hint: before sm_90
// nothing happens. Addresses and lengths are multiples of sixteen bytes.
#pragma once
#include <stdint.h>

static __device__ __forceinline__ void fetch_ahead(const void *from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)), "r"(bytes));
#endif
}
