// Grouped products: which tile a group works on, and where the lines of its operands lie.
//
// The true number of rows is known on the device only. The groups go through the tiles of all experts in strides of the
// grid; each work-item finds its group's next tile by itself, expert by expert, and goes on from there.

// Twin of `Sizes` in ops/products.rs.
typedef struct {
    uint tokens, fan, slots, rows, experts, width, hidden;
} Sizes;

// Row tiles of an expert that are worked on together, so that they share columns of weights in the cache.
#define TILES_TOGETHER 16u

typedef struct {
    global const uint *offsets;
    uint experts, rows;
    // column tiles
    uint columns;
    ulong next, before;
    uint scanned;
    // the tile found: its expert, its rows from `first` to `end`, the number of its columns
    uint expert, first, end, column;
} Tiles;

// Tiles of `span` of `columns` columns each.
FN Tiles tiles_of(global const uint *offsets, uint experts, uint rows, uint columns, uint span) {
    Tiles tiles = {offsets, experts, rows, (columns + span - 1) / span, get_group_id(0), 0, 0, 0, 0, 0, 0};
    return tiles;
}

// Finds the next tile; false if there is none.
FN bool next_tile(Tiles *t) {
    ulong want = t->next / t->columns;
    for (; t->scanned < t->experts; t->scanned++) {
        uint first = min(t->offsets[t->scanned], t->rows), end = min(t->offsets[t->scanned + 1], t->rows);
        uint count = end > first ? (end - first - 1) / TILE_ROWS + 1 : 0;
        if (want < t->before + count) {
            ulong tile = t->next - t->before * t->columns, together = (ulong)TILES_TOGETHER * t->columns;
            uint pile = (uint)(tile / together), within = (uint)(tile % together);
            uint height = min(TILES_TOGETHER, count - pile * TILES_TOGETHER);
            t->expert = t->scanned;
            t->first = first + (pile * TILES_TOGETHER + within % height) * TILE_ROWS;
            t->end = min(end - t->first, TILE_ROWS) + t->first;
            t->column = within / height;
            t->next += get_num_groups(0);
            return true;
        }
        t->before += count;
    }
    return false;
}

// A row's slot: its place in buffers of slots. It is as the index buffer has it, to be compared with their length.
FN uint slot_of(global const uint *index, uint row) { return index ? index[row] : row; }

FN float weight_of(global const float *weights, uint slots, uint slot) {
    return weights && slot < slots ? weights[slot] : 1.0f;
}

// The row of `base` that a slot comes from; null if there is none.
FN global const T *source_of(global const T *base, uint slot, uint fan, uint sources, uint width) {
    uint source = slot / fan;
    return source < sources ? base + (ulong)source * width : 0;
}

// The place in its half of column i of a tile that has two halves, panel by panel.
FN uint half_column(uint i) { return i / PANEL * (PANEL / 2) + i % (PANEL / 2); }
