// Products of subgroups on the matrix unit, for bf16 and f16: 8 rows and a column per lane over a depth of 16 in one instruction.
#if OWN == 2
typedef int8 Eight;
#define as_eight as_int8
#define EIGHT(l) ((int8)(l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7]))
#else
typedef short8 Eight;
#define EIGHT(l) as_short8((ushort8)(l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7]))
#endif

#ifdef EMULATE
// What the instruction computes, lane by lane, where there is none.
FN float depth_of(Eight rows, uint m, uint k) {
    Left some[8];
#if OWN == 2
    vstore8(as_uint8(rows), 0, some);
    uint own = sub_group_broadcast(some[m], k / 2);
    return widen((ushort)(k % 2 ? own >> 16 : own));
#else
    vstore8(as_ushort8(rows), 0, some);
    return sub_group_broadcast(widen(some[m]), k);
#endif
}

FN float8 mad(Eight rows, int8 columns, float8 sums) {
    uint pairs[8];
    float some[8];
    vstore8(as_uint8(columns), 0, pairs);
    vstore8(sums, 0, some);
    for (uint k = 0; k < 16; k++) {
        float column = widen((ushort)(k % 2 ? pairs[k / 2] >> 16 : pairs[k / 2]));
        for (uint m = 0; m < 8; m++) some[m] = fma(depth_of(rows, m, k), column, some[m]);
    }
    return vload8(0, some);
}
#elif STORAGE == BF16
float8 __attribute__((overloadable)) intel_sub_group_bf16_bf16_matrix_mad_k16(Eight rows, int8 columns, float8 sums);
#define mad intel_sub_group_bf16_bf16_matrix_mad_k16
#else
float8 __attribute__((overloadable)) intel_sub_group_f16_f16_matrix_mad_k16(Eight rows, int8 columns, float8 sums);
#define mad intel_sub_group_f16_f16_matrix_mad_k16
#endif

FN void multiply(float8 (*sums)[2], const Left *left, Right (*right)[STEP / PAIR], float factor) {
    int8 columns[2] = {as_int8(vload8(0, right[0])), as_int8(vload8(0, right[1]))};
    UNROLL
    for (uint b = 0; b < BLOCKS; b++) {
        const Left *l = left + b * 8;
        UNROLL
        for (uint j = 0; j < 2; j++) sums[b][j] = mad(EIGHT(l), columns[j], sums[b][j]);
    }
}
