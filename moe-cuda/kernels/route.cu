// Route: logits as chains of fused steps, then a warp per token for scores, groups, the K best and their weights.
#include "chains.cuh"
#include "choose.cuh"

#define CHOOSERS 128
#define WARPS (CHOOSERS / 32)

// A tile of logits. Steps beyond the width multiply -0 with 0, which leaves any sum as it is.
template <typename T, typename Tile> static __device__ __forceinline__ void gate_tile(const RouteParams &p) {
    uint32_t across = (p.experts + Tile::BN - 1) / Tile::BN;
    uint32_t token = blockIdx.x / across * Tile::BM, expert = blockIdx.x % across * Tile::BN;
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.non_finite = 0;
    if (token >= p.tokens) return;
    Panel<T, Tile, Tile::BM, true> x(p.x, p.width, token, p.tokens, p.width, -0.0f);
    Panel<T, Tile, Tile::BN, true> gate(p.gate, p.width, expert, p.experts, p.width, 0.0f);
    float sums[Tile::TM][Tile::TN] = {};
    auto seen = [&](float value, uint32_t token, uint32_t d) {
        return jittered(p.jitter, jitter_key(p.jitter, token), d, value);
    };
    multiply<Tile>(sums, x, gate, 0, p.width, [&](typename Tile::Stage &stage, uint32_t d) {
        x.template put<0>(stage);
        if (p.jitter.on) x.template change<0>(stage, d, seen);
        gate.template put<Tile::BM>(stage);
    });
#pragma unroll
    for (int i = 0; i < Tile::TM; i++)
#pragma unroll
        for (int j = 0; j < Tile::TN; j++) {
            uint32_t t = token + Tile::row(i), e = expert + Tile::col(j);
            if (t >= p.tokens || e >= p.experts) continue;
            float bias = p.gate_bias ? widen(((const T *)p.gate_bias)[e]) : 0.0f;
            p.logits[(uint64_t)t * p.experts + e] = sums[i][j] + bias;
        }
}

// Without the number of blocks the compiler would rather spill than use registers that are free.
#define BOUNDS(tile) tile::THREADS, 2
#define GATE(name, ...)                                                                       \
    typedef Tile<__VA_ARGS__> name##_tile;                                                    \
    template <typename T> static __device__ __forceinline__ void name(const RouteParams &p) { \
        gate_tile<T, name##_tile>(p);                                                         \
    }                                                                                         \
    KERNELS(name, RouteParams, BOUNDS(name##_tile))

GATE(route_gate_128x64, 128, 64, 8, 8, 16)
GATE(route_gate_64x64, 64, 64, 8, 4, 16)
GATE(route_gate_64x32, 64, 32, 8, 4, 32)
GATE(route_gate_32x32, 32, 32, 4, 4, 32)
GATE(route_gate_64x8, 64, 8, 4, 2, 32)
GATE(route_gate_16x16, 16, 16, 2, 2, 128)
GATE(route_gate_8x8, 8, 8, 1, 1, 256)

KERNEL(route_choose, RouteParams, CHOOSERS, 4) {
    uint32_t token = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= p.tokens) return;
    choose(p, token, lane);
}

// The index of the largest of `len` keys, which gets the key `mark`.
static __device__ uint32_t draw(uint32_t *keys, uint32_t len, uint32_t mark, uint32_t lane) {
    uint32_t key = 0, index = 0;
    for (uint32_t at = lane; at < len; at += 32)
        if (keys[at] > max(key, 1u)) key = keys[at], index = at;
    uint32_t best = best_of_lanes(key, index);
    if (best != NO_ROW && lane == best % 32) keys[best] = mark;
    return best;
}

// Any number of experts and groups: a token's choice scores lie in memory.
static __device__ void choose_any(const RouteParams &p, uint32_t *keys, uint32_t token, uint32_t lane) {
    const float *logits = p.logits + (uint64_t)token * p.experts;
    uint32_t bad = 0;
    for (uint32_t e = lane; e < p.experts; e += 32) bad += !isfinite(logits[e]);
    if (bad) atomicAdd(p.non_finite, bad);
    Powers of = {0.0f, 0.0f};
    if (p.score == SOFTMAX) of = powers(logits, p.experts, lane);
    bool given = p.forced_ids || p.round_robin;
    if (!given) {
        for (uint32_t e = lane; e < p.experts; e += 32)
            keys[e] = order(score(p.score, of, logits[e]) + (p.selection_bias ? p.selection_bias[e] : 0.0f));
        __syncwarp();
    }
    if (!given && p.groups_kept < p.groups) {
        const uint32_t KEPT = 1;
        uint32_t size = p.experts / p.groups, *groups = keys + p.experts;
        for (uint32_t g = lane; g < p.groups; g += 32) {
            uint32_t best[2] = {0, 0};
            for (uint32_t e = g * size; e < (g + 1) * size; e++) insert(keys[e], best);
            groups[g] = strength(best[0], best[1], size);
        }
        for (uint32_t n = 0; n < p.groups_kept; n++) draw(groups, p.groups, KEPT, lane);
        __syncwarp();
        for (uint32_t e = lane; e < p.experts; e += 32)
            if (groups[e / size] != KEPT) keys[e] = 0;
        __syncwarp();
    }
    uint32_t first = p.experts, pending = p.experts;
    for (uint32_t k = 0; k < p.top_k; k++) {
        if (!given) {
            uint32_t id = draw(keys, p.experts, 0, lane);
            if (lane == k % 32) pending = id;
        } else if (k % 32 == 0) {
            pending = given_id(p, token, k + lane);
        }
        if (k % 32 == 31 || k + 1 == p.top_k) {
            uint32_t settled = settle(p, of, token, k / 32 * 32 + lane, pending);
            if (k < 32) first = settled;
        }
    }
    weigh(p, of, token, lane, first);
}

KERNEL(route_choose_any, RouteParams, CHOOSERS) {
    uint32_t warp = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t *keys = p.rows + (uint64_t)warp * (p.experts + p.groups);
    for (uint32_t token = warp; token < p.tokens; token += gridDim.x * WARPS) {
        choose_any(p, keys, token, lane);
        __syncwarp();
    }
}
