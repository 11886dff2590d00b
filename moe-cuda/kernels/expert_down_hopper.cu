// ExpertDown on Hopper: y[out_index[r]] = a[r] * w2^T (+ b2 / shares).
#include "store_hopper.cuh"

template <typename T> static __device__ __forceinline__ void expert_down(const StoreParams &p) {
    Rows<T, 256, 4, false, false, false>::run(p.rows, [&](const Tile &tile, uint32_t first, const auto &ring, auto &, float (&sums)[128]) {
        store<T>(p, tile, first, ring.patches(), sums);
    });
}

#define KERNEL(name, T) \
    extern "C" __global__ void __launch_bounds__(BLOCK, 1) name(const __grid_constant__ StoreParams p) { expert_down<T>(p); }
KERNEL(expert_down_hopper_bf16, bf16)
KERNEL(expert_down_hopper_f16, f16)
