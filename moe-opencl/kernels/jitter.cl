// Input jitter: the factor of an element is a hash of (seed, step, layer, global token, d), as moe_core::ops::Jitter has it.

typedef struct {
    float amplitude;
    uint on;
} Jitter;

// Murmur3's finalizer.
FN uint mix_bits(uint h) {
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ (h >> 16);
}

FN ulong first_token(global const uint *stamp) { return stamp ? stamp[5] | (ulong)stamp[6] << 32 : 0; }

// Hash of everything but d.
FN uint jitter_key(const Jitter jitter, global const uint *stamp, uint token) {
    if (!jitter.on) return 0;
    ulong at = first_token(stamp) + token;
    uint key = 0x9e3779b9u;
    for (int i = 0; i < 5; i++) key = mix_bits(key ^ stamp[i]) + 0x9e3779b9u;
    key = mix_bits(key ^ (uint)at) + 0x9e3779b9u;
    return mix_bits(key ^ (uint)(at >> 32)) + 0x9e3779b9u;
}

// Element d of a row as the router sees it.
FN float jittered(const Jitter jitter, uint key, uint d, float value) {
    if (!jitter.on) return value;
    float fraction = (float)(mix_bits(key ^ d * 0x85ebca6bu) >> 8) * (1.0f / 16777216.0f);
    return value * fma(2.0f * jitter.amplitude, fraction, 1.0f - jitter.amplitude);
}
