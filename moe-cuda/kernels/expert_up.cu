// ExpertUp: the gate and up halves of the same columns lie in one tile, so that the activation follows at once.
#include "activation.cuh"
#include "decode.cuh"
#include "products.cuh"

struct ExpertUpParams {
    const void *x;
    const uint32_t *index, *offsets;
    const void *w13, *b13;
    const float *weights;
    void *h, *a;
    Sizes sizes;
    Formula formula;
};

// A warp's row: h, rounded, and its activation. `sums` are of `span` columns from `from` on, then of their up halves.
template <typename T>
static __device__ __forceinline__ void up_row(const ExpertUpParams &p, uint32_t expert, uint32_t row, uint32_t from,
                                              uint32_t span, const float *sums) {
    const Sizes &n = p.sizes;
    uint32_t halves = p.formula.gated() ? 2 : 1, up = halves * n.hidden;
    const T *b13 = p.b13 ? (const T *)p.b13 + (uint64_t)expert * up : nullptr;
    float s = p.weights ? weight_of(p.weights, n.slots, slot_of(p.index, row)) : 1.0f;
    for (uint32_t at = lane_id() * 2; at < span && from + at < n.hidden; at += 64) {
        uint32_t count = min(2u, n.hidden - from - at);
        float z[2][2] = {};
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if (half == halves) break;
            float h[2] = {sums[half * span + at], sums[half * span + at + 1]}, bias[2] = {};
            uint32_t column = half * n.hidden + from + at;
            if (b13) load_two(b13 + column, count, bias);
            for (int i = 0; i < 2; i++) {
                if (b13 && !p.weights) h[i] += bias[i];
                h[i] = widen(narrow<T>(h[i]));
                z[half][i] = p.weights ? fused(s, h[i], bias[i]) : h[i];
            }
            if (p.h) store_two((T *)p.h + (uint64_t)row * up + column, count, h[0], h[1]);
        }
        store_two((T *)p.a + (uint64_t)row * n.hidden + from + at, count, activate(p.formula, z[0][0], z[1][0]),
                  activate(p.formula, z[0][1], z[1][1]));
    }
}

template <typename T> static __device__ __forceinline__ void expert_up(const ExpertUpParams &p) {
    const Sizes &n = p.sizes;
    uint32_t up = p.formula.gated() ? 2 * n.hidden : n.hidden, span = p.formula.gated() ? TILE / 2 : TILE;
    Tiles tile(p.offsets, n.experts, n.rows, (n.hidden + span - 1) / span);
    while (tile.find()) {
        uint32_t from = tile.column * span;
        Rows<T> x = {(const T *)p.x, p.index, n.fan, n.tokens, n.width, tile.first, tile.end};
        Matrix<T> w13 = {(const T *)p.w13 + (uint64_t)tile.expert * up * n.width, n.hidden, n.width, from,
                         p.formula.gated() ? 6u : ONE_PART};
        product<Fast<T>, true, true>(x, w13, n.width, tile.end - tile.first, [&](uint32_t m, const float *sums) {
            up_row<T>(p, tile.expert, tile.first + m, from, span, sums);
        });
    }
}

// For few rows. A warp has columns of one expert: both halves of them, if there are two.
template <typename T> static __device__ __forceinline__ void expert_up_decode(const ExpertUpParams &p) {
#if __CUDA_ARCH__ >= 800
    const Sizes &n = p.sizes;
    bool gated = p.formula.gated();
    uint32_t up = gated ? 2 * n.hidden : n.hidden, span = gated ? LINES / 2 : LINES;
    Work work = {p.offsets, n.experts, n.rows, (n.hidden + span - 1) / span, n.width};
    auto x = [&](const Busy &busy) {
        return Rows<T>{(const T *)p.x, p.index, n.fan, n.tokens, n.width, busy.first, busy.end};
    };
    auto w13 = [&](const Busy &busy, uint32_t column) {
        const T *base = (const T *)p.w13 + (uint64_t)busy.expert * up * n.width;
        return Matrix<T>{base, n.hidden, n.width, column * span, gated ? 4u : ONE_PART};
    };
    decode<T>(work, x, w13, [&](const Busy &busy, uint32_t column, uint32_t m, const float *sums) {
        up_row<T>(p, busy.expert, busy.first + m, column * span, span, sums);
    });
#endif
}

PRODUCTS(expert_up, ExpertUpParams)
KERNELS(expert_up_decode, ExpertUpParams, DECODE_BOUNDS)
