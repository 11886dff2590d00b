// ExpertDownBwd: da = dout * w2 stays on the chip; h becomes dz, a' is written, and a row's part of ds is left for every PART
// columns. A second kernel adds the parts in order.

typedef struct {
    Sizes sizes;
    Formula formula;
    // ranks that add the same bias
    float shares;
    uint scores_first;
} ExpertDownBwdParams;

FN uint parts_of_row(uint hidden) { return (hidden + PART - 1) / PART; }

struct Context {
    global const T *dout, *w2, *b13;
    global const uint *index;
    global const float *weights;
    global T *h, *a;
    // (rows, parts of a row)
    global float *parts;
    Sizes n;
    Formula formula;
    bool scores_first;
    uint up;
    // the tile: rows from `first` to `end`, its first column
    uint first, end, from;
};

FN global const T *left_line(const Context *c, uint i) {
    if (i >= c->end - c->first) return 0;
    return source_of(c->dout, slot_of(c->index, c->first + i), c->n.fan, c->n.tokens, c->n.width);
}

FN global const T *right_line(const Context *c, uint i) {
    return i < c->n.width ? c->w2 + (ulong)i * c->n.hidden + c->from : 0;
}

FN float right_factor(const Context *c, uint i) { return 1.0f; }

// h as the activation reads it.
FN FV activated(const Context *c, float s, FV h, uint at, uint count) {
    if (!c->scores_first) return h;
    return fma((FV)(s), h, c->b13 ? load_some(c->b13 + at, count) : (FV)(0.0f));
}

// Columns of a row from `at` on, whose sums are da. Returns their part of ds.
FN float finish_part(const Context *c, uint row, uint at, FV da) {
    uint hidden = c->n.hidden;
    if (at >= hidden) return 0.0f;
    uint count = hidden - at;
    bool gated = is_gated(c->formula);
    float s = c->weights ? weight_of(c->weights, c->n.slots, slot_of(c->index, row)) : 1.0f;
    float outer = c->scores_first ? 1.0f : s;
    global T *h = c->h + (ulong)row * c->up + at;
    FV g = load_some(h, count), u = gated ? load_some(h + hidden, count) : (FV)(0.0f);
    FV zu = gated ? activated(c, s, u, hidden + at, count) : u;
    Gradient d = gradient(c->formula, activated(c, s, g, at, count), zu, outer * da);
    store_some(h, count, d.dg);
    if (gated) store_some(h + hidden, count, d.du);
    store_some(c->a + (ulong)row * hidden + at, count, outer * d.value);
    // Columns that do not exist have no part, whatever their activation is.
    return sum_some(c->scores_first ? fma(d.dg, g, d.du * u) : da * d.value, count);
}

FN float finish(const Context *c, uint m, uint n, FV low, FV high) {
    uint row = c->first + m, at = c->from + n;
    float part = finish_part(c, row, at, low);
    return part + finish_part(c, row, at + PANEL / 2, high);
}

FN void finish_row(const Context *c, uint m, uint n, float sum) {
    if (c->parts) c->parts[(ulong)(c->first + m) * parts_of_row(c->n.hidden) + (c->from + n) / PART] = sum;
}

kernel WAY void expert_down_bwd(IN(T, dout), IN(uint, index), IN(uint, offsets), IN(T, w2), IN(T, b13), IN(float, weights),
                                OUT(T, h), OUT(T, a), OUT(float, parts), const ExpertDownBwdParams p) {
    OPEN(dout), OPEN(index), OPEN(offsets), OPEN(w2), OPEN(b13), OPEN(weights), OPEN(h), OPEN(a), OPEN(parts);
    SHARE(shared);
    Sizes n = p.sizes;
    uint up = is_gated(p.formula) ? 2 * n.hidden : n.hidden;
    Context c = {dout, w2, b13, index, weights, h, a, parts, n, p.formula, p.scores_first, up};
    Tiles tile = tiles_of(offsets, n.experts, n.rows, n.hidden, TILE_COLUMNS);
    while (next_tile(&tile)) {
        c.w2 = w2 + (ulong)tile.expert * n.width * n.hidden;
        c.b13 = b13 ? b13 + (ulong)tile.expert * up : 0;
        c.first = tile.first;
        c.end = tile.end;
        c.from = tile.column * TILE_COLUMNS;
        product(&c, tile.end - tile.first, min(n.hidden - c.from, TILE_COLUMNS), n.width, true, false, shared);
    }
}

// The last expert that begins at or before the row, among those that begin there the last one: the row's own.
FN uint expert_of(global const uint *offsets, uint experts, uint row) {
    uint low = 0, high = experts;
    while (high - low > 1) {
        uint middle = low + (high - low) / 2;
        if (offsets[middle] <= row) low = middle;
        else high = middle;
    }
    return low;
}

// A work item per row.
kernel void expert_down_bwd_scores(IN(T, dout), IN(uint, index), IN(uint, offsets), IN(T, b2), IN(float, parts), OUT(float, ds),
                                   const ExpertDownBwdParams p) {
    OPEN(dout), OPEN(index), OPEN(offsets), OPEN(b2), OPEN(parts), OPEN(ds);
    Sizes n = p.sizes;
    uint row = get_global_id(0), count = parts_of_row(n.hidden);
    if (row >= min(offsets[n.experts], n.rows)) return;
    uint slot = slot_of(index, row);
    if (slot >= n.slots) return;
    float sum = 0.0f;
    for (uint i = 0; i < count; i++) sum += parts[(ulong)row * count + i];
    global const T *line = source_of(dout, slot, n.fan, n.tokens, n.width);
    if (b2 && line && !p.scores_first) {
        global const T *bias = b2 + (ulong)expert_of(offsets, n.experts, row) * n.width;
        float with_bias = 0.0f;
        for (uint i = 0; i < n.width; i++) with_bias = fma(load(line, i), load(bias, i), with_bias);
        sum += with_bias / p.shares;
    }
    ds[slot] = sum;
}
