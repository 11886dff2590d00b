// ExpertWgrad: for each expert, left^T * right over its rows in order; the bias's sums in a kernel of their own.
#include "products.cuh"

struct ExpertWgradParams {
    const void *left, *right;
    const uint32_t *index, *offsets;
    const float *right_weights, *bias_weights;
    float *dw, *dbias;
    uint32_t tokens, fan, slots, rows, experts, left_width, right_width;
    uint32_t gather_left, gather_right, accumulate;
};

template <typename T>
static __device__ __forceinline__ Rows<T> operand(const ExpertWgradParams &p, const void *base, bool gathered,
                                                  uint32_t width, uint32_t expert) {
    uint32_t first = min(p.offsets[expert], p.rows), end = max(first, min(p.offsets[expert + 1], p.rows));
    if (gathered) return {(const T *)base, p.index, p.fan, p.tokens, width, first, end};
    return {(const T *)base, nullptr, 1, p.rows, width, first, end};
}

template <class Math, typename T> static __device__ __forceinline__ void wgrad(const ExpertWgradParams &p) {
    uint32_t down = (p.left_width + TILE - 1) / TILE, across = (p.right_width + TILE - 1) / TILE;
    uint64_t tiles = (uint64_t)down * across, all = tiles * p.experts;
    for (uint64_t tile = blockIdx.x; tile < all; tile += gridDim.x) {
        uint32_t expert = (uint32_t)(tile / tiles), within = (uint32_t)(tile % tiles);
        Rows<T> left = operand<T>(p, p.left, p.gather_left, p.left_width, expert);
        Rows<T> right = operand<T>(p, p.right, p.gather_right, p.right_width, expert);
        left.origin = within % down * TILE;
        right.origin = within / down * TILE;
        right.weights = p.right_weights;
        right.slot_index = p.index;
        right.slots = p.slots;
        uint32_t depth = left.end - left.first;
        if (depth == 0 && p.accumulate) continue;
        auto finish = [&](uint32_t m, const float *sums) {
            float *dw = p.dw + ((uint64_t)expert * p.left_width + left.origin + m) * p.right_width + right.origin;
            for (uint32_t at = lane_id(); at < TILE && right.origin + at < p.right_width; at += 32) {
                dw[at] = p.accumulate ? dw[at] + sums[at] : sums[at];
            }
        };
        product<Math, false, false>(left, right, depth, p.left_width - left.origin, finish);
    }
}

template <typename T> static __device__ __forceinline__ void expert_wgrad(const ExpertWgradParams &p) { wgrad<Fast<T>, T>(p); }

// With factors on the right operand, which are multiplied in f32.
template <typename T> static __device__ __forceinline__ void expert_wgrad_weighted(const ExpertWgradParams &p) {
    wgrad<Simt<T>, T>(p);
}

// A thread per column of an expert. The rows' addresses do not wait for the sum.
template <typename T> static __device__ __forceinline__ void expert_wgrad_bias(const ExpertWgradParams &p) {
    uint32_t column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= p.left_width) return;
    for (uint32_t expert = blockIdx.y; expert < p.experts; expert += gridDim.y) {
        Rows<T> left = operand<T>(p, p.left, p.gather_left, p.left_width, expert);
        float sum = 0.0f;
#pragma unroll 8
        for (uint32_t i = 0; i < left.end - left.first; i++) {
            const T *line = left.line(left.fetch(i));
            uint32_t slot = slot_of(p.index, left.first + i);
            float factor = weight_of(p.bias_weights, p.slots, slot);
            sum = fused(factor, line ? widen(line[column]) : 0.0f, sum);
        }
        float *dbias = p.dbias + (uint64_t)expert * p.left_width + column;
        *dbias = p.accumulate ? *dbias + sum : sum;
    }
}

PRODUCTS(expert_wgrad, ExpertWgradParams)
KERNELS(expert_wgrad_weighted, ExpertWgradParams, BOUNDS)
KERNELS(expert_wgrad_bias, ExpertWgradParams, BOUNDS)
