// Scores of every token's logits, by a team each, and what their sums are.

#define SOFTMAX 0u
#define SOFTMAX_TOP_K 1u
#define SIGMOID 2u

typedef struct {
    uint tokens, experts, function;
} ScoreParams;

// For softmax over the chosen logits, scores are the logits. `sums`, where it is wanted, is (tokens, 4): the largest logit (NaN is
// passed over), the sum of e^(logit - largest), the sum of the scores, ln of the sum of e^logit. `non_finite`, where it is wanted,
// is added to.
BY_TEAM void score_tokens(IN(float, logits), OUT(float, scores), OUT(float, sums), OUT(uint, non_finite), const ScoreParams p) {
    OPEN(logits), OPEN(scores), OPEN(sums), OPEN(non_finite);
    local float shared[TEAM_ITEMS];
    uint lane = team_lane(), bad = 0;
    bool there = team_token() < p.tokens;
    ulong token = min(team_token(), p.tokens - 1);
    logits += token * p.experts, scores += token * p.experts;
    float largest = -INFINITY, powers = 0.0f, all = 0.0f;
    for (uint e = lane; e < p.experts; e += TEAM) {
        largest = fmax(largest, logits[e]);
        bad += !isfinite(logits[e]);
    }
    if (bad && there && non_finite) atomic_add(non_finite, bad);
    largest = team_max(largest, shared);
    for (uint e = lane; e < p.experts; e += TEAM) {
        float power = fixed_exp(logits[e] - largest);
        powers += power;
        if (there && p.function == SOFTMAX) scores[e] = power;
    }
    powers = team_sum(powers, shared);
    for (uint e = lane; there && e < p.experts; e += TEAM) {
        float score = logits[e];
        if (p.function == SIGMOID) score = fixed_sigmoid(score);
        if (p.function == SOFTMAX) score = divide(scores[e], powers);
        scores[e] = score;
        all += score;
    }
    all = team_sum(all, shared);
    if (sums && there && lane == 0) vstore4((float4)(largest, powers, all, largest + log(powers)), token, sums);
}
