// ExpertUpBwd: the product with w13 as it lies, scaled; a row goes to its place in the output.
#include "products.cuh"

struct ExpertUpBwdParams {
    const void *dz;
    const uint32_t *offsets;
    const void *w13;
    const float *weights;
    const uint32_t *index, *out_index;
    void *dx;
    Sizes sizes;
    // width of the up-projection
    uint32_t up;
};

// A warp's row: the sums of the columns from `from` on, times the row's weight.
template <typename T>
static __device__ __forceinline__ void up_bwd_row(const ExpertUpBwdParams &p, uint32_t row, uint32_t from,
                                                  const float *sums) {
    uint32_t width = p.sizes.width, place = slot_of(p.out_index, row);
    if (place >= p.sizes.rows) return;
    float s = p.weights ? weight_of(p.weights, p.sizes.slots, slot_of(p.index, row)) : 1.0f;
    T *dx = (T *)p.dx + (uint64_t)place * width;
    for (uint32_t at = lane_id() * 2; at < TILE && from + at < width; at += 64) {
        store_two(dx + from + at, min(2u, width - from - at), s * sums[at], s * sums[at + 1]);
    }
}

template <typename T> static __device__ __forceinline__ void expert_up_bwd(const ExpertUpBwdParams &p) {
    const Sizes &n = p.sizes;
    Tiles tile(p.offsets, n.experts, n.rows, (n.width + TILE - 1) / TILE);
    while (tile.find()) {
        uint32_t from = tile.column * TILE;
        Rows<T> dz = {(const T *)p.dz, nullptr, 1, n.rows, p.up, tile.first, tile.end};
        Matrix<T> w13 = {(const T *)p.w13 + (uint64_t)tile.expert * p.up * n.width, p.up, n.width, 0, ONE_PART, from};
        product<Fast<T>, true, false>(dz, w13, p.up, tile.end - tile.first, [&](uint32_t m, const float *sums) {
            up_bwd_row<T>(p, tile.first + m, from, sums);
        });
    }
}

PRODUCTS(expert_up_bwd, ExpertUpBwdParams)
