// Products of subgroups in f32 arithmetic: lanes tell each other their depths of the rows.
FN void multiply(float8 (*sums)[2], const Left *left, Right (*right)[STEP / PAIR], float factor) {
    float rows[SUB_ROWS];
    UNROLL
    for (uint m = 0; m < SUB_ROWS; m++) rows[m] = widen_bits(left[m]);
    UNROLL
    for (uint k = 0; k < STEP; k++) {
        float scale = sub_group_broadcast(factor, k);
        UNROLL
        for (uint j = 0; j < 2; j++) {
            float column = scale * widen_bits(right[j][k]);
            UNROLL
            for (uint b = 0; b < BLOCKS; b++) {
                const float *r = rows + b * 8;
                float8 eight = (float8)(sub_group_broadcast(r[0], k), sub_group_broadcast(r[1], k), sub_group_broadcast(r[2], k),
                                        sub_group_broadcast(r[3], k), sub_group_broadcast(r[4], k), sub_group_broadcast(r[5], k),
                                        sub_group_broadcast(r[6], k), sub_group_broadcast(r[7], k));
                sums[b][j] = fma(eight, (float8)column, sums[b][j]);
            }
        }
    }
}
