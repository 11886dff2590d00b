// Scores of a token's logits, by one warp. Expert e belongs to lane e % 32, so that a lane's sum is one of the 32 strided
// partial sums, and the warp's reduction halves them 16, 8, 4, 2, 1.
#pragma once
#include "prelude.cuh"

#define SOFTMAX 0u
#define SOFTMAX_TOP_K 1u
#define SIGMOID 2u
#define ALL_LANES 0xffffffffu

// NaN is passed over; -infinity if there is nothing else.
static __device__ __forceinline__ float warp_max(float v) {
    v = fmaxf(v, -INFINITY);
    for (int half = 16; half > 0; half /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, half));
    return v;
}

// The largest logit, and the sum of e^(logit - max).
struct Powers {
    float max, sum;
};

static __device__ __forceinline__ Powers powers(const float *logits, uint32_t experts, uint32_t lane) {
    Powers out = {-INFINITY, 0.0f};
    for (uint32_t e = lane; e < experts; e += 32) out.max = fmaxf(out.max, logits[e]);
    out.max = warp_max(out.max);
    for (uint32_t e = lane; e < experts; e += 32) out.sum += fixed_exp(logits[e] - out.max);
    out.sum = warp_sum(out.sum);
    return out;
}

static __device__ __forceinline__ float log_sum_exp(const Powers &powers) {
    return powers.max + (float)log((double)powers.sum);
}

// For softmax over the chosen logits, scores are the logits.
static __device__ __forceinline__ float score(uint32_t function, const Powers &powers, float logit) {
    if (function == SIGMOID) return fixed_sigmoid(logit);
    if (function == SOFTMAX) return fixed_exp(logit - powers.max) / powers.sum;
    return logit;
}

// The score function that the losses see.
static __device__ __forceinline__ uint32_t loss_score(uint32_t function) {
    return function == SOFTMAX_TOP_K ? SOFTMAX : function;
}
