// ExpertUpBwd on Hopper: dx[out_index[r]] = s * (dz[r] * w13).
#include "store_hopper.cuh"

template <typename T> static __device__ __forceinline__ void expert_up_bwd(const StoreParams &p) {
    Rows<T, 256, 4, false, true, false>::run(p.rows, [&](const Tile &tile, uint32_t first, const auto &ring, auto &, float (&sums)[128]) {
        store<T>(p, tile, first, ring, sums);
    });
}

KERNEL(expert_up_bwd_hopper_bf16, StoreParams, BLOCK, 1) { expert_up_bwd<bf16>(p); }
KERNEL(expert_up_bwd_hopper_f16, StoreParams, BLOCK, 1) { expert_up_bwd<f16>(p); }
