// RouteStats: from scores and their sums, counts and probability sums per chunk of a sequence, then per sequence.
//
// A chunk is CHUNK tokens from its sequence's start. Sequence s has its chunks' places from s + (its first token) / CHUNK on, in an
// order in which no two meet, so that a place finds its sequence by bisection.

#define ITEMS 32

typedef struct {
    uint tokens, experts, top_k, sequences;
} StatsParams;

FN uint bound(global const uint *sequences, uint s, const StatsParams p) { return min(sequences[s], p.tokens); }
FN uint first_place(global const uint *sequences, uint s, const StatsParams p) { return s + bound(sequences, s, p) / CHUNK; }

// A work item per expert and place.
kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1)))
void stats_chunks(IN(float, scores), IN(float, sums), IN(uint, ids), IN(uint, sequences), OUT(uint, count_parts),
                  OUT(float, prob_parts), const StatsParams p) {
    OPEN(scores), OPEN(sums), OPEN(ids), OPEN(sequences), OPEN(count_parts), OPEN(prob_parts);
    uint e = get_global_id(0), place = get_global_id(1), s = 0, count = 0;
    if (e >= p.experts) return;
    for (uint end = p.sequences; end - s > 1;) {
        uint middle = s + (end - s) / 2;
        if (first_place(sequences, middle, p) <= place) s = middle;
        else end = middle;
    }
    ulong first = bound(sequences, s, p) + (ulong)(place - first_place(sequences, s, p)) * CHUNK;
    ulong end = min(first + CHUNK, (ulong)bound(sequences, s + 1, p));
    float sum = 0.0f;
    for (ulong token = first; token < end; token++) {
        sum += scores[token * p.experts + e] / (sums[token * 4 + 2] + 1e-20f);
        for (uint k = 0; k < p.top_k; k++) count += ids[token * p.top_k + k] == e;
    }
    ulong at = (ulong)place * p.experts + e;
    count_parts[at] = count;
    prob_parts[at] = sum;
}

// A work item per expert and sequence.
kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1)))
void stats_total(IN(uint, count_parts), IN(float, prob_parts), IN(uint, sequences), OUT(uint, counts), OUT(float, prob_sums),
                 const StatsParams p) {
    OPEN(count_parts), OPEN(prob_parts), OPEN(sequences), OPEN(counts), OPEN(prob_sums);
    uint e = get_global_id(0), s = get_global_id(1), count = 0;
    if (e >= p.experts) return;
    uint first = bound(sequences, s, p), end = max(bound(sequences, s + 1, p), first);
    ulong place = first_place(sequences, s, p);
    float sum = 0.0f;
    for (uint chunk = 0; chunk < (end - first + CHUNK - 1) / CHUNK; chunk++, place++) {
        count += count_parts[place * p.experts + e];
        sum += prob_parts[place * p.experts + e];
    }
    counts[(ulong)s * p.experts + e] = count;
    prob_sums[(ulong)s * p.experts + e] = sum;
}

// One group, a work item per chunk at a time.
kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void stats_z(IN(float, sums), OUT(float, parts), OUT(float, z_sum), const StatsParams p) {
    OPEN(sums), OPEN(parts), OPEN(z_sum);
    uint chunks = (p.tokens + CHUNK - 1) / CHUNK;
    for (uint chunk = get_local_id(0); chunk < chunks; chunk += 64) {
        float sum = 0.0f;
        for (ulong token = chunk * CHUNK; token < min((chunk + 1) * CHUNK, p.tokens); token++)
            sum += sums[token * 4 + 3] * sums[token * 4 + 3];
        parts[chunk] = sum;
    }
    barrier(CLK_GLOBAL_MEM_FENCE);
    if (get_local_id(0)) return;
    float sum = 0.0f;
    for (uint chunk = 0; chunk < chunks; chunk++) sum += parts[chunk];
    z_sum[0] = sum;
}
