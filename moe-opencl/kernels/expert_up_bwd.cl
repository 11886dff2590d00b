// ExpertUpBwd: the product with w13 as it lies, scaled; a row goes to its place in the output.

typedef struct {
    Sizes sizes;
    // width of the up-projection
    uint up;
} ExpertUpBwdParams;

struct Context {
    global const T *dz, *w13;
    global const float *weights;
    global const uint *index, *out_index;
    global T *dx;
    Sizes n;
    uint up;
    // the tile: rows from `first` to `end`, its first column
    uint first, end, from;
};

FN global const T *left_line(const Context *c, uint i) {
    return i < c->end - c->first ? c->dz + (ulong)(c->first + i) * c->up : 0;
}

FN global const T *right_line(const Context *c, uint i) { return i < c->up ? c->w13 + (ulong)i * c->n.width + c->from : 0; }

FN float right_factor(const Context *c, uint i) { return 1.0f; }

FN float finish(const Context *c, uint m, uint n, FV low, FV high) {
    uint row = c->first + m, place = slot_of(c->out_index, row), width = c->n.width;
    if (place >= c->n.rows) return 0.0f;
    float s = c->weights ? weight_of(c->weights, c->n.slots, slot_of(c->index, row)) : 1.0f;
    FV sums[2] = {low, high};
    for (uint j = 0; j < 2; j++) {
        uint at = c->from + n + j * (PANEL / 2);
        store_some(c->dx + (ulong)place * width + at, at < width ? width - at : 0, s * sums[j]);
    }
    return 0.0f;
}

FN void finish_row(const Context *c, uint m, uint n, float sum) {}

kernel WAY void expert_up_bwd(IN(T, dz), IN(uint, offsets), IN(T, w13), IN(float, weights), IN(uint, index),
                              IN(uint, out_index), OUT(T, dx), const ExpertUpBwdParams p) {
    OPEN(dz), OPEN(offsets), OPEN(w13), OPEN(weights), OPEN(index), OPEN(out_index), OPEN(dx);
    SHARE(shared);
    Sizes n = p.sizes;
    Context c = {dz, w13, weights, index, out_index, dx, n, p.up};
    Tiles tile = tiles_of(offsets, n.experts, n.rows, n.width, TILE_COLUMNS);
    while (next_tile(&tile)) {
        c.w13 = w13 + (ulong)tile.expert * p.up * n.width;
        c.first = tile.first;
        c.end = tile.end;
        c.from = tile.column * TILE_COLUMNS;
        product(&c, tile.end - tile.first, min(n.width - c.from, TILE_COLUMNS), p.up, true, false, shared);
    }
}
