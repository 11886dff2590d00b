// The router of Decode, for a few tokens: each block makes the logits of its own experts, from lines that lie whole in shared
// memory. When all blocks' are there, each chooses for all tokens by itself, a warp per token, which is quicker than to
// wait for one that does. The bits are those of Route's own kernels: exact, one chain per logit, or native, the even
// sixteens of the depth and the odd ones.
#pragma once
#include "choose.cuh"
#include "mma.cuh"

// `Router` of ops/decode.rs.
enum Router : uint32_t { APART, EXACT, NATIVE };

// Most tokens, experts of a block, and logits that it computes; the bytes that it has for their lines.
#define ROUTED_TOKENS 8u
#define COLUMNS 8u
#define CHAINS 32u
#define LINES_BYTES (128u << 10)
// Lines are filled up to a multiple of these steps, so that there are as many even sixteens as odd ones.
#define FILL 32u
// Steps whose values are read together, while those before are worked on.
#define AHEAD 16u

// Sixteen bytes of a line, all at once.
template <typename T> struct alignas(16) Part { T v[8]; };

// The lines of all tokens, then those of the block's experts, as M: f32 for chains, or as they are. Neighbours lie in different banks.
template <typename T, typename M> struct RouteLines {
    const RouteParams &p;
    M *lines;
    // the block's experts
    uint32_t first, count;

    __device__ __forceinline__ RouteLines(const RouteParams &p, void *memory) : p(p), lines((M *)memory) {
        uint32_t own = (p.experts + gridDim.x - 1) / gridDim.x;
        first = blockIdx.x * own;
        count = first < p.experts ? min(own, p.experts - first) : 0;
    }
    __device__ __forceinline__ uint32_t steps() const { return (p.width + FILL - 1) / FILL * FILL; }
    __device__ __forceinline__ M *line(uint32_t i) const { return lines + i * (steps() + 16 / sizeof(M)); }

    // All threads; followed by a barrier. Steps beyond the width multiply -0 with 0, which leaves any sum as it is.
    __device__ __forceinline__ void fetch() const {
        constexpr uint32_t EACH = 4;
        uint32_t all = count ? p.tokens + count : 0;
        for (uint32_t at = threadIdx.x * 8; at < steps(); at += blockDim.x * 8) {
            for (uint32_t from = 0; from < all; from += EACH) {
                Part<T> parts[EACH];
#pragma unroll
                for (uint32_t j = 0; j < EACH; j++) {
                    uint32_t i = from + j;
                    if (i >= all) continue;
                    const T *of = (const T *)(i < p.tokens ? p.x : p.gate);
                    uint64_t row = i < p.tokens ? i : first + i - p.tokens;
                    if (at < p.width) parts[j] = *(const Part<T> *)(of + row * p.width + at);
                    else
                        for (uint32_t n = 0; n < 8; n++) parts[j].v[n] = narrow<T>(i < p.tokens ? -0.0f : 0.0f);
                }
#pragma unroll
                for (uint32_t j = 0; j < EACH; j++) {
                    if (from + j < all) put(line(from + j) + at, parts[j]);
                }
            }
        }
    }

    static __device__ __forceinline__ void put(T *to, const Part<T> &part) { *(Part<T> *)to = part; }
    static __device__ __forceinline__ void put(float *to, const Part<T> &part) {
        const T *v = part.v;
        *(float4 *)to = {widen(v[0]), widen(v[1]), widen(v[2]), widen(v[3])};
        *(float4 *)(to + 4) = {widen(v[4]), widen(v[5]), widen(v[6]), widen(v[7])};
    }

    __device__ __forceinline__ void write(uint32_t token, uint32_t column, float sum) const {
        if (token >= p.tokens || column >= count) return;
        float bias = p.gate_bias ? widen(((const T *)p.gate_bias)[first + column]) : 0.0f;
        p.logits[(uint64_t)token * p.experts + first + column] = sum + bias;
    }
};

// One warp, a chain in each lane.
template <typename T> static __device__ __forceinline__ void exact_logits(const RouteLines<T, float> &l) {
    uint32_t lane = lane_id(), chains = l.p.tokens * l.count, own = lane < chains ? lane : 0;
    if (chains == 0) return;
    uint32_t token = own / l.count, column = own % l.count;
    const float *x = l.line(token), *gate = l.line(l.p.tokens + column);
    float4 left[2][AHEAD / 4], right[2][AHEAD / 4];
    float sum = 0.0f;
    auto read = [&](uint32_t buffer, uint32_t step) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD / 4; i++) {
            left[buffer][i] = *(const float4 *)(x + step + i * 4);
            right[buffer][i] = *(const float4 *)(gate + step + i * 4);
        }
    };
    auto add = [&](uint32_t buffer) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD / 4; i++) {
            const float4 &v = left[buffer][i], &g = right[buffer][i];
            sum = fused(v.x, g.x, sum);
            sum = fused(v.y, g.y, sum);
            sum = fused(v.z, g.z, sum);
            sum = fused(v.w, g.w, sum);
        }
    };
    static_assert(FILL == 2 * AHEAD, "both buffers in a round");
    read(0, 0);
    for (uint32_t step = 0; step < l.steps(); step += FILL) {
        read(1, step + AHEAD);
        add(0);
        if (step + FILL < l.steps()) read(0, step + FILL);
        add(1);
    }
    if (lane < chains) l.write(token, column, sum);
}

// Two warps, the even sixteens and the odd ones; all threads call it. `odd` is room for the second one's sums.
template <typename T> static __device__ __forceinline__ void native_logits(const RouteLines<T, T> &l, float (&odd)[ROUTED_TOKENS][COLUMNS]) {
    uint32_t half = warp_id(), g = lane_id() / 4, t = lane_id() % 4 * 2;
    float c[4] = {};
    if (half < 2 && l.count > 0) {
        const T *x = l.line(g < l.p.tokens ? g : 0) + t, *gate = l.line(l.p.tokens + (g < l.count ? g : 0)) + t;
        auto two = [](const T *from, bool some) { return some ? *(const uint32_t *)from : 0; };
#pragma unroll 4
        for (uint32_t step = half * 16; step < l.steps(); step += 32) {
            uint32_t a[4] = {two(x + step, g < l.p.tokens), 0, two(x + step + 8, g < l.p.tokens), 0};
            mma(T(), c[0], c[1], c[2], c[3], a, two(gate + step, g < l.count), two(gate + step + 8, g < l.count));
        }
        if (half == 1) odd[g][t] = c[0], odd[g][t + 1] = c[1];
    }
    __syncthreads();
    if (half == 0) l.write(g, t, c[0] + odd[g][t]), l.write(g, t + 1, c[1] + odd[g][t + 1]);
}
