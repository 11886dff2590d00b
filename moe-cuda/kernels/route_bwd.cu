// RouteBwd: a warp per token. Its scores and their gradients lie in two rows, in shared memory where they fit; expert e
// belongs to lane e % 32, and no lane reads another's. The first blocks count the load, each over its part of the slots.
#include "scores.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)

struct RouteBwdParams {
    const float *logits;
    const uint32_t *ids;
    const float *dweights;
    const uint32_t *row_of_slot, *sequences, *counts;
    const float *factors, *z_factor;
    uint32_t *load;
    float *dlogits;
    // (blocks * WARPS, 2, experts), or none
    float *rows;
    // (load_blocks, experts)
    uint32_t *parts;
    uint32_t tokens, experts, top_k, sequence_count, score, normalize, accumulate, load_blocks;
    float scale;
};

#define COUNTED 1024 // experts counted at a time

static __device__ void count_load(const RouteBwdParams &p, uint32_t block) {
    __shared__ uint32_t counts[COUNTED];
    uint64_t slots = (uint64_t)p.tokens * p.top_k, each = (slots + p.load_blocks - 1) / p.load_blocks;
    uint64_t start = block * each, end = start + each < slots ? start + each : slots;
    for (uint32_t first = 0; first < p.experts; first += COUNTED) {
        for (uint32_t e = threadIdx.x; e < COUNTED; e += THREADS) counts[e] = 0;
        __syncthreads();
#pragma unroll 8
        for (uint64_t slot = start + threadIdx.x; slot < end; slot += THREADS) {
            uint32_t id = p.ids[slot];
            if (id < p.experts && id - first < COUNTED) atomicAdd(&counts[id - first], 1);
        }
        __syncthreads();
        for (uint32_t e = threadIdx.x; e < min(COUNTED, p.experts - first); e += THREADS)
            p.parts[(uint64_t)block * p.experts + first + e] = counts[e];
    }
}

// Adds the parts to the load, with saturation.
KERNEL(route_load, RouteBwdParams, THREADS) {
    uint32_t expert = blockIdx.x * THREADS + threadIdx.x;
    if (expert >= p.experts) return;
    uint64_t sum = p.accumulate ? p.load[expert] : 0;
    for (uint32_t block = 0; block < p.load_blocks; block++) sum += p.parts[(uint64_t)block * p.experts + expert];
    p.load[expert] = sum > 0xffffffffu ? 0xffffffffu : (uint32_t)sum;
}

struct Token {
    const RouteBwdParams &p;
    uint32_t token, lane;
    const float *logits;
    // e^(logit - max) and so on, where softmax is used at all
    Powers powers;
    float *scores, *grad;

    // Slot k's expert, and the gradient of its weight. Beyond K, and for a dropped slot, the gradient is 0.
    __device__ __forceinline__ uint32_t chosen(uint32_t k, float &dweight) const {
        dweight = 0.0f;
        if (k >= p.top_k) return p.experts;
        uint64_t slot = (uint64_t)token * p.top_k + k;
        uint32_t id = p.ids[slot];
        bool dropped = p.row_of_slot && p.row_of_slot[slot] == NO_ROW;
        if (id < p.experts && !dropped) dweight = p.dweights[slot];
        return min(id, p.experts);
    }

    __device__ __forceinline__ float of(uint32_t function, uint32_t id) const {
        return id < p.experts ? ::score(function, powers, logits[id]) : 0.0f;
    }

    __device__ __forceinline__ float dot() const {
        float sum = 0.0f;
        for (uint32_t e = lane; e < p.experts; e += 32) sum += grad[e] * scores[e];
        return warp_sum(sum);
    }

    // Adds 32 slots' gradients at `id` to the row, in slot order.
    __device__ __forceinline__ void add(uint32_t id, float value) const {
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t to = __shfl_sync(ALL_LANES, id, i);
            float more = __shfl_sync(ALL_LANES, value, i);
            if (to < p.experts && to % 32 == lane) grad[to] += more;
        }
    }

    // From gradients of the scores to gradients of the logits: expert e's is slope * (grad[e] - shift) for softmax.
    __device__ __forceinline__ float through(uint32_t function, uint32_t e, float grad, float shift) const {
        if (function == SIGMOID) return grad * (scores[e] * fixed_sigmoid(-logits[e]));
        return scores[e] * (grad - shift);
    }

    // Softmax over the chosen logits.
    __device__ void through_chosen() const {
        float largest = -INFINITY, sum = 0.0f, dot = 0.0f, dw;
        for (uint32_t k = lane; k < p.top_k; k += 32) {
            uint32_t id = chosen(k, dw);
            if (id < p.experts) largest = fmaxf(largest, logits[id]);
        }
        largest = warp_max(largest);
        for (uint32_t k = lane; k < p.top_k; k += 32) {
            uint32_t id = chosen(k, dw);
            if (id < p.experts) sum += fixed_exp(logits[id] - largest);
        }
        sum = warp_sum(sum);
        for (uint32_t k = lane; k < p.top_k; k += 32) {
            uint32_t id = chosen(k, dw);
            if (id < p.experts) dot += p.scale * dw * (fixed_exp(logits[id] - largest) / sum);
        }
        dot = warp_sum(dot);
        for (uint32_t k = 0; k < p.top_k; k += 32) {
            uint32_t id = chosen(k + lane, dw);
            float weight = id < p.experts ? fixed_exp(logits[id] - largest) / sum : 0.0f;
            add(id, weight * (p.scale * dw - dot));
        }
    }

    // Scores of all experts, of which the chosen ones are weights.
    __device__ void through_weights() const {
        float sum = 0.0f, dot = 0.0f, dw;
        for (uint32_t k = 0; k < p.top_k; k += 32) {
            uint32_t id = chosen(k + lane, dw);
            float score = of(p.score, id), product = dw * score;
            for (uint32_t i = 0; i < min(p.top_k - k, 32u); i++) {
                sum += __shfl_sync(ALL_LANES, score, i);
                dot += __shfl_sync(ALL_LANES, product, i);
            }
        }
        sum += 1e-20f;
        for (uint32_t k = 0; k < p.top_k; k += 32) {
            uint32_t id = chosen(k + lane, dw);
            add(id, p.scale * (p.normalize ? (dw - dot / sum) / sum : dw));
        }
    }

    // The token's sequence, or `sequence_count`: the last that begins at or before it, if it has not ended there.
    __device__ uint32_t sequence() const {
        if (!p.sequences || p.sequence_count == 0 || p.sequences[0] > token) return p.sequence_count;
        uint32_t s = 0, beyond = p.sequence_count;
        while (beyond - s > 1) {
            uint32_t middle = s + (beyond - s) / 2;
            if (p.sequences[middle] <= token) s = middle;
            else beyond = middle;
        }
        return token < p.sequences[s + 1] ? s : p.sequence_count;
    }

    __device__ void run() const {
        float *out = p.dlogits + (uint64_t)token * p.experts;
        for (uint32_t e = lane; e < p.experts; e += 32) {
            scores[e] = ::score(loss_score(p.score), powers, logits[e]);
            grad[e] = 0.0f;
        }
        if (p.score == SOFTMAX_TOP_K) through_chosen();
        else through_weights();
        float shift = p.score == SOFTMAX ? dot() : 0.0f;
        for (uint32_t e = lane; e < p.experts; e += 32)
            out[e] = p.score == SOFTMAX_TOP_K ? grad[e] : through(p.score, e, grad[e], shift);

        uint32_t s = sequence();
        if (s < p.sequence_count) {
            const uint32_t *counts = p.counts + (uint64_t)s * p.experts;
            float factor = p.factors[s], whole = 0.0f;
            for (uint32_t e = lane; e < p.experts; e += 32) {
                whole += scores[e];
                grad[e] = factor * (float)counts[e];
            }
            whole = warp_sum(whole) + 1e-20f;
            float mean = dot() / whole;
            for (uint32_t e = lane; e < p.experts; e += 32) grad[e] = (grad[e] - mean) / whole;
            uint32_t function = loss_score(p.score);
            shift = function == SOFTMAX ? dot() : 0.0f;
            for (uint32_t e = lane; e < p.experts; e += 32) out[e] += through(function, e, grad[e], shift);
        }
        if (p.z_factor) {
            float slope = 2.0f * *p.z_factor * log_sum_exp(powers);
            for (uint32_t e = lane; e < p.experts; e += 32) out[e] += slope * ::score(SOFTMAX, powers, logits[e]);
        }
    }
};

KERNEL(route_bwd, RouteBwdParams, THREADS, 4) {
    extern __shared__ float shared[];
    if (blockIdx.x < p.load_blocks) return count_load(p, blockIdx.x);
    uint32_t block = blockIdx.x - p.load_blocks, warps = (gridDim.x - p.load_blocks) * WARPS;
    uint32_t warp = block * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    float *row = p.rows ? p.rows + (uint64_t)warp * 2 * p.experts : shared + threadIdx.x / 32 * 2 * p.experts;
    for (uint64_t token = warp; token < p.tokens; token += warps) {
        const float *logits = p.logits + token * p.experts;
        Powers of = {0.0f, 1.0f};
        if (loss_score(p.score) == SOFTMAX || p.z_factor) of = powers(logits, p.experts, lane);
        Token{p, (uint32_t)token, lane, logits, of, row, row + p.experts}.run();
    }
}
