// Sort: a stable counting sort of slots by expert, without atomics.
//
// Each group has a range of slots, of which it takes THREADS at a time, and a column of `table` (experts, ranges). sort_count
// counts the range's slots per expert into it; sort_sum makes of each row of the table the number of slots in earlier ranges;
// sort_offsets makes offsets of the sums; sort_place puts every slot at its expert's offset + the slots in earlier ranges + those
// before it in its own. With a capacity by weight, sort_place makes a list without drops, and sort_weigh picks the heaviest of
// each expert from it.

typedef struct {
    uint slots, experts, capacity, ranges, range;
} SortParams;

// Of the THREADS slots of a group from `first` on: this work item's expert, or experts if it has none, the number of equal ones
// before it, and whether it is the last of them.
FN uint nth_of_equals(global const uint *ids, const SortParams p, ulong first, ulong end, local uint *tile, uint *expert, bool *last) {
    uint thread = get_local_id(0);
    ulong slot = first + thread;
    uint own = slot < end ? min(ids[slot], p.experts) : p.experts;
    barrier(CLK_LOCAL_MEM_FENCE);
    tile[thread] = own;
    barrier(CLK_LOCAL_MEM_FENCE);
    uint before = 0, after = 0;
    for (uint at = 0; at < THREADS; at++) {
        bool equal = tile[at] == own;
        before += equal && at < thread;
        after += equal && at > thread;
    }
    *expert = own;
    *last = after == 0;
    return before;
}

kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void sort_count(IN(uint, ids), OUT(uint, table), const SortParams p) {
    OPEN(ids), OPEN(table);
    local uint tile[THREADS];
    ulong range = get_group_id(0), end = min((range + 1) * p.range, (ulong)p.slots);
    table += range;
    for (ulong e = get_local_id(0); e < p.experts; e += THREADS) table[e * p.ranges] = 0;
    for (ulong first = range * p.range; first < end; first += THREADS) {
        uint expert;
        bool last;
        uint nth = nth_of_equals(ids, p, first, end, tile, &expert, &last);
        barrier(CLK_GLOBAL_MEM_FENCE);
        if (last && expert < p.experts) table[(ulong)expert * p.ranges] += nth + 1;
    }
}

// A work item per expert.
kernel void sort_sum(OUT(uint, table), OUT(uint, counts), const SortParams p) {
    OPEN(table), OPEN(counts);
    ulong e = get_global_id(0);
    if (e >= p.experts) return;
    uint sum = 0;
    table += e * p.ranges;
    for (uint range = 0; range < p.ranges; range++) {
        uint count = table[range];
        table[range] = sum;
        sum += count;
    }
    counts[e] = sum;
}

// One group. `starts`, where it is wanted, gets the offsets without drops.
kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void sort_offsets(IN(uint, counts), OUT(uint, offsets), OUT(uint, dropped), OUT(uint, starts), const SortParams p) {
    OPEN(counts), OPEN(offsets), OPEN(dropped), OPEN(starts);
    local ulong sums[THREADS];
    ulong row = 0, start = 0, total;
    for (ulong first = 0; first < p.experts; first += THREADS) {
        ulong e = first + get_local_id(0);
        uint count = e < p.experts ? counts[e] : 0;
        ulong before = scan_in_group(min(count, p.capacity), sums, &total);
        if (e < p.experts) offsets[e] = (uint)(row + before);
        row += total;
        if (!starts) continue;
        before = scan_in_group(count, sums, &total);
        if (e < p.experts) starts[e] = (uint)(start + before);
        start += total;
    }
    if (get_local_id(0) == 0) {
        offsets[p.experts] = (uint)row;
        dropped[0] = p.slots - (uint)row;
    }
}

// `starts` are the offsets, and `list` is slot_of_row, unless slots are dropped by weight later.
kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void sort_place(IN(uint, ids), OUT(uint, table), IN(uint, starts), OUT(uint, row_of_slot), OUT(uint, list), const SortParams p) {
    OPEN(ids), OPEN(table), OPEN(starts), OPEN(row_of_slot), OPEN(list);
    local uint tile[THREADS];
    ulong range = get_group_id(0), end = min((range + 1) * p.range, (ulong)p.slots);
    table += range;
    for (ulong first = range * p.range; first < end; first += THREADS) {
        uint expert;
        bool last;
        uint nth = nth_of_equals(ids, p, first, end, tile, &expert, &last);
        ulong slot = first + get_local_id(0), counter = (ulong)expert * p.ranges;
        barrier(CLK_GLOBAL_MEM_FENCE);
        if (expert < p.experts) nth += table[counter];
        barrier(CLK_GLOBAL_MEM_FENCE);
        if (expert < p.experts && last) table[counter] = nth + 1;
        uint row = NO_ROW;
        if (expert < p.experts && nth < p.capacity) {
            row = starts[expert] + nth;
            list[row] = (uint)slot;
        }
        if (slot < end) row_of_slot[slot] = row;
    }
}

// Grows with the weight; both zeros are equal, NaN is lightest.
FN uint heaviness(float weight) {
    if (isnan(weight)) return 0;
    uint bits = weight == 0.0f ? 0 : as_uint(weight);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A group per expert. The lightest weight that is kept is found byte by byte; of its equals the first are kept.
kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void sort_weigh(IN(float, weights), IN(uint, counts), IN(uint, offsets), IN(uint, starts), IN(uint, list),
                OUT(uint, row_of_slot), OUT(uint, slot_of_row), const SortParams p) {
    OPEN(weights), OPEN(counts), OPEN(offsets), OPEN(starts), OPEN(list), OPEN(row_of_slot), OPEN(slot_of_row);
    local uint bins[256], chosen[2];
    local ulong sums[THREADS];
    uint thread = get_local_id(0), e = get_group_id(0), count = counts[e];
    uint least = 0, known = 0, equals = count;
    list += starts[e];
    if (count > p.capacity) {
        equals = p.capacity;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (uint bin = thread; bin < 256; bin += THREADS) bins[bin] = 0;
            barrier(CLK_LOCAL_MEM_FENCE);
            for (ulong at = thread; at < count; at += THREADS) {
                uint key = heaviness(weights[list[at]]);
                if ((key & known) == least) atomic_inc(&bins[key >> shift & 255]);
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            if (thread == 0) {
                uint bin = 255;
                for (; bin > 0 && bins[bin] < equals; bin--) equals -= bins[bin];
                chosen[0] = least | bin << shift;
                chosen[1] = equals;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            least = chosen[0];
            equals = chosen[1];
            known |= 255u << shift;
        }
    }
    uint row = offsets[e], equal = 0;
    for (ulong first = 0; first < count; first += THREADS) {
        ulong at = first + thread, total;
        uint slot = at < count ? list[at] : 0, key = at < count ? heaviness(weights[slot]) : 0;
        bool ties = at < count && key == least;
        ulong nth = equal + scan_in_group(ties, sums, &total);
        equal += (uint)total;
        bool keeps = at < count && (key > least || (ties && nth < equals));
        ulong before = scan_in_group(keeps, sums, &total);
        if (at < count) row_of_slot[slot] = keeps ? row + (uint)before : NO_ROW;
        if (keeps) slot_of_row[row + before] = slot;
        row += (uint)total;
    }
}
