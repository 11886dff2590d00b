// BiasUpdate: bias[e] = fma(rate, n / E, bias[e]) with the integer n = E * sign - sum of signs. One group: the sums are of
// integers, so their order is free.

typedef struct {
    ulong experts;
} BiasUpdateParams;

FN long sign_of(ulong total, uint count, ulong experts) {
    ulong own = count * experts;
    return total > own ? 1 : total < own ? -1 : 0;
}

kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void bias_update(IN(uint, counts), IN(float, rate), OUT(float, bias), const BiasUpdateParams p) {
    OPEN(counts), OPEN(rate), OPEN(bias);
    local ulong sums[THREADS];
    ulong own = 0, total, own_signs = 0, signs;
    for (ulong e = get_local_id(0); e < p.experts; e += THREADS) own += counts[e];
    scan_in_group(own, sums, &total);
    for (ulong e = get_local_id(0); e < p.experts; e += THREADS) own_signs += (ulong)sign_of(total, counts[e], p.experts);
    scan_in_group(own_signs, sums, &signs);
    for (ulong e = get_local_id(0); e < p.experts; e += THREADS) {
        long centred = (long)p.experts * sign_of(total, counts[e], p.experts) - (long)signs;
        bias[e] = fma(rate[0], (float)centred / (float)p.experts, bias[e]);
    }
}
