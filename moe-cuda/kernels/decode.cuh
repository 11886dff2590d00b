// Products of few rows, which take as long as their weights take to arrive: a block reads LINES lines of one expert's
// weights once, its warps each a part of the depth, sixteen bytes at a time straight into registers. The host
// sees to it that lines begin at multiples of sixteen bytes.
#pragma once
#include "mma.cuh"

#define LINES 32u
#define WARPS (THREADS / 32)
// Words from one token's sums in shared memory to the next.
#define LINES_PITCH (LINES + 4)
// Bytes of dynamic shared memory: a part of the sums of sixteen tokens from every warp.
#define DECODE_SHARED 18432
// Blocks that should be on a multiprocessor together, so that enough loads are in flight.
#define DECODE_BOUNDS THREADS, 3

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
// Weights are read once: they pass by the nearest cache, and what follows them is fetched with them.
static __device__ __forceinline__ uint4 stream(const void *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(__cvta_generic_to_global(at)));
    return v;
}

// Four lanes share a line, and each has sixteen bytes of it at a time. In one chunk of sixty-four bytes lane 4 * g + t
// has parts t of lines g, g + 8, g + 16 and g + 24. In place of lines that do not exist it has another, for which nobody
// asks.
template <typename T> struct Lines {
    const uint4 *base;
    // where the lane's parts begin, counted in sixteen bytes
    uint32_t start[LINES / 8];

    __device__ __forceinline__ Lines(const Matrix<T> &w) : base((const uint4 *)w.base) {
#pragma unroll
        for (uint32_t i = 0; i < LINES / 8; i++) {
            uint32_t line = w.fetch(i * 8 + lane_id() / 4);
            start[i] = (line == NO_ROW ? 0 : line) * (w.width / (16 / (uint32_t)sizeof(T))) + lane_id() % 4;
        }
    }
};

template <typename T> struct Chunk {
    static constexpr uint32_t DEPTH = 64 / sizeof(T), PART = 16 / sizeof(T);
    uint4 part[LINES / 8];

    // Zeros from `depth` on.
    __device__ __forceinline__ void load(const Lines<T> &w, uint32_t chunk, uint32_t depth) {
        bool some = chunk * DEPTH + lane_id() % 4 * PART < depth;
#pragma unroll
        for (uint32_t i = 0; i < LINES / 8; i++) {
            part[i] = some ? stream(w.base + (w.start[i] + chunk * 4)) : make_uint4(0, 0, 0, 0);
        }
    }
};

// The products of a warp's lines with tokens. For bf16 and f16 the lines are the left operand of the matrix units and the
// tokens, in groups of eight, the right one. Their order of depth inside a chunk is not the memory's, but the same in both.
template <typename T, uint32_t TOKENS> struct Sums {
    static constexpr uint32_t GROUPS = TOKENS / 8;
    float sum[2][GROUPS][4];
    const uint4 *base;
    // where the lane's parts of tokens begin, counted in sixteen bytes
    uint32_t start[GROUPS];

    __device__ __forceinline__ Sums(const Rows<T> &x, uint32_t from, uint32_t) : base((const uint4 *)x.base) {
#pragma unroll
        for (uint32_t n = 0; n < GROUPS; n++) {
            for (int i = 0; i < 8; i++) sum[i / 4][n][i % 4] = 0.0f;
            const T *line = x.line(x.fetch(from + n * 8 + lane_id() / 4));
            start[n] = line ? (uint32_t)((const uint4 *)line - base) + lane_id() % 4 : NO_ROW;
        }
    }

    __device__ __forceinline__ void add(const Chunk<T> &w, uint32_t chunk, uint32_t depth) {
        bool some = chunk * Chunk<T>::DEPTH + lane_id() % 4 * Chunk<T>::PART < depth;
#pragma unroll
        for (uint32_t n = 0; n < GROUPS; n++) {
            uint4 x = some && start[n] != NO_ROW ? base[start[n] + chunk * 4] : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
                float(&c)[4] = sum[m][n];
                const uint4 &low = w.part[2 * m], &high = w.part[2 * m + 1];
                mma(T(), c[0], c[1], c[2], c[3], {low.x, high.x, low.y, high.y}, x.x, x.y);
                mma(T(), c[0], c[1], c[2], c[3], {low.z, high.z, low.w, high.w}, x.z, x.w);
            }
        }
    }

    __device__ __forceinline__ void store(float (*tokens)[LINES_PITCH]) const {
#pragma unroll
        for (uint32_t n = 0; n < GROUPS; n++) {
            for (int i = 0; i < 8; i++) {
                uint32_t token = n * 8 + lane_id() % 4 * 2 + i % 2, line = i / 2 * 8 + lane_id() / 4;
                tokens[token][line] = sum[i / 4][n][i % 4];
            }
        }
    }
};

// In f32 a lane has the sums of its own parts of depth, which are added across the four lanes of a line at the end.
template <uint32_t TOKENS> struct Sums<float, TOKENS> {
    float sum[LINES / 8][TOKENS];
    const float4 *base;
    uint32_t start[TOKENS], count;

    __device__ __forceinline__ Sums(const Rows<float> &x, uint32_t from, uint32_t count)
        : base((const float4 *)x.base), count(count) {
#pragma unroll
        for (uint32_t n = 0; n < TOKENS; n++) {
            for (int i = 0; i < LINES / 8; i++) sum[i][n] = 0.0f;
            const float *line = n < count ? x.line(x.fetch(from + n)) : nullptr;
            start[n] = line ? (uint32_t)((const float4 *)line - base) + lane_id() % 4 : NO_ROW;
        }
    }

    __device__ __forceinline__ void add(const Chunk<float> &w, uint32_t chunk, uint32_t depth) {
        bool some = chunk * Chunk<float>::DEPTH + lane_id() % 4 * Chunk<float>::PART < depth;
#pragma unroll
        for (uint32_t n = 0; n < TOKENS; n++) {
            if (n >= count) break;
            float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float4 x = some && start[n] != NO_ROW ? base[start[n] + chunk * 4] : none;
#pragma unroll
            for (int i = 0; i < LINES / 8; i++) {
                float &c = sum[i][n];
                c = fused(__uint_as_float(w.part[i].x), x.x, c);
                c = fused(__uint_as_float(w.part[i].y), x.y, c);
                c = fused(__uint_as_float(w.part[i].z), x.z, c);
                c = fused(__uint_as_float(w.part[i].w), x.w, c);
            }
        }
    }

    __device__ __forceinline__ void store(float (*tokens)[LINES_PITCH]) const {
#pragma unroll
        for (uint32_t n = 0; n < TOKENS; n++) {
#pragma unroll
            for (int i = 0; i < LINES / 8; i++) {
                float all = sum[i][n] + __shfl_xor_sync(~0u, sum[i][n], 1);
                all += __shfl_xor_sync(~0u, all, 2);
                if (lane_id() % 4 == 0) tokens[n][i * 8 + lane_id() / 4] = all;
            }
        }
    }
};

// Sums of up to TOKENS tokens from `from` on, with AHEAD chunks on their way at a time. `finish(m, sums)` is called by a
// warp for each token, with LINES sums.
template <typename T, uint32_t TOKENS, uint32_t AHEAD, class Finish>
static __device__ __forceinline__ void few(const Rows<T> &x, const Matrix<T> &w, uint32_t from, uint32_t depth,
                                           const Finish &finish) {
    static_assert(WARPS * TOKENS * LINES_PITCH * 4 <= DECODE_SHARED, "shared memory");
    extern __shared__ uint4 shared[];
    typedef float(*Tokens)[LINES_PITCH];
    Tokens all = (Tokens)shared, own = all + warp_id() * TOKENS;
    uint32_t count = min(TOKENS, x.end - x.first - from), chunks = (depth - 1) / Chunk<T>::DEPTH + 1;
    if (depth == 0) chunks = 0;
    uint32_t at = (uint64_t)chunks * warp_id() / WARPS, end = (uint64_t)chunks * (warp_id() + 1) / WARPS;
    Lines<T> lines(w);
    // The first chunks set off before the tokens are known.
    Chunk<T> chunk[AHEAD];
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) chunk[i].load(lines, at + i, at + i < end ? depth : 0);
    Sums<T, TOKENS> sums(x, from, count);
#pragma unroll 1
    for (; at < end; at += AHEAD) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            if (at + i < end) sums.add(chunk[i], at + i, depth);
            chunk[i].load(lines, at + AHEAD + i, at + AHEAD + i < end ? depth : 0);
        }
    }
    sums.store(own);
    __syncthreads();
    for (uint32_t token = warp_id(); token < count; token += WARPS) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t warp = 0; warp < WARPS; warp++) sum += all[warp * TOKENS + token][lane_id()];
        all[token][lane_id()] = sum;
        __syncwarp();
        finish(from + token, all[token]);
    }
    __syncthreads();
}

// All rows of an expert. How many are taken at a time changes no bits.
template <class Finish>
static __device__ __forceinline__ void decode(const Rows<float> &x, const Matrix<float> &w, uint32_t depth,
                                              const Finish &finish) {
    for (uint32_t from = 0; from < x.end - x.first; from += 2) few<float, 2, 1>(x, w, from, depth, finish);
}
template <typename T, class Finish>
static __device__ __forceinline__ void decode(const Rows<T> &x, const Matrix<T> &w, uint32_t depth, const Finish &finish) {
    uint32_t count = x.end - x.first;
    if (count <= 8) few<T, 8, 2>(x, w, 0, depth, finish);
    else for (uint32_t from = 0; from < count; from += 16) few<T, 16, 1>(x, w, from, depth, finish);
}
#endif
