// AdamW: one optimizer step over one tensor, with the reference's order of operations.
#include "prelude.cuh"

#define THREADS 256

struct AdamWParams {
    const float *settings, *grad;
    void *w;
    float *master, *m, *v;
    uint64_t len;
};

// Elements at..at + N; their addresses are multiples of the size of N elements.
template <typename T, int N>
static __device__ __forceinline__ void adamw_at(const AdamWParams &p, uint64_t at) {
    struct alignas(N * sizeof(T)) Stored { T v[N]; };
    struct alignas(N * sizeof(float)) Floats { float v[N]; };
    const float *s = p.settings;
    float decay = s[0], beta1 = s[1], beta2 = s[2], eps = s[3], rate = s[4], root = s[5], scale = s[6];
    Stored &w = *(Stored *)((T *)p.w + at), stored;
    Floats &m = *(Floats *)(p.m + at), &v = *(Floats *)(p.v + at), *master = (Floats *)(p.master + at);
    Floats grad = *(const Floats *)(p.grad + at), first = m, second = v, exact;
    if (p.master) {
        exact = *master;
    } else {
        stored = w;
        for (int i = 0; i < N; i++) exact.v[i] = widen(stored.v[i]);
    }
    for (int i = 0; i < N; i++) {
        float g = scale * grad.v[i], old = exact.v[i];
        first.v[i] = beta1 * first.v[i] + (1.0f - beta1) * g;
        second.v[i] = beta2 * second.v[i] + (1.0f - beta2) * g * g;
        exact.v[i] = old - decay * old - rate * (first.v[i] / (sqrtf(second.v[i]) / root + eps));
        stored.v[i] = narrow<T>(exact.v[i]);
    }
    m = first;
    v = second;
    w = stored;
    if (p.master) *master = exact;
}

template <typename T>
static __device__ __forceinline__ void adamw(const AdamWParams &p) {
    uint64_t floats = (uint64_t)p.grad | (uint64_t)p.master | (uint64_t)p.m | (uint64_t)p.v;
    bool aligned = floats % 16 == 0 && (uint64_t)p.w % (4 * sizeof(T)) == 0;
    uint64_t at = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (aligned && at + 4 <= p.len) return adamw_at<T, 4>(p, at);
    for (uint64_t end = min(at + 4, p.len); at < end; at++) adamw_at<T, 1>(p, at);
}

KERNELS(adamw, AdamWParams, THREADS)
