// Route: logits as chains of fused steps. What follows from them is in scores.cl and choose.cl.

typedef struct {
    Jitter jitter;
    uint tokens, width, experts;
} RouteParams;

// A tile of logits. Steps beyond the width multiply -0 with 0, which leaves any sum as it is.
FN void gate_tile(global const T *x, global const T *gate, global const T *gate_bias, global const uint *stamp,
                  global float *logits, const RouteParams p, uint rows, uint columns, uint down, local float *left,
                  local float *right) {
    uint token = get_group_id(0) * rows, expert = get_group_id(1) * columns, thread = get_local_id(0);
    float4 sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint start = 0; start < p.width; start += STEPS) {
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint at = thread; at < rows * STEPS; at += CHAIN_ITEMS) {
            uint t = token + element_of(at, rows, true), d = start + step_of(at, rows, true);
            bool there = t < p.tokens && d < p.width;
            float value = there ? load(x, (ulong)t * p.width + d) : -0.0f;
            if (there && p.jitter.on) value = jittered(p.jitter, jitter_key(p.jitter, stamp, t), d, value);
            left[(d - start) * rows + t - token] = value;
        }
        for (uint at = thread; at < columns * STEPS; at += CHAIN_ITEMS) {
            uint e = expert + element_of(at, columns, true), d = start + step_of(at, columns, true);
            right[(d - start) * columns + e - expert] =
                e < p.experts && d < p.width ? load(gate, (ulong)e * p.width + d) : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        chain(sums, down, left, rows, right, columns);
    }
    for (uint i = 0; i < down; i++) {
        uint t = token + tile_row(columns, down) + i;
        float four[4];
        vstore4(sums[i], 0, four);
        for (uint j = 0; j < 4; j++) {
            uint e = expert + tile_column(columns) + j;
            if (t >= p.tokens || e >= p.experts) continue;
            logits[(ulong)t * p.experts + e] = four[j] + (gate_bias ? load(gate_bias, e) : 0.0f);
        }
    }
}

#define GATE(name, columns, down)                                                                                     \
    kernel __attribute__((reqd_work_group_size(CHAIN_ITEMS, 1, 1))) void name(                                        \
        IN(T, x), IN(T, gate), IN(T, gate_bias), IN(uint, stamp), OUT(float, logits), OUT(uint, non_finite),          \
        const RouteParams p) {                                                                                        \
        OPEN(x), OPEN(gate), OPEN(gate_bias), OPEN(stamp), OPEN(logits), OPEN(non_finite);                            \
        local float left[STEPS * TILE_ROWS(columns, down)], right[STEPS * columns];                                   \
        if (get_group_id(0) == 0 && get_group_id(1) == 0 && get_local_id(0) == 0) non_finite[0] = 0;                  \
        gate_tile(x, gate, gate_bias, stamp, logits, p, TILE_ROWS(columns, down), columns, down, left, right);        \
    }
GATE(route_gate_32x32, 32, 4)
GATE(route_gate_64x8, 8, 2)
GATE(route_gate_8x128, 128, 4)
