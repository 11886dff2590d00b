// What follows from a token's logits, by one warp: scores, groups, the K best and their weights.
#pragma once
#include "jitter.cuh"
#include "scores.cuh"

// `RouteParams` of ops/route.rs.
struct RouteParams {
    const void *x, *gate, *gate_bias;
    const float *selection_bias;
    const uint32_t *forced_ids;
    Jitter jitter;
    float *logits;
    uint32_t *ids;
    float *weights;
    uint32_t *non_finite;
    // (warps, experts + groups), where registers do not hold a token's experts
    uint32_t *rows;
    uint32_t tokens, width, experts, top_k, groups, groups_kept, score, round_robin, normalize;
    float scale;
};

// Numbers in the order of the floats; both zeros are equal. 0 stands for NaN, which is never chosen, and 1 is free.
static __device__ __forceinline__ uint32_t order(float v) {
    uint32_t bits = __float_as_uint(v + 0.0f);
    if (isnan(v)) return 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float value(uint32_t order) {
    if (order == 0) return -INFINITY;
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

static __device__ __forceinline__ uint32_t max_of_lanes(uint32_t v) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, v);
#else
    for (int half = 16; half > 0; half /= 2) v = max(v, __shfl_xor_sync(ALL_LANES, v, half));
    return v;
#endif
}

// The best of the lanes' candidates, each a key with an index; ties: lower index. NO_ROW if all keys are 0.
static __device__ __forceinline__ uint32_t best_of_lanes(uint32_t key, uint32_t index) {
    uint32_t best = max_of_lanes(key);
    return best == 0 ? NO_ROW : ~max_of_lanes(key == best ? ~index : 0);
}

// A group's strength: the sum of its two best choice scores.
static __device__ __forceinline__ uint32_t strength(uint32_t first, uint32_t second, uint32_t size) {
    return order(size == 1 ? value(first) : value(first) + value(second));
}

static __device__ __forceinline__ void insert(uint32_t key, uint32_t (&best)[2]) {
    best[1] = max(best[1], min(best[0], key));
    best[0] = max(best[0], key);
}

// Checks and writes the ids of slots k0..k0+32, one in each lane, and returns them. What was chosen by its score has one.
static __device__ __forceinline__ uint32_t
settle(const RouteParams &p, const Powers &powers, uint32_t token, uint32_t k, uint32_t id) {
    if (k >= p.top_k) return p.experts;
    bool given = p.forced_ids || p.round_robin, known = id < p.experts;
    if (given && known) known = !isnan(score(p.score, powers, p.logits[(uint64_t)token * p.experts + id]));
    if (!known) id = p.experts;
    p.ids[(uint64_t)token * p.top_k + k] = id;
    return id;
}

// Ids that are not chosen by score.
static __device__ __forceinline__ uint32_t given_id(const RouteParams &p, uint32_t token, uint32_t k) {
    uint64_t slot = (uint64_t)token * p.top_k + k;
    if (p.forced_ids) return k < p.top_k ? p.forced_ids[slot] : 0;
    return (uint32_t)((first_token(p.jitter.stamp) * p.top_k + slot) % p.experts);
}

// The weights of a token's slots, 32 at a time; sums over K in slot order. `first` holds the ids of the first 32.
static __device__ __forceinline__ void
weigh(const RouteParams &p, const Powers &powers, uint32_t token, uint32_t lane, uint32_t first) {
    const float *logits = p.logits + (uint64_t)token * p.experts;
    uint64_t slots = (uint64_t)token * p.top_k;
    auto id = [&](uint32_t k) {
        return k < 32 ? first : k < p.top_k ? p.ids[slots + k] : p.experts;
    };
    auto chosen = [&](uint32_t id) { return id < p.experts ? score(p.score, powers, logits[id]) : 0.0f; };
    bool over_chosen = p.score == SOFTMAX_TOP_K;
    float largest = -INFINITY, sum = 0.0f;
    if (over_chosen) {
#pragma unroll 1
        for (uint32_t k = lane; k < p.top_k; k += 32)
            if (id(k) < p.experts) largest = fmaxf(largest, chosen(id(k)));
        largest = warp_max(largest);
    }
    auto raw = [&](uint32_t k) {
        uint32_t expert = id(k);
        float weight = chosen(expert);
        return over_chosen && expert < p.experts ? fixed_exp(weight - largest) : weight;
    };
    float own = raw(lane);
    if (over_chosen || p.normalize) {
#pragma unroll 1
        for (uint32_t k = 0; k < p.top_k; k += 32) {
            float weight = k == 0 ? own : raw(k + lane);
            for (uint32_t i = 0; i < min(p.top_k - k, 32u); i++) sum += __shfl_sync(ALL_LANES, weight, i);
        }
    }
#pragma unroll 1
    for (uint32_t k = lane; k < p.top_k; k += 32) {
        float weight = k < 32 ? own : raw(k);
        if (over_chosen) weight = id(k) < p.experts ? weight / sum : weight;
        else if (p.normalize) weight = weight / (sum + 1e-20f);
        p.weights[slots + k] = weight * p.scale;
    }
}

// A token with its experts in registers: at most 32 * N experts and, if they matter, 32 groups.
template <int N> static __device__ void choose(const RouteParams &p, uint32_t token, uint32_t lane) {
    const float *logits = p.logits + (uint64_t)token * p.experts;
    float held[N];
    uint32_t keys[N], bad = 0;
    Powers powers = {-INFINITY, 0.0f};
#pragma unroll
    for (int i = 0; i < N; i++) {
        bool there = lane + 32 * i < p.experts;
        held[i] = there ? logits[lane + 32 * i] : NAN;
        bad += __popc(__ballot_sync(ALL_LANES, there && !isfinite(held[i])));
        powers.max = fmaxf(powers.max, held[i]);
    }
    if (lane == 0 && bad) atomicAdd(p.non_finite, bad);
    if (p.score == SOFTMAX) {
        powers.max = warp_max(powers.max);
#pragma unroll
        for (int i = 0; i < N; i++) {
            held[i] = fixed_exp(held[i] - powers.max);
            if (lane + 32 * i < p.experts) powers.sum += held[i];
        }
        powers.sum = warp_sum(powers.sum);
    }
    if (p.forced_ids || p.round_robin) {
        uint32_t first = settle(p, powers, token, lane, given_id(p, token, lane));
#pragma unroll 1
        for (uint32_t k = lane + 32; k < p.top_k; k += 32) settle(p, powers, token, k, given_id(p, token, k));
        return weigh(p, powers, token, lane, first);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        uint32_t e = lane + 32 * i;
        float of = p.score == SOFTMAX ? held[i] / powers.sum : p.score == SIGMOID ? fixed_sigmoid(held[i]) : held[i];
        float bias = p.selection_bias && e < p.experts ? p.selection_bias[e] : 0.0f;
        keys[i] = e < p.experts ? order(of + bias) : 0;
    }
    if (p.groups_kept < p.groups) {
        uint32_t size = p.experts / p.groups, mine = 0, kept = 0;
#pragma unroll 1
        for (uint32_t g = 0; g < p.groups; g++) {
            uint32_t best[2] = {0, 0};
#pragma unroll
            for (int i = 0; i < N; i++)
                if (lane + 32 * i - g * size < size) insert(keys[i], best);
            uint32_t most = max_of_lanes(best[0]);
            uint32_t owner = __ffs(__ballot_sync(ALL_LANES, best[0] == most)) - 1;
            uint32_t next = max_of_lanes(lane == owner ? best[1] : best[0]);
            if (lane == g) mine = strength(most, next, size);
        }
#pragma unroll 1
        for (uint32_t n = 0; n < p.groups_kept; n++) {
            uint32_t g = best_of_lanes(mine, lane);
            if (g == NO_ROW) break;
            kept |= 1u << g;
            if (lane == g) mine = 0;
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (lane + 32 * i < p.experts && !(kept >> (lane + 32 * i) / size & 1)) keys[i] = 0;
    }
    uint32_t first = p.experts, pending = p.experts;
#pragma unroll 1
    for (uint32_t k = 0; k < p.top_k; k++) {
        uint32_t key = 0, index = 0;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (keys[i] > key) key = keys[i], index = lane + 32 * i;
        uint32_t id = best_of_lanes(key, index);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (lane + 32 * i == id) keys[i] = 0;
        if (lane == k % 32) pending = id;
        if (k % 32 == 31 || k + 1 == p.top_k) {
            uint32_t settled = settle(p, powers, token, k / 32 * 32 + lane, pending);
            if (k < 32) first = settled;
        }
    }
    weigh(p, powers, token, lane, first);
}

// A token with at most 512 experts.
static __device__ __forceinline__ void choose(const RouteParams &p, uint32_t token, uint32_t lane) {
    if (p.experts <= 32) choose<1>(p, token, lane);
    else if (p.experts <= 64) choose<2>(p, token, lane);
    else if (p.experts <= 128) choose<4>(p, token, lane);
    else if (p.experts <= 256) choose<8>(p, token, lane);
    else choose<16>(p, token, lane);
}
