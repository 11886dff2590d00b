// What follows from a token's scores: the strength of its expert groups, the K best experts, and their weights.

typedef struct {
    uint tokens, experts, top_k, groups, groups_kept, over_chosen, normalize, forced, round_robin;
    float scale;
} ChooseParams;

#define ITEMS 64

FN float choice(global const float *scores, global const float *selection_bias, uint e) {
    return scores[e] + (selection_bias ? selection_bias[e] : 0.0f);
}

// Numbers in the order of the values, of equal ones the lower index first; both zeros are equal. 0 stands for NaN, which is never
// chosen.
FN ulong candidate(float value, uint index) {
    uint bits = as_uint(value + 0.0f);
    uint order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return isnan(value) ? 0 : (ulong)order << 32 | ~index;
}

// A work item per group of a token. A group's strength is the sum of its two best choice scores.
kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1)))
void choose_strengths(IN(float, scores), IN(float, selection_bias), OUT(float, strengths), const ChooseParams p) {
    OPEN(scores), OPEN(selection_bias), OPEN(strengths);
    ulong at = get_global_id(0);
    if (at >= (ulong)p.tokens * p.groups) return;
    uint size = p.experts / p.groups, first = (uint)(at % p.groups) * size;
    float best = -INFINITY, second = -INFINITY;
    scores += at / p.groups * p.experts;
    for (uint e = first; e < first + size; e++) {
        float value = choice(scores, selection_bias, e);
        if (value > best) {
            second = best;
            best = value;
        } else if (value > second) {
            second = value;
        }
    }
    strengths[at] = size == 1 ? best : best + second;
}

// A team per token. Each draw takes the best of those that come after the last, so that nothing is crossed out; a group is kept if
// it comes before the last that was drawn, or is it.
BY_TEAM void choose_draw(IN(float, scores), IN(float, selection_bias), IN(float, strengths), OUT(uint, ids), const ChooseParams p) {
    OPEN(scores), OPEN(selection_bias), OPEN(strengths), OPEN(ids);
    local ulong shared[TEAM_ITEMS];
    uint lane = team_lane(), size = p.experts / p.groups;
    bool there = team_token() < p.tokens, limited = p.groups_kept < p.groups;
    ulong token = min(team_token(), p.tokens - 1);
    scores += token * p.experts, strengths += token * p.groups, ids += token * p.top_k;

    uint draws = limited ? p.groups_kept : 0;
    ulong last = ULONG_MAX, least = limited ? ULONG_MAX : 0;
    for (uint n = 0; n < draws; n++) {
        ulong best = 0;
        for (uint g = lane; g < p.groups; g += TEAM) {
            ulong group = candidate(strengths[g], g);
            if (group < last) best = max(best, group);
        }
        last = team_most(best, shared);
        if (last) least = last;
    }
    last = ULONG_MAX;
    for (uint k = 0; k < p.top_k; k++) {
        ulong best = 0;
        for (uint e = lane; e < p.experts; e += TEAM) {
            ulong expert = candidate(choice(scores, selection_bias, e), e);
            bool kept = !limited || candidate(strengths[e / size], e / size) >= least;
            if (kept && expert < last) best = max(best, expert);
        }
        last = team_most(best, shared);
        if (there && lane == 0) ids[k] = last ? ~(uint)last : p.experts;
    }
}

// A work item per token; sums over K in slot order.
kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1)))
void choose_weigh(IN(float, scores), IN(uint, forced_ids), IN(uint, stamp), OUT(uint, ids), OUT(float, weights),
                  const ChooseParams p) {
    OPEN(scores), OPEN(forced_ids), OPEN(stamp), OPEN(ids), OPEN(weights);
    ulong token = get_global_id(0), slots = token * p.top_k;
    if (token >= p.tokens) return;
    scores += token * p.experts, forced_ids += slots, ids += slots, weights += slots;
    float largest = -INFINITY, sum = 0.0f;
    for (uint k = 0; k < p.top_k; k++) {
        uint id = p.forced ? forced_ids[k] : ids[k];
        if (p.round_robin) id = (uint)((first_token(stamp) * p.top_k + slots + k) % p.experts);
        if (id >= p.experts || isnan(scores[id])) id = p.experts;
        else largest = fmax(largest, scores[id]);
        ids[k] = id;
    }
    for (uint k = 0; k < p.top_k; k++) {
        float weight = 0.0f;
        if (ids[k] < p.experts) weight = p.over_chosen ? fixed_exp(scores[ids[k]] - largest) : scores[ids[k]];
        sum += weight;
        weights[k] = weight;
    }
    for (uint k = 0; k < p.top_k; k++) {
        float weight = weights[k];
        if (p.over_chosen) weight = ids[k] < p.experts ? divide(weight, sum) : 0.0f;
        else if (p.normalize) weight = divide(weight, sum + 1e-20f);
        weights[k] = weight * p.scale;
    }
}
