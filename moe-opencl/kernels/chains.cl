// A group's tile of sums, each one chain of fused steps in order: no sum is split, so that its bits depend on nothing else.
// Work items hold DOWN rows of four sums; STEPS steps of the operands lie in local memory as f32, the steps outermost.
#define CHAIN_ITEMS 64
#define STEPS 16

// A tile of `columns`, a multiple of four, and as many rows as the group's items make of them.
#define TILE_ROWS(columns, down) (CHAIN_ITEMS * 4 / (columns) * (down))

FN uint tile_row(uint columns, uint down) { return get_local_id(0) / (columns / 4) * down; }
FN uint tile_column(uint columns) { return get_local_id(0) % (columns / 4) * 4; }

// Places of an operand `count` wide: those of `at`'s step and element, along the depth first if its memory is.
FN uint step_of(uint at, uint count, bool along) { return along ? at % STEPS : at / count; }
FN uint element_of(uint at, uint count, bool along) { return along ? at / STEPS : at % count; }

// One stage of the chains.
FN void chain(float4 *sums, uint down, local const float *left, uint rows, local const float *right, uint columns) {
    uint row = tile_row(columns, down), column = tile_column(columns);
    for (uint step = 0; step < STEPS; step++) {
        float4 four = vload4(0, right + step * columns + column);
        for (uint i = 0; i < down; i++) sums[i] = fma((float4)left[step * rows + row + i], four, sums[i]);
    }
}
