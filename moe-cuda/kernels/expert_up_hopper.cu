// ExpertUp on Hopper: h = x * w13^T (+ b13), a = silu(gate) * up, both rounded to the storage type.
#include "rows_hopper.cuh"
#include "swiglu_hopper.cuh"

struct UpParams {
    RowsParams rows;
    const void *bias; // (experts, 2 * columns), or null
    void *h;          // (rows, 2 * columns), or null
    void *a;          // (rows, columns)
};

// Adds the bias to a thread's sums: pairs of columns, the gate half first.
template <typename T> static __device__ __forceinline__ void add_bias(const T *bias, const UpParams &p, const Tile &tile, float (&sums)[128]) {
    uint32_t columns = p.rows.columns, first = tile.column + threadIdx.x % 4 * 2;
    bias += (uint64_t)tile.expert * 2 * columns;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        uint32_t column = first + i % 16 * 8;
        if (column >= columns) continue;
        float2 v = unpack<T>(*(const uint32_t *)(bias + (i < 16 ? 0 : columns) + column));
        sums[i * 4] += v.x, sums[i * 4 + 1] += v.y, sums[i * 4 + 2] += v.x, sums[i * 4 + 3] += v.y;
    }
}

template <typename T> static __device__ __forceinline__ void expert_up(const UpParams &p) {
    Rows<T, 256, 4, true, false, true>::run(p.rows, [&](const Tile &tile, uint32_t first, const auto &ring, auto &, float (&sums)[128]) {
        if (p.bias) add_bias((const T *)p.bias, p, tile, sums);
        Patch patch(ring.patches());
        uint32_t columns = p.rows.columns, column = tile.column + threadIdx.x % 4 * 8;
        T *h[2], *a[2];
        bool inside[2], keep = p.h;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t row = first + threadIdx.x % 32 / 4 + half * 8;
            inside[half] = row < tile.end;
            h[half] = (T *)p.h + (uint64_t)row * 2 * columns + column;
            a[half] = (T *)p.a + (uint64_t)row * columns + column;
        }
#pragma unroll 1
        for (int group = 0; group < 4; group++, column += 32) {
            __syncwarp();
#define PUT(I) patch.put_sums<T, I * 4>(0, sums); patch.put_sums<T, 16 + I * 4>(1, sums); break;
            switch (group) { case 0: PUT(0) case 1: PUT(1) case 2: PUT(2) default: PUT(3) }
            __syncwarp();
            // All four are under way before the first is used.
            const uint4 lines[4] = {patch.get(0, 0), patch.get(1, 0), patch.get(0, 1), patch.get(1, 1)};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint4 g = lines[half * 2], u = lines[half * 2 + 1];
                const uint32_t gates[4] = {g.x, g.y, g.z, g.w}, ups[4] = {u.x, u.y, u.z, u.w};
                uint32_t v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float2 gate = unpack<T>(gates[i]), up = unpack<T>(ups[i]);
                    v[i] = pack<T>(silu(gate.x) * up.x, silu(gate.y) * up.y);
                }
                if (inside[half] && column < columns) {
                    if (keep) {
                        *(uint4 *)h[half] = g;
                        *(uint4 *)(h[half] + columns) = u;
                    }
                    *(uint4 *)a[half] = make_uint4(v[0], v[1], v[2], v[3]);
                }
                h[half] += 32, a[half] += 32;
            }
        }
    });
}

KERNEL(expert_up_hopper_bf16, UpParams, BLOCK, 1) { expert_up<bf16>(p); }
KERNEL(expert_up_hopper_f16, UpParams, BLOCK, 1) { expert_up<f16>(p); }
