// Sums over the work items of a group, for integers.

// The sum of the values of the work items before this one; `total` becomes that of all. Every work item of a group of THREADS
// calls it; `sums` has THREADS places.
FN ulong scan_in_group(ulong value, local ulong *sums, ulong *total) {
    uint at = get_local_id(0);
    ulong sum = value;
    for (uint by = 1; by < THREADS; by *= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        sums[at] = sum;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (at >= by) sum += sums[at - by];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    sums[at] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    *total = sums[THREADS - 1];
    barrier(CLK_LOCAL_MEM_FENCE);
    return sum - value;
}
