// Merge: from rows in order of (source rank, expert) to rows in order of (expert, source rank), by index.
//
// One block finds for every pair where its rows stand in the receive buffer, how many of them found room, and the first of
// their rows in the expert-major order; then a thread per row looks up its pair.
#include "prelude.cuh"
#include "scan.cuh"

#define SCAN_THREADS 1024
#define THREADS 256

struct MergeParams {
    const uint32_t *counts;
    uint32_t *offsets, *index, *overflow;
    uint64_t *before;              // (ranks, experts): rows before the pair's, over all segments
    uint32_t *position, *first_row; // (experts, ranks)
    uint32_t ranks, experts, pitch, rows;
};

KERNEL(merge_pairs, MergeParams, SCAN_THREADS) {
    __shared__ uint64_t sums[SCAN_THREADS / 32];
    uint64_t pairs = (uint64_t)p.ranks * p.experts, all = 0, row = 0, total;
    for (uint64_t first = 0; first < pairs; first += SCAN_THREADS) {
        uint64_t pair = first + threadIdx.x;
        uint64_t before = scan_in_block<SCAN_THREADS / 32>(pair < pairs ? (uint64_t)p.counts[pair] : 0, sums, total);
        if (pair < pairs) p.before[pair] = all + before;
        all += total;
    }
    __syncthreads();
    for (uint64_t first = 0; first < pairs; first += SCAN_THREADS) {
        uint64_t at = first + threadIdx.x, position = 0, kept = 0;
        if (at < pairs) {
            uint64_t rank = at % p.ranks, segment = rank * p.experts, pair = segment + at / p.ranks;
            uint64_t end = p.pitch ? (rank + 1) * p.pitch : p.rows;
            position = p.pitch ? rank * p.pitch + p.before[pair] - p.before[segment] : p.before[pair];
            if (position < end) kept = min((uint64_t)p.counts[pair], end - position);
        }
        uint64_t before = row + scan_in_block<SCAN_THREADS / 32>(kept, sums, total);
        if (at < pairs) {
            uint32_t first_row = min(before, (uint64_t)p.rows);
            p.first_row[at] = first_row;
            p.position[at] = min(position, (uint64_t)~0u);
            if (at % p.ranks == 0) p.offsets[at / p.ranks] = first_row;
        }
        row += total;
    }
    if (p.ranks == 0) {
        for (uint32_t e = threadIdx.x; e < p.experts; e += SCAN_THREADS) p.offsets[e] = 0;
    }
    if (threadIdx.x == 0) {
        row = min(row, (uint64_t)p.rows);
        p.offsets[p.experts] = row;
        *p.overflow = min(all - row, (uint64_t)~0u);
    }
}

KERNEL(merge_index, MergeParams, THREADS) {
    uint64_t row = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (row >= p.offsets[p.experts]) return;
    // The last pair that starts at or before the row: those without rows start where the next one does.
    uint64_t low = 0, high = (uint64_t)p.ranks * p.experts;
    while (high - low > 1) {
        uint64_t middle = (low + high) / 2;
        if (p.first_row[middle] <= row) low = middle;
        else high = middle;
    }
    p.index[row] = p.position[low] + (row - p.first_row[low]);
}
