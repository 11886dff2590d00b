// Vectors of VEC floats, the unit in which sums are handed on: a register of a processor, four on graphics processors, one where
// the lanes of a subgroup stand beside each other.
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#if VEC == 1
#define LANES(name) name
#define LOAD(at) (*(at))
#define STORE(v, at) (*(at) = (v))
#else
#define LANES(name) JOIN(name, VEC)
#define LOAD(at) LANES(vload)(0, at)
#define STORE(v, at) LANES(vstore)(v, 0, at)
#endif
typedef LANES(float) FV;

#if STORAGE == BF16
// bf16 in the upper halves, rounded to nearest, ties to even.
FN LANES(uint) bf16_bits(FV v) {
    LANES(uint) bits = LANES(as_uint)(v);
    return isnan(v) ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
}
#endif

// As the storage type keeps it.
FN FV rounded(FV v) {
#if STORAGE == F32
    return v;
#elif STORAGE == BF16
    return LANES(as_float)(bf16_bits(v) & 0xffff0000u);
#else
    ushort bits[VEC];
    JOIN(LANES(vstore_half), _rte)(v, 0, (half *)bits);
    return LANES(vload_half)(0, (const half *)bits);
#endif
}

// VEC elements in a row.
FN FV load_all(global const T *at) {
#if STORAGE == F32
    return LOAD(at);
#elif STORAGE == BF16
    return LANES(as_float)(LANES(convert_uint)(LOAD(at)) << 16);
#else
    return LANES(vload_half)(0, (global const half *)at);
#endif
}

FN void store_all(global T *at, FV v) {
#if STORAGE == F32
    STORE(v, at);
#elif STORAGE == BF16
    STORE(LANES(convert_ushort)(bf16_bits(v) >> 16), at);
#else
    JOIN(LANES(vstore_half), _rte)(v, 0, (global half *)at);
#endif
}

// The first `count` of VEC elements, zeros for the others.
FN FV load_some(global const T *at, uint count) {
    if (count >= VEC) return load_all(at);
    float some[VEC];
    for (uint i = 0; i < VEC; i++) some[i] = i < count ? widen(at[i]) : 0.0f;
    return LOAD(some);
}

FN void store_some(global T *at, uint count, FV v) {
    if (count >= VEC) {
        store_all(at, v);
    } else {
        float some[VEC];
        STORE(v, some);
        for (uint i = 0; i < count; i++) at[i] = narrow(some[i]);
    }
}

// The sum of the first `count`, in order.
FN float sum_some(FV v, uint count) {
    float some[VEC], sum = 0.0f;
    STORE(v, some);
    for (uint i = 0; i < VEC; i++) sum += i < count ? some[i] : 0.0f;
    return sum;
}
