// Products of few rows, which take as long as their weights take to arrive. A warp is a block and has LINES lines of one
// expert's weights, then others; it reads them once, through a ring in shared memory that is filled for the next lines while
// these are multiplied. The host sees to it that lines begin at multiples of sixteen bytes.
#pragma once
#include "ahead.cuh"
#include "mma.cuh"

#define LINES 32u
// Words from one token's sums in shared memory to the next.
#define LINES_PITCH (LINES + 4)
// Rows that are multiplied together, in groups of eight.
#define TOKENS 16u
// Chunks on their way to a warp: with five warps on a multiprocessor, 130 KiB of weights.
#define RING 13u
#define DECODE_BOUNDS 32

// The experts that have rows, found by their number among those.
struct Busy {
    uint32_t expert, first, end;

    // False if there are fewer. All lanes of a warp call it.
    __device__ __forceinline__ bool find(const uint32_t *offsets, uint32_t experts, uint32_t rows, uint32_t nth) {
        for (uint32_t chunk = 0; chunk < experts; chunk += 128) {
            uint32_t begins[4], ends[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t at = chunk + i * 32 + lane_id();
                begins[i] = at < experts ? min(offsets[at], rows) : 0;
                ends[i] = at < experts ? min(offsets[at + 1], rows) : 0;
            }
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                bool busy = ends[i] > begins[i];
                uint32_t all = __ballot_sync(~0u, busy), lower = all & ((1u << lane_id()) - 1);
                if (nth < __popc(all)) {
                    int owner = __ffs(__ballot_sync(~0u, busy && __popc(lower) == nth)) - 1;
                    expert = chunk + i * 32 + owner;
                    first = __shfl_sync(~0u, begins[i], owner);
                    end = __shfl_sync(~0u, ends[i], owner);
                    return true;
                }
                nth -= __popc(all);
            }
        }
        return false;
    }
};

#if __CUDA_ARCH__ >= 800
// As copy_async; what follows in memory is fetched with it, as far as the cache of the device.
static __device__ __forceinline__ void copy_weights(void *to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}

// Sixty-four bytes of each line and row: lane 4 * g + t copies part t of lines g, g + 8, g + 16 and g + 24, and of rows g and
// g + 8.
template <typename T> struct Chunk {
    static constexpr uint32_t PART = 16 / sizeof(T), DEPTH = 4 * PART;
    uint4 lines[LINES / 8][32], tokens[TOKENS / 8][32];
};

// What a grid has to do: `columns` times LINES lines of every expert with rows.
struct Work {
    const uint32_t *offsets;
    uint32_t experts, rows, columns, depth;
};

// Fills the ring. `left(busy)` has an expert's rows, `right(busy, column)` its lines of weights.
template <typename T, class Left, class Right> struct Feed {
    const Work &work;
    const Left &left;
    const Right &right;
    Chunk<T> *ring;
    Busy busy;
    uint32_t item, from, chunk, chunks, slot;
    bool more;
    const uint4 *lines, *tokens;
    // where the lane's parts begin, counted in sixteen bytes
    uint32_t line_start[LINES / 8], token_start[TOKENS / 8];

    __device__ __forceinline__ Feed(const Work &work, const Left &left, const Right &right, Chunk<T> *ring)
        : work(work), left(left), right(right), ring(ring), item(blockIdx.x), from(0), chunk(0),
          chunks(work.depth / Chunk<T>::DEPTH + (work.depth % Chunk<T>::DEPTH != 0)), slot(0) {
        more = chunks > 0 && busy.find(work.offsets, work.experts, work.rows, item / work.columns);
        if (more) begin();
    }

    // In place of lines that do not exist stands another, for whose sums nobody asks. The lines set off before the rows are
    // known.
    __device__ __forceinline__ void begin() {
        Matrix<T> w = right(busy, item % work.columns);
        Rows<T> x = left(busy);
        uint32_t own = w.fetch(lane_id()), slots[TOKENS / 8];
#pragma unroll
        for (uint32_t n = 0; n < TOKENS / 8; n++) slots[n] = x.fetch(from + n * 8 + lane_id() / 4);
        if (own != NO_ROW) fetch_ahead(w.line(own), min(w.width, RING * Chunk<T>::DEPTH) * (uint32_t)sizeof(T));
        lines = (const uint4 *)w.base;
        tokens = (const uint4 *)x.base;
#pragma unroll
        for (uint32_t i = 0; i < LINES / 8; i++) {
            uint32_t line = w.fetch(i * 8 + lane_id() / 4);
            line_start[i] = (line == NO_ROW ? 0 : line) * (w.width / Chunk<T>::PART) + lane_id() % 4;
        }
#pragma unroll
        for (uint32_t n = 0; n < TOKENS / 8; n++) {
            const T *row = x.line(slots[n]);
            token_start[n] = row ? (uint32_t)((const uint4 *)row - tokens) + lane_id() % 4 : NO_ROW;
        }
    }

    // Sets off a chunk. A group of copies is committed even if there is none left, so that waiting counts chunks.
    __device__ __forceinline__ void load() {
        if (more) {
            Chunk<T> &to = ring[slot];
            bool some = chunk * Chunk<T>::DEPTH + lane_id() % 4 * Chunk<T>::PART < work.depth;
            uint32_t at = some ? chunk * 4 : 0;
#pragma unroll
            for (uint32_t i = 0; i < LINES / 8; i++) {
                copy_weights(&to.lines[i][lane_id()], lines + (line_start[i] + at), some ? 16 : 0);
            }
#pragma unroll
            for (uint32_t n = 0; n < TOKENS / 8; n++) {
                if (from + n * 8 >= busy.end - busy.first) break;
                bool there = some && token_start[n] != NO_ROW;
                copy_async(&to.tokens[n][lane_id()], tokens + (there ? token_start[n] + at : 0), there ? 16 : 0);
            }
            if (++chunk == chunks) next();
        }
        copies_commit();
        slot = slot + 1 < RING ? slot + 1 : 0;
    }

    __device__ __forceinline__ void next() {
        chunk = 0;
        from += TOKENS;
        if (from >= busy.end - busy.first) {
            from = 0;
            item += gridDim.x;
            more = busy.find(work.offsets, work.experts, work.rows, item / work.columns);
        }
        if (more) begin();
    }
};

// The products of lines with rows. For bf16 and f16 the lines are the left operand of the matrix units and the rows, in groups
// of eight, the right one. Their order of depth inside a chunk is not the memory's, but the same in both.
template <typename T> struct Sums {
    float sum[2][TOKENS / 8][4] = {};

    __device__ __forceinline__ void add(const Chunk<T> &chunk, uint32_t count) {
        uint4 part[LINES / 8];
#pragma unroll
        for (uint32_t i = 0; i < LINES / 8; i++) part[i] = chunk.lines[i][lane_id()];
#pragma unroll
        for (uint32_t n = 0; n < TOKENS / 8; n++) {
            if (n * 8 >= count) break;
            uint4 x = chunk.tokens[n][lane_id()];
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
                float(&c)[4] = sum[m][n];
                const uint4 &low = part[2 * m], &high = part[2 * m + 1];
                mma(T(), c[0], c[1], c[2], c[3], {low.x, high.x, low.y, high.y}, x.x, x.y);
                mma(T(), c[0], c[1], c[2], c[3], {low.z, high.z, low.w, high.w}, x.z, x.w);
            }
        }
    }

    __device__ __forceinline__ void store(float (*tokens)[LINES_PITCH]) const {
#pragma unroll
        for (uint32_t n = 0; n < TOKENS / 8; n++) {
            for (int i = 0; i < 8; i++) {
                uint32_t token = n * 8 + lane_id() % 4 * 2 + i % 2, line = i / 2 * 8 + lane_id() / 4;
                tokens[token][line] = sum[i / 4][n][i % 4];
            }
        }
    }
};

// In f32 a lane has the sums of its own parts of depth, which are added across the four lanes of a line at the end.
template <> struct Sums<float> {
    float sum[LINES / 8][TOKENS] = {};

    __device__ __forceinline__ void add(const Chunk<float> &chunk, uint32_t count) {
        uint4 part[LINES / 8];
#pragma unroll
        for (uint32_t i = 0; i < LINES / 8; i++) part[i] = chunk.lines[i][lane_id()];
#pragma unroll
        for (uint32_t n = 0; n < TOKENS; n++) {
            if (n >= count) break;
            uint4 x = chunk.tokens[n / 8][n % 8 * 4 + lane_id() % 4];
#pragma unroll
            for (uint32_t i = 0; i < LINES / 8; i++) {
                float &c = sum[i][n];
                c = fused(__uint_as_float(part[i].x), __uint_as_float(x.x), c);
                c = fused(__uint_as_float(part[i].y), __uint_as_float(x.y), c);
                c = fused(__uint_as_float(part[i].z), __uint_as_float(x.z), c);
                c = fused(__uint_as_float(part[i].w), __uint_as_float(x.w), c);
            }
        }
    }

    __device__ __forceinline__ void store(float (*tokens)[LINES_PITCH]) const {
#pragma unroll
        for (uint32_t n = 0; n < TOKENS; n++) {
#pragma unroll
            for (uint32_t i = 0; i < LINES / 8; i++) {
                float all = sum[i][n] + __shfl_xor_sync(~0u, sum[i][n], 1);
                all += __shfl_xor_sync(~0u, all, 2);
                if (lane_id() % 4 == 0) tokens[n][i * 8 + lane_id() / 4] = all;
            }
        }
    }
};

// A warp's part of the work. `finish(busy, column, m, sums)` is called for row m of an expert, with LINES sums. How many rows
// are taken at a time changes no bits.
template <typename T, class Left, class Right, class Finish>
static __device__ __forceinline__ void decode(const Work &work, const Left &left, const Right &right, const Finish &finish) {
    __shared__ Chunk<T> ring[RING];
    __shared__ float all[TOKENS][LINES_PITCH];
    Feed<T, Left, Right> feed(work, left, right, ring);
    for (uint32_t i = 0; i < RING; i++) feed.load();
    Busy busy;
    for (uint32_t item = blockIdx.x; busy.find(work.offsets, work.experts, work.rows, item / work.columns); item += gridDim.x) {
        for (uint32_t from = 0; from < busy.end - busy.first; from += TOKENS) {
            uint32_t count = min(TOKENS, busy.end - busy.first - from);
            Sums<T> sums;
#pragma unroll 1
            for (uint32_t chunk = 0; chunk < feed.chunks; chunk++) {
                copies_wait<RING - 1>();
                __syncwarp();
                sums.add(ring[feed.slot], count);
                __syncwarp();
                feed.load();
            }
            sums.store(all);
            __syncwarp();
            for (uint32_t token = 0; token < count; token++) finish(busy, item % work.columns, from + token, all[token]);
            __syncwarp();
        }
    }
    copies_wait<0>();
}
#endif
