// ExpertDown: the product with w2 and the bias; a row goes to its place in the output.

typedef struct {
    Sizes sizes;
    // ranks that add the same bias
    float shares;
} ExpertDownParams;

struct Context {
    global const T *a, *w2, *b2;
    global const uint *out_index;
    global T *y;
    Sizes n;
    float shares;
    // the tile: rows from `first` to `end`, its first column
    uint first, end, from;
};

FN global const T *left_line(const Context *c, uint i) {
    return i < c->end - c->first ? c->a + (ulong)(c->first + i) * c->n.hidden : 0;
}

FN global const T *right_line(const Context *c, uint i) {
    return c->from + i < c->n.width ? c->w2 + (ulong)(c->from + i) * c->n.hidden : 0;
}

FN float right_factor(const Context *c, uint i) { return 1.0f; }

FN float finish(const Context *c, uint m, uint n, FV low, FV high) {
    uint place = slot_of(c->out_index, c->first + m), width = c->n.width;
    if (place >= c->n.rows) return 0.0f;
    FV sums[2] = {low, high};
    for (uint j = 0; j < 2; j++) {
        uint at = c->from + n + j * (PANEL / 2), count = at < width ? width - at : 0;
        FV bias = c->b2 ? load_some(c->b2 + at, count) / c->shares : (FV)(0.0f);
        store_some(c->y + (ulong)place * width + at, count, sums[j] + bias);
    }
    return 0.0f;
}

FN void finish_row(const Context *c, uint m, uint n, float sum) {}

kernel WAY void expert_down(IN(T, a), IN(uint, offsets), IN(T, w2), IN(T, b2), IN(uint, out_index), OUT(T, y),
                            const ExpertDownParams p) {
    OPEN(a), OPEN(offsets), OPEN(w2), OPEN(b2), OPEN(out_index), OPEN(y);
    SHARE(shared);
    Sizes n = p.sizes;
    Context c = {a, w2, b2, out_index, y, n, p.shares};
    Tiles tile = tiles_of(offsets, n.experts, n.rows, n.width, TILE_COLUMNS);
    while (next_tile(&tile)) {
        c.w2 = w2 + (ulong)tile.expert * n.width * n.hidden;
        c.b2 = b2 ? b2 + (ulong)tile.expert * n.width : 0;
        c.first = tile.first;
        c.end = tile.end;
        c.from = tile.column * TILE_COLUMNS;
        product(&c, tile.end - tile.first, min(n.width - c.from, TILE_COLUMNS), n.hidden, true, true, shared);
    }
}
