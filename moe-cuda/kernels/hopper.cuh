// What the Hopper kernels share: barriers, copies, tiles, and the two loops of a grouped product.
//
// A block is one warpgroup that loads and two that multiply, each 64 rows of a tile of 128 rows. Tiles come from a list that
// every block derives from the offsets on the device; the grid is one block per multiprocessor. Operands pass through
// a ring of stages in shared memory in the 128-byte swizzle: 16-byte chunk c of line l stands at chunk c ^ (l & 7).
#pragma once
#include "barriers.cuh"
#include "wgmma.cuh"

struct alignas(128) TensorMap { uint64_t opaque[16]; };

#define TILE_ROWS 128u
#define DEPTH 64u
#define CONSUMERS 256u
#define BLOCK 384
#define MOST_EXPERTS 512u

static __device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

static __device__ __forceinline__ void tma_2d(uint32_t to, const TensorMap *map, uint32_t bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(to), "l"(map), "r"(bar), "r"(x), "r"(y) : "memory");
}
static __device__ __forceinline__ void tma_3d(uint32_t to, const TensorMap *map, uint32_t bar, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(to), "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z) : "memory");
}
// 16 bytes, of which the first `bytes` are read and the others are 0.
static __device__ __forceinline__ void copy16(uint32_t to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> static __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

template <int N> static __device__ __forceinline__ void registers_take() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> static __device__ __forceinline__ void registers_give() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// Waits for the consumers alone.
static __device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// An operand of wgmma in the 128-byte swizzle. Depth along lines: groups of 8 lines are 1024 bytes apart. Depth across
// lines: groups of 8 depths are 1024 bytes apart, and the next 64 columns follow `next` bytes later.
static __device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t next) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(next >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

// One tile of an output that is grouped by rows.
struct Tile {
    uint32_t expert, row, end, column;
};

// The list of tiles: expert by expert, in each by groups of 16 tiles of rows, which share what they read of the weights.
struct Tiles {
    const uint32_t *first; // tiles of rows before each expert, in shared memory
    const uint32_t *offsets;
    uint32_t experts, rows, columns, width;

    __device__ uint32_t bound(uint32_t at) const { return min(offsets[at], rows); }

    // All threads of the block; followed by a barrier.
    static __device__ void prepare(uint32_t *first, const uint32_t *offsets, uint32_t experts, uint32_t rows) {
        if (threadIdx.x >= 32) return;
        uint32_t sum = 0;
        for (uint32_t base = 0; base < experts; base += 32) {
            uint32_t e = base + threadIdx.x, count = 0;
            if (e < experts) {
                uint32_t start = min(offsets[e], rows), end = min(offsets[e + 1], rows);
                count = end > start ? (end - start + TILE_ROWS - 1) / TILE_ROWS : 0;
            }
            uint32_t scan = count;
            for (int step = 1; step < 32; step *= 2) {
                uint32_t other = __shfl_up_sync(~0u, scan, step);
                if (threadIdx.x >= step) scan += other;
            }
            if (e < experts) first[e] = sum + scan - count;
            sum += __shfl_sync(~0u, scan, 31);
        }
        if (threadIdx.x == 0) first[experts] = sum;
    }

    __device__ uint32_t count() const { return first[experts] * columns; }

    // All lanes of a warp.
    __device__ Tile find(uint32_t at) const {
        uint32_t lane = threadIdx.x & 31, e = 0;
        for (uint32_t base = 0; base < experts; base += 32) {
            bool before = base + lane < experts && first[base + lane] * columns <= at;
            uint32_t votes = __popc(__ballot_sync(~0u, before));
            e += votes;
            if (votes < 32) break;
        }
        // The last expert whose first tile is not beyond: empty experts before it have the same first tile.
        e -= 1;
        uint32_t in = at - first[e] * columns, tiles = first[e + 1] - first[e];
        uint32_t group = in / (16 * columns), height = min(16u, tiles - group * 16);
        in -= group * 16 * columns;
        uint32_t start = bound(e);
        return {e, start + (group * 16 + in % height) * TILE_ROWS, bound(e + 1), in / height * width};
    }
};

// Two values of storage type T in 4 bytes.
template <typename T> static __device__ __forceinline__ uint32_t pack(float a, float b);
template <> __device__ __forceinline__ uint32_t pack<bf16>(float a, float b) {
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(uint32_t *)&v;
}
template <> __device__ __forceinline__ uint32_t pack<f16>(float a, float b) {
    __half2 v = __floats2half2_rn(a, b);
    return *(uint32_t *)&v;
}
template <typename T> static __device__ __forceinline__ float2 unpack(uint32_t v);
template <> __device__ __forceinline__ float2 unpack<bf16>(uint32_t v) {
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}
template <> __device__ __forceinline__ float2 unpack<f16>(uint32_t v) { return __half22float2(*(__half2 *)&v); }

static __device__ __forceinline__ uint4 load_shared(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}

// A warp's patches: room in shared memory to bring a group of 32 columns of its 16 rows of sums, of which each lane holds
// pairs of columns, into the layout of memory: 8 columns per lane, of the rows lane / 4 and lane / 4 + 8.
//
// Epilogues go through the groups in a loop that is not unrolled, so that they stay a few hundred instructions. Registers cannot
// be indexed, so a switch picks the group's.
#define PATCH_BYTES 2560u
#define GROUPS(CASE) switch (group) { case 0: CASE(0) case 1: CASE(1) case 2: CASE(2) case 3: CASE(3) case 4: CASE(4) case 5: CASE(5) case 6: CASE(6) default: CASE(7) }

// Two patches of values in storage type T, lines 16 bytes apart in their banks.
struct Patch {
    static constexpr uint32_t LINE = 80;
    uint32_t matrix, line; // addresses of this lane

    __device__ explicit Patch(uint32_t base) {
        uint32_t warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32, at = base + warp * PATCH_BYTES;
        matrix = at + lane % 16 * LINE + lane / 16 * 16;
        line = at + lane / 4 * LINE + lane % 4 * 16;
    }
    // 16 columns: the pairs of this lane's row and of the row 8 below, for 8 columns and the next 8.
    __device__ void put(int which, int at, uint32_t a, uint32_t b, uint32_t c, uint32_t d) const {
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                     ::"r"(matrix + which * 16 * LINE + at * 32), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
    }
    __device__ uint4 get(int which, int half) const {
        return load_shared(line + which * 16 * LINE + half * 8 * LINE);
    }
    // The columns from `FIRST * 8` of the sums on, rounded.
    template <typename T, int FIRST> __device__ void put_sums(int which, const float (&sums)[128]) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float *v = sums + (FIRST + i * 2) * 4;
            put(which, i, pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7]));
        }
    }
};

// One patch of sums: 8 rows of 64 columns.
struct SumPatch {
    static constexpr uint32_t LINE = 272;
    uint32_t start, row, column; // address of the warp; this lane's place among the sums

    __device__ explicit SumPatch(uint32_t base) {
        uint32_t lane = threadIdx.x % 32;
        start = base + (threadIdx.x / 32 - 4) * PATCH_BYTES, row = lane / 4, column = lane % 4 * 8;
    }
    static __device__ void put_pair(uint32_t to, float a, float b) {
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(a), "f"(b) : "memory");
    }
    // 64 columns of the upper or the lower 8 rows.
    template <int GROUP, int HALF> __device__ void put(const float (&sums)[128]) const {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int at = GROUP * 32 + i * 4 + HALF * 2;
            put_pair(start + row * LINE + column + i * 32, sums[at], sums[at + 1]);
        }
    }
    __device__ float4 get4(uint32_t row, uint32_t column) const {
        float4 v;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(start + row * LINE + column * 4) : "memory");
        return v;
    }
};

// Shared memory of a kernel: both operands' stages, barriers, the tiles before each expert.
template <int WIDTH, int STAGES> struct Ring {
    static constexpr uint32_t A = TILE_ROWS * DEPTH * 2, B = WIDTH * DEPTH * 2;
    static constexpr uint32_t TAIL = STAGES * (A + B) + STAGES * 16;
    static constexpr uint32_t BYTES = 1024 + TAIL + CONSUMERS / 32 * PATCH_BYTES + (MOST_EXPERTS + 1) * 4;

    uint32_t base;
    uint32_t *first;

    __device__ explicit Ring(uint8_t *shared) {
        uint32_t start = shared_address(shared), shift = (1024 - start % 1024) % 1024;
        base = start + shift;
        first = (uint32_t *)(shared + shift + TAIL + CONSUMERS / 32 * PATCH_BYTES);
    }
    __device__ uint32_t a(uint32_t stage) const { return base + stage * A; }
    __device__ uint32_t b(uint32_t stage) const { return base + STAGES * A + stage * B; }
    __device__ uint32_t patches() const { return base + TAIL; }
    __device__ uint32_t full(uint32_t stage) const { return base + STAGES * (A + B) + stage * 16; }
    __device__ uint32_t empty(uint32_t stage) const { return full(stage) + 8; }

    // One thread; followed by a barrier of the block.
    __device__ void init(uint32_t producers) const {
        for (uint32_t s = 0; s < STAGES; s++) {
            barrier_init(full(s), producers);
            barrier_init(empty(s), CONSUMERS / 32);
        }
        barriers_made();
    }
};
