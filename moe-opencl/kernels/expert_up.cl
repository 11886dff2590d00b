// ExpertUp: gather, the product with both halves of w13, bias and activation.

typedef struct {
    Sizes sizes;
    Formula formula;
} ExpertUpParams;

struct Context {
    global const T *x, *w13, *b13;
    global const uint *index;
    global const float *weights;
    global T *h, *a;
    Sizes n;
    Formula formula;
    // width of h
    uint up;
    // the tile: rows from `first` to `end`, its first column of each half of h
    uint first, end, from;
};

FN global const T *left_line(const Context *c, uint i) {
    if (i >= c->end - c->first) return 0;
    return source_of(c->x, slot_of(c->index, c->first + i), c->n.fan, c->n.tokens, c->n.width);
}

FN global const T *right_line(const Context *c, uint i) {
    bool gated = is_gated(c->formula);
    uint at = c->from + (gated ? half_column(i) : i), upper = gated && i % PANEL >= PANEL / 2 ? c->n.hidden : 0;
    return at < c->n.hidden ? c->w13 + (ulong)(upper + at) * c->n.width : 0;
}

FN float right_factor(const Context *c, uint i) { return 1.0f; }

// The `count` columns of h from `at` on, written, as the activation reads them.
FN FV finish_h(const Context *c, uint row, uint at, uint count, FV sums) {
    FV bias = c->b13 ? load_some(c->b13 + at, count) : (FV)(0.0f);
    FV h = rounded(c->weights ? sums : sums + bias);
    if (c->h) store_some(c->h + (ulong)row * c->up + at, count, h);
    return c->weights ? fma((FV)(weight_of(c->weights, c->n.slots, slot_of(c->index, row))), h, bias) : h;
}

FN float finish(const Context *c, uint m, uint n, FV low, FV high) {
    bool gated = is_gated(c->formula);
    uint row = c->first + m, hidden = c->n.hidden, at = c->from + (gated ? half_column(n) : n);
    uint count = at < hidden ? hidden - at : 0;
    // The other columns of h: of its upper half, or further on in the only one.
    uint next = gated ? hidden + at : at + PANEL / 2, rest = gated ? count : next < hidden ? hidden - next : 0;
    FV g = finish_h(c, row, at, count, low), u = finish_h(c, row, next, rest, high);
    global T *a = c->a + (ulong)row * hidden;
    store_some(a + at, count, activate(c->formula, g, u));
    if (!gated) store_some(a + next, rest, activate(c->formula, u, (FV)(0.0f)));
    return 0.0f;
}

FN void finish_row(const Context *c, uint m, uint n, float sum) {}

kernel WAY void expert_up(IN(T, x), IN(uint, index), IN(uint, offsets), IN(T, w13), IN(T, b13), IN(float, weights), OUT(T, h),
                          OUT(T, a), const ExpertUpParams p) {
    OPEN(x), OPEN(index), OPEN(offsets), OPEN(w13), OPEN(b13), OPEN(weights), OPEN(h), OPEN(a);
    SHARE(shared);
    Sizes n = p.sizes;
    bool gated = is_gated(p.formula);
    uint up = gated ? 2 * n.hidden : n.hidden, span = gated ? TILE_COLUMNS / 2 : TILE_COLUMNS;
    Context c = {x, w13, b13, index, weights, h, a, n, p.formula, up};
    Tiles tile = tiles_of(offsets, n.experts, n.rows, n.hidden, span);
    while (next_tile(&tile)) {
        c.w13 = w13 + (ulong)tile.expert * up * n.width;
        c.b13 = b13 ? b13 + (ulong)tile.expert * up : 0;
        c.first = tile.first;
        c.end = tile.end;
        c.from = tile.column * span;
        uint columns = min(n.hidden - c.from, span) * (gated ? 2 : 1);
        product(&c, tile.end - tile.first, columns, n.width, true, true, shared);
    }
}
