// Products of subgroups: each has SUB_ROWS rows and a panel of a tile, and keeps their sums in registers, a column per lane and
// half of the panel. Operands come straight from memory, which the caches hold for the subgroups of a group: nothing waits at a
// barrier, and a subgroup without rows or columns has nothing to do.
//
// In a step of depth, lane n of a left fragment has OWN of the STEP depths of every row, and of a right one all depths of the
// columns n and n + SG. Lines across the lanes come by block reads, and lines of the lanes' own as vectors. A step in which
// something is missing is read element by element.
#pragma OPENCL EXTENSION cl_intel_subgroups : enable
#pragma OPENCL EXTENSION cl_intel_subgroups_short : enable
#pragma OPENCL EXTENSION cl_intel_required_subgroup_size : enable

#ifdef EMULATE
#define UNROLL __attribute__((opencl_unroll_hint(1)))
#else
#define UNROLL __attribute__((opencl_unroll_hint))
#endif
#define PANEL (2u * SG)
#define PART PANEL
#define TILE_ROWS ((uint)(GROUP_ROWS * SUB_ROWS))
#define TILE_COLUMNS (GROUP_COLUMNS * PANEL)
#define GROUP_ITEMS (GROUP_ROWS * GROUP_COLUMNS * SG)
#define SHARED 1
#define WAY __attribute__((reqd_work_group_size(GROUP_ITEMS, 1, 1))) __attribute__((intel_reqd_sub_group_size(SG)))
#define BLOCKS (SUB_ROWS / 8)
#define OWN (STEP / SG)
#define ROW_LINES ((SUB_ROWS + SG - 1) / SG)

// Elements in registers. A left one is a lane's OWN depths of a row, a right one PAIR depths of a column.
#if STORAGE == F32
typedef uint Bits;
typedef uint2 Bits2;
#define BLOCK_READ(at) intel_sub_group_block_read((global const uint *)(at))
#define BLOCK_READ2(at) intel_sub_group_block_read2((global const uint *)(at))
FN float widen_bits(uint bits) { return as_float(bits); }
#else
typedef ushort Bits;
typedef ushort2 Bits2;
#define BLOCK_READ(at) intel_sub_group_block_read_us((global const ushort *)(at))
#define BLOCK_READ2(at) intel_sub_group_block_read_us2((global const ushort *)(at))
FN float widen_bits(ushort bits) { return widen(bits); }
#endif
#if OWN == 2
typedef uint Left;
#else
typedef Bits Left;
#endif
#if PAIR == 2
typedef uint Right;
#else
typedef Bits Right;
#endif
FN uint pair(ushort first, ushort second) { return first | (uint)second << 16; }
FN Bits bits_of(global const T *at) { return *(global const Bits *)at; }

// A subgroup's part of a tile: its first row and column, and how many of them exist.
typedef struct {
    uint row, column, rows, columns;
} Subtile;

FN Subtile subtile_of(uint rows, uint columns) {
    uint at = get_sub_group_id();
    Subtile s = {at / GROUP_COLUMNS * SUB_ROWS, at % GROUP_COLUMNS * PANEL, 0, 0};
    s.rows = rows > s.row ? min(rows - s.row, (uint)SUB_ROWS) : 0;
    s.columns = columns > s.column ? min(columns - s.column, PANEL) : 0;
    return s;
}

// Addresses, so that lanes can tell each other theirs.
FN global const T *line_at(ulong address) { return (global const T *)address; }
FN global const T *line_of_lane(ulong address, uint lane) { return line_at(sub_group_broadcast(address, lane)); }

// Block reads, and vectors of pairs, begin at multiples of four bytes.
FN bool is_aligned(ulong address) { return address % 4 == 0; }

// Lines along the depth: of rows, SG to a word, and of the lane's columns. One that does not exist gives way to one that does,
// and what comes of it is thrown away. False if there is none. Clears `whole` if one cannot be read so.
FN bool rows_along(const Context *c, const Subtile *s, ulong *lines, bool *whole) {
    uint lane = get_sub_group_local_id();
    ulong some = 0;
    for (uint i = 0; i < ROW_LINES; i++) {
        uint m = i * SG + lane;
        lines[i] = m < s->rows ? (ulong)left_line(c, s->row + m) : 0;
        some = max(some, lines[i]);
    }
    some = sub_group_reduce_max(some);
    for (uint i = 0; i < ROW_LINES; i++) {
        lines[i] = lines[i] ? lines[i] : some;
        *whole = *whole && is_aligned(lines[i]);
    }
    return some != 0;
}

FN bool columns_along(const Context *c, const Subtile *s, ulong *lines, bool *whole) {
    uint lane = get_sub_group_local_id();
    ulong some = 0;
    for (uint j = 0; j < 2; j++) {
        lines[j] = (ulong)right_line(c, s->column + j * SG + lane);
        some = max(some, lines[j]);
    }
    some = sub_group_reduce_max(some);
    for (uint j = 0; j < 2; j++) {
        lines[j] = lines[j] ? lines[j] : some;
        *whole = *whole && is_aligned(lines[j]);
    }
    return some != 0;
}

// A left fragment from `k` on. `lines` are those of rows along the depth, or of the lane's own depths across it.
FN void left_fragment(Left *left, const ulong *lines, bool along, const Subtile *s, uint k, uint depth, bool whole) {
    uint own = k + get_sub_group_local_id() * OWN;
    if (whole && along) {
        UNROLL
        for (uint m = 0; m < SUB_ROWS; m++) {
            global const T *line = line_of_lane(lines[m / SG], m % SG) + k;
#if OWN == 2
            left[m] = intel_sub_group_block_read((global const uint *)line);
#else
            left[m] = BLOCK_READ(line);
#endif
        }
    } else if (whole) {
        UNROLL
        for (uint b = 0; b < BLOCKS; b++) {
            Bits some[OWN][8];
            UNROLL
            for (uint i = 0; i < OWN; i++) {
                vstore8(vload8(0, (global const Bits *)(line_at(lines[i]) + s->row + b * 8)), 0, some[i]);
            }
            UNROLL
            for (uint m = 0; m < 8; m++) {
#if OWN == 2
                left[b * 8 + m] = pair(some[0][m], some[1][m]);
#else
                left[b * 8 + m] = some[0][m];
#endif
            }
        }
    } else {
        UNROLL
        for (uint m = 0; m < SUB_ROWS; m++) {
            Bits some[OWN];
            UNROLL
            for (uint i = 0; i < OWN; i++) {
                global const T *at = along ? line_of_lane(lines[m / SG], m % SG) + own + i : line_at(lines[i]) + s->row + m;
                some[i] = own + i < depth && m < s->rows && (along || lines[i]) ? bits_of(at) : (Bits)0;
            }
#if OWN == 2
            left[m] = pair(some[0], some[1]);
#else
            left[m] = some[0];
#endif
        }
    }
}

// A right fragment from `k` on, [half][depth]. `lines` are those of the lane's columns along the depth, or of the lane's own
// depths across it. `c` is the op's, for factors on lines across the depth.
FN void right_fragment(Right (*right)[STEP / PAIR], const ulong *lines, bool along, const Subtile *s, uint k, uint depth, bool whole) {
    uint lane = get_sub_group_local_id();
    if (whole && along) {
        UNROLL
        for (uint j = 0; j < 2; j++) {
            UNROLL
            for (uint i = 0; i < STEP / PAIR; i += 8) {
                vstore8(vload8(0, (global const Right *)(line_at(lines[j]) + k + i * PAIR)), 0, right[j] + i);
            }
        }
        return;
    }
    UNROLL
    for (uint i = 0; i < STEP / PAIR; i++) {
        Bits some[PAIR][2];
        UNROLL
        for (uint p = 0; p < PAIR; p++) {
            uint at = i * PAIR + p;
            if (whole) {
                Bits2 both = BLOCK_READ2(line_of_lane(lines[at % OWN], at / OWN) + s->column);
                some[p][0] = both.s0;
                some[p][1] = both.s1;
            } else {
                UNROLL
                for (uint j = 0; j < 2; j++) {
                    uint n = j * SG + lane;
                    global const T *line = along ? line_at(lines[j]) + k + at : line_of_lane(lines[at % OWN], at / OWN);
                    bool exists = k + at < depth && (along || (line && n < s->columns));
                    some[p][j] = exists ? bits_of(along ? line : line + s->column + n) : (Bits)0;
                }
            }
        }
        UNROLL
        for (uint j = 0; j < 2; j++) {
#if PAIR == 2
            right[j][i] = pair(some[0][j], some[1][j]);
#else
            right[j][i] = some[0][j];
#endif
        }
    }
}

// sums += left * right, a step of depth.
FN void multiply(float8 (*sums)[2], const Left *left, Right (*right)[STEP / PAIR], float factor);

FN void step(float8 (*sums)[2], const Context *c, const ulong *lefts, const ulong *rights, bool left_along, bool right_along,
             const Subtile *s, uint k, uint depth, bool whole) {
    Left left[SUB_ROWS];
    Right right[2][STEP / PAIR];
    left_fragment(left, lefts, left_along, s, k, depth, whole);
    right_fragment(right, rights, right_along, s, k, depth, whole);
    // of the lane's own depth
    float factor = right_along ? 1.0f : right_factor(c, k + get_sub_group_local_id());
    multiply(sums, left, right, factor);
}

FN float row_of(float8 v, uint m) {
    float some[8], row = 0.0f;
    vstore8(v, 0, some);
    UNROLL
    for (uint i = 0; i < 8; i++) row = i == m ? some[i] : row;
    return row;
}

FN float sum_lanes(float v) {
    UNROLL
    for (uint far = SG / 2; far > 0; far /= 2) v += intel_sub_group_shuffle_xor(v, far);
    return v;
}

FN void product(const Context *c, uint rows, uint columns, uint depth, bool left_along, bool right_along, local float *shared) {
    Subtile s = subtile_of(rows, columns);
    if (s.rows == 0 || s.columns == 0) return;
    uint lane = get_sub_group_local_id();
    ulong lefts[ROW_LINES > OWN ? ROW_LINES : OWN], rights[2];
    float8 sums[BLOCKS][2];
    UNROLL
    for (uint b = 0; b < BLOCKS; b++) sums[b][0] = sums[b][1] = 0.0f;
    bool whole = (left_along || s.rows == SUB_ROWS) && (right_along || s.columns == PANEL);
    if (left_along && !rows_along(c, &s, lefts, &whole)) depth = 0;
    if (right_along && !columns_along(c, &s, rights, &whole)) depth = 0;
    for (uint k = 0; k < depth; k += STEP) {
        bool all = whole && depth - k >= STEP;
        for (uint i = 0; i < OWN; i++) {
            uint own = k + lane * OWN + i;
            if (!left_along) lefts[i] = own < depth ? (ulong)left_line(c, own) : 0;
            if (!right_along) rights[i] = own < depth ? (ulong)right_line(c, own) : 0;
            all = all && (left_along || (lefts[i] && is_aligned(lefts[i]))) && (right_along || (rights[i] && is_aligned(rights[i])));
        }
        if (sub_group_all(all)) step(sums, c, lefts, rights, left_along, right_along, &s, k, depth, true);
        else step(sums, c, lefts, rights, left_along, right_along, &s, k, depth, false);
    }
    __attribute__((opencl_unroll_hint(1)))
    for (uint b = 0; b < BLOCKS; b++) {
        float8 low = sums[0][0], high = sums[0][1];
        UNROLL
        for (uint i = 1; i < BLOCKS; i++) {
            low = i == b ? sums[i][0] : low;
            high = i == b ? sums[i][1] : high;
        }
        __attribute__((opencl_unroll_hint(1)))
        for (uint m = b * 8; m < min(b * 8 + 8, s.rows); m++) {
            float sum = sum_lanes(finish(c, s.row + m, s.column + lane, row_of(low, m % 8), row_of(high, m % 8)));
            if (lane == 0) finish_row(c, s.row + m, s.column, sum);
        }
    }
}
