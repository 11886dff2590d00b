// Combine: out[t] = sum over k of weights[t,k] * y[row_of_slot[t,k]] + base terms, in slot order, rounded once.
#include "prelude.cuh"

#define THREADS 256

struct CombineParams {
    const void *y;
    const uint32_t *row_of_slot;
    const float *weights;
    const void *base[3];
    const float *scale[3];
    void *out;
    uint32_t top_k, width, rows;
};

// `N` elements at a time: 16 bytes where all addresses and the width allow it, else one.
template <typename T, int N>
static __device__ void combine_row(const CombineParams &p, uint32_t token) {
    struct alignas(N * sizeof(T)) Pack { T v[N]; };
    uint32_t packs = p.width / N;
    const uint32_t *rows = p.row_of_slot + (uint64_t)token * p.top_k;
    for (uint32_t at = threadIdx.x; at < packs; at += THREADS) {
        float sum[N];
        for (int i = 0; i < N; i++) sum[i] = 0.0f;
#pragma unroll 4
        for (uint32_t k = 0; k < p.top_k; k++) {
            uint32_t row = rows[k];
            if (row >= p.rows) continue;
            float weight = p.weights ? p.weights[(uint64_t)token * p.top_k + k] : 1.0f;
            Pack y = ((const Pack *)p.y)[(uint64_t)row * packs + at];
            for (int i = 0; i < N; i++) sum[i] = fused(weight, widen(y.v[i]), sum[i]);
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

KERNELS(combine, CombineParams, THREADS)
