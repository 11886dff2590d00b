// Gather: out[place of r] = rows[index[r] / fan] for the rows of all groups; a warp per row.
#include "prelude.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)

struct GatherParams {
    const void *source;
    const uint32_t *index, *offsets;
    void *out;
    uint64_t sources, rows, width, pitch;
    uint32_t fan, groups;
};

// The row of `out` for row `row`, or one past its end.
static __device__ __forceinline__ uint64_t place_of(const GatherParams &p, uint64_t row) {
    if (!p.pitch) return row;
    uint32_t low = 0, high = p.groups;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (p.offsets[middle] <= row) low = middle;
        else high = middle;
    }
    uint64_t first = p.offsets[low], nowhere = p.groups * p.pitch;
    return row < first || row - first >= p.pitch ? nowhere : low * p.pitch + (row - first);
}

template <typename Pack>
static __device__ __forceinline__ void copy_row(const Pack *from, Pack *to, uint64_t packs) {
    constexpr int AHEAD = 8;
    uint64_t at = threadIdx.x % 32;
    for (; at + (AHEAD - 1) * 32 < packs; at += AHEAD * 32) {
        Pack ahead[AHEAD];
        for (int i = 0; i < AHEAD; i++) ahead[i] = from[at + i * 32];
        for (int i = 0; i < AHEAD; i++) to[at + i * 32] = ahead[i];
    }
    for (; at < packs; at += 32) to[at] = from[at];
}

template <typename T>
static __device__ __forceinline__ void gather(const GatherParams &p) {
    uint64_t row = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= p.rows || row >= p.offsets[p.groups]) return;
    uint64_t from = p.index[row] / p.fan, to = place_of(p, row);
    if (from >= p.sources || (p.pitch && to >= p.groups * p.pitch)) return;
    const T *source = (const T *)p.source + from * p.width;
    T *out = (T *)p.out + to * p.width;
    uint64_t bytes = p.width * sizeof(T);
    if (((uint64_t)p.source | (uint64_t)p.out | bytes) % 16 == 0) {
        copy_row((const uint4 *)source, (uint4 *)out, bytes / 16);
    } else {
        copy_row(source, out, p.width);
    }
}

KERNELS(gather, GatherParams, THREADS)
