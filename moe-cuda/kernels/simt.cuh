// A tile of a product in f32 arithmetic, for every type and architecture: 8 x 8 sums a thread.
#pragma once
#include "tiles.cuh"

#define SIMT_DEPTH 16u

// Eight elements of a line, zeros where there are none.
template <typename T>
static __device__ __forceinline__ void load_eight(float (&v)[8], const T *line, uint32_t at, uint32_t width, bool vector) {
    constexpr int N = 16 / sizeof(T);
    struct alignas(16) Pack { T v[N]; };
    if (line && vector && at < width && width - at >= 8) {
        for (int pack = 0; pack < 8 / N; pack++) {
            Pack some = ((const Pack *)(line + at))[pack];
            for (int i = 0; i < N; i++) v[pack * N + i] = widen(some.v[i]);
        }
    } else {
        for (int i = 0; i < 8; i++) v[i] = line && at < width && (uint32_t)i < width - at ? widen(line[at + i]) : 0.0f;
    }
}

// One operand's way into shared memory, as lines over the depth. ALONG: its own lines run along the depth.
template <typename T, bool ALONG, class Source> struct SimtFeed {
    const Source &source;
    const T *pointer;
    uint32_t at;
    bool vector;
    float v[8];

    __device__ __forceinline__ SimtFeed(const Source &source) : source(source), pointer(nullptr) {
        vector = vectors(source.base, source.width);
        at = ALONG ? threadIdx.x / TILE * 8 : threadIdx.x % 16 * 8;
        if (ALONG) pointer = source.line(source.fetch(threadIdx.x % TILE));
    }

    __device__ __forceinline__ void load(uint32_t depth) {
        if (ALONG) {
            load_eight(v, pointer, depth + at, source.width, vector);
        } else {
            uint32_t i = depth + threadIdx.x / 16;
            load_eight(v, source.line(source.fetch(i)), source.origin + at, source.width, vector);
            float factor = source.factor(i);
            for (int k = 0; k < 8; k++) v[k] = factor * v[k];
        }
    }

    __device__ __forceinline__ void store(float (*to)[PITCH]) const {
        for (int i = 0; i < 8; i++) {
            if (ALONG) to[at + i][threadIdx.x % TILE] = v[i];
            else to[threadIdx.x / 16][at + i] = v[i];
        }
    }
};

template <typename T> struct Simt {
    struct Shared {
        float left[2][SIMT_DEPTH][PITCH], right[2][SIMT_DEPTH][PITCH];
    };

    // sums += left * right over the depth, in order.
    template <bool LEFT_ALONG, bool RIGHT_ALONG, class Left, class Right>
    static __device__ __forceinline__ void multiply(float (&sums)[8][8], const Left &left, const Right &right,
                                                    uint32_t depth, void *shared) {
        Shared &s = *(Shared *)shared;
        SimtFeed<T, LEFT_ALONG, Left> lefts(left);
        SimtFeed<T, RIGHT_ALONG, Right> rights(right);
        uint32_t row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4, now = 0;
        if (depth > 0) {
            lefts.load(0);
            rights.load(0);
            lefts.store(s.left[0]);
            rights.store(s.right[0]);
        }
        __syncthreads();
        for (uint32_t at = 0; at < depth; at += SIMT_DEPTH, now ^= 1) {
            bool more = depth - at > SIMT_DEPTH;
            if (more) {
                lefts.load(at + SIMT_DEPTH);
                rights.load(at + SIMT_DEPTH);
            }
#pragma unroll 4
            for (uint32_t k = 0; k < SIMT_DEPTH; k++) {
                float a[8], b[8];
                *(float4 *)&a[0] = *(float4 *)&s.left[now][k][row];
                *(float4 *)&a[4] = *(float4 *)&s.left[now][k][TILE / 2 + row];
                *(float4 *)&b[0] = *(float4 *)&s.right[now][k][column];
                *(float4 *)&b[4] = *(float4 *)&s.right[now][k][TILE / 2 + column];
#pragma unroll
                for (int i = 0; i < 8; i++) {
#pragma unroll
                    for (int j = 0; j < 8; j++) sums[i][j] = fused(a[i], b[j], sums[i][j]);
                }
            }
            if (more) {
                lefts.store(s.left[now ^ 1]);
                rights.store(s.right[now ^ 1]);
            }
            __syncthreads();
        }
    }

    // Writes half of the tile's rows, as lines.
    static __device__ __forceinline__ void place(const float (&sums)[8][8], int half, float (*lines)[PITCH]) {
        uint32_t row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *sum = sums[half * 4 + i];
            *(float4 *)&lines[row + i][column] = make_float4(sum[0], sum[1], sum[2], sum[3]);
            *(float4 *)&lines[row + i][TILE / 2 + column] = make_float4(sum[4], sum[5], sum[6], sum[7]);
        }
    }
};
