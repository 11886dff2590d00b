// Route's logits on the matrix units of sm_80 and later, for bf16 and f16. The depth is cut into sixteens; one half of a
// block's warps takes the even ones in order, the other half the odd ones, and the two sums are added at the end. That
// holds in every tile, so that a logit's bits do not depend on the tile. The host sees to it that lines begin at multiples
// of sixteen bytes.
#include "mma.cuh"

struct NativeParams {
    const void *x, *gate, *gate_bias;
    float *logits;
    uint32_t *non_finite;
    uint32_t tokens, width, experts;
};

#define HALVES 2u

// BM tokens and BN experts; a warp has WM x 32 of their sums. RING stages of DEPTH steps are in shared memory or on their way.
template <uint32_t BM_, uint32_t BN_, uint32_t WM_, uint32_t DEPTH_, uint32_t RING_> struct Gate {
    static constexpr uint32_t BM = BM_, BN = BN_, WM = WM_, DEPTH = DEPTH_, RING = RING_, WN = 32;
    static constexpr uint32_t HALF = BM / WM * (BN / WN) * 32, COUNT = HALVES * HALF;
    // A stage: the tokens' lines, then the experts', each of CHUNKS times sixteen bytes.
    static constexpr uint32_t CHUNKS = DEPTH / 8, LINES = BM + BN, STAGE = LINES * DEPTH;
    // Lines that all threads together copy at a time.
    static constexpr uint32_t STEP = COUNT / CHUNKS;
    static_assert(DEPTH % (16 * HALVES) == 0 && BM % STEP == 0 && BN % STEP == 0, "a stage in equal parts");
    static_assert(BM * BN * 4 <= RING * STAGE * 2, "the sums of a half fit where the stages were");

    // Chunks are turned about so that eight lines lie in different banks.
    static __device__ __forceinline__ uint32_t place(uint32_t line, uint32_t chunk) {
        return line * DEPTH + (chunk ^ (line & 7)) * 8;
    }
};

// Copies LEN lines of a stage, from line FROM of it on; those beyond `count` and steps beyond the width are zeros.
template <class Tile, uint32_t FROM, uint32_t LEN, typename T>
static __device__ __forceinline__ void copy_lines(T *stage, const T *base, uint32_t first, uint32_t count, uint32_t width,
                                                  uint32_t depth) {
    uint32_t chunk = threadIdx.x % Tile::CHUNKS, line = threadIdx.x / Tile::CHUNKS, at = depth + chunk * 8;
    const T *from = base + (uint64_t)(first + line) * width + at;
#pragma unroll
    for (uint32_t i = 0; i < LEN; i += Tile::STEP) {
        bool some = at < width && first + line + i < count;
        copy_async(stage + Tile::place(FROM + line + i, chunk), some ? from + (uint64_t)i * width : base, some ? 16 : 0);
    }
}

// sums += x * gate over sixteen steps of a stage, of the warp's rows and columns.
template <class Tile, typename T>
static __device__ __forceinline__ void gate_step(float (&sums)[Tile::WM / 16][4][4], const T *stage, uint32_t row,
                                                 uint32_t column, uint32_t sixteen) {
    uint32_t a[Tile::WM / 16][4], b[2][4], lane = lane_id();
#pragma unroll
    for (uint32_t n = 0; n < 2; n++) {
        uint32_t line = Tile::BM + column + n * 16 + lane / 16 * 8 + lane % 8;
        load_matrices<false>(b[n], stage + Tile::place(line, sixteen * 2 + lane / 8 % 2));
    }
#pragma unroll
    for (uint32_t m = 0; m < Tile::WM / 16; m++) {
        uint32_t line = row + m * 16 + lane % 16;
        load_matrices<false>(a[m], stage + Tile::place(line, sixteen * 2 + lane / 16));
    }
#pragma unroll
    for (uint32_t m = 0; m < Tile::WM / 16; m++) {
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) {
            float(&c)[4] = sums[m][n];
            mma(T(), c[0], c[1], c[2], c[3], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
    }
}

template <typename T, class Tile> static __device__ __forceinline__ void gate_tile(const NativeParams &p) {
    extern __shared__ uint4 shared[];
    T *ring = (T *)shared;
    uint32_t across = (p.experts + Tile::BN - 1) / Tile::BN;
    uint32_t token = blockIdx.x / across * Tile::BM, expert = blockIdx.x % across * Tile::BN;
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.non_finite = 0;
    if (token >= p.tokens) return;

    uint32_t half = threadIdx.x / Tile::HALF, within = threadIdx.x % Tile::HALF;
    uint32_t row = within / 32 / (Tile::BN / Tile::WN) * Tile::WM, column = within / 32 % (Tile::BN / Tile::WN) * Tile::WN;
    float sums[Tile::WM / 16][4][4] = {};
    auto load = [&](uint32_t step, uint32_t slot) {
        T *stage = ring + slot * Tile::STAGE;
        copy_lines<Tile, 0, Tile::BM>(stage, (const T *)p.x, token, p.tokens, p.width, step * Tile::DEPTH);
        copy_lines<Tile, Tile::BM, Tile::BN>(stage, (const T *)p.gate, expert, p.experts, p.width, step * Tile::DEPTH);
    };

    // A group of copies is committed for every step, even if it has none, so that waiting counts steps.
    uint32_t steps = (p.width + Tile::DEPTH - 1) / Tile::DEPTH, now = 0, free = Tile::RING - 1;
    for (uint32_t at = 0; at < Tile::RING - 1; at++) {
        if (at < steps) load(at, at);
        copies_commit();
    }
#pragma unroll 1
    for (uint32_t at = 0; at < steps; at++) {
        copies_wait<Tile::RING - 2>();
        __syncthreads();
        if (at + Tile::RING - 1 < steps) load(at + Tile::RING - 1, free);
        copies_commit();
#pragma unroll
        for (uint32_t i = 0; i < Tile::DEPTH / 16; i += HALVES) {
            gate_step<Tile>(sums, ring + now * Tile::STAGE, row, column, i + half);
        }
        now = now + 1 < Tile::RING ? now + 1 : 0;
        free = free + 1 < Tile::RING ? free + 1 : 0;
    }
    copies_wait<0>();
    __syncthreads();

    // The second half's sums lie side by side as threads do.
    float *odd = (float *)shared + within;
#pragma unroll
    for (uint32_t i = 0; i < Tile::WM; i++) {
        if (half == 1) odd[i * Tile::HALF] = sums[i / 16][i / 4 % 4][i % 4];
    }
    __syncthreads();
    if (half == 1) return;
#pragma unroll
    for (uint32_t i = 0; i < Tile::WM; i += 2) {
        uint32_t m = i / 16, n = i / 4 % 4, c = i % 4;
        uint32_t t = token + row + m * 16 + c / 2 * 8 + lane_id() / 4, e = expert + column + n * 8 + lane_id() % 4 * 2;
        if (t >= p.tokens || e >= p.experts) continue;
        float bias[2] = {0.0f, 0.0f};
        if (p.gate_bias) load_two((const T *)p.gate_bias + e, p.experts - e, bias);
        store_two(p.logits + (uint64_t)t * p.experts + e, p.experts - e, sums[m][n][c] + odd[i * Tile::HALF] + bias[0],
                  sums[m][n][c + 1] + odd[(i + 1) * Tile::HALF] + bias[1]);
    }
}

#if __CUDA_ARCH__ >= 800
#define GATE_BODY(T, tile) gate_tile<T, tile>(p)
#else
#define GATE_BODY(T, tile)
#endif
// The registers of a multiprocessor are enough for 512 threads.
#define ROOM(tile) tile::COUNT, 512 / tile::COUNT
#define GATE(name, ...)                                                                    \
    typedef Gate<__VA_ARGS__> name##_tile;                                                 \
    KERNEL(name##_bf16, NativeParams, ROOM(name##_tile)) { GATE_BODY(bf16, name##_tile); } \
    KERNEL(name##_f16, NativeParams, ROOM(name##_tile)) { GATE_BODY(f16, name##_tile); }

// `TILES` of ops/route/native.rs.
GATE(route_native_64x32, 64, 32, 16, 128, 4)
GATE(route_native_64x64, 64, 64, 32, 64, 6)
GATE(route_native_64x128, 64, 128, 64, 64, 4)
GATE(route_native_128x128, 128, 128, 64, 64, 4)
