// Products of gathered or packed rows with each expert's weights: tiles of 128 rows and WIDTH columns.
#pragma once
#include "hopper.cuh"

// What the four products have in common.
struct RowsParams {
    TensorMap left;  // (rows, depth), unused when rows are gathered
    TensorMap right; // weights (experts, ..)
    TensorMap more;  // (rows, 2 * columns) that the epilogue reads, unused where it reads none
    const void *source;    // gathered rows: (tokens, depth)
    const uint32_t *index; // (rows) slots; null: row r is slot r
    const uint32_t *offsets;
    uint32_t tokens, fan, slots, rows, experts;
    uint32_t depth;   // of the product
    uint32_t columns; // of the output; of one half if the weights have two
    uint32_t tiles;   // of columns
};

// As the index has it: a slot that does not exist has a line of zeros and the factor 1, as on the other paths.
static __device__ __forceinline__ uint32_t slot_of(const RowsParams &p, uint32_t row) { return p.index ? p.index[row] : row; }
static __device__ __forceinline__ float factor_of(const RowsParams &p, const float *weights, uint32_t row) {
    uint32_t slot = slot_of(p, row);
    return slot < p.slots ? weights[slot] : 1.0f;
}

// GATHER: rows of the left operand come from `source` by index. ACROSS: depth runs across the lines of the weights.
// HALVES: columns are WIDTH / 2 of the gate half, then the same of the up half. MORE: after the operands of a tile come stages of
// 64 columns of `more`, gate half and up half, for the epilogue.
template <typename T, int WIDTH, int STAGES, bool GATHER, bool ACROSS, bool HALVES, bool MORE = false> struct Rows {
    typedef Ring<WIDTH, STAGES> Ring;
    static_assert(Ring::BYTES <= 220288, "SHARED in ops/hopper.rs");

    static __device__ Tiles tiles(const RowsParams &p, const Ring &ring) {
        return {ring.first, p.offsets, p.experts, p.rows, p.tiles, HALVES ? WIDTH / 2 : WIDTH};
    }

    // Loads a stage of weights. One thread.
    static __device__ void load_right(const RowsParams &p, const Ring &ring, const Tile &tile, uint32_t k, uint32_t stage) {
        uint32_t to = ring.b(stage), bar = ring.full(stage);
        if constexpr (ACROSS) {
            for (int n = 0; n < WIDTH; n += 64) tma_3d(to + n * DEPTH * 2, &p.right, bar, tile.column + n, k, tile.expert);
        } else if constexpr (HALVES) {
            tma_3d(to, &p.right, bar, k, tile.column, tile.expert);
            tma_3d(to + WIDTH / 2 * DEPTH * 2, &p.right, bar, k, p.columns + tile.column, tile.expert);
        } else {
            tma_3d(to, &p.right, bar, k, tile.column, tile.expert);
        }
    }

    // Loads a stage for the epilogue. One thread.
    static __device__ void load_more(const RowsParams &p, const Ring &ring, const Tile &tile, uint32_t n, uint32_t stage) {
        barrier_expect(ring.full(stage), 2 * Ring::A);
        tma_2d(ring.a(stage), &p.more, ring.full(stage), tile.column + n, tile.row);
        tma_2d(ring.b(stage), &p.more, ring.full(stage), p.columns + tile.column + n, tile.row);
    }

    // The first warpgroup.
    static __device__ void produce(const RowsParams &p, const Ring &ring) {
        Tiles list = tiles(p, ring);
        uint32_t count = list.count();
        Place<STAGES> place;
        if constexpr (GATHER) {
            uint32_t chunk = threadIdx.x % 8, line = threadIdx.x / 8;
            uint32_t to = line * 128 + ((chunk ^ (line & 7)) << 4);
            uint32_t pitch = p.depth / 8;
            for (uint32_t at = blockIdx.x; at < count; at += gridDim.x) {
                Tile tile = list.find(at);
                uint32_t from[8], there = 0; // in units of 16 bytes; a bit for each that exists
                for (int i = 0; i < 8; i++) {
                    uint32_t row = min(tile.row + line + i * 16, tile.end - 1), token = slot_of(p, row) / p.fan;
                    from[i] = token < p.tokens ? token * pitch + chunk : 0;
                    there |= (token < p.tokens) << i;
                }
                for (uint32_t k = 0; k < p.depth; k += DEPTH) {
                    barrier_wait(ring.empty(place.stage), place.phase ^ 1);
                    if (threadIdx.x == 0) {
                        barrier_expect(ring.full(place.stage), Ring::B);
                        load_right(p, ring, tile, k, place.stage);
                    }
                    uint32_t bytes = k + chunk * 8 < p.depth ? 16 : 0;
                    const uint4 *source = (const uint4 *)p.source + (bytes ? k / 8 : 0);
                    for (int i = 0; i < 8; i++) copy16(ring.a(place.stage) + to + i * 2048, source + from[i], there >> i & 1 ? bytes : 0);
                    copies_arrive(ring.full(place.stage));
                    place.next();
                }
                for (uint32_t n = 0; MORE && n < WIDTH; n += 64) {
                    barrier_wait(ring.empty(place.stage), place.phase ^ 1);
                    if (threadIdx.x == 0) load_more(p, ring, tile, n, place.stage);
                    copies_arrive(ring.full(place.stage));
                    place.next();
                }
            }
        } else if (threadIdx.x < 32) {
            for (uint32_t at = blockIdx.x; at < count; at += gridDim.x) {
                Tile tile = list.find(at);
                for (uint32_t k = 0; k < p.depth; k += DEPTH) {
                    barrier_wait(ring.empty(place.stage), place.phase ^ 1);
                    if (threadIdx.x == 0) {
                        barrier_expect(ring.full(place.stage), Ring::A + Ring::B);
                        tma_2d(ring.a(place.stage), &p.left, ring.full(place.stage), k, tile.row);
                        load_right(p, ring, tile, k, place.stage);
                    }
                    __syncwarp();
                    place.next();
                }
            }
        }
    }

    // The other two warpgroups: multiplies, and gives `finish(tile, first row of the warp, ring, place, sums)` what each thread
    // holds.
    template <typename F> static __device__ void consume(const RowsParams &p, const Ring &ring, F finish) {
        Tiles list = tiles(p, ring);
        uint32_t count = list.count(), half = threadIdx.x / 128 - 1;
        bool speaks = threadIdx.x % 32 == 0;
        Place<STAGES> place;
        if (blockIdx.x >= count) return;
        Tile next = list.find(blockIdx.x);
        for (uint32_t at = blockIdx.x; at < count; at += gridDim.x) {
            Tile tile = next;
            float sums[WIDTH / 2];
            uint32_t before = 0;
            for (uint32_t k = 0; k < p.depth; k += DEPTH) {
                barrier_wait(ring.full(place.stage), place.phase);
                if (GATHER) fence_async();
                uint64_t a = operand(ring.a(place.stage) + half * 8192, 0), b = operand(ring.b(place.stage), 8192);
                wgmma_begin();
#pragma unroll
                for (int i = 0; i < 4; i++)
                    wgmma<T, 0, ACROSS>(sums, a + i * 2, b + i * (ACROSS ? 128 : 2), k > 0 || i > 0);
                wgmma_commit();
                if (k > 0) {
                    wgmma_wait<1>();
                    if (speaks) barrier_arrive(ring.empty(before));
                }
                before = place.stage;
                place.next();
            }
            if (at + gridDim.x < count) next = list.find(at + gridDim.x);
            wgmma_wait<0>();
            if (speaks) barrier_arrive(ring.empty(before));
            finish(tile, tile.row + half * 64 + threadIdx.x % 128 / 32 * 16, ring, place, sums);
        }
    }

    // The whole kernel.
    template <typename F> static __device__ void run(const RowsParams &p, F finish) {
        extern __shared__ uint8_t shared[];
        Ring ring(shared);
        Tiles::prepare(ring.first, p.offsets, p.experts, p.rows);
        if (threadIdx.x == 0) ring.init(GATHER ? 129 : 1);
        __syncthreads();
        if (threadIdx.x < 128) {
            registers_give<GATHER ? 56 : 40>();
            produce(p, ring);
        } else {
            registers_take<GATHER ? 224 : 232>();
            consume(p, ring, finish);
        }
    }
};
