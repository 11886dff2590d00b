// BiasUpdate: bias[e] = fma(rate, n / E, bias[e]) with the integer n = E * sign - sum of signs. One block: the sums are
// of integers, so their order is free.
#include "prelude.cuh"
#include "scan.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)

struct BiasUpdateParams {
    const uint32_t *counts;
    const float *rate;
    float *bias;
    uint64_t experts;
};

static __device__ __forceinline__ int64_t sign_of(uint64_t total, uint32_t count, uint64_t experts) {
    uint64_t own = count * experts;
    return total > own ? 1 : total < own ? -1 : 0;
}

KERNEL(bias_update, BiasUpdateParams, THREADS) {
    __shared__ uint64_t sums[WARPS];
    uint64_t own = 0, total, own_signs = 0, signs;
    for (uint64_t e = threadIdx.x; e < p.experts; e += THREADS) own += p.counts[e];
    scan_in_block<WARPS>(own, sums, total);
    for (uint64_t e = threadIdx.x; e < p.experts; e += THREADS) own_signs += sign_of(total, p.counts[e], p.experts);
    scan_in_block<WARPS>(own_signs, sums, signs);
    for (uint64_t e = threadIdx.x; e < p.experts; e += THREADS) {
        int64_t centred = (int64_t)p.experts * sign_of(total, p.counts[e], p.experts) - (int64_t)signs;
        p.bias[e] = fused(*p.rate, (float)centred / (float)p.experts, p.bias[e]);
    }
}
