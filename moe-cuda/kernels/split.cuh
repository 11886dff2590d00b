// A tile of sums on matrix units, with the stages of `Tile`. The left operand is f32, split into two tf32 numbers that hold all
// but its last bits; the right one comes from bf16 or f16, which tf32 holds exactly.
#pragma once
#include "chains.cuh"

#define TF32_BITS 0xffffe000u

// sums += a * b for 16 rows, 8 columns and 8 steps.
static __device__ __forceinline__ void mma_tf32(float &c0, float &c1, float &c2, float &c3, const uint32_t (&a)[4],
                                           const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Warps hold WM x WN sums each. In a warp, lane 4 * g + t has rows g + 8 * i and columns 8 * j + 2 * t and the next.
template <int BM_, int BN_, int WM, int WN, int BK_> struct SplitTile {
    static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = WM / 8, TN = WN / 4, RUN = 2;
    static constexpr int THREADS = BM / WM * (BN / WN) * 32;
    // Eight more than a multiple of 32: a fragment's four steps and eight rows lie in 32 banks.
    static constexpr int PITCH = BM + BN + 8;
    static_assert((BM + BN) % 32 == 0, "the banks of a fragment");
    typedef float Stage[BK][PITCH];

    static __device__ __forceinline__ uint32_t top() { return threadIdx.x / 32 / (BN / WN) * WM + threadIdx.x % 32 / 4; }
    static __device__ __forceinline__ uint32_t left() { return threadIdx.x / 32 % (BN / WN) * WN; }
    static __device__ __forceinline__ uint32_t row(int i) { return top() + i * 8; }
    static __device__ __forceinline__ uint32_t col(int j) { return left() + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }

    static __device__ __forceinline__ void multiply(const Stage &stage, float (&sums)[TM][TN]) {
#pragma unroll
        for (int k = 0; k < BK; k += 8) {
            const float *near = stage[k + threadIdx.x % 4], *far = near + 4 * PITCH;
            uint32_t right[TN / 2][2];
#pragma unroll
            for (int j = 0; j < TN / 2; j++) {
                uint32_t at = BM + left() + j * 8 + threadIdx.x % 32 / 4;
                right[j][0] = __float_as_uint(near[at]);
                right[j][1] = __float_as_uint(far[at]);
            }
#pragma unroll
            for (int i = 0; i < TM; i += 2) {
                float values[4] = {near[row(i)], near[row(i + 1)], far[row(i)], far[row(i + 1)]};
                uint32_t high[4], low[4];
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    high[n] = __float_as_uint(values[n]) & TF32_BITS;
                    low[n] = __float_as_uint(values[n] - __uint_as_float(high[n])) & TF32_BITS;
                }
#pragma unroll
                for (int j = 0; j < TN; j += 2) {
                    mma_tf32(sums[i][j], sums[i][j + 1], sums[i + 1][j], sums[i + 1][j + 1], low, right[j / 2]);
                    mma_tf32(sums[i][j], sums[i][j + 1], sums[i + 1][j], sums[i + 1][j + 1], high, right[j / 2]);
                }
            }
        }
    }
};
