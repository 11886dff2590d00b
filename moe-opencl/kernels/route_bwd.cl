// RouteBwd: a team per token, from the scores that the losses see. Gradients of the scores, from weights and balancing loss, go through
// the score function together; the sum of a softmax's scores is 1, so that the balancing loss adds nothing to what it takes off.

typedef struct {
    uint tokens, experts, top_k, sequences, function, normalize, accumulate;
    float scale;
} RouteBwdParams;

#define SOFTMAX_TOP_K 1u
#define SIGMOID 2u

// The token's sequence, or `sequences`.
FN uint sequence_of(global const uint *bounds, uint token, uint sequences) {
    uint s = 0;
    for (uint end = sequences; end > s + 1;) {
        uint middle = s + (end - s) / 2;
        if (bounds[middle] <= token) s = middle;
        else end = middle;
    }
    return sequences > 0 && bounds[s] <= token && token < bounds[s + 1] ? s : sequences;
}

FN float slot_gradient(global const float *dweights, global const uint *rows, uint k) {
    return rows && rows[k] == NO_ROW ? 0.0f : dweights[k];
}

BY_TEAM void route_bwd(IN(float, logits), IN(float, scores), IN(float, sums), IN(uint, ids), IN(float, dweights),
                       IN(uint, row_of_slot), IN(uint, sequences), IN(uint, counts), IN(float, factors), IN(float, z_factor),
                       OUT(float, dlogits), const RouteBwdParams p) {
    OPEN(logits), OPEN(scores), OPEN(sums), OPEN(ids), OPEN(dweights), OPEN(row_of_slot), OPEN(sequences), OPEN(counts);
    OPEN(factors), OPEN(z_factor), OPEN(dlogits);
    local float shared[TEAM_ITEMS];
    uint lane = team_lane();
    bool there = team_token() < p.tokens, over_chosen = p.function == SOFTMAX_TOP_K;
    ulong token = min(team_token(), p.tokens - 1);
    logits += token * p.experts, scores += token * p.experts, dlogits += token * p.experts;
    ids += token * p.top_k, dweights += token * p.top_k;
    if (row_of_slot) row_of_slot += token * p.top_k;
    float4 own = vload4(token, sums);

    // Over the chosen, in slot order; every lane for itself.
    float largest = -INFINITY, all = 0.0f, dot = 0.0f, through = 0.0f;
    for (uint k = 0; over_chosen && k < p.top_k; k++)
        if (ids[k] < p.experts) largest = fmax(largest, logits[ids[k]]);
    for (uint k = 0; k < p.top_k; k++) {
        if (ids[k] >= p.experts) continue;
        float weight = over_chosen ? fixed_exp(logits[ids[k]] - largest) : scores[ids[k]];
        all += weight;
        dot += slot_gradient(dweights, row_of_slot, k) * weight;
    }
    // d weight / d score is (dweight - mean) / divisor.
    bool shares = over_chosen || p.normalize;
    float divisor = shares ? all + (over_chosen ? 0.0f : 1e-20f) : 1.0f, mean = shares ? dot / divisor : 0.0f;
    for (uint k = 0; p.function != SIGMOID && !over_chosen && k < p.top_k; k++)
        if (ids[k] < p.experts)
            through += scores[ids[k]] * p.scale * (slot_gradient(dweights, row_of_slot, k) - mean) / divisor;

    uint s = sequences ? sequence_of(sequences, (uint)token, p.sequences) : p.sequences;
    bool balanced = s < p.sequences;
    float factor = balanced ? factors[s] : 0.0f, balance = 0.0f, total = own.s2 + 1e-20f;
    counts += (ulong)(balanced ? s : 0) * p.experts;
    for (uint e = lane; balanced && e < p.experts; e += TEAM) balance += factor * (float)counts[e] * scores[e];
    balance = team_sum(balance, shared) / total;

    for (uint e = lane; there && e < p.experts; e += TEAM) {
        float weights = 0.0f, grad = balanced ? (factor * (float)counts[e] - balance) / total : 0.0f, score = scores[e];
        bool chosen = false;
        for (uint k = 0; k < p.top_k; k++) {
            if (ids[k] != e) continue;
            chosen = true;
            weights += p.scale * (slot_gradient(dweights, row_of_slot, k) - mean) / divisor;
        }
        if (p.function == SIGMOID) score *= fixed_sigmoid(-logits[e]);
        float out = score * (over_chosen ? grad : grad + weights - through);
        if (over_chosen && chosen) out += weights * fixed_exp(logits[e] - largest);
        if (z_factor) out += 2.0f * z_factor[0] * own.s3 * (fixed_exp(logits[e] - own.s0) / own.s1);
        dlogits[e] = out;
    }
}

// A group per expert. Counts stay at the highest number rather than start again at 0.
kernel __attribute__((reqd_work_group_size(64, 1, 1)))
void route_load(IN(uint, ids), OUT(uint, load), const RouteBwdParams p) {
    OPEN(ids), OPEN(load);
    local uint counts[64];
    uint e = get_group_id(0), count = 0;
    ulong slots = (ulong)p.tokens * p.top_k;
    for (ulong slot = get_local_id(0); slot < slots; slot += 64) count += ids[slot] == e;
    counts[get_local_id(0)] = count;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (get_local_id(0)) return;
    uint sum = p.accumulate ? load[e] : 0;
    for (uint i = 0; i < 64; i++) sum = add_sat(sum, counts[i]);
    load[e] = sum;
}
