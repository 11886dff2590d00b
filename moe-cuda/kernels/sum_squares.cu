// SumSquares: a block per part of PART values, then one block over the parts.
//
// Which thread adds which value depends on its place in the tensor alone, so the bits depend neither on the device nor on
// the alignment.
#include "prelude.cuh"

#define THREADS 256
#define TOTAL_THREADS 1024
#define PART 16384u

struct SumSquaresParams {
    const float *values;
    float *sum, *parts;
    uint64_t len, part_count;
    uint32_t accumulate;
};

// The sum over the block's threads, known to thread 0.
template <int WARPS>
static __device__ __forceinline__ float sum_of_block(float sum) {
    __shared__ float sums[WARPS];
    for (uint32_t by = 16; by > 0; by /= 2) sum += __shfl_down_sync(~0u, sum, by);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) sum += sums[warp];
    return sum;
}

KERNEL(sum_squares_part, SumSquaresParams, THREADS) {
    uint64_t first = (uint64_t)blockIdx.x * PART;
    bool whole = first + PART <= p.len && (uint64_t)p.values % 16 == 0;
    float sum = 0.0f;
#pragma unroll 4
    for (uint32_t step = 0; step < PART; step += 4 * THREADS) {
        uint64_t at = first + step + 4 * threadIdx.x;
        float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (whole) {
            four = *(const float4 *)(p.values + at);
        } else {
            if (at < p.len) four.x = p.values[at];
            if (at + 1 < p.len) four.y = p.values[at + 1];
            if (at + 2 < p.len) four.z = p.values[at + 2];
            if (at + 3 < p.len) four.w = p.values[at + 3];
        }
        sum = fused(four.x, four.x, sum);
        sum = fused(four.y, four.y, sum);
        sum = fused(four.z, four.z, sum);
        sum = fused(four.w, four.w, sum);
    }
    sum = sum_of_block<THREADS / 32>(sum);
    if (threadIdx.x == 0) p.parts[blockIdx.x] = sum;
}

KERNEL(sum_squares_total, SumSquaresParams, TOTAL_THREADS) {
    float sum = 0.0f;
#pragma unroll 4
    for (uint64_t part = threadIdx.x; part < p.part_count; part += TOTAL_THREADS) sum += p.parts[part];
    sum = sum_of_block<TOTAL_THREADS / 32>(sum);
    if (threadIdx.x == 0) *p.sum = p.accumulate ? *p.sum + sum : sum;
}
