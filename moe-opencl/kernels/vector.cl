// Products for processors: one work-item per group, with wide vectors. Both operands of a tile are turned into f32 panels in
// local memory, which is cache there, a piece of the depth at a time; BLOCK_ROWS x 2 vectors of sums stay in registers
// while the piece goes by. Pieces of lines lie far apart, where no processor looks by itself, so the next ones are asked for
// while those here are multiplied.

// With VEC floats in a register, the block of sums that their number leaves room for.
#if VEC == 16
#define BLOCK_ROWS 12
#elif VEC == 8
#define BLOCK_ROWS 6
#else
#define BLOCK_ROWS 4
#endif
#define PANEL (2u * VEC)
// A multiple of every BLOCK_ROWS.
#define TILE_ROWS 144u
#define PART TILE_COLUMNS
#define WAY __attribute__((reqd_work_group_size(1, 1, 1)))
#define GROUP_ITEMS 1
// Steps of depth in local memory at a time.
#define DEPTH 128u
// A line's last vector may reach beyond its block, by less than a vector.
#define BLOCK_FLOATS (BLOCK_ROWS * DEPTH + VEC)
#define PANEL_FLOATS (PANEL * DEPTH)
#define LEFT_FLOATS (TILE_ROWS / BLOCK_ROWS * BLOCK_FLOATS)
#define RIGHT_FLOATS (TILE_COLUMNS * DEPTH)
#define SHARED (LEFT_FLOATS + RIGHT_FLOATS + TILE_ROWS * TILE_COLUMNS)

// Rows along the depth: row i of a block from i * DEPTH on.
FN void rows_along(const Context *c, local float *to, uint rows, uint from, uint steps) {
    for (uint i = 0; i < rows; i++) {
        global const T *line = left_line(c, i);
        local float *row = to + i / BLOCK_ROWS * BLOCK_FLOATS + i % BLOCK_ROWS * DEPTH;
        for (uint k = 0; k < steps; k += VEC) STORE(load_some(line + from + k, line ? steps - k : 0), row + k);
    }
}

// Lines across the depth: step k of a block from k * BLOCK_ROWS on. What a vector holds beyond it falls on the next step, which
// is yet to be written.
FN void rows_across(const Context *c, local float *to, uint rows, uint from, uint steps) {
    for (uint k = 0; k < steps; k++) {
        global const T *line = left_line(c, from + k);
        for (uint i = 0; i < rows; i += BLOCK_ROWS) {
            STORE(load_some(line + i, line ? rows - i : 0), to + i / BLOCK_ROWS * BLOCK_FLOATS + k * BLOCK_ROWS);
        }
    }
}

// Lines become columns: each round moves one bit of a line's number into the place in the line.
FN void turn(FV *lines) {
#pragma unroll
    for (uint round = 1; round < VEC; round *= 2) {
        FV next[VEC];
#pragma unroll
        for (uint i = 0; i < VEC / 2; i++) {
            next[2 * i].even = lines[i].lo;
            next[2 * i].odd = lines[i + VEC / 2].lo;
            next[2 * i + 1].even = lines[i].hi;
            next[2 * i + 1].odd = lines[i + VEC / 2].hi;
        }
#pragma unroll
        for (uint i = 0; i < VEC; i++) lines[i] = next[i];
    }
}

// Columns along the depth: step k of a panel from k * PANEL on.
FN void columns_along(const Context *c, local float *to, uint columns, uint from, uint steps) {
    uint padded = (columns + PANEL - 1) / PANEL * PANEL;
    for (uint n = 0; n < padded; n += VEC) {
        global const T *lines[VEC];
        for (uint j = 0; j < VEC; j++) lines[j] = right_line(c, n + j);
        local float *panel = to + n / PANEL * PANEL_FLOATS + n % PANEL;
        for (uint k = 0; k < steps; k += VEC) {
            FV values[VEC];
#pragma unroll
            for (uint j = 0; j < VEC; j++) values[j] = load_some(lines[j] + from + k, lines[j] ? steps - k : 0);
            turn(values);
#pragma unroll
            for (uint j = 0; j < VEC; j++) STORE(values[j], panel + (k + j) * PANEL);
        }
    }
}

// Lines across the depth.
FN void columns_across(const Context *c, local float *to, uint columns, uint from, uint steps) {
    uint padded = (columns + PANEL - 1) / PANEL * PANEL;
    for (uint k = 0; k < steps; k++) {
        global const T *line = right_line(c, from + k);
        float factor = right_factor(c, from + k);
        for (uint n = 0; n < padded; n += VEC) {
            FV v = load_some(line + n, line && n < columns ? columns - n : 0);
            STORE(factor * v, to + n / PANEL * PANEL_FLOATS + k * PANEL + n % PANEL);
        }
    }
}

// sums (BLOCK_ROWS lines of a tile) += a block of rows * a panel.
FN void multiply(local float *sums, local const float *left, local const float *right, bool along, uint steps, bool begin) {
    FV held[BLOCK_ROWS][2];
#pragma unroll
    for (uint i = 0; i < BLOCK_ROWS; i++) {
        held[i][0] = begin ? (FV)(0.0f) : LOAD(sums + i * TILE_COLUMNS);
        held[i][1] = begin ? (FV)(0.0f) : LOAD(sums + i * TILE_COLUMNS + VEC);
    }
    // Pointers that go along leave constants for the rest of an address; an index that may wrap around would not.
    for (uint k = 0; k < steps; k++) {
        FV low = LOAD(right), high = LOAD(right + VEC);
#pragma unroll
        for (uint i = 0; i < BLOCK_ROWS; i++) {
            FV factor = (FV)(along ? left[i * DEPTH] : left[i]);
            held[i][0] = fma(factor, low, held[i][0]);
            held[i][1] = fma(factor, high, held[i][1]);
        }
        left += along ? 1 : BLOCK_ROWS;
        right += PANEL;
    }
#pragma unroll
    for (uint i = 0; i < BLOCK_ROWS; i++) {
        STORE(held[i][0], sums + i * TILE_COLUMNS);
        STORE(held[i][1], sums + i * TILE_COLUMNS + VEC);
    }
}

// Brings a cache line near. OpenCL's own `prefetch` does nothing in PoCL, and is a call in Intel's runtime. A tool that interprets
// kernels may know neither.
#ifndef NEAR
#ifdef __has_builtin
#if __has_builtin(__builtin_prefetch)
#define NEAR(at) __builtin_prefetch((const void *)(ulong)(at))
#endif
#endif
#endif
#ifndef NEAR
#define NEAR(at)
#endif
#define CACHE_LINE 64u

// Asks for line number i of an operand's piece: as many lines of `steps` elements as there are rows or columns, or the other way.
FN void ask(const Context *c, bool left, bool along, uint i, uint count, uint from, uint steps) {
    if (i >= (along ? count : steps)) return;
    uint number = along ? i : from + i, elements = along ? steps : count;
    global const T *line = left ? left_line(c, number) : right_line(c, number);
    if (!line) return;
    if (along) line += from;
    for (uint at = 0; at < elements; at += CACHE_LINE / sizeof(T)) NEAR(line + at);
}

FN void product(const Context *c, uint rows, uint columns, uint depth, bool left_along, bool right_along, local float *shared) {
    local float *left = shared, *right = left + LEFT_FLOATS, *sums = right + RIGHT_FLOATS;
    uint from = 0;
    do {
        uint steps = min(depth - from, DEPTH), next = min(depth - from - steps, DEPTH);
        if (left_along) rows_along(c, left, rows, from, steps);
        else rows_across(c, left, rows, from, steps);
        if (right_along) columns_along(c, right, columns, from, steps);
        else columns_across(c, right, columns, from, steps);
        // Lines to ask for, if there is a next piece, and how many of them before each block.
        uint lines = next ? max(next, max(rows, columns)) : 0, asked = 0;
        uint blocks = ((columns - 1) / PANEL + 1) * ((rows - 1) / BLOCK_ROWS + 1), some = (lines + blocks - 1) / blocks;
        for (uint n = 0; n < columns; n += PANEL) {
            for (uint m = 0; m < rows; m += BLOCK_ROWS) {
                for (uint end = min(asked + some, lines); asked < end; asked++) {
                    ask(c, true, left_along, asked, rows, from + steps, next);
                    ask(c, false, right_along, asked, columns, from + steps, next);
                }
                multiply(sums + m * TILE_COLUMNS + n, left + m / BLOCK_ROWS * BLOCK_FLOATS, right + n / PANEL * PANEL_FLOATS,
                         left_along, steps, from == 0);
            }
        }
        from += steps;
    } while (from < depth);
    for (uint m = 0; m < rows; m++) {
        float part = 0.0f;
        for (uint n = 0; n < columns; n += PANEL) {
            local const float *sum = sums + m * TILE_COLUMNS + n;
            part += finish(c, m, n, LOAD(sum), LOAD(sum + VEC));
        }
        finish_row(c, m, 0, part);
    }
}
