// What all kernels share: storage types, exact arithmetic, and how the host calls.
//
// Compiled with -fmad=false: a multiplication and an addition are fused only where `fused` says so, so that routing
// has the reference's bits. Every kernel takes one struct by value; ops/*.rs holds its twin. A null pointer stands
// for an argument that is absent. Values read from index and offset buffers are clamped before they become
// addresses: the host cannot check them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;

#define NO_ROW 0xffffffffu
// Tokens whose terms are added in order before chunk is added to chunk.
#define CHUNK 1024u

static __device__ __forceinline__ float widen(float v) { return v; }
static __device__ __forceinline__ float widen(bf16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ float widen(f16 v) { return __half2float(v); }

template <typename T> static __device__ __forceinline__ T narrow(float v);
template <> __device__ __forceinline__ float narrow<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ __forceinline__ f16 narrow<f16>(float v) { return __float2half_rn(v); }

static __device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

static __device__ __forceinline__ float power_of_two(int n) { return __int_as_float((n + 127) << 23); }

// The project's own e^x (moe_core::Accum::fixed_exp), bit for bit.
static __device__ __forceinline__ float fixed_exp(float x) {
    if (isnan(x)) return x;
    if (x > 88.72284f) return __int_as_float(0x7f800000);
    if (x < -103.97208f) return 0.0f;
    float n = fused(x, 1.44269502f, 12582912.0f) - 12582912.0f;
    float r = fused(n, -0.6933594f, x);
    r = fused(n, 2.1219444e-4f, r);
    float sum = 1.0f / 5040.0f;
    sum = fused(sum, r, 1.0f / 720.0f);
    sum = fused(sum, r, 1.0f / 120.0f);
    sum = fused(sum, r, 1.0f / 24.0f);
    sum = fused(sum, r, 1.0f / 6.0f);
    sum = fused(sum, r, 0.5f);
    sum = fused(sum, r, 1.0f);
    sum = fused(sum, r, 1.0f);
    int whole = (int)n, half = whole >> 1;
    return sum * power_of_two(half) * power_of_two(whole - half);
}

static __device__ __forceinline__ float fixed_sigmoid(float x) {
    if (x < 0.0f) {
        float e = fixed_exp(x);
        return e / (1.0f + e);
    }
    return 1.0f / (1.0f + fixed_exp(-x));
}

// The sum of the lanes' values, in halves: 16, 8, 4, 2, 1.
static __device__ __forceinline__ float warp_sum(float v) {
    for (int half = 16; half > 0; half /= 2) v = v + __shfl_xor_sync(~0u, v, half);
    return v;
}

// Defines the kernel NAME; its body, which sees `const PARAMS &p`, follows. The last arguments are launch bounds.
#define KERNEL(name, params, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ params p)

// Defines the kernels NAME_f32, NAME_bf16 and NAME_f16 from a template NAME<T>(const Params &).
#define KERNELS(name, params, ...)                                \
    KERNEL(name##_f32, params, __VA_ARGS__) { name<float>(p); }   \
    KERNEL(name##_bf16, params, __VA_ARGS__) { name<bf16>(p); }   \
    KERNEL(name##_f16, params, __VA_ARGS__) { name<f16>(p); }
