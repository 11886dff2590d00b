// SumSquares: a group per part of PART values, then one group over the parts.
//
// Which work item adds which value depends on its place in the tensor alone, so the bits depend neither on the device nor on
// where the view begins.
#define ITEMS 64
#define PART 16384

typedef struct {
    ulong len, parts;
    uint accumulate;
} SumSquaresParams;

// The sum over the work items of a group, halved from 32 to 1.
FN float sum_of_group(float sum, local float *sums) {
    sums[get_local_id(0)] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    float16 a = (vload16(0, sums) + vload16(2, sums)) + (vload16(1, sums) + vload16(3, sums));
    float8 b = a.lo + a.hi;
    float4 c = b.lo + b.hi;
    float2 d = c.lo + c.hi;
    return d.lo + d.hi;
}

kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1)))
void sum_squares_part(IN(float, values), OUT(float, part_sums), const SumSquaresParams p) {
    OPEN(values), OPEN(part_sums);
    local float sums[ITEMS];
    ulong first = get_group_id(0) * (ulong)PART, end = min(first + PART, p.len);
    float4 sum = 0.0f;
    for (ulong at = first + 4 * get_local_id(0); at < end; at += 4 * ITEMS) {
        float4 four = 0.0f;
        if (at + 4 <= end) four = vload4(0, values + at);
        else for (ulong i = at; i < end; i++) ((float *)&four)[i - at] = values[i];
        sum = fma(four, four, sum);
    }
    float all = sum_of_group((sum.s0 + sum.s2) + (sum.s1 + sum.s3), sums);
    if (get_local_id(0) == 0) part_sums[get_group_id(0)] = all;
}

kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1)))
void sum_squares_total(IN(float, part_sums), OUT(float, total), const SumSquaresParams p) {
    OPEN(part_sums), OPEN(total);
    local float sums[ITEMS];
    float sum = 0.0f;
    for (ulong part = get_local_id(0); part < p.parts; part += ITEMS) sum += part_sums[part];
    sum = sum_of_group(sum, sums);
    if (get_local_id(0) == 0) total[0] = p.accumulate ? total[0] + sum : sum;
}
