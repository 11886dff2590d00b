// Barriers in shared memory that copies arrive at by themselves, on sm_90 and later.
#pragma once
#include <stdint.h>

static __device__ __forceinline__ void barrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
static __device__ __forceinline__ void barrier_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
static __device__ __forceinline__ void barrier_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{ .reg .pred p;\n"
                 "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra DONE;\n bra AGAIN;\n DONE: }" ::"r"(bar), "r"(parity) : "memory");
}
// Whether it would not have to be waited for.
static __device__ __forceinline__ bool barrier_passed(uint32_t bar, uint32_t parity) {
    uint32_t passed;
    asm volatile("{ .reg .pred p;\n mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p; }"
                 : "=r"(passed) : "r"(bar), "r"(parity) : "memory");
    return passed != 0;
}
// Other threads, and copies, may use the barriers after this and a barrier of the block.
static __device__ __forceinline__ void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives when all copies of this thread, made by cp.async, are done.
static __device__ __forceinline__ void copies_arrive(uint32_t bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
// How the cache treats what is read once: it is the first to give way.
static __device__ __forceinline__ uint64_t read_once() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
    return policy;
}
// Contiguous memory, in multiples of sixteen bytes.
static __device__ __forceinline__ void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t bar, uint64_t policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                 ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(bar), "l"(policy) : "memory");
}

// Shared memory written by ordinary stores, or by cp.async, becomes visible to wgmma and the copy engine.
static __device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A place in a ring of stages.
template <int STAGES> struct Place {
    uint32_t stage = 0, phase = 0;
    __device__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};
