// ExpertWgrad: for each expert, left^T * right over its rows in order; the bias's sums in a kernel of their own.

typedef struct {
    uint tokens, fan, slots, rows, experts, left_width, right_width;
    uint gather_left, gather_right, accumulate;
} ExpertWgradParams;

struct Context {
    global const T *left, *right;
    global const uint *index;
    global const float *right_weights;
    global float *dw;
    ExpertWgradParams p;
    // rows of the expert from `first` to `end`; the tile's first row and column
    uint first, end, row, column;
};

// Row i of an operand of the expert; null if there is none.
FN global const T *row_line(const Context *c, global const T *base, bool gathered, uint width, uint i) {
    if (i >= c->end - c->first) return 0;
    uint row = c->first + i;
    return gathered ? source_of(base, slot_of(c->index, row), c->p.fan, c->p.tokens, width) : base + (ulong)row * width;
}

FN global const T *left_line(const Context *c, uint i) {
    global const T *line = row_line(c, c->left, c->p.gather_left, c->p.left_width, i);
    return line ? line + c->row : 0;
}

FN global const T *right_line(const Context *c, uint i) {
    global const T *line = row_line(c, c->right, c->p.gather_right, c->p.right_width, i);
    return line ? line + c->column : 0;
}

FN float right_factor(const Context *c, uint i) {
    bool factored = c->right_weights && i < c->end - c->first;
    return factored ? weight_of(c->right_weights, c->p.slots, slot_of(c->index, c->first + i)) : 1.0f;
}

FN float finish(const Context *c, uint m, uint n, FV low, FV high) {
    global float *dw = c->dw + (ulong)(c->row + m) * c->p.right_width;
    FV sums[2] = {low, high};
    for (uint j = 0; j < 2; j++) {
        uint at = c->column + n + j * (PANEL / 2), width = c->p.right_width, count = at < width ? width - at : 0;
        if (count >= VEC) {
            STORE(c->p.accumulate ? LOAD(dw + at) + sums[j] : sums[j], dw + at);
        } else {
            float some[VEC];
            STORE(sums[j], some);
            for (uint i = 0; i < count; i++) dw[at + i] = c->p.accumulate ? dw[at + i] + some[i] : some[i];
        }
    }
    return 0.0f;
}

FN void finish_row(const Context *c, uint m, uint n, float sum) {}

FN void rows_of(Context *c, global const uint *offsets, uint expert) {
    c->first = min(offsets[expert], c->p.rows);
    c->end = max(c->first, min(offsets[expert + 1], c->p.rows));
}

kernel WAY void expert_wgrad(IN(T, left), IN(T, right), IN(uint, index), IN(uint, offsets), IN(float, right_weights),
                             OUT(float, dw), const ExpertWgradParams p) {
    OPEN(left), OPEN(right), OPEN(index), OPEN(offsets), OPEN(right_weights), OPEN(dw);
    SHARE(shared);
    Context c = {left, right, index, right_weights, dw, p};
    uint down = (p.left_width + TILE_ROWS - 1) / TILE_ROWS, across = (p.right_width + TILE_COLUMNS - 1) / TILE_COLUMNS;
    ulong tiles = (ulong)down * across, all = tiles * p.experts;
    for (ulong tile = get_group_id(0); tile < all; tile += get_num_groups(0)) {
        uint expert = (uint)(tile / tiles), within = (uint)(tile % tiles);
        rows_of(&c, offsets, expert);
        if (c.first == c.end && p.accumulate) continue;
        c.row = within % down * TILE_ROWS;
        c.column = within / down * TILE_COLUMNS;
        c.dw = dw + (ulong)expert * p.left_width * p.right_width;
        uint rows = min(p.left_width - c.row, TILE_ROWS), columns = min(p.right_width - c.column, TILE_COLUMNS);
        product(&c, rows, columns, c.end - c.first, false, false, shared);
    }
}

// A work item per column of an expert.
kernel void expert_wgrad_bias(IN(T, left), IN(uint, index), IN(uint, offsets), IN(float, bias_weights), OUT(float, dbias),
                              const ExpertWgradParams p) {
    OPEN(left), OPEN(index), OPEN(offsets), OPEN(bias_weights), OPEN(dbias);
    uint column = get_global_id(0), expert = get_global_id(1);
    if (column >= p.left_width) return;
    Context c = {left, 0, index, bias_weights, 0, p};
    rows_of(&c, offsets, expert);
    float sum = 0.0f;
    for (uint i = 0; i < c.end - c.first; i++) {
        global const T *line = row_line(&c, left, p.gather_left, p.left_width, i);
        sum = fma(right_factor(&c, i), line ? load(line, column) : 0.0f, sum);
    }
    dbias += (ulong)expert * p.left_width + column;
    *dbias = p.accumulate ? *dbias + sum : sum;
}
