// ExpertDown: the product with w2 and the bias; a row goes to its place in the output.
#include "decode.cuh"
#include "products.cuh"

struct ExpertDownParams {
    const void *a;
    const uint32_t *offsets;
    const void *w2, *b2;
    const uint32_t *out_index;
    void *y;
    Sizes sizes;
    // ranks that add the same bias
    float shares;
};

// A warp's row: the sums of `span` columns from `from` on, and the bias.
template <typename T>
static __device__ __forceinline__ void down_row(const ExpertDownParams &p, uint32_t expert, uint32_t row, uint32_t from,
                                                uint32_t span, const float *sums) {
    uint32_t width = p.sizes.width, place = slot_of(p.out_index, row);
    if (place >= p.sizes.rows) return;
    const T *b2 = p.b2 ? (const T *)p.b2 + (uint64_t)expert * width : nullptr;
    T *y = (T *)p.y + (uint64_t)place * width;
    for (uint32_t at = lane_id() * 2; at < span && from + at < width; at += 64) {
        uint32_t count = min(2u, width - from - at);
        float bias[2] = {};
        if (b2) load_two(b2 + from + at, count, bias);
        store_two(y + from + at, count, sums[at] + bias[0] / p.shares, sums[at + 1] + bias[1] / p.shares);
    }
}

template <typename T> static __device__ __forceinline__ void expert_down(const ExpertDownParams &p) {
    const Sizes &n = p.sizes;
    Tiles tile(p.offsets, n.experts, n.rows, (n.width + TILE - 1) / TILE);
    while (tile.find()) {
        uint32_t from = tile.column * TILE;
        Rows<T> a = {(const T *)p.a, nullptr, 1, n.rows, n.hidden, tile.first, tile.end};
        Matrix<T> w2 = {(const T *)p.w2 + (uint64_t)tile.expert * n.width * n.hidden, n.width, n.hidden, from, ONE_PART};
        product<Fast<T>, true, true>(a, w2, n.hidden, tile.end - tile.first, [&](uint32_t m, const float *sums) {
            down_row<T>(p, tile.expert, tile.first + m, from, TILE, sums);
        });
    }
}

// For few rows. A warp has LINES columns of one expert.
template <typename T> static __device__ __forceinline__ void expert_down_decode(const ExpertDownParams &p) {
#if __CUDA_ARCH__ >= 800
    const Sizes &n = p.sizes;
    Work work = {p.offsets, n.experts, n.rows, (n.width + LINES - 1) / LINES, n.hidden};
    auto a = [&](const Busy &busy) {
        return Rows<T>{(const T *)p.a, nullptr, 1, n.rows, n.hidden, busy.first, busy.end};
    };
    auto w2 = [&](const Busy &busy, uint32_t column) {
        const T *base = (const T *)p.w2 + (uint64_t)busy.expert * n.width * n.hidden;
        return Matrix<T>{base, n.width, n.hidden, column * LINES, ONE_PART};
    };
    decode<T>(work, a, w2, [&](const Busy &busy, uint32_t column, uint32_t m, const float *sums) {
        down_row<T>(p, busy.expert, busy.first + m, column * LINES, LINES, sums);
    });
#endif
}

PRODUCTS(expert_down, ExpertDownParams)
KERNELS(expert_down_decode, ExpertDownParams, DECODE_BOUNDS)
