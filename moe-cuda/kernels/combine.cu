// Combine: out[t] = sum over k of weights[t,k] * y[row_of_slot[t,k]] + base terms, in slot order, rounded once.
#include "prelude.cuh"

#define THREADS 256
// Rows that are read together, before the first of them is added.
#define TOGETHER 8u

struct CombineParams {
    const void *y;
    const uint32_t *row_of_slot;
    const float *weights;
    const void *base[3];
    const float *scale[3];
    void *out;
    uint32_t top_k, width, rows;
};

// `N` elements at a time: 16 bytes where all addresses and the width allow it, else one. The blocks in y share a token's row.
template <typename T, int N>
static __device__ void combine_row(const CombineParams &p, uint32_t token) {
    struct alignas(N * sizeof(T)) Pack { T v[N]; };
    uint32_t packs = p.width / N;
    const uint32_t *rows = p.row_of_slot + (uint64_t)token * p.top_k;
    const float *weights = p.weights ? p.weights + (uint64_t)token * p.top_k : nullptr;
    for (uint32_t at = blockIdx.y * blockDim.x + threadIdx.x; at < packs; at += gridDim.y * blockDim.x) {
        float sum[N];
        for (int i = 0; i < N; i++) sum[i] = 0.0f;
        for (uint32_t first = 0; first < p.top_k; first += TOGETHER) {
            uint32_t row[TOGETHER];
            float weight[TOGETHER];
            Pack y[TOGETHER];
            // Without branches, so that each load waits for its own row alone.
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; j++) {
                uint32_t k = min(first + j, p.top_k - 1);
                row[j] = first + j < p.top_k ? rows[k] : NO_ROW;
                weight[j] = weights ? weights[k] : 1.0f;
            }
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; j++)
                y[j] = row[j] < p.rows ? ((const Pack *)p.y)[(uint64_t)row[j] * packs + at] : Pack{};
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; j++)
                for (int i = 0; i < N; i++) {
                    float more = fused(weight[j], widen(y[j].v[i]), sum[i]);
                    sum[i] = row[j] < p.rows ? more : sum[i];
                }
        }
        for (int b = 0; b < 3; b++) {
            if (!p.base[b]) continue;
            float scale = p.scale[b] ? p.scale[b][token] : 1.0f;
            Pack term = ((const Pack *)p.base[b])[(uint64_t)token * packs + at];
            for (int i = 0; i < N; i++) sum[i] = fused(scale, widen(term.v[i]), sum[i]);
        }
        Pack out;
        for (int i = 0; i < N; i++) out.v[i] = narrow<T>(sum[i]);
        ((Pack *)p.out)[(uint64_t)token * packs + at] = out;
    }
}

template <typename T>
static __device__ __forceinline__ void combine(const CombineParams &p) {
    constexpr int N = 16 / sizeof(T);
    uint64_t all = (uint64_t)p.y | (uint64_t)p.base[0] | (uint64_t)p.base[1] | (uint64_t)p.base[2] | (uint64_t)p.out;
    if (p.width % N == 0 && all % 16 == 0) combine_row<T, N>(p, blockIdx.x);
    else combine_row<T, 1>(p, blockIdx.x);
}

// Without the number of blocks the compiler would rather spill than use registers that are free.
KERNELS(combine, CombineParams, THREADS, 2)
