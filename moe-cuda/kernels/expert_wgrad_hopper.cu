// ExpertWgrad on Hopper: dw[e] = sum over the rows of e of left^T * right, in row order, never split.
//
// Tiles of 128 columns of one operand, whose rows may be gathered, and 256 of the other, whose rows lie in order. Both have
// their depth, the rows, across lines. GateBwd's product over tokens is one of these, too: its chunks are the experts.
#include "hopper.cuh"

struct WgradParams {
    TensorMap packed;   // (rows, columns)
    TensorMap gradient; // dw
    const void *source; // (tokens, height), gathered by index
    const uint32_t *index; // null: row r is row r of the source
    const uint32_t *offsets;
    float *dw;
    uint32_t tokens, fan, rows, experts;
    uint32_t height;  // columns of the gathered operand
    uint32_t columns; // columns of the other
    uint32_t turned;  // the gathered operand is the right one: its columns are the gradient's columns
    uint32_t accumulate;
    uint32_t repeat; // DEPTH rows of the packed operand stand for so many times as many of the gathered one
};

#define STAGES 4
#define WIDTH 256u
typedef Ring<WIDTH, STAGES> Stages;

struct Part {
    uint32_t expert, row, end, top, column;
};

// All tiles of an expert, then the next expert's; those of one column of tiles are neighbours.
static __device__ __forceinline__ Part part_at(const WgradParams &p, uint32_t at) {
    uint32_t high = (p.height + TILE_ROWS - 1) / TILE_ROWS, wide = (p.columns + WIDTH - 1) / WIDTH;
    uint32_t e = at / (high * wide), in = at % (high * wide);
    uint32_t start = min(p.offsets[e], p.rows), end = min(p.offsets[e + 1], p.rows);
    return {e, start, max(start, end), in % high * TILE_ROWS, in / high * WIDTH};
}

static __device__ __forceinline__ uint32_t part_count(const WgradParams &p) {
    return p.experts * ((p.height + TILE_ROWS - 1) / TILE_ROWS) * ((p.columns + WIDTH - 1) / WIDTH);
}

// A warp copies 16 rows of a stage, two at a time. Lane l finds where number l's line of the source is, since the division would
// take too long in every lane; the slot is read two stages before.
static __device__ __forceinline__ uint32_t slot_at(const WgradParams &p, uint32_t row, uint32_t end) {
    uint32_t lane = threadIdx.x % 16, at = row + threadIdx.x / 32 * 2 + lane % 2 + lane / 2 * 8;
    return at >= end ? NO_ROW : p.index ? p.index[at] : at;
}
// In units of 16 bytes, or NO_ROW beyond the end and for a slot that does not exist.
static __device__ __forceinline__ uint32_t line_of(const WgradParams &p, uint32_t slot) {
    uint32_t token = slot / p.fan;
    return slot != NO_ROW && token < p.tokens ? token * (p.height / 8) : NO_ROW;
}

static __device__ void produce(const WgradParams &p, const Stages &ring) {
    Place<STAGES> place;
    uint32_t chunk = threadIdx.x % 16, line = threadIdx.x / 16;
    // Lines of one thread are 8 apart, so that their swizzle is the same.
    uint32_t to = chunk / 8 * 8192 + line * 128 + ((chunk % 8 ^ (line & 7)) << 4);
    for (uint32_t at = blockIdx.x; at < part_count(p); at += gridDim.x) {
        Part part = part_at(p, at);
        bool here = part.top / 8 + chunk < p.height / 8;
        const uint4 *source = (const uint4 *)p.source + (here ? part.top / 8 + chunk : 0);
        uint32_t slot = slot_at(p, part.row, part.end), next = slot_at(p, part.row + DEPTH, part.end);
        for (uint32_t row = part.row; row < part.end; row += DEPTH) {
            uint32_t lines = line_of(p, slot);
            slot = next, next = slot_at(p, row + 2 * DEPTH, part.end);
            barrier_wait(ring.empty(place.stage), place.phase ^ 1);
            if (threadIdx.x == 0) {
                uint32_t packed = p.repeat == 1 ? row : row / (p.repeat * DEPTH) * DEPTH;
                barrier_expect(ring.full(place.stage), Stages::B);
                for (int n = 0; n < WIDTH; n += 64)
                    tma_2d(ring.b(place.stage) + n * DEPTH * 2, &p.packed, ring.full(place.stage), part.column + n, packed);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                uint32_t from = __shfl_sync(~0u, lines, threadIdx.x % 32 / 16 + i * 2);
                bool inside = here && from != NO_ROW;
                copy16(ring.a(place.stage) + to + i * 1024, source + (inside ? from : 0), inside ? 16 : 0);
            }
            copies_arrive(ring.full(place.stage));
            place.next();
        }
    }
}

// Rows after the expert's last belong to another: they must not be multiplied, not even by 0.
static __device__ __forceinline__ void clear_tail(uint32_t b, uint32_t valid) {
    for (uint32_t i = threadIdx.x - 128; i < (DEPTH - valid) * 32; i += CONSUMERS) {
        uint32_t at = b + i % 4 * 8192 + valid * 128 + i / 4 * 16;
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
    }
    fence_async();
    consumers_sync();
}

// Sums on their way to memory by the copy engine: of each warpgroup 64 rows of 32 columns, twice. They lie as boxes of lines of
// 128 bytes in the 128-byte swizzle: one box of 64 rows, or turned, two boxes of 32 columns of 32 rows each.
#define BOX 8192u
#define BOXES (STAGES * (Stages::A + Stages::B) + 1024)
#define SHARED_BYTES (1024 + BOXES + 4 * BOX)
static_assert(SHARED_BYTES <= 231424, "SHARED_WGRAD in ops/hopper.rs");

// Where a thread's sums go in a box, computed once: four places, the others lie at fixed distances from them.
struct Places {
    uint32_t at[4];
    bool turned;

    __device__ explicit Places(bool turned) : turned(turned) {
        uint32_t warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            if (turned) {
                // A line per column; i: the pair's column, and whether the row is one of the lower eight.
                uint32_t line = pair * 2 + i % 2, chunk = warp % 2 * 4 + i / 2 * 2 + row / 4;
                at[i] = warp / 2 * (BOX / 2) + line * 128 + ((chunk ^ line) << 4) + row % 4 * 4;
            } else {
                // A line per row; i: which 8 of the columns.
                at[i] = (warp * 16 + row) * 128 + ((i * 2 + pair / 2 ^ row) << 4) + pair % 2 * 8;
            }
        }
    }

    // The columns from 32 * GROUP on.
    template <int GROUP> __device__ void put(uint32_t box, const float (&sums)[128]) const {
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float v = sums[GROUP * 16 + i];
            if (turned)
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(box + at[i % 4] + i / 4 * 1024), "f"(v) : "memory");
            else if (i % 2 == 0)
                SumPatch::put_pair(box + at[i / 4] + i / 2 % 2 * 1024, v, sums[GROUP * 16 + i + 1]);
        }
    }
};

// Each element has one writer, so that no order is left open. The hardware's addition makes subnormal sums 0.
static __device__ __forceinline__ void send(const WgradParams &p, uint32_t box, int x, int y, int z) {
    if (p.accumulate)
        asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], [%1];"
                     ::"l"(&p.gradient), "r"(box), "r"(x), "r"(y), "r"(z) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
                     ::"l"(&p.gradient), "r"(box), "r"(x), "r"(y), "r"(z) : "memory");
}

static __device__ __forceinline__ void warpgroup_sync(uint32_t half) { asm volatile("bar.sync %0, 128;" ::"r"(2 + half) : "memory"); }

static __device__ __forceinline__ void store(const WgradParams &p, const Part &part, uint32_t half, uint32_t boxes,
                                             const Places &places, float (&sums)[128]) {
    bool sends = threadIdx.x % 128 == 0;
    uint32_t top = part.top + half * 64;
#pragma unroll 1
    for (int group = 0; group < 8; group++) {
        uint32_t box = boxes + (half * 2 + group % 2) * BOX, column = part.column + group * 32;
        // The box has been read that was sent two groups ago.
        if (sends) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
        warpgroup_sync(half);
#define PUT(I) places.put<I>(box, sums); break;
        GROUPS(PUT)
        fence_async();
        warpgroup_sync(half);
        if (!sends) continue;
        if (p.turned) {
            send(p, box, top, column, part.expert);
            send(p, box + BOX / 2, top + 32, column, part.expert);
        } else {
            send(p, box, column, top, part.expert);
        }
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
}

// The gradient of an expert without rows.
static __device__ __forceinline__ void clear(const WgradParams &p, const Part &part) {
    float *dw = p.dw + (uint64_t)part.expert * p.height * p.columns;
    for (uint32_t i = threadIdx.x - 128; i < TILE_ROWS * WIDTH; i += CONSUMERS) {
        // Neighbouring threads write neighbouring columns of the gradient.
        uint32_t row = part.top + (p.turned ? i % TILE_ROWS : i / WIDTH);
        uint32_t column = part.column + (p.turned ? i / TILE_ROWS : i % WIDTH);
        if (row >= p.height || column >= p.columns) continue;
        dw[p.turned ? (uint64_t)column * p.height + row : (uint64_t)row * p.columns + column] = 0.0f;
    }
}

template <typename T> static __device__ void consume(const WgradParams &p, const Stages &ring) {
    uint32_t half = threadIdx.x / 128 - 1;
    bool speaks = threadIdx.x % 32 == 0;
    Place<STAGES> place;
    Places places(p.turned);
    for (uint32_t at = blockIdx.x; at < part_count(p); at += gridDim.x) {
        Part part = part_at(p, at);
        if (part.row >= part.end) {
            if (!p.accumulate) clear(p, part);
            continue;
        }
        float sums[WIDTH / 2];
        uint32_t before = 0;
        for (uint32_t row = part.row; row < part.end; row += DEPTH) {
            barrier_wait(ring.full(place.stage), place.phase);
            if (part.end - row < DEPTH) clear_tail(ring.b(place.stage), part.end - row);
            else fence_async();
            uint64_t a = operand(ring.a(place.stage) + half * 8192, 8192), b = operand(ring.b(place.stage), 8192);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < 4; i++) wgmma<T, 1, 1>(sums, a + i * 128, b + i * 128, row > part.row || i > 0);
            wgmma_commit();
            if (row > part.row) {
                wgmma_wait<1>();
                if (speaks) barrier_arrive(ring.empty(before));
            }
            before = place.stage;
            place.next();
        }
        wgmma_wait<0>();
        if (speaks) barrier_arrive(ring.empty(before));
        store(p, part, half, ring.base + BOXES, places, sums);
    }
    // The boxes must be read before the block's shared memory is gone.
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

template <typename T> static __device__ __forceinline__ void expert_wgrad(const WgradParams &p) {
    extern __shared__ uint8_t shared[];
    Stages ring(shared);
    if (threadIdx.x == 0) ring.init(129);
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_give<56>();
        produce(p, ring);
    } else {
        registers_take<224>();
        consume<T>(p, ring);
    }
}

KERNEL(expert_wgrad_hopper_bf16, WgradParams, BLOCK, 1) { expert_wgrad<bf16>(p); }
KERNEL(expert_wgrad_hopper_f16, WgradParams, BLOCK, 1) { expert_wgrad<f16>(p); }
