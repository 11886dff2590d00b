// ExpertDown on Hopper: y[out_index[r]] = a[r] * w2^T (+ b2 / shares).
#include "store_hopper.cuh"

template <typename T> static __device__ __forceinline__ void expert_down(const StoreParams &p) {
    Rows<T, 256, 4, false, false, false>::run(p.rows, [&](const Tile &tile, uint32_t first, const auto &ring, auto &, float (&sums)[128]) {
        store<T>(p, tile, first, ring, sums);
    });
}

KERNEL(expert_down_hopper_bf16, StoreParams, BLOCK, 1) { expert_down<bf16>(p); }
KERNEL(expert_down_hopper_f16, StoreParams, BLOCK, 1) { expert_down<f16>(p); }
