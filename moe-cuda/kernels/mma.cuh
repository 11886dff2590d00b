// A tile of a product on the matrix units of sm_80 and later, for bf16 and f16: eight warps of 64 x 32 sums each.
#pragma once
#include "tiles.cuh"

#define MMA_DEPTH 32u
#define STAGES 3u

static __device__ __forceinline__ uint32_t shared_address(const void *at) {
    return (uint32_t)__cvta_generic_to_shared(at);
}

// Sixteen bytes into shared memory, of which the first `bytes` are copied and the others are zeros.
static __device__ __forceinline__ void copy_async(void *to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8 x 8 matrices, each lane naming a line of one of them; TURNED ones are transposed.
template <bool TURNED> static __device__ __forceinline__ void load_matrices(uint32_t (&v)[4], const void *line) {
    uint32_t at = shared_address(line);
    if (TURNED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at) : "memory");
    }
}

// c += a * b, 16 x 8 over a depth of 16. The first argument says the type.
static __device__ __forceinline__ void mma(bf16, float &c0, float &c1, float &c2, float &c3, const uint32_t (&a)[4],
                                           uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ void mma(f16, float &c0, float &c1, float &c2, float &c3, const uint32_t (&a)[4],
                                           uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Where sixteen bytes of a line are in shared memory, turned about so that eight lines lie in different banks.
// ALONG: lines of MMA_DEPTH elements, one per row or column of the tile; else lines of TILE, one per step of depth.
template <bool ALONG> static __device__ __forceinline__ uint32_t place_of(uint32_t line, uint32_t chunk) {
    return ALONG ? line * MMA_DEPTH + (chunk ^ (line >> 1 & 3)) * 8 : line * TILE + (chunk ^ (line & 7)) * 8;
}

// One operand's way into shared memory: a thread copies two parts of one line at each step.
template <typename T, bool ALONG, class Source> struct MmaFeed {
    static constexpr uint32_t LANES = ALONG ? 2 : 8;
    const Source &source;
    const T *pointer;
    uint32_t line, part, next;
    bool vector;

    __device__ __forceinline__ MmaFeed(const Source &source) : source(source), pointer(nullptr) {
        line = threadIdx.x / LANES;
        part = threadIdx.x % LANES;
        vector = vectors(source.base, source.width);
        next = source.fetch(line);
        if (ALONG) pointer = source.line(next);
    }

    __device__ __forceinline__ void load(uint32_t depth, T *to) {
        if (!ALONG) {
            pointer = source.line(next);
            // Fetched a step ahead: an index takes its time.
            next = source.fetch(depth + MMA_DEPTH + line);
        }
        uint32_t from = ALONG ? depth : source.origin;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t chunk = part + half * LANES, at = from + chunk * 8;
            T *place = to + place_of<ALONG>(line, chunk);
            if (vector) {
                bool some = pointer && at < source.width;
                copy_async(place, some ? pointer + at : source.base, some ? 16 : 0);
            } else {
                struct alignas(16) Pack { T v[8]; } pack;
#pragma unroll
                for (uint32_t i = 0; i < 8; i++) {
                    pack.v[i] = pointer && at < source.width && i < source.width - at ? pointer[at + i] : narrow<T>(0.0f);
                }
                *(Pack *)place = pack;
            }
        }
    }
};

template <typename T> struct Mma {
    struct Shared {
        T left[STAGES][TILE * MMA_DEPTH], right[STAGES][TILE * MMA_DEPTH];
    };

    // The warp's rows and columns of the tile.
    static __device__ __forceinline__ uint32_t warp_row() { return warp_id() / 4 * 64; }
    static __device__ __forceinline__ uint32_t warp_column() { return warp_id() % 4 * 32; }

    // sums += left * right over sixteen steps of depth from `depth` on.
    template <bool LEFT_ALONG, bool RIGHT_ALONG>
    static __device__ __forceinline__ void step(float (&sums)[8][8], const T *left, const T *right, uint32_t depth) {
        uint32_t a[4][4], b[2][4], lane = lane_id(), eighth = lane % 8;
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            uint32_t column = warp_column() + n * 16;
            uint32_t place = RIGHT_ALONG
                ? place_of<true>(column + lane / 16 * 8 + eighth, depth / 8 + lane / 8 % 2)
                : place_of<false>(depth + lane / 8 % 2 * 8 + eighth, column / 8 + lane / 16);
            load_matrices<!RIGHT_ALONG>(b[n], right + place);
        }
#pragma unroll
        for (uint32_t m = 0; m < 4; m++) {
            uint32_t row = warp_row() + m * 16;
            uint32_t place = LEFT_ALONG
                ? place_of<true>(row + lane / 8 % 2 * 8 + eighth, depth / 8 + lane / 16)
                : place_of<false>(depth + lane / 16 * 8 + eighth, row / 8 + lane / 8 % 2);
            load_matrices<!LEFT_ALONG>(a[m], left + place);
        }
#pragma unroll
        for (uint32_t m = 0; m < 4; m++) {
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                mma(T(), sums[2 * m][2 * n], sums[2 * m][2 * n + 1], sums[2 * m + 1][2 * n], sums[2 * m + 1][2 * n + 1],
                    a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        }
    }

    // sums += left * right over the depth.
    template <bool LEFT_ALONG, bool RIGHT_ALONG, class Left, class Right>
    static __device__ __forceinline__ void multiply(float (&sums)[8][8], const Left &left, const Right &right,
                                                    uint32_t depth, void *shared) {
        Shared &s = *(Shared *)shared;
        MmaFeed<T, LEFT_ALONG, Left> lefts(left);
        MmaFeed<T, RIGHT_ALONG, Right> rights(right);
        uint32_t steps = (depth + MMA_DEPTH - 1) / MMA_DEPTH;
        // A group of copies is committed for every step, even if it has none, so that waiting counts steps.
        for (uint32_t at = 0; at < STAGES - 1; at++) {
            if (at < steps) {
                lefts.load(at * MMA_DEPTH, s.left[at]);
                rights.load(at * MMA_DEPTH, s.right[at]);
            }
            copies_commit();
        }
        uint32_t now = 0, free = STAGES - 1;
        for (uint32_t at = 0; at < steps; at++) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            if (at + STAGES - 1 < steps) {
                lefts.load((at + STAGES - 1) * MMA_DEPTH, s.left[free]);
                rights.load((at + STAGES - 1) * MMA_DEPTH, s.right[free]);
            }
            copies_commit();
#pragma unroll
            for (uint32_t k = 0; k < MMA_DEPTH; k += 16) {
                step<LEFT_ALONG, RIGHT_ALONG>(sums, s.left[now], s.right[now], k);
            }
            now = now + 1 < STAGES ? now + 1 : 0;
            free = free + 1 < STAGES ? free + 1 : 0;
        }
        copies_wait<0>();
        __syncthreads();
    }

    // Writes half of the tile's rows, as lines.
    static __device__ __forceinline__ void place(const float (&sums)[8][8], int half, float (*lines)[PITCH]) {
        if (warp_row() != half * 64) return;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float *line = lines[i / 2 * 16 + i % 2 * 8 + lane_id() / 4];
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                uint32_t column = warp_column() + j / 2 * 8 + lane_id() % 4 * 2;
                *(float2 *)&line[column] = make_float2(sums[i][j], sums[i][j + 1]);
            }
        }
    }
};
