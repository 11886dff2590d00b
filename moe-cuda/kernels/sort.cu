// Sort: a stable counting sort of slots by expert.
//
// Each block has a range of slots. sort_count counts the range's slots per expert into `table` (experts, blocks); sort_sum makes
// of each row of the table the number of slots in earlier ranges, and offsets of the sums; sort_place puts every slot at its
// expert's offset + the slots in earlier ranges + those before it in its own. sort_one does all of it in one block. With a
// capacity by weight, sort_place makes a list without drops, and sort_weigh picks the heaviest of each expert from it.
#include "prelude.cuh"
#include "scan.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define WEIGH_THREADS 1024

struct SortParams {
    const uint32_t *ids;
    const float *weights;
    uint32_t *offsets, *row_of_slot, *slot_of_row, *counts, *dropped;
    uint32_t *table;  // (experts, blocks)
    uint32_t *ticket; // blocks of sort_sum that are done
    // By weight only: the offsets and the list of slots without drops.
    uint32_t *starts, *list;
    uint32_t slots, experts, capacity, blocks;
    uint32_t in_shared; // whether counters of a block fit into shared memory
};

// Slots first..last of a block, or of one of its warps.
struct Range { uint32_t first, last; };

static __device__ __forceinline__ Range part_of(Range whole, uint32_t nth, uint32_t parts) {
    uint64_t size = ((uint64_t)(whole.last - whole.first) + parts - 1) / parts;
    size = (size + 31) / 32 * 32;
    uint64_t first = whole.first + nth * size, last = first + size;
    return {(uint32_t)min(first, (uint64_t)whole.last), (uint32_t)min(last, (uint64_t)whole.last)};
}

static __device__ __forceinline__ Range range_of_block(const SortParams &p) {
    return part_of({0, p.slots}, blockIdx.x, p.blocks);
}

KERNEL(sort_count, SortParams, THREADS) {
    extern __shared__ uint32_t shared[];
    uint32_t *counters = p.in_shared ? shared : p.table + blockIdx.x;
    uint64_t stride = p.in_shared ? 1 : p.blocks;
    for (uint32_t e = threadIdx.x; e < p.experts; e += THREADS) counters[e * stride] = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0) *p.ticket = 0;
    __syncthreads();
    Range range = range_of_block(p);
    for (uint64_t slot = range.first + threadIdx.x; slot < range.last; slot += THREADS) {
        uint32_t e = p.ids[slot];
        if (e < p.experts) atomicAdd(&counters[e * stride], 1);
    }
    if (!p.in_shared) return;
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < p.experts; e += THREADS) {
        p.table[(uint64_t)e * p.blocks + blockIdx.x] = shared[e];
    }
}

// Offsets from the counts, by one block. `known` is null, or the counts in shared memory, which become the offsets there.
static __device__ __forceinline__ void write_offsets(const SortParams &p, uint32_t *known) {
    __shared__ uint32_t sums[WARPS];
    uint32_t row = 0, start = 0;
    for (uint32_t first = 0; first < p.experts; first += THREADS) {
        uint32_t e = first + threadIdx.x, total;
        uint32_t count = e >= p.experts ? 0 : known ? known[e] : __ldcg(p.counts + e);
        uint32_t before = scan_in_block<WARPS>(min(count, p.capacity), sums, total);
        if (e < p.experts) p.offsets[e] = row + before;
        if (e < p.experts && known) known[e] = row + before;
        row += total;
        if (p.starts) {
            before = scan_in_block<WARPS>(count, sums, total);
            if (e < p.experts) p.starts[e] = start + before;
            start += total;
        }
    }
    if (threadIdx.x == 0) {
        p.offsets[p.experts] = row;
        *p.dropped = p.slots - row;
    }
}

// A warp per expert; the block that is done last writes the offsets.
KERNEL(sort_sum, SortParams, THREADS) {
    __shared__ bool last;
    uint32_t lane = threadIdx.x % 32;
    uint64_t e = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (e < p.experts) {
        uint32_t *row = p.table + e * p.blocks, run = 0;
        for (uint32_t first = 0; first < p.blocks; first += 32) {
            uint32_t at = first + lane;
            uint32_t count = at < p.blocks ? row[at] : 0, sum = count;
            for (uint32_t by = 1; by < 32; by *= 2) {
                uint32_t other = __shfl_up_sync(~0u, sum, by);
                if (lane >= by) sum += other;
            }
            if (at < p.blocks) row[at] = run + sum - count;
            run += __shfl_sync(~0u, sum, 31);
        }
        if (lane == 0) p.counts[e] = run;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(p.ticket, 1) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    write_offsets(p, nullptr);
}

// Slots of a range per warp and expert, into `table` (warps, experts) in shared memory.
static __device__ __forceinline__ void count_by_warp(const SortParams &p, uint32_t *table, Range own) {
    uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32;
    for (uint32_t at = threadIdx.x; at < warps * p.experts; at += blockDim.x) table[at] = 0;
    __syncthreads();
    for (uint64_t slot = own.first + threadIdx.x % 32; slot < own.last; slot += 32) {
        uint32_t e = p.ids[slot];
        if (e < p.experts) atomicAdd(&table[warp * p.experts + e], 1);
    }
    __syncthreads();
}

// Turns the warps' counts of expert `e` into the number of slots before each warp's; returns that behind the last.
static __device__ __forceinline__ uint32_t sum_over_warps(const SortParams &p, uint32_t *table, uint32_t e, uint32_t before) {
    uint32_t warps = blockDim.x / 32, counts[WARPS];
    // All are read before any is written, so that the reads do not wait for each other.
#pragma unroll
    for (uint32_t warp = 0; warp < WARPS; warp++) counts[warp] = warp < warps ? table[warp * p.experts + e] : 0;
#pragma unroll
    for (uint32_t warp = 0; warp < WARPS; warp++) {
        if (warp < warps) table[warp * p.experts + e] = before;
        before += counts[warp];
    }
    return before;
}

// Places the slots of one warp in their order. `next` counts the slots per expert that stand before.
static __device__ __forceinline__ void place(const SortParams &p, Range own, const uint32_t *starts, uint32_t *next,
                                             uint64_t stride) {
    uint32_t *list = p.starts ? p.list : p.slot_of_row, capacity = p.starts ? ~0u : p.capacity;
    uint32_t lane = threadIdx.x % 32;
    for (uint64_t first = own.first; first < own.last; first += 32) {
        uint64_t slot = first + lane;
        uint32_t e = slot < own.last ? p.ids[slot] : ~0u;
        uint32_t same = __match_any_sync(~0u, e), nth = 0;
        if (e < p.experts) nth = next[e * stride] + __popc(same & ((1u << lane) - 1));
        __syncwarp();
        if (e < p.experts && lane == __ffs(same) - 1) next[e * stride] += __popc(same);
        __syncwarp();
        if (slot >= own.last) continue;
        uint32_t row = NO_ROW;
        if (e < p.experts && nth < capacity) {
            row = starts[e] + nth;
            list[row] = slot;
        }
        p.row_of_slot[slot] = row;
    }
}

// One warp only, with the counters of the table itself, if they do not fit into shared memory.
KERNEL(sort_place, SortParams, THREADS) {
    extern __shared__ uint32_t shared[];
    Range range = range_of_block(p);
    const uint32_t *starts = p.starts ? p.starts : p.offsets;
    if (!p.in_shared) return place(p, range, starts, p.table + blockIdx.x, p.blocks);
    uint32_t warp = threadIdx.x / 32;
    Range own = part_of(range, warp, blockDim.x / 32);
    count_by_warp(p, shared, own);
    for (uint32_t e = threadIdx.x; e < p.experts; e += blockDim.x) {
        sum_over_warps(p, shared, e, p.table[(uint64_t)e * p.blocks + blockIdx.x]);
    }
    __syncthreads();
    place(p, own, starts, shared + warp * p.experts, 1);
}

// Its shared memory has a row of counters per warp, and one for the sums.
KERNEL(sort_one, SortParams, THREADS) {
    extern __shared__ uint32_t shared[];
    uint32_t warp = threadIdx.x / 32, *sums = shared + WARPS * p.experts;
    Range own = part_of({0, p.slots}, warp, WARPS);
    count_by_warp(p, shared, own);
    for (uint32_t e = threadIdx.x; e < p.experts; e += THREADS) {
        p.counts[e] = sums[e] = sum_over_warps(p, shared, e, 0);
    }
    __syncthreads();
    write_offsets(p, sums);
    __syncthreads();
    place(p, own, sums, shared + warp * p.experts, 1);
}

// Grows with the weight; both zeros are equal, NaN is lightest.
static __device__ __forceinline__ uint32_t heaviness(float weight) {
    if (isnan(weight)) return 0;
    uint32_t bits = weight == 0.0f ? 0 : __float_as_uint(weight);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A block per expert. The lightest weight that is kept is found byte by byte; of its equals the first are kept.
KERNEL(sort_weigh, SortParams, WEIGH_THREADS) {
    __shared__ uint32_t bins[256], sums[WEIGH_THREADS / 32], shared_least, shared_equals;
    uint32_t e = blockIdx.x, count = p.counts[e];
    const uint32_t *list = p.list + p.starts[e];
    uint32_t least = 0, known = 0, equals = count;
    if (count > p.capacity) {
        equals = p.capacity;
        for (int shift = 24; shift >= 0; shift -= 8) {
            if (threadIdx.x < 256) bins[threadIdx.x] = 0;
            __syncthreads();
            for (uint64_t at = threadIdx.x; at < count; at += WEIGH_THREADS) {
                uint32_t key = heaviness(p.weights[list[at]]);
                if ((key & known) == least) atomicAdd(&bins[key >> shift & 255], 1);
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                uint32_t bin = 255;
                for (; bin > 0 && bins[bin] < equals; bin--) equals -= bins[bin];
                shared_least = least | bin << shift;
                shared_equals = equals;
            }
            __syncthreads();
            least = shared_least;
            equals = shared_equals;
            known |= 255u << shift;
        }
    }
    uint32_t row = p.offsets[e], equal = 0;
    for (uint64_t first = 0; first < count; first += WEIGH_THREADS) {
        uint64_t at = first + threadIdx.x;
        uint32_t slot = at < count ? list[at] : 0, total;
        uint32_t key = at < count ? heaviness(p.weights[slot]) : 0;
        bool ties = at < count && key == least;
        uint32_t nth = equal + scan_in_block<WEIGH_THREADS / 32>((uint32_t)ties, sums, total);
        equal += total;
        bool keeps = at < count && (key > least || (ties && nth < equals));
        uint32_t before = scan_in_block<WEIGH_THREADS / 32>((uint32_t)keeps, sums, total);
        if (at < count) p.row_of_slot[slot] = keeps ? row + before : NO_ROW;
        if (keeps) p.slot_of_row[row + before] = slot;
        row += total;
    }
}
