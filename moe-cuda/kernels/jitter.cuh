// Input jitter: the factor of an element is a hash of (seed, step, layer, global token, d), as moe_core::ops::Jitter has it.
#pragma once
#include "prelude.cuh"

struct Jitter {
    const uint32_t *stamp;
    float amplitude;
    uint32_t on;
};

// Murmur3's finalizer.
static __device__ __forceinline__ uint32_t mix(uint32_t h) {
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}

static __device__ __forceinline__ uint64_t first_token(const uint32_t *stamp) {
    return stamp ? stamp[5] | (uint64_t)stamp[6] << 32 : 0;
}

// Hash of everything but d.
static __device__ __forceinline__ uint32_t jitter_key(const Jitter &jitter, uint32_t token) {
    if (!jitter.on) return 0;
    uint64_t global = first_token(jitter.stamp) + token;
    uint32_t key = 0x9e3779b9u;
    for (int i = 0; i < 5; i++) key = mix(key ^ jitter.stamp[i]) + 0x9e3779b9u;
    key = mix(key ^ (uint32_t)global) + 0x9e3779b9u;
    return mix(key ^ (uint32_t)(global >> 32)) + 0x9e3779b9u;
}

// Element d of a row as the router sees it.
static __device__ __forceinline__ float jittered(const Jitter &jitter, uint32_t key, uint32_t d, float value) {
    if (!jitter.on) return value;
    float fraction = (float)(mix(key ^ d * 0x85ebca6bu) >> 8) * (1.0f / 16777216.0f);
    return value * fused(2.0f * jitter.amplitude, fraction, 1.0f - jitter.amplitude);
}
