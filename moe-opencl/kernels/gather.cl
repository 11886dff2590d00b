// Gather: out[place of r] = rows[index[r] / fan] for the rows of all groups.
//
// A work item has four columns of a row.

typedef struct {
    ulong sources, rows, width, pitch;
    uint fan, groups;
} GatherParams;

// The row of `out` for row `row`, or one past its end.
FN ulong place_of(global const uint *offsets, const GatherParams p, ulong row) {
    if (!p.pitch) return row;
    uint low = 0, high = p.groups;
    while (high - low > 1) {
        uint middle = low + (high - low) / 2;
        if (offsets[middle] <= row) low = middle;
        else high = middle;
    }
    ulong first = offsets[low], nowhere = p.groups * p.pitch;
    return row < first || row - first >= p.pitch ? nowhere : low * p.pitch + (row - first);
}

kernel void gather(IN(T, source), IN(uint, index), IN(uint, offsets), OUT(T, out), const GatherParams p) {
    OPEN(source), OPEN(index), OPEN(offsets), OPEN(out);
    ulong column = get_global_id(0) * 4, row = get_global_id(1);
    if (column >= p.width || row >= p.rows || row >= offsets[p.groups]) return;
    ulong from = index[row] / p.fan, to = place_of(offsets, p, row);
    if (from >= p.sources || (p.pitch && to >= p.groups * p.pitch)) return;
    source += from * p.width + column;
    out += to * p.width + column;
    if (p.width - column >= 4) vstore4(vload4(0, source), 0, out);
    else for (ulong i = 0; i < p.width - column; i++) out[i] = source[i];
}
