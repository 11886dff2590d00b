// Sums over the threads of a block, for integers.
#pragma once
#include <stdint.h>

// The sum of the values of the threads before this one; `total` becomes that of all. Every thread of the block's `WARPS` warps
// calls it. `sums` is shared memory of the block.
template <int WARPS, typename U>
static __device__ __forceinline__ U scan_in_block(U value, U (&sums)[WARPS], U &total) {
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    U sum = value;
    for (uint32_t by = 1; by < 32; by *= 2) {
        U other = __shfl_up_sync(~0u, sum, by);
        if (lane >= by) sum += other;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    U before = 0;
    total = 0;
    for (uint32_t w = 0; w < WARPS; w++) {
        if (w == warp) before = total;
        total += sums[w];
    }
    __syncthreads();
    return before + sum - value;
}
