// ExpertDownBwd: da = dout * w2 stays on the chip; h becomes dz, a' is written, and a row's part of ds is left for every
// tile of columns. A second kernel adds the parts in order.
#include "activation.cuh"
#include "products.cuh"

struct ExpertDownBwdParams {
    const void *dout;
    const uint32_t *index, *offsets;
    const void *w2, *b2, *b13;
    const float *weights;
    void *h, *a;
    float *ds;
    // (rows, column tiles)
    float *parts;
    Sizes sizes;
    Formula formula;
    float shares;
    uint32_t scores_first;
};

// A warp's row: `sums` are da of the columns from `from` on. Returns the row's part of ds, in every lane.
template <typename T>
static __device__ __forceinline__ float down_bwd_row(const ExpertDownBwdParams &p, uint32_t expert, uint32_t row,
                                                     uint32_t from, const float *sums) {
    const Sizes &n = p.sizes;
    uint32_t halves = p.formula.gated() ? 2 : 1, up = halves * n.hidden;
    const T *b13 = p.b13 && p.scores_first ? (const T *)p.b13 + (uint64_t)expert * up : nullptr;
    float s = p.weights ? weight_of(p.weights, n.slots, slot_of(p.index, row)) : 1.0f;
    float outer = p.scores_first ? 1.0f : s, part = 0.0f;
    for (uint32_t at = lane_id() * 2; at < TILE && from + at < n.hidden; at += 64) {
        uint32_t count = min(2u, n.hidden - from - at);
        T *place = (T *)p.h + (uint64_t)row * up + from + at;
        float h[2][2] = {}, z[2][2] = {};
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if (half == halves) break;
            float bias[2] = {};
            if (b13) load_two(b13 + half * n.hidden + from + at, count, bias);
            load_two(place + half * n.hidden, count, h[half]);
            for (int i = 0; i < 2; i++) z[half][i] = p.scores_first ? fused(s, h[half][i], bias[i]) : h[half][i];
        }
        Gradient d[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float da = sums[at + i];
            d[i] = gradient(p.formula, z[0][i], z[1][i], outer * da);
            // A second column that does not exist has no part, whatever its activation is.
            if (i == count) break;
            if (p.scores_first) {
                part = fused(d[i].dg, h[0][i], part);
                if (halves == 2) part = fused(d[i].du, h[1][i], part);
            } else {
                part = fused(da, d[i].value, part);
            }
        }
        store_two(place, count, d[0].dg, d[1].dg);
        if (halves == 2) store_two(place + n.hidden, count, d[0].du, d[1].du);
        store_two((T *)p.a + (uint64_t)row * n.hidden + from + at, count, outer * d[0].value, outer * d[1].value);
    }
    return warp_sum(part);
}

template <typename T> static __device__ __forceinline__ void expert_down_bwd(const ExpertDownBwdParams &p) {
    const Sizes &n = p.sizes;
    Tiles tile(p.offsets, n.experts, n.rows, (n.hidden + TILE - 1) / TILE);
    while (tile.find()) {
        uint32_t from = tile.column * TILE;
        Rows<T> dout = {(const T *)p.dout, p.index, n.fan, n.tokens, n.width, tile.first, tile.end};
        Matrix<T> w2 = {(const T *)p.w2 + (uint64_t)tile.expert * n.width * n.hidden, n.width, n.hidden, 0, ONE_PART, from};
        product<Fast<T>, true, false>(dout, w2, n.width, tile.end - tile.first, [&](uint32_t m, const float *sums) {
            uint32_t row = tile.first + m;
            float part = down_bwd_row<T>(p, tile.expert, row, from, sums);
            if (p.ds && lane_id() == 0) p.parts[(uint64_t)row * tile.columns + tile.column] = part;
        });
    }
}

// The last expert that begins at or before the row, among those that begin there the last one: the row's own.
static __device__ __forceinline__ uint32_t expert_of(const uint32_t *offsets, uint32_t experts, uint32_t row) {
    uint32_t low = 0, high = experts;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (offsets[middle] <= row) low = middle;
        else high = middle;
    }
    return low;
}

// A warp per row.
template <typename T> static __device__ __forceinline__ void expert_down_bwd_scores(const ExpertDownBwdParams &p) {
    const Sizes &n = p.sizes;
    uint32_t columns = (n.hidden + TILE - 1) / TILE, used = min(p.offsets[n.experts], n.rows);
    uint32_t warps = gridDim.x * (THREADS / 32);
    for (uint64_t row = blockIdx.x * (THREADS / 32) + warp_id(); row < used; row += warps) {
        uint32_t slot = slot_of(p.index, row);
        float sum = 0.0f, bias = 0.0f;
        for (uint32_t at = lane_id(); at < columns; at += 32) sum += p.parts[row * columns + at];
        sum = warp_sum(sum);
        if (p.b2 && !p.scores_first && slot / n.fan < n.tokens) {
            const T *b2 = (const T *)p.b2 + (uint64_t)expert_of(p.offsets, n.experts, row) * n.width;
            const T *dout = (const T *)p.dout + (uint64_t)(slot / n.fan) * n.width;
            for (uint32_t at = lane_id(); at < n.width; at += 32) bias = fused(widen(dout[at]), widen(b2[at]), bias);
            sum += warp_sum(bias) / p.shares;
        }
        if (lane_id() == 0 && slot < n.slots) p.ds[slot] = sum;
    }
}

PRODUCTS(expert_down_bwd, ExpertDownBwdParams)
KERNELS(expert_down_bwd_scores, ExpertDownBwdParams, BOUNDS)
