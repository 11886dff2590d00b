// Products of a group through local memory, for graphics processors without subgroups: 8 x 8 sums for each work-item, and the next
// piece of the depth on its way in registers while this one is multiplied.

#define PANEL TILE
#define PART TILE
#define TILE_ROWS ((uint)TILE)
#define TILE_COLUMNS ((uint)TILE)
#define ACROSS (TILE / 8)
#define GROUP_ITEMS (ACROSS * ACROSS)
#define WAY __attribute__((reqd_work_group_size(GROUP_ITEMS, 1, 1)))
// Steps of depth in local memory at a time, twice; floats from one to the next.
#define DEPTH 16
#define PITCH (TILE + 4)
#define STAGE (DEPTH * PITCH)
#define SHARED (4 * STAGE)
// Vectors of an operand that a work-item brings to a stage.
#define PIECES (TILE * DEPTH / VEC / GROUP_ITEMS)

// Where a work-item's piece is: along the depth a line and its VEC steps, across it a step and its VEC columns.
FN uint piece_line(bool along, uint piece) {
    uint at = get_local_id(0) + piece * GROUP_ITEMS;
    return along ? at / (DEPTH / VEC) : at / (TILE / VEC);
}
FN uint piece_place(bool along, uint piece) {
    uint at = get_local_id(0) + piece * GROUP_ITEMS;
    return along ? at % (DEPTH / VEC) * VEC : at % (TILE / VEC) * VEC;
}

FN void fetch(const Context *c, FV *pieces, bool left, bool along, uint count, uint from, uint depth) {
#pragma unroll
    for (uint i = 0; i < PIECES; i++) {
        uint number = piece_line(along, i), place = piece_place(along, i);
        uint line_number = along ? number : from + number, at = along ? from + place : place;
        uint width = along ? depth : count;
        global const T *line = 0;
        if (at < width) line = left ? left_line(c, line_number) : right_line(c, line_number);
        pieces[i] = load_some(line + at, line ? width - at : 0);
        if (!left && !along) pieces[i] *= right_factor(c, line_number);
    }
}

FN void put(local float *stage, const FV *pieces, bool along) {
#pragma unroll
    for (uint i = 0; i < PIECES; i++) {
        uint number = piece_line(along, i), place = piece_place(along, i);
        if (along) {
            float some[VEC];
            STORE(pieces[i], some);
#pragma unroll
            for (uint k = 0; k < VEC; k++) stage[(place + k) * PITCH + number] = some[k];
        } else {
            STORE(pieces[i], stage + number * PITCH + place);
        }
    }
}

// One of the work-item's eight rows.
FN FV row_of(FV (*sums)[2], uint j, uint m) {
    FV row = sums[0][j];
#pragma unroll
    for (uint i = 1; i < 8; i++) row = i == m ? sums[i][j] : row;
    return row;
}

FN void product(const Context *c, uint rows, uint columns, uint depth, bool left_along, bool right_along, local float *shared) {
    uint down = get_local_id(0) / ACROSS * 4, across = get_local_id(0) % ACROSS * 4;
    FV sums[8][2], lefts[PIECES], rights[PIECES];
#pragma unroll
    for (uint i = 0; i < 8; i++) sums[i][0] = sums[i][1] = (FV)(0.0f);
    fetch(c, lefts, true, left_along, rows, 0, depth);
    fetch(c, rights, false, right_along, columns, 0, depth);
    // The stages are free when all have left the tile before.
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint from = 0, now = 0; from < depth; from += DEPTH, now ^= 1) {
        local float *left = shared + now * 2 * STAGE, *right = left + STAGE;
        put(left, lefts, left_along);
        put(right, rights, right_along);
        barrier(CLK_LOCAL_MEM_FENCE);
        if (depth - from > DEPTH) {
            fetch(c, lefts, true, left_along, rows, from + DEPTH, depth);
            fetch(c, rights, false, right_along, columns, from + DEPTH, depth);
        }
#pragma unroll 4
        for (uint k = 0; k < DEPTH; k++) {
            float row[8];
            vstore4(vload4(0, left + k * PITCH + down), 0, row);
            vstore4(vload4(0, left + k * PITCH + TILE / 2 + down), 0, row + 4);
            FV low = LOAD(right + k * PITCH + across), high = LOAD(right + k * PITCH + TILE / 2 + across);
#pragma unroll
            for (uint i = 0; i < 8; i++) {
                sums[i][0] = fma((FV)row[i], low, sums[i][0]);
                sums[i][1] = fma((FV)row[i], high, sums[i][1]);
            }
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    // Parts of a row's sum, added in order by one of the work-items.
#pragma unroll 1
    for (uint i = 0; i < 8; i++) {
        uint m = i / 4 * (TILE / 2) + down + i % 4;
        float part = m < rows ? finish(c, m, across, row_of(sums, 0, i), row_of(sums, 1, i)) : 0.0f;
        shared[m * (ACROSS + 1) + across / 4] = part;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint m = get_local_id(0); m < rows; m += GROUP_ITEMS) {
        float sum = 0.0f;
        for (uint i = 0; i < ACROSS; i++) sum += shared[m * (ACROSS + 1) + i];
        finish_row(c, m, 0, sum);
    }
}
