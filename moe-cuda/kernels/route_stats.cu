// RouteStats: a warp per token for its scores and their sum; a block per chunk of a sequence and 32 experts, which adds
// probabilities; and the chunks in order.
#include "scores.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define BLOCK 128 // tokens whose probabilities lie in shared memory
#define EACH (BLOCK / WARPS)

struct RouteStatsParams {
    const float *logits;
    const uint32_t *ids, *sequences;
    uint32_t *counts;
    float *prob_sums, *z_sum;
    // (tokens, experts); (tokens): their sums; (tokens)
    float *scores, *wholes, *squares;
    // (slots, experts), and (slots); see `Chunk`
    uint32_t *part_counts;
    float *part_sums, *part_squares;
    uint32_t tokens, experts, top_k, sequence_count, score, slots;
};

static __device__ __forceinline__ uint32_t bound(const RouteStatsParams &p, uint32_t s) {
    return min(p.sequences[s], p.tokens);
}

// Chunk c of sequence s has the slot s + start / CHUNK + c, with `start` the sequence's first token. No two chunks share a
// slot: a sequence's last chunk begins at most `len / CHUNK` chunks after its start.
static __device__ __forceinline__ uint32_t first_slot(const RouteStatsParams &p, uint32_t s) {
    return s + bound(p, s) / CHUNK;
}

KERNEL(route_stats_tokens, RouteStatsParams, THREADS) {
    uint32_t token = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= p.tokens) return;
    const float *logits = p.logits + (uint64_t)token * p.experts;
    Powers of = powers(logits, p.experts, lane);
    float whole = 0.0f;
    float *scores = p.scores + (uint64_t)token * p.experts;
    for (uint32_t e = lane; e < p.experts; e += 32) {
        float own = score(loss_score(p.score), of, logits[e]);
        scores[e] = own;
        whole += own;
    }
    whole = warp_sum(whole) + 1e-20f;
    if (lane != 0) return;
    float z = log_sum_exp(of);
    p.wholes[token] = whole;
    p.squares[token] = z * z;
}

// The sum of a chunk's squares, in order.
static __device__ void add_squares(const RouteStatsParams &p) {
    __shared__ float squares[CHUNK];
    uint64_t start = (uint64_t)blockIdx.x * CHUNK;
    if (start >= p.tokens) return;
    uint32_t len = min((uint32_t)(p.tokens - start), CHUNK);
    for (uint32_t t = threadIdx.x; t < len; t += THREADS) squares[t] = p.squares[start + t];
    __syncthreads();
    if (threadIdx.x != 0) return;
    float sum = 0.0f;
#pragma unroll 16
    for (uint32_t t = 0; t < len; t++) sum = sum + squares[t];
    p.part_squares[blockIdx.x] = sum;
}

KERNEL(route_stats_chunks, RouteStatsParams, THREADS) {
    if (blockIdx.y == gridDim.y - 1) return add_squares(p);
    __shared__ float blocks[2][BLOCK][32];
    __shared__ uint32_t counts[32];
    // The last sequence whose first slot is at most this one.
    uint32_t slot = blockIdx.x, s = 0, beyond = p.sequence_count;
    if (beyond == 0 || first_slot(p, 0) > slot) return;
    while (beyond - s > 1) {
        uint32_t middle = s + (beyond - s) / 2;
        if (first_slot(p, middle) <= slot) s = middle;
        else beyond = middle;
    }
    uint64_t start = bound(p, s) + (uint64_t)(slot - first_slot(p, s)) * CHUNK;
    uint32_t limit = bound(p, s + 1);
    if (start >= limit) return;
    uint32_t len = min((uint32_t)(limit - start), CHUNK);

    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.y * 32, expert = first + lane;
    bool there = expert < p.experts;
    if (warp == 0) counts[lane] = 0;
    __syncthreads();
    uint64_t slots = (uint64_t)len * p.top_k;
    for (uint64_t k = threadIdx.x; k < slots; k += 8 * THREADS) {
        uint32_t ids[8];
#pragma unroll
        for (int i = 0; i < 8; i++) ids[i] = k + i * THREADS < slots ? p.ids[start * p.top_k + k + i * THREADS] : NO_ROW;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (ids[i] < p.experts && ids[i] - first < 32) atomicAdd(&counts[ids[i] - first], 1);
    }
    float sum = 0.0f;
    for (uint32_t begin = 0; begin < len; begin += BLOCK) {
        // All loads of a warp are under way before the first is used.
        uint32_t end = min(len - begin, BLOCK);
        float scores[EACH], wholes[EACH];
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) {
            uint64_t token = start + begin + min(warp + i * WARPS, end - 1);
            scores[i] = there ? p.scores[token * p.experts + expert] : 0.0f;
            wholes[i] = p.wholes[token];
        }
        // One half is added up while the other is filled.
        float(&block)[BLOCK][32] = blocks[begin / BLOCK % 2];
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            if (warp + i * WARPS < end) block[warp + i * WARPS][lane] = scores[i] / wholes[i];
        __syncthreads();
        if (warp == 0) {
#pragma unroll 16
            for (uint32_t t = 0; t < end; t++) sum = sum + block[t][lane];
        }
    }
    if (warp != 0 || !there) return;
    p.part_sums[(uint64_t)slot * p.experts + expert] = sum;
    p.part_counts[(uint64_t)slot * p.experts + expert] = counts[lane];
}

KERNEL(route_stats_sum, RouteStatsParams, THREADS) {
    uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x, len = (uint64_t)p.sequence_count * p.experts;
    float sum = 0.0f;
    if (at == len) {
        uint32_t chunks = (p.tokens + CHUNK - 1) / CHUNK;
#pragma unroll 8
        for (uint32_t c = 0; c < chunks; c++) sum = sum + p.part_squares[c];
        *p.z_sum = sum;
    }
    if (at >= len) return;
    uint32_t s = at / p.experts, count = 0, start = bound(p, s), end = max(bound(p, s + 1), start);
    uint32_t slot = first_slot(p, s), beyond = min(slot + (end - start + CHUNK - 1) / CHUNK, p.slots);
#pragma unroll 8
    for (; slot < beyond; slot++) {
        uint64_t part = (uint64_t)slot * p.experts + at % p.experts;
        sum = sum + p.part_sums[part];
        count += p.part_counts[part];
    }
    p.prob_sums[at] = sum;
    p.counts[at] = count;
}
