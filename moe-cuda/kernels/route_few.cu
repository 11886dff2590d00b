// Route's logits for few tokens, on sm_80 and later: nearly all of the time is that of one chain of fused steps, so that each
// warp is a block, which has a multiprocessor to itself. A lane has the chains of one expert with TOKENS tokens. The bits are
// those of the tiles in route.cu. The host sees to it that lines begin at multiples of sixteen bytes.
#include "ahead.cuh"
#include "mma.cuh"

// `NativeParams` of ops/route/native.rs.
struct NativeParams {
    const void *x, *gate, *gate_bias;
    float *logits;
    uint32_t *non_finite;
    uint32_t tokens, width, experts;
};

#define LANES 32u
// Stages on their way. Each has PARTS times sixteen bytes of every line.
#define RING 8u
#define PARTS 8u
// From one line of a stage to the next, so that neighbours lie in different banks.
#define PARTS_PITCH (PARTS + 1)

template <typename T, uint32_t TOKENS> struct Few {
    static constexpr uint32_t PART = 16 / sizeof(T), STEPS = PARTS * PART, COPIES = LANES / (LANES / PARTS);
    // The lanes' lines of the gate, then the tokens' of x.
    typedef uint4 Stage[LANES + TOKENS][PARTS_PITCH];
    struct Shared {
        Stage ring[RING];
        // the tokens' lines of two stages, widened
        float4 x[2][TOKENS][STEPS / 4];
    };
    // What the steps of one part take.
    struct Part {
        uint4 gate;
        float4 x[TOKENS][PART / 4];
    };

    const NativeParams &p;
    Shared &s;
    uint32_t lane, token;
    // where the lines of this lane's copies begin, counted in sixteen bytes
    uint32_t gate_start[COPIES], x_start;
    float sums[TOKENS];

    __device__ __forceinline__ Few(const NativeParams &p, Shared &s, uint32_t token, uint32_t expert)
        : p(p), s(s), lane(threadIdx.x), token(token), sums() {
        uint32_t pitch = p.width / PART;
        // In place of lines that do not exist stands the last one, for whose sums nobody asks.
#pragma unroll
        for (uint32_t i = 0; i < COPIES; i++) {
            gate_start[i] = min(expert + i * (LANES / PARTS) + lane / PARTS, p.experts - 1) * pitch;
        }
        x_start = min(token + min(lane / PARTS, TOKENS - 1), p.tokens - 1) * pitch;
    }

    // Sets off the copies of a stage; beyond the width there is nothing to copy.
    __device__ __forceinline__ void load(uint32_t stage) {
        uint32_t part = stage * PARTS + lane % PARTS, bytes = part * PART < p.width ? 16 : 0;
        if (bytes == 0) part = 0;
        uint4(*to)[PARTS_PITCH] = s.ring[stage % RING];
#pragma unroll
        for (uint32_t i = 0; i < COPIES; i++) {
            copy_async(&to[i * (LANES / PARTS) + lane / PARTS][lane % PARTS], (const uint4 *)p.gate + (gate_start[i] + part), bytes);
        }
        if (lane / PARTS < TOKENS) {
            copy_async(&to[LANES + lane / PARTS][lane % PARTS], (const uint4 *)p.x + (x_start + part), bytes);
        }
        copies_commit();
    }

    // Steps beyond the width multiply -0 with 0, which leaves any sum as it is.
    __device__ __forceinline__ void widen_x(uint32_t stage) {
#pragma unroll
        for (uint32_t i = 0; i < TOKENS * STEPS; i += LANES) {
            uint32_t t = i / STEPS, step = i % STEPS + lane;
            float v = widen(((const T *)s.ring[stage % RING][LANES + t])[step]);
            ((float *)s.x[stage % 2][t])[step] = stage * STEPS + step < p.width ? v : -0.0f;
        }
    }

    __device__ __forceinline__ void read(Part &to, uint32_t stage, uint32_t part) const {
        to.gate = s.ring[stage % RING][lane][part];
#pragma unroll
        for (uint32_t t = 0; t < TOKENS; t++)
#pragma unroll
            for (uint32_t i = 0; i < PART / 4; i++) to.x[t][i] = s.x[stage % 2][t][part * (PART / 4) + i];
    }

    __device__ __forceinline__ void steps(const Part &of) {
        struct alignas(16) Pack { T v[PART]; } gate;
        *(uint4 *)&gate = of.gate;
#pragma unroll
        for (uint32_t i = 0; i < PART; i++)
#pragma unroll
            for (uint32_t t = 0; t < TOKENS; t++) {
                const float4 &x = of.x[t][i / 4];
                sums[t] = fused(i % 4 == 0 ? x.x : i % 4 == 1 ? x.y : i % 4 == 2 ? x.z : x.w, widen(gate.v[i]), sums[t]);
            }
    }

    // All steps, each part read while the one before it is worked on.
    __device__ __forceinline__ void multiply() {
        uint32_t stages = (p.width + STEPS - 1) / STEPS;
        for (uint32_t stage = 0; stage < RING; stage++) load(stage);
        copies_wait<RING - 2>();
        __syncwarp();
        widen_x(0);
        widen_x(1);
        __syncwarp();
        Part parts[2];
        read(parts[0], 0, 0);
#pragma unroll 1
        for (uint32_t stage = 0; stage < stages; stage++) {
#pragma unroll(TOKENS == 4 ? 2 : 4)
            for (uint32_t part = 0; part < PARTS; part++) {
                if (part + 1 < PARTS) {
                    read(parts[(part + 1) % 2], stage, part + 1);
                } else {
                    // Nothing of this stage is still to be read; all of the next two is there.
                    copies_wait<RING - 3>();
                    __syncwarp();
                    load(stage + RING);
                    read(parts[0], stage + 1, 0);
                    widen_x(stage + 2);
                }
                steps(parts[part % 2]);
            }
        }
        copies_wait<0>();
    }
};

template <typename T, uint32_t TOKENS> static __device__ __forceinline__ void few(const NativeParams &p) {
#if __CUDA_ARCH__ >= 800
    __shared__ typename Few<T, TOKENS>::Shared shared;
    uint32_t across = (p.experts + LANES - 1) / LANES;
    uint32_t token = blockIdx.x / across * TOKENS, expert = blockIdx.x % across * LANES, own = expert + threadIdx.x;
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.non_finite = 0;
    if (token >= p.tokens) return;
    if (token == 0 && own < p.experts && p.width > 0) {
        fetch_ahead((const T *)p.gate + (uint64_t)own * p.width, min(p.width, 1u << 16) * (uint32_t)sizeof(T));
    }
    Few<T, TOKENS> chains(p, shared, token, expert);
    chains.multiply();
    if (own >= p.experts) return;
    float bias = p.gate_bias ? widen(((const T *)p.gate_bias)[own]) : 0.0f;
#pragma unroll
    for (uint32_t t = 0; t < TOKENS; t++) {
        if (token + t < p.tokens) p.logits[(uint64_t)(token + t) * p.experts + own] = chains.sums[t] + bias;
    }
#endif
}

template <typename T> static __device__ __forceinline__ void route_few_1(const NativeParams &p) { few<T, 1>(p); }
template <typename T> static __device__ __forceinline__ void route_few_2(const NativeParams &p) { few<T, 2>(p); }
template <typename T> static __device__ __forceinline__ void route_few_4(const NativeParams &p) { few<T, 4>(p); }
KERNELS(route_few_1, NativeParams, LANES)
KERNELS(route_few_2, NativeParams, LANES)
KERNELS(route_few_4, NativeParams, LANES)
