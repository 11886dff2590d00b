// GateBwd: dx as a product over experts; dgate as products over the tokens of a chunk, whose sums are then added in order.
// For bf16 on Hopper both products are those of the experts' kernels, of dlogits in three bf16 parts, which are made here.
#include "chains.cuh"
#include "jitter.cuh"
#include "split.cuh"

#define SUMMERS 256

struct GateBwdParams {
    const float *dlogits;
    const void *x, *gate;
    Jitter jitter;
    void *dx;
    float *dgate, *dbias;
    // (experts, width), (chunks of a round, experts, width); and for the bias (chunks, experts)
    float *total, *parts, *bias_parts;
    uint32_t tokens, width, experts, accumulate;
    // chunks first_chunk..first_chunk+chunks are this round's
    uint32_t first_chunk, chunks, last_round;
};

// A tile of dx.
template <typename T, typename Tile> static __device__ __forceinline__ void dx_tile(const GateBwdParams &p) {
    constexpr int RUN = Tile::RUN;
    uint32_t across = (p.width + Tile::BN - 1) / Tile::BN;
    uint32_t token = blockIdx.x / across * Tile::BM, d = blockIdx.x % across * Tile::BN;
    Panel<float, Tile, Tile::BM, true> dlogits(p.dlogits, p.experts, token, p.tokens, p.experts, 0.0f);
    Panel<T, Tile, Tile::BN, false> gate(p.gate, p.width, d, p.width, p.experts, 0.0f);
    float sums[Tile::TM][Tile::TN] = {};
    multiply<Tile>(sums, dlogits, gate, 0, p.experts, [&](typename Tile::Stage &stage, uint32_t) {
        dlogits.template put<0>(stage);
        gate.template put<Tile::BM>(stage);
    });
    bool wide = p.width % RUN == 0 && (uint64_t)p.dx % (RUN * sizeof(T)) == 0;
#pragma unroll
    for (int i = 0; i < Tile::TM; i++) {
        uint32_t t = token + Tile::row(i);
        if (t >= p.tokens) continue;
        uint32_t key = jitter_key(p.jitter, t);
#pragma unroll
        for (int j = 0; j < Tile::TN; j += RUN) {
            uint32_t col = d + Tile::col(j);
            Pack<T, RUN> out;
#pragma unroll
            for (int n = 0; n < RUN; n++) out.v[n] = narrow<T>(jittered(p.jitter, key, col + n, sums[i][j + n]));
            T *to = (T *)p.dx + (uint64_t)t * p.width + col;
            if (wide && col < p.width) *(Pack<T, RUN> *)to = out;
#pragma unroll
            for (int n = 0; n < RUN; n++)
                if (!wide && col + n < p.width) to[n] = out.v[n];
        }
    }
}

// A tile of one chunk's dgate.
template <typename T, typename Tile> static __device__ __forceinline__ void dgate_tile(const GateBwdParams &p) {
    uint32_t across = (p.width + Tile::BN - 1) / Tile::BN;
    uint32_t expert = blockIdx.x / across * Tile::BM, d = blockIdx.x % across * Tile::BN;
    uint32_t start = (p.first_chunk + blockIdx.y) * CHUNK, end = start + min(p.tokens - start, CHUNK);
    Panel<float, Tile, Tile::BM, false> dlogits(p.dlogits, p.experts, expert, p.experts, end, 0.0f);
    Panel<T, Tile, Tile::BN, false> x(p.x, p.width, d, p.width, end, 0.0f);
    float sums[Tile::TM][Tile::TN] = {};
    auto seen = [&](float value, uint32_t d, uint32_t token) {
        return jittered(p.jitter, jitter_key(p.jitter, token), d, value);
    };
    multiply<Tile>(sums, dlogits, x, start, end, [&](typename Tile::Stage &stage, uint32_t token) {
        dlogits.template put<0>(stage);
        x.template put<Tile::BM>(stage);
        if (p.jitter.on) x.template change<Tile::BM>(stage, token, seen);
    });
    float *out = p.parts + (uint64_t)blockIdx.y * p.experts * p.width;
#pragma unroll
    for (int i = 0; i < Tile::TM; i++)
#pragma unroll
        for (int j = 0; j < Tile::TN; j++) {
            uint32_t e = expert + Tile::row(i), col = d + Tile::col(j);
            if (e < p.experts && col < p.width) out[(uint64_t)e * p.width + col] = sums[i][j];
        }
}

// Without the number of blocks the compiler would rather spill than use registers that are free.
#define BOUNDS(tile) tile::THREADS, 2
#define TILED(name, body, ...)                                                                  \
    typedef __VA_ARGS__ name##_tile;                                                            \
    template <typename T> static __device__ __forceinline__ void name(const GateBwdParams &p) { \
        body<T, name##_tile>(p);                                                                \
    }                                                                                           \
    KERNELS(name, GateBwdParams, BOUNDS(name##_tile))
// A kernel for storage types that tf32 holds.
#define SPLIT(name, t, body, ...) \
    KERNEL(name##_##t, GateBwdParams, (__VA_ARGS__::THREADS), 3) { body<t, __VA_ARGS__>(p); }
#define SPLITS(name, body, ...)          \
    SPLIT(name, bf16, body, __VA_ARGS__) \
    SPLIT(name, f16, body, __VA_ARGS__)

TILED(gate_bwd_dx, dx_tile, Tile<128, 64, 8, 8, 16>)
TILED(gate_bwd_dgate_128, dgate_tile, Tile<128, 64, 8, 8, 16>)
TILED(gate_bwd_dgate_32, dgate_tile, Tile<32, 64, 4, 4, 16>)
TILED(gate_bwd_dgate_8, dgate_tile, Tile<8, 128, 4, 4, 16>)
SPLITS(gate_bwd_dx_split, dx_tile, SplitTile<64, 128, 64, 32, 16>)
SPLITS(gate_bwd_dgate_split_64, dgate_tile, SplitTile<64, 128, 64, 32, 16>)
SPLITS(gate_bwd_dgate_split_32, dgate_tile, SplitTile<32, 128, 32, 32, 16>)

// A chunk's dbias: a thread per expert.
KERNEL(gate_bwd_dbias, GateBwdParams, SUMMERS) {
    uint32_t expert = blockIdx.x * SUMMERS + threadIdx.x, start = blockIdx.y * CHUNK;
    if (expert >= p.experts) return;
    uint32_t end = start + min(p.tokens - start, CHUNK);
    float sum = 0.0f;
#pragma unroll 32
    for (uint32_t t = start; t < end; t++) sum = p.dlogits[(uint64_t)t * p.experts + expert] + sum;
    p.bias_parts[(uint64_t)blockIdx.y * p.experts + expert] = sum;
}

// Adds chunks in order to `total`, or to +0 if there is none yet, and the last sum to the gradient.
static __device__ void add_chunks(const GateBwdParams &p, uint64_t at, uint64_t len, const float *parts, uint32_t chunks,
                                  float *total, bool first, bool last, float *out) {
    float sum = first ? 0.0f : total[at];
#pragma unroll 8
    for (uint32_t c = 0; c < chunks; c++) sum = sum + parts[c * len + at];
    if (!last) total[at] = sum;
    else out[at] = p.accumulate ? out[at] + sum : sum;
}

KERNEL(gate_bwd_sum, GateBwdParams, SUMMERS) {
    uint64_t at = (uint64_t)blockIdx.x * SUMMERS + threadIdx.x, len = (uint64_t)p.experts * p.width;
    if (at < len) add_chunks(p, at, len, p.parts, p.chunks, p.total, p.first_chunk == 0, p.last_round, p.dgate);
    if (at < p.experts && p.last_round && p.dbias)
        add_chunks(p, at, p.experts, p.bias_parts, (p.tokens + CHUNK - 1) / CHUNK, nullptr, true, true, p.dbias);
}

// Twin of `PartsParams` in ops/gate_bwd/hopper.rs.
struct PartsParams {
    const float *dlogits;
    const bf16 *gate;
    bf16 *parts;      // (tokens, 3, experts): bits 17 to 24 of each value, 9 to 16, 1 to 8
    bf16 *gates;      // (3, experts, width): the gate again and again
    uint32_t *index;  // 3 * (tokens up to a multiple of 64): of each 64 tokens the first parts, the second, the third
    uint32_t *bounds; // 0, tokens; then where chunks begin in `index`, and the end
    uint32_t tokens, width, experts;
};

// Sizes are multiples of 8, addresses of 16.
KERNEL(gate_bwd_parts, PartsParams, SUMMERS) {
    uint64_t thread = (uint64_t)blockIdx.x * SUMMERS + threadIdx.x, threads = (uint64_t)gridDim.x * SUMMERS;
    uint32_t across = p.experts / 8;
    for (uint64_t at = thread; at < (uint64_t)p.tokens * across; at += threads) {
        uint64_t to = at / across * 3 * p.experts + at % across * 8;
        const Pack<float, 4> *from = (const Pack<float, 4> *)p.dlogits + at * 2;
        Pack<float, 4> near = from[0], far = from[1];
        Pack<bf16, 8> parts[3];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float rest = i < 4 ? near.v[i % 4] : far.v[i % 4];
            bool finite = isfinite(rest);
#pragma unroll
            for (int part = 2; part >= 0; part--) {
                // Cut, so that nothing becomes infinite; what is not finite is in the last part alone.
                float high = __uint_as_float(__float_as_uint(rest) & 0xffff0000u);
                parts[part].v[i] = narrow<bf16>(finite ? high : rest);
                rest = finite ? rest - high : 0.0f;
            }
        }
#pragma unroll
        for (int part = 0; part < 3; part++) *(Pack<bf16, 8> *)(p.parts + to + part * p.experts) = parts[part];
    }
    uint64_t gate = (uint64_t)p.experts * p.width / 8;
    for (uint64_t at = thread; at < 3 * gate; at += threads)
        ((Pack<bf16, 8> *)p.gates)[at] = ((const Pack<bf16, 8> *)p.gate)[at % gate];
    uint32_t rows = (p.tokens + 63) / 64 * 192;
    for (uint64_t at = thread; at < rows; at += threads) {
        uint32_t token = at / 192 * 64 + at % 64;
        p.index[at] = token < p.tokens ? token * 3 + at % 192 / 64 : NO_ROW;
    }
    if (thread < 2) p.bounds[thread] = thread * p.tokens;
    for (uint64_t chunk = thread; chunk < (p.tokens + CHUNK - 1) / CHUNK + 1; chunk += threads)
        p.bounds[2 + chunk] = min(chunk * CHUNK * 3, (uint64_t)rows);
}
