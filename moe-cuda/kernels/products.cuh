// Grouped products, tile by tile: multiply, then hand the sums on row by row.
#pragma once
#include "mma.cuh"
#include "simt.cuh"

// Bytes of dynamic shared memory of every kernel here; `SHARED` of ops/products.rs.
#define SHARED 49152

// sums of left * right over the depth. `finish(m, sums)` is called by a warp for each row m < rows of the tile, with
// its TILE sums in shared memory.
template <class Math, bool LEFT_ALONG, bool RIGHT_ALONG, class Left, class Right, class Finish>
static __device__ __forceinline__ void product(const Left &left, const Right &right, uint32_t depth, uint32_t rows,
                                               const Finish &finish) {
    static_assert(sizeof(typename Math::Shared) <= SHARED && TILE / 2 * PITCH * 4 <= SHARED, "shared memory");
    extern __shared__ uint4 shared[];
    float sums[8][8];
#pragma unroll
    for (int i = 0; i < 64; i++) sums[i / 8][i % 8] = 0.0f;
    Math::template multiply<LEFT_ALONG, RIGHT_ALONG>(sums, left, right, depth, shared);
    float(*lines)[PITCH] = (float(*)[PITCH])shared;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Math::place(sums, half, lines);
        __syncthreads();
        uint32_t from = half * TILE / 2;
        for (uint32_t i = warp_id(); i < TILE / 2 && from + i < rows; i += THREADS / 32) finish(from + i, lines[i]);
        __syncthreads();
    }
}

// The way that a type's products are computed: on the matrix units where there are some.
template <typename T> struct Way { typedef Simt<T> Math; };
#if __CUDA_ARCH__ >= 800
template <> struct Way<bf16> { typedef Mma<bf16> Math; };
template <> struct Way<f16> { typedef Mma<f16> Math; };
#endif
template <typename T> using Fast = typename Way<T>::Math;

// As KERNELS. The registers of half a multiprocessor are enough for tiles on the matrix units, but not for others.
#if __CUDA_ARCH__ >= 800
#define FAST_BOUNDS THREADS, 2
#else
#define FAST_BOUNDS BOUNDS
#endif
#define PRODUCTS(name, params)                                   \
    KERNEL(name##_f32, params, BOUNDS) { name<float>(p); }       \
    KERNEL(name##_bf16, params, FAST_BOUNDS) { name<bf16>(p); }  \
    KERNEL(name##_f16, params, FAST_BOUNDS) { name<f16>(p); }
