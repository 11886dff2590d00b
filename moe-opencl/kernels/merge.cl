// Merge: from rows in order of (source rank, expert) to rows in order of (expert, source rank), by index.
//
// One group finds for every pair where its rows stand in the receive buffer, how many of them found room, and the first of
// their rows in the expert-major order; then a work item per row looks up its pair.

typedef struct {
    uint ranks, experts, pitch, rows;
} MergeParams;

// `before` (ranks, experts): rows before the pair's, over all segments. `position`, `first_row` (experts, ranks).
kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void merge_pairs(IN(uint, counts), OUT(uint, offsets), OUT(uint, overflow), OUT(ulong, before), OUT(uint, position),
                 OUT(uint, first_row), const MergeParams p) {
    OPEN(counts), OPEN(offsets), OPEN(overflow), OPEN(before), OPEN(position), OPEN(first_row);
    local ulong sums[THREADS];
    uint thread = get_local_id(0);
    ulong pairs = (ulong)p.ranks * p.experts, all = 0, row = 0, total;
    for (ulong first = 0; first < pairs; first += THREADS) {
        ulong pair = first + thread;
        ulong earlier = scan_in_group(pair < pairs ? counts[pair] : 0, sums, &total);
        if (pair < pairs) before[pair] = all + earlier;
        all += total;
    }
    barrier(CLK_GLOBAL_MEM_FENCE);
    for (ulong first = 0; first < pairs; first += THREADS) {
        ulong at = first + thread, place = 0, kept = 0;
        if (at < pairs) {
            ulong rank = at % p.ranks, segment = rank * p.experts, pair = segment + at / p.ranks;
            ulong end = p.pitch ? (rank + 1) * p.pitch : p.rows;
            place = p.pitch ? rank * p.pitch + before[pair] - before[segment] : before[pair];
            if (place < end) kept = min((ulong)counts[pair], end - place);
        }
        ulong start = row + scan_in_group(kept, sums, &total);
        if (at < pairs) {
            uint start_row = (uint)min(start, (ulong)p.rows);
            first_row[at] = start_row;
            position[at] = (uint)min(place, (ulong)0xffffffffu);
            if (at % p.ranks == 0) offsets[at / p.ranks] = start_row;
        }
        row += total;
    }
    if (p.ranks == 0) {
        for (uint e = thread; e < p.experts; e += THREADS) offsets[e] = 0;
    }
    if (thread == 0) {
        row = min(row, (ulong)p.rows);
        offsets[p.experts] = (uint)row;
        overflow[0] = (uint)min(all - row, (ulong)0xffffffffu);
    }
}

kernel void merge_index(IN(uint, offsets), IN(uint, position), IN(uint, first_row), OUT(uint, index), const MergeParams p) {
    OPEN(offsets), OPEN(position), OPEN(first_row), OPEN(index);
    ulong row = get_global_id(0);
    if (row >= min(offsets[p.experts], p.rows)) return;
    // The last pair that starts at or before the row: those without rows start where the next one does.
    ulong low = 0, high = (ulong)p.ranks * p.experts;
    while (high - low > 1) {
        ulong middle = (low + high) / 2;
        if (first_row[middle] <= row) low = middle;
        else high = middle;
    }
    index[row] = position[low] + (uint)(row - first_row[low]);
}
