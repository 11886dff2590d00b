// Route for one token or two, logits and choice in one launch, on sm_90 and later. All blocks are one cluster. The time is that of one
// chain of fused steps: so a block's first warp has nothing to do but the chains, a lane those of one expert, while others
// fetch the lines and widen them to f32 in shared memory, a stage each in turn. When all logits are there, each block chooses for a
// token. The bits are those of route.cu. The host sees to it that lines begin at multiples of sixteen bytes.
#include "barriers.cuh"
#include "choose.cuh"

#define LANES 32u
// Warps that fetch, and stages.
#define FEEDERS 8u
#define BLOCK ((1 + FEEDERS) * 32)
// Steps of a stage; words from one of its lines to the next, so that neighbours lie in different banks.
#define STEPS 64u
#define PITCH (STEPS + 4)
// Bytes of dynamic shared memory.
#define SHARED (80u << 10)
// Steps whose values are read together, while those before are worked on.
#define AHEAD 16u

#if __CUDA_ARCH__ >= 900
template <uint32_t TOKENS> struct Stages {
    // The lanes' lines of the gate, then the tokens' of x.
    float lines[FEEDERS][LANES + TOKENS][PITCH];
    uint64_t full[FEEDERS], empty[FEEDERS];
};

static __device__ __forceinline__ uint32_t address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Sixteen bytes of a line, all at once.
template <typename T> struct alignas(16) Part {
    static constexpr uint32_t LEN = 16 / sizeof(T), OF_LINE = STEPS / LEN;
    T v[LEN];
};

// One warp: every FEEDERS-th stage. What is fetched waits in registers for its stage to become free. Steps beyond the width
// multiply -0 with 0, which leaves any sum as it is.
template <typename T, uint32_t TOKENS>
static __device__ __forceinline__ void feed(const RouteParams &p, Stages<TOKENS> &s, uint32_t expert, uint32_t own) {
    constexpr uint32_t LEN = Part<T>::LEN, OF_LINE = Part<T>::OF_LINE, EACH = LANES * OF_LINE / 32;
    uint32_t lane = threadIdx.x % 32, phase = 1;
    for (uint32_t from = own * STEPS; from < p.width; from += FEEDERS * STEPS, phase ^= 1) {
        Part<T> gate[EACH], x[TOKENS];
        auto read = [&](Part<T> &to, const void *base, uint32_t line, uint32_t at, float pad) {
            // Widths are multiples of a part.
            if (at < p.width) to = *((const Part<T> *)base + ((uint64_t)line * p.width + at) / LEN);
            else
                for (uint32_t j = 0; j < LEN; j++) to.v[j] = narrow<T>(pad);
        };
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) {
            uint32_t part = i * 32 + lane;
            read(gate[i], p.gate, min(expert + part / OF_LINE, p.experts - 1), from + part % OF_LINE * LEN, 0.0f);
        }
        // A line of x has as many parts as there are lanes, or fewer.
        static_assert(OF_LINE <= 32, "parts of a line");
#pragma unroll
        for (uint32_t t = 0; t < TOKENS; t++) {
            if (lane < OF_LINE) read(x[t], p.x, min(t, p.tokens - 1), from + lane * LEN, -0.0f);
        }
        barrier_wait(address(&s.empty[own]), phase);
        auto write = [&](const Part<T> &part, uint32_t line, uint32_t at) {
#pragma unroll
            for (uint32_t j = 0; j < LEN; j += 4) {
                *(float4 *)&s.lines[own][line][at + j] = {widen(part.v[j]), widen(part.v[j + 1]), widen(part.v[j + 2]), widen(part.v[j + 3])};
            }
        };
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) write(gate[i], (i * 32 + lane) / OF_LINE, (i * 32 + lane) % OF_LINE * LEN);
#pragma unroll
        for (uint32_t t = 0; t < TOKENS; t++) {
            if (lane < OF_LINE) write(x[t], LANES + t, lane * LEN);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(address(&s.full[own]));
    }
}

// One warp: the chains of LANES experts. Whether the next stage is there is asked early, and its first values are read before the
// last steps of this one, so that the chains never pause.
template <uint32_t TOKENS>
static __device__ __forceinline__ void multiply(const RouteParams &p, Stages<TOKENS> &s, float (&sums)[TOKENS]) {
    static_assert(STEPS / AHEAD % 2 == 0, "a stage begins with the first of two buffers");
    uint32_t lane = threadIdx.x;
    Place<FEEDERS> place, next;
    float4 gate[2][AHEAD / 4], x[2][TOKENS][AHEAD / 4];
    auto read = [&](uint32_t buffer, uint32_t stage, uint32_t step) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD / 4; i++) {
            gate[buffer][i] = *(const float4 *)&s.lines[stage][lane][step + i * 4];
#pragma unroll
            for (uint32_t t = 0; t < TOKENS; t++) x[buffer][t][i] = *(const float4 *)&s.lines[stage][LANES + t][step + i * 4];
        }
    };
    barrier_wait(address(&s.full[0]), 0);
    read(0, 0, 0);
    for (uint32_t from = 0; from < p.width; from += STEPS) {
        next.next();
        bool more = from + STEPS < p.width, there = more && barrier_passed(address(&s.full[next.stage]), next.phase);
#pragma unroll
        for (uint32_t step = 0; step < STEPS; step += AHEAD) {
            uint32_t buffer = step / AHEAD % 2;
            if (step + AHEAD < STEPS) {
                read(buffer ^ 1, place.stage, step + AHEAD);
            } else if (more) {
                if (!there) barrier_wait(address(&s.full[next.stage]), next.phase);
                read(buffer ^ 1, next.stage, 0);
            }
#pragma unroll
            for (uint32_t i = 0; i < AHEAD / 4; i++) {
                const float4 &g = gate[buffer][i];
#pragma unroll
                for (uint32_t t = 0; t < TOKENS; t++) {
                    const float4 &v = x[buffer][t][i];
                    sums[t] = fused(v.x, g.x, sums[t]);
                    sums[t] = fused(v.y, g.y, sums[t]);
                    sums[t] = fused(v.z, g.z, sums[t]);
                    sums[t] = fused(v.w, g.w, sums[t]);
                }
            }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(address(&s.empty[place.stage]));
        place = next;
    }
}

// Not inlined: once for all kernels.
static __device__ __noinline__ void choose_once(const RouteParams &p, uint32_t token) { choose(p, token, threadIdx.x); }
#endif

template <typename T, uint32_t TOKENS> static __device__ __forceinline__ void at_once(const RouteParams &p) {
#if __CUDA_ARCH__ >= 900
    static_assert(sizeof(Stages<TOKENS>) <= SHARED, "shared memory");
    extern __shared__ __align__(16) uint8_t memory[];
    Stages<TOKENS> &s = *(Stages<TOKENS> *)memory;
    uint32_t expert = blockIdx.x * LANES, warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        if (blockIdx.x == 0) *p.non_finite = 0;
        for (uint32_t i = 0; i < FEEDERS; i++) barrier_init(address(&s.full[i]), 1), barrier_init(address(&s.empty[i]), 1);
        barriers_made();
    }
    __syncthreads();
    if (warp > 0) {
        feed<T, TOKENS>(p, s, expert, warp - 1);
    } else {
        float sums[TOKENS] = {};
        multiply<TOKENS>(p, s, sums);
        uint32_t own = expert + threadIdx.x;
        float bias = p.gate_bias && own < p.experts ? widen(((const T *)p.gate_bias)[own]) : 0.0f;
#pragma unroll
        for (uint32_t t = 0; t < TOKENS; t++) {
            if (own < p.experts && t < p.tokens) p.logits[(uint64_t)t * p.experts + own] = sums[t] + bias;
        }
    }
    // After this, every block sees what all have written.
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (warp > 0) return;
    for (uint32_t token = blockIdx.x; token < p.tokens; token += gridDim.x) choose_once(p, token);
#endif
}

template <typename T> static __device__ __forceinline__ void route_one(const RouteParams &p) { at_once<T, 1>(p); }
template <typename T> static __device__ __forceinline__ void route_two(const RouteParams &p) { at_once<T, 2>(p); }
KERNELS(route_one, RouteParams, BLOCK, 1)
KERNELS(route_two, RouteParams, BLOCK, 1)
