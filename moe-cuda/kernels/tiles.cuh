// Grouped products: which tile a block works on, and where the lines of its operands lie.
//
// The true number of rows is known on the device only. A grid of as many blocks as fit goes through the tiles of all
// experts; each warp finds the block's next tile by itself, 32 experts at a time, and goes on from there.
#pragma once
#include "prelude.cuh"

#define THREADS 256
// Launch bounds: one block at least, so that registers are not spilled for the sake of a second.
#define BOUNDS THREADS, 1
// A tile of sums: TILE rows and columns.
#define TILE 128u
// Words from one line of sums in shared memory to the next.
#define PITCH (TILE + 4)
// Row tiles of an expert that are worked on together, so that they share columns of weights in the cache.
#define GROUP 16u

// Twin of `Sizes` in ops/products.rs.
struct Sizes {
    uint32_t tokens, fan, slots, rows, experts, width, hidden;
};

static __device__ __forceinline__ uint32_t lane_id() { return threadIdx.x % 32; }
static __device__ __forceinline__ uint32_t warp_id() { return threadIdx.x / 32; }

// A row's slot: its place in buffers of slots. It is as the index buffer has it, to be compared with their length.
static __device__ __forceinline__ uint32_t slot_of(const uint32_t *index, uint32_t row) {
    return index ? index[row] : row;
}

static __device__ __forceinline__ float weight_of(const float *weights, uint32_t slots, uint32_t slot) {
    return weights && slot < slots ? weights[slot] : 1.0f;
}

// The tiles of a block, one after the other. `columns` counts column tiles.
struct Tiles {
    const uint32_t *offsets;
    uint32_t experts, rows, columns;
    uint64_t next, before;
    uint32_t chunk;
    // the tile found: its expert, its rows from `first` to `end`, the number of its columns
    uint32_t expert, first, end, column;

    __device__ __forceinline__ Tiles(const uint32_t *offsets, uint32_t experts, uint32_t rows, uint32_t columns)
        : offsets(offsets), experts(experts), rows(rows), columns(columns), next(blockIdx.x), before(0), chunk(0) {}

    // Finds the next tile; false if there is none. All lanes of a warp call it.
    __device__ __forceinline__ bool find() {
        uint64_t want = next / columns;
        for (; chunk < experts; chunk += 32) {
            uint32_t at = chunk + lane_id(), begin = 0, last = 0;
            if (at < experts) {
                begin = min(offsets[at], rows);
                last = min(offsets[at + 1], rows);
            }
            uint32_t count = last > begin ? (last - begin - 1) / TILE + 1 : 0, upto = count;
            for (int step = 1; step < 32; step *= 2) {
                uint32_t lower = __shfl_up_sync(~0u, upto, step);
                if (lane_id() >= step) upto += lower;
            }
            uint32_t total = __shfl_sync(~0u, upto, 31);
            if (want < before + total) {
                int owner = __ffs(__ballot_sync(~0u, before + upto > want)) - 1;
                uint64_t prior = before + __shfl_sync(~0u, upto - count, owner);
                take(chunk + owner, __shfl_sync(~0u, begin, owner), __shfl_sync(~0u, last, owner),
                     __shfl_sync(~0u, count, owner), next - prior * columns);
                next += gridDim.x;
                return true;
            }
            before += total;
        }
        return false;
    }

    __device__ __forceinline__ void take(uint32_t owner, uint32_t begin, uint32_t last, uint32_t count, uint64_t tile) {
        uint64_t group = tile / ((uint64_t)GROUP * columns);
        uint32_t within = (uint32_t)(tile % ((uint64_t)GROUP * columns));
        uint32_t height = min(GROUP, count - (uint32_t)group * GROUP);
        expert = owner;
        first = begin + ((uint32_t)group * GROUP + within % height) * TILE;
        end = last - first > TILE ? first + TILE : last;
        column = within / height;
    }
};

// Operands are made of lines, contiguous in memory. `fetch` names line i, NO_ROW if it does not exist, and may wait for
// an index; `line` is its address, null if it does not exist. Elements at `width` and beyond do not exist either.

// Rows of an expert: of tokens, through the index, or of a buffer of rows.
template <typename T> struct Rows {
    const T *base;
    const uint32_t *index;
    uint32_t fan, sources, width, first, end;
    // where the tile begins in a line, if lines lie across the depth
    uint32_t origin;
    // factors on rows, by slot
    const float *weights;
    const uint32_t *slot_index;
    uint32_t slots;

    __device__ __forceinline__ uint32_t fetch(uint32_t i) const {
        return i < end - first ? slot_of(index, first + i) : NO_ROW;
    }
    __device__ __forceinline__ const T *line(uint32_t slot) const {
        uint32_t source = slot / fan;
        return slot != NO_ROW && source < sources ? base + (uint64_t)source * width : nullptr;
    }
    __device__ __forceinline__ float factor(uint32_t i) const {
        return weights && i < end - first ? weight_of(weights, slots, slot_of(slot_index, first + i)) : 1.0f;
    }
};

// Weights of an expert, in one part of `count` lines or in two: bits of i from `shift` on say which part.
template <typename T> struct Matrix {
    const T *base;
    uint32_t count, width, first, shift;
    uint32_t origin;

    __device__ __forceinline__ uint32_t fetch(uint32_t i) const {
        uint32_t at = first + (i & ((1u << shift) - 1));
        return at < count ? (i >> shift) * count + at : NO_ROW;
    }
    __device__ __forceinline__ const T *line(uint32_t at) const {
        return at != NO_ROW ? base + (uint64_t)at * width : nullptr;
    }
    __device__ __forceinline__ float factor(uint32_t) const { return 1.0f; }
};

// Bits of `shift` with which a matrix is one part.
#define ONE_PART 31u

template <typename T> static __device__ __forceinline__ bool vectors(const T *base, uint32_t width) {
    return (uint64_t)base % 16 == 0 && (uint64_t)width * sizeof(T) % 16 == 0;
}

// Two neighbours, of which the first `count` exist: together where the address allows it.
template <typename T> static __device__ __forceinline__ void store_two(T *at, uint32_t count, float low, float high) {
    struct alignas(2 * sizeof(T)) Two { T v[2]; };
    if (count >= 2 && (uint64_t)at % sizeof(Two) == 0) {
        *(Two *)at = {{narrow<T>(low), narrow<T>(high)}};
    } else {
        if (count >= 1) at[0] = narrow<T>(low);
        if (count >= 2) at[1] = narrow<T>(high);
    }
}

template <typename T> static __device__ __forceinline__ void load_two(const T *at, uint32_t count, float (&v)[2]) {
    struct alignas(2 * sizeof(T)) Two { T v[2]; };
    if (count >= 2 && (uint64_t)at % sizeof(Two) == 0) {
        Two two = *(const Two *)at;
        v[0] = widen(two.v[0]);
        v[1] = widen(two.v[1]);
    } else {
        v[0] = count >= 1 ? widen(at[0]) : 0.0f;
        v[1] = count >= 2 ? widen(at[1]) : 0.0f;
    }
}
