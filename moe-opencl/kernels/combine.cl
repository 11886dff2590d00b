// Combine: out[t] = sum over k of weights[t,k] * y[row_of_slot[t,k]] + base terms, in slot order, rounded once.
//
// A work item has four columns of a token.

typedef struct {
    uint tokens, top_k, width, rows;
} CombineParams;

FN float4 with_base(float4 sum, global const T *base, global const float *scale, ulong token, ulong at, uint count) {
    if (!base) return sum;
    return fma((float4)(scale ? scale[token] : 1.0f), load_upto4(base, at, count), sum);
}

kernel void combine(IN(T, y), IN(uint, row_of_slot), IN(float, weights), IN(T, base0), IN(float, scale0), IN(T, base1),
                    IN(float, scale1), IN(T, base2), IN(float, scale2), OUT(T, out), const CombineParams p) {
    OPEN(y), OPEN(row_of_slot), OPEN(weights), OPEN(base0), OPEN(scale0), OPEN(base1), OPEN(scale1), OPEN(base2);
    OPEN(scale2), OPEN(out);
    ulong column = get_global_id(0) * 4, token = get_global_id(1);
    if (column >= p.width || token >= p.tokens) return;
    uint count = p.width - (uint)column;
    float4 sum = 0.0f;
    for (ulong slot = token * p.top_k; slot < (token + 1) * p.top_k; slot++) {
        uint row = row_of_slot[slot];
        if (row >= p.rows) continue;
        float4 weight = weights ? weights[slot] : 1.0f;
        sum = fma(weight, load_upto4(y, (ulong)row * p.width + column, count), sum);
    }
    ulong at = token * p.width + column;
    sum = with_base(sum, base0, scale0, token, at, count);
    sum = with_base(sum, base1, scale1, token, at, count);
    sum = with_base(sum, base2, scale2, token, at, count);
    store_upto4(sum, out, at, count);
}
