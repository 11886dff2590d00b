// ExpertDownBwd on Hopper: da = dout[row] * w2, dz over h, a' = s * a, and parts of ds = <da, a>, one per 128 columns.
#include "rows_hopper.cuh"
#include "swiglu_hopper.cuh"

struct DownBwdParams {
    RowsParams rows;
    const float *weights; // (slots), or null
    void *h;              // (rows, 2 * columns): h on entry, dz on return
    void *a;              // (rows, columns): a'
    float *parts;         // (rows, 128 columns each), or null
};

// Eight columns of one row: dz of both halves over g and u, a' in v, and the row's part of ds.
template <typename T>
static __device__ __forceinline__ void work(uint32_t (&g)[4], uint32_t (&u)[4], uint32_t (&v)[4], const float (&da)[8], float scale,
                                            float &part) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 gate = unpack<T>(g[i]), up = unpack<T>(u[i]);
        float dg[2], du[2], value[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float x = j ? gate.y : gate.x, y = j ? up.y : up.x, d = da[i * 2 + j];
            float s = sigmoid(x), act = x * s, outer = d * scale;
            part = fused(d, act * y, part);
            dg[j] = outer * y * fused(act, 1.0f - s, s);
            du[j] = outer * act;
            value[j] = scale * (act * y);
        }
        g[i] = pack<T>(dg[0], dg[1]), u[i] = pack<T>(du[0], du[1]), v[i] = pack<T>(value[0], value[1]);
    }
}

// Lanes work on 8 columns each, so that a row's 64 columns of a stage are read and written as whole lines.
template <typename T> static __device__ __forceinline__ void expert_down_bwd(const DownBwdParams &p) {
    typedef Rows<T, 256, 4, true, true, false, true> Loop;
    Loop::run(p.rows, [&](const Tile &tile, uint32_t first, const typename Loop::Ring &ring, auto &place, float (&sums)[128]) {
        uint32_t columns = p.rows.columns, lane = threadIdx.x % 32, line = lane / 8, chunk = lane % 8;
        uint32_t column = tile.column + chunk * 8, top = first - tile.row;
        SumPatch patch(ring.patches());
        float scale[4], part[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t row = first + line + i * 4;
            scale[i] = p.weights && row < tile.end ? factor_of(p.rows, p.weights, row) : 1.0f;
            part[i] = 0.0f;
        }
#pragma unroll 1
        for (int group = 0; group < 4; group++, column += 64) {
            barrier_wait(ring.full(place.stage), place.phase);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (i % 2 == 0) {
                    __syncwarp();
#define PUT(I) { if (i == 0) patch.put<I, 0>(sums); else patch.put<I, 1>(sums); break; }
                    switch (group) { case 0: PUT(0) case 1: PUT(1) case 2: PUT(2) default: PUT(3) }
                    __syncwarp();
                }
                uint32_t row = first + line + i * 4, at = top + line + i * 4;
                uint32_t from = at * 128 + ((chunk ^ (at & 7)) << 4);
                float4 x = patch.get4(line + i % 2 * 4, chunk * 8), y = patch.get4(line + i % 2 * 4, chunk * 8 + 4);
                uint4 hg = load_shared(ring.a(place.stage) + from), hu = load_shared(ring.b(place.stage) + from);
                // Beyond the gate half lies the up half, which its own block may be changing.
                if (column >= columns) hg = hu = make_uint4(0, 0, 0, 0);
                uint32_t g[4] = {hg.x, hg.y, hg.z, hg.w}, u[4] = {hu.x, hu.y, hu.z, hu.w}, v[4];
                work<T>(g, u, v, {x.x, x.y, x.z, x.w, y.x, y.y, y.z, y.w}, scale[i], part[i]);
                if (row >= tile.end || column >= columns) continue;
                T *h = (T *)p.h + (uint64_t)row * 2 * columns + column;
                *(uint4 *)h = make_uint4(g[0], g[1], g[2], g[3]);
                *(uint4 *)(h + columns) = make_uint4(u[0], u[1], u[2], u[3]);
                *(uint4 *)((T *)p.a + (uint64_t)row * columns + column) = make_uint4(v[0], v[1], v[2], v[3]);
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.empty(place.stage));
            place.next();
            if (!p.parts || group % 2 == 0) continue;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                for (int step = 1; step < 8; step *= 2) part[i] += __shfl_xor_sync(~0u, part[i], step);
                uint32_t row = first + line + i * 4, at = (tile.column + group * 64) / 128;
                if (chunk == 0 && row < tile.end && at * 128 < columns) p.parts[(uint64_t)row * ((columns + 127) / 128) + at] = part[i];
                part[i] = 0.0f;
            }
        }
    });
}

KERNEL(expert_down_bwd_hopper_bf16, DownBwdParams, BLOCK, 1) { expert_down_bwd<bf16>(p); }
KERNEL(expert_down_bwd_hopper_f16, DownBwdParams, BLOCK, 1) { expert_down_bwd<f16>(p); }
