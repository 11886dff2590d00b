// What all kernels share: the storage type, and how the host calls.
//
// OpenCL C 1.2 without extensions: bf16 is bits of a float, f16 goes through vload_half. A product and a sum are fused only
// where `fma` says so, so that routing has the reference's bits. A buffer is two arguments, since a view may begin anywhere in
// it: IN or OUT in the signature, and OPEN in the body, after which the name stands for the view. A null pointer stands for an
// argument that is absent. The last argument is one struct of numbers; ops/*.rs holds its twin. Values read from index and
// offset buffers are clamped before they become indices: the host cannot check them. THREADS, a power of two from 64 on, is the
// size of a group unless a kernel says otherwise.
#pragma OPENCL FP_CONTRACT OFF

#define NO_ROW 0xffffffffu
// Tokens whose terms are added in order before chunk is added to chunk.
#define CHUNK 1024u

#define IN(type, name) global const type *name, ulong name##_start
#define OUT(type, name) global type *name, ulong name##_start
#define OPEN(name) name += name##_start

// A tool that interprets kernels may want functions to stay functions.
#ifndef FN
#define FN static inline __attribute__((always_inline))
#endif

// What STORAGE can be.
#define F32 0
#define BF16 1
#define F16 2

#if STORAGE == F32
typedef float T;
FN float widen(T v) { return v; }
FN T narrow(float v) { return v; }
FN float4 load4(global const T *p, ulong at) { return vload4(0, p + at); }
#elif STORAGE == BF16
typedef ushort T;
FN float widen(T v) { return as_float((uint)v << 16); }
// Rounds to nearest, ties to even; a NaN stays one.
FN T narrow(float v) {
    uint bits = as_uint(v);
    return (T)(isnan(v) ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
FN float4 load4(global const T *p, ulong at) { return as_float4(convert_uint4(vload4(0, p + at)) << 16); }
#else
typedef ushort T;
FN float widen(T v) { return vload_half(0, (const half *)&v); }
FN T narrow(float v) {
    T bits;
    vstore_half_rte(v, 0, (half *)&bits);
    return bits;
}
FN float4 load4(global const T *p, ulong at) { return vload_half4(0, (global const half *)(p + at)); }
#endif

FN float load(global const T *p, ulong at) { return widen(p[at]); }
FN void store(float v, global T *p, ulong at) { p[at] = narrow(v); }

FN void store4(float4 v, global T *p, ulong at) {
    store(v.s0, p, at);
    store(v.s1, p, at + 1);
    store(v.s2, p, at + 2);
    store(v.s3, p, at + 3);
}

// As load4 and store4, where only the first `count` elements exist; the others are 0 and not written.
FN float4 load_upto4(global const T *p, ulong at, uint count) {
    if (count >= 4) return load4(p, at);
    return (float4)(load(p, at), count > 1 ? load(p, at + 1) : 0.0f, count > 2 ? load(p, at + 2) : 0.0f, 0.0f);
}
FN void store_upto4(float4 v, global T *p, ulong at, uint count) {
    if (count >= 4) {
        store4(v, p, at);
        return;
    }
    store(v.s0, p, at);
    if (count > 1) store(v.s1, p, at + 1);
    if (count > 2) store(v.s2, p, at + 2);
}
