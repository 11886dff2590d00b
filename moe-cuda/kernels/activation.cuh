// What an expert does between its two products, and its derivative; the definitions are `Activation`'s of moe-core.
#pragma once
#include "prelude.cuh"

// The order of `Formula::of` in ops/products.rs; the gated ones come first.
enum Kind : uint32_t { SWIGLU, GEGLU, GEGLU_TANH, CLAMPED_SWIGLU, GELU, GELU_TANH, SQUARED_RELU, LINEAR };

// Twin of `Formula` in ops/products.rs.
struct Formula {
    uint32_t kind;
    float alpha, limit;

    __device__ __forceinline__ bool gated() const { return kind <= CLAMPED_SWIGLU; }
};

// NaN stays NaN in both.
static __device__ __forceinline__ float least(float value, float bound) { return value > bound ? bound : value; }
static __device__ __forceinline__ float most(float value, float bound) { return value < bound ? bound : value; }

static __device__ __forceinline__ float sigmoid(float x) {
    float e = expf(-fabsf(x));
    // The divisor is between 1 and 2.
    return __fdividef(x < 0.0f ? e : 1.0f, 1.0f + e);
}

static __device__ __forceinline__ void gelu(float x, float &value, float &slope) {
    float cdf = 0.5f * (1.0f + erff(x * 0.707106781f));
    value = x * cdf;
    slope = cdf + x * (0.398942280f * expf(-0.5f * x * x));
}

static __device__ __forceinline__ void gelu_tanh(float x, float &value, float &slope) {
    const float root = 0.797884561f, cubic = 0.044715f;
    float t = tanhf(root * (x + cubic * x * x * x));
    float inner = root * (1.0f + 3.0f * cubic * x * x);
    value = 0.5f * x * (1.0f + t);
    slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}

struct Gradient {
    float value, dg, du;
};

// The activation at g and u, and the gradients there for the gradient `da` at the activation.
static __device__ __forceinline__ Gradient gradient(const Formula &f, float g, float u, float da) {
    float value, slope;
    switch (f.kind) {
    case SWIGLU: {
        float s = sigmoid(g);
        value = g * s;
        slope = s * (1.0f + g * (1.0f - s));
        break;
    }
    case GEGLU:
    case GELU: gelu(g, value, slope); break;
    case GEGLU_TANH:
    case GELU_TANH: gelu_tanh(g, value, slope); break;
    case CLAMPED_SWIGLU: {
        float gc = least(g, f.limit), uc = most(least(u, f.limit), -f.limit);
        float s = sigmoid(f.alpha * gc);
        float dg = g > f.limit ? 0.0f : da * (uc + 1.0f) * (s * (1.0f + f.alpha * gc * (1.0f - s)));
        float du = u > f.limit || u < -f.limit ? 0.0f : da * gc * s;
        return {gc * s * (uc + 1.0f), dg, du};
    }
    case SQUARED_RELU: {
        float positive = most(g, 0.0f);
        return {positive * positive, da * 2.0f * positive, 0.0f};
    }
    default: return {g, da, 0.0f};
    }
    if (f.gated()) return {value * u, da * u * slope, da * value};
    return {value, da * slope, 0.0f};
}

static __device__ __forceinline__ float activate(const Formula &f, float g, float u) {
    return gradient(f, g, u, 0.0f).value;
}
