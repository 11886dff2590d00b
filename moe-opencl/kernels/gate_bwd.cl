// GateBwd: two products in tiles of 32 rows and 32 columns, a group each. A tile of dgate goes through all tokens, chunk by chunk, so
// that no sum is split over groups.
#define COLUMNS 32
#define DOWN 4
#define ROWS TILE_ROWS(COLUMNS, DOWN)

typedef struct {
    Jitter jitter;
    uint tokens, width, experts, accumulate;
} GateBwdParams;

// dx: rows are tokens, columns elements, steps experts.
kernel __attribute__((reqd_work_group_size(CHAIN_ITEMS, 1, 1)))
void gate_bwd_input(IN(float, dlogits), IN(T, gate), IN(uint, stamp), OUT(T, dx), const GateBwdParams p) {
    OPEN(dlogits), OPEN(gate), OPEN(stamp), OPEN(dx);
    local float left[STEPS * ROWS], right[STEPS * COLUMNS];
    uint token = get_group_id(0) * ROWS, column = get_group_id(1) * COLUMNS, thread = get_local_id(0);
    float4 sums[DOWN] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint start = 0; start < p.experts; start += STEPS) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint at = thread; at < ROWS * STEPS; at += CHAIN_ITEMS) {
            uint i = element_of(at, ROWS, true), step = step_of(at, ROWS, true), t = token + i, e = start + step;
            left[step * ROWS + i] = t < p.tokens && e < p.experts ? dlogits[(ulong)t * p.experts + e] : 0.0f;
        }
        for (uint at = thread; at < COLUMNS * STEPS; at += CHAIN_ITEMS) {
            uint d = column + element_of(at, COLUMNS, false), e = start + step_of(at, COLUMNS, false);
            right[at] = d < p.width && e < p.experts ? load(gate, (ulong)e * p.width + d) : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        chain(sums, DOWN, left, ROWS, right, COLUMNS);
    }
    for (uint i = 0; i < DOWN; i++) {
        uint t = token + tile_row(COLUMNS, DOWN) + i, first = column + tile_column(COLUMNS);
        if (t >= p.tokens || first >= p.width) continue;
        float four[4];
        vstore4(sums[i], 0, four);
        if (p.jitter.on) {
            uint key = jitter_key(p.jitter, stamp, t);
            for (uint j = 0; j < 4; j++) four[j] = jittered(p.jitter, key, first + j, four[j]);
        }
        store_upto4(vload4(0, four), dx, (ulong)t * p.width + first, p.width - first);
    }
}

// dgate: rows are experts, columns elements, steps tokens. Behind the last column comes one of ones, whose sums are dbias.
kernel __attribute__((reqd_work_group_size(CHAIN_ITEMS, 1, 1)))
void gate_bwd_weights(IN(float, dlogits), IN(T, x), IN(uint, stamp), OUT(float, dgate), OUT(float, dbias), const GateBwdParams p) {
    OPEN(dlogits), OPEN(x), OPEN(stamp), OPEN(dgate), OPEN(dbias);
    local float left[STEPS * ROWS], right[STEPS * COLUMNS];
    uint expert = get_group_id(0) * ROWS, column = get_group_id(1) * COLUMNS, thread = get_local_id(0);
    float4 totals[DOWN] = {0.0f, 0.0f, 0.0f, 0.0f}, sums[DOWN] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint start = 0; start < p.tokens; start += STEPS) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint at = thread; at < ROWS * STEPS; at += CHAIN_ITEMS) {
            uint e = expert + element_of(at, ROWS, false), t = start + step_of(at, ROWS, false);
            left[at] = t < p.tokens && e < p.experts ? dlogits[(ulong)t * p.experts + e] : 0.0f;
        }
        for (uint at = thread; at < COLUMNS * STEPS; at += CHAIN_ITEMS) {
            uint d = column + element_of(at, COLUMNS, false), t = start + step_of(at, COLUMNS, false);
            bool there = t < p.tokens && d < p.width;
            float value = there ? load(x, (ulong)t * p.width + d) : d == p.width ? 1.0f : 0.0f;
            if (there && p.jitter.on) value = jittered(p.jitter, jitter_key(p.jitter, stamp, t), d, value);
            right[at] = value;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        chain(sums, DOWN, left, ROWS, right, COLUMNS);
        // A chunk is a whole number of stages.
        bool ends = (start + STEPS) % CHUNK == 0 || start + STEPS >= p.tokens;
        for (uint i = 0; ends && i < DOWN; i++) {
            totals[i] += sums[i];
            sums[i] = 0.0f;
        }
    }
    for (uint i = 0; i < DOWN; i++) {
        uint e = expert + tile_row(COLUMNS, DOWN) + i;
        float four[4];
        vstore4(totals[i], 0, four);
        for (uint j = 0; j < 4; j++) {
            uint d = column + tile_column(COLUMNS) + j;
            if (e >= p.experts || d > p.width || (d == p.width && !dbias)) continue;
            global float *out = d < p.width ? dgate + (ulong)e * p.width + d : dbias + e;
            *out = p.accumulate ? *out + four[j] : four[j];
        }
    }
}
