// Rows of sums, scaled or with a bias, rounded and stored, perhaps to other rows.
#pragma once
#include "rows_hopper.cuh"

struct StoreParams {
    RowsParams rows;
    const void *bias;          // (experts, columns), or null
    const float *weights;      // (slots) factors of the rows, or null
    const uint32_t *out_index; // (rows), or null
    void *out;                 // (rows, columns)
    float bias_share;          // factor of the bias
};

template <typename T>
static __device__ __forceinline__ void store(const StoreParams &p, const Tile &tile, uint32_t first, const auto &ring, float (&sums)[128]) {
    uint32_t columns = p.rows.columns, lane = threadIdx.x % 32;
    if (p.bias) {
        const T *bias = (const T *)p.bias + (uint64_t)tile.expert * columns;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            uint32_t column = tile.column + i * 8 + lane % 4 * 2;
            if (column >= columns) continue;
            float2 v = unpack<T>(*(const uint32_t *)(bias + column));
            v.x *= p.bias_share, v.y *= p.bias_share;
            sums[i * 4] += v.x, sums[i * 4 + 1] += v.y, sums[i * 4 + 2] += v.x, sums[i * 4 + 3] += v.y;
        }
    }
    if (p.weights) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t row = first + lane / 4 + half * 8;
            float scale = row < tile.end ? factor_of(p.rows, p.weights, row) : 1.0f;
#pragma unroll
            for (int i = 0; i < 64; i++) sums[i / 2 * 4 + half * 2 + i % 2] *= scale;
        }
    }
    Patch patch(ring.patches());
    uint32_t column = tile.column + lane % 4 * 8;
    T *out[2];
    bool inside[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = first + lane / 4 + half * 8;
        inside[half] = row < tile.end;
        if (p.out_index && inside[half]) row = min(p.out_index[row], p.rows.rows - 1);
        out[half] = (T *)p.out + (uint64_t)row * columns + column;
    }
#pragma unroll 1
    for (int group = 0; group < 8; group += 2, column += 64) {
        __syncwarp();
#define PUT(I) patch.put_sums<T, I * 4>(0, sums); patch.put_sums<T, I * 4 + 4>(1, sums); break;
        switch (group) { case 0: PUT(0) case 2: PUT(2) case 4: PUT(4) default: PUT(6) }
        __syncwarp();
        // All four are under way before the first is stored.
        uint4 lines[4];
#pragma unroll
        for (int i = 0; i < 4; i++) lines[i] = patch.get(i / 2, i % 2);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (inside[i % 2] && column + i / 2 * 32 < columns) *(uint4 *)(out[i % 2] + i / 2 * 32) = lines[i];
        out[0] += 64, out[1] += 64;
    }
}
