// What an op and the way that its product is computed agree on.
//
// A way (vector.cl, ...) defines VEC, tiles of TILE_ROWS x TILE_COLUMNS sums, GROUP_ITEMS work-items per group, SHARED
// floats of local memory, and
//     product(context, rows, columns, depth, left_along, right_along, shared)
// which sums left * right over the depth, in order, for the tile's rows and columns that exist, and hands the sums to `finish`.
// PART columns have a row's sum in common. Columns of a tile come in panels of PANEL; a work-item that holds VEC sums at column i holds those at i + PANEL / 2 as well.
// So an op with gate and up halves lays them in the halves of panels, and has both at once. An operand is made of lines,
// contiguous in memory: along the depth, one per row or column of the tile, or across it, one per step.

typedef struct Context Context;

// Line i of an operand, across the depth from the tile's first row or column on; null if it does not exist.
FN global const T *left_line(const Context *c, uint i);
FN global const T *right_line(const Context *c, uint i);
// A factor on line i of a right operand across the depth.
FN float right_factor(const Context *c, uint i);
// Takes the sums of row m at columns n and n + PANEL / 2 and those after them. Returns their part of a sum over the row.
FN float finish(const Context *c, uint m, uint n, FV low, FV high);
// Takes that sum, over PART columns from n on.
FN void finish_row(const Context *c, uint m, uint n, float sum);

// A kernel's local memory.
#define SHARE(name) local float name[SHARED] __attribute__((aligned(64)))
