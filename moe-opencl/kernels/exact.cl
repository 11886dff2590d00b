// Arithmetic of the router, with the reference's bits on any device that has `fma` and subnormals.

FN float power_of_two(int n) { return as_float((n + 127) << 23); }

// The project's own e^x (moe_core::Accum::fixed_exp), bit for bit.
FN float fixed_exp(float x) {
    if (isnan(x)) return x;
    if (x > 88.72284f) return INFINITY;
    if (x < -103.97208f) return 0.0f;
    float n = fma(x, 1.44269502f, 12582912.0f) - 12582912.0f;
    float r = fma(n, -0.6933594f, x);
    r = fma(n, 2.1219444e-4f, r);
    float sum = 1.98412701e-4f;
    sum = fma(sum, r, 1.38888892e-3f);
    sum = fma(sum, r, 8.33333377e-3f);
    sum = fma(sum, r, 4.16666679e-2f);
    sum = fma(sum, r, 1.66666672e-1f);
    sum = fma(sum, r, 0.5f);
    sum = fma(sum, r, 1.0f);
    sum = fma(sum, r, 1.0f);
    int whole = (int)n, low = whole >> 1;
    return sum * power_of_two(low) * power_of_two(whole - low);
}

// v, positive and finite, is the result, from 1 on and below 2, times two to the exponent.
FN float mantissa(float v, int *exponent) {
    bool subnormal = v < 0x1p-126f;
    uint bits = as_uint(subnormal ? v * 0x1p24f : v);
    *exponent = (int)(bits >> 23) - (subnormal ? 151 : 127);
    return as_float((bits & 0x7fffffu) | 0x3f800000u);
}

// n / d, correctly rounded, for n and d that are not negative. The device's own quotient may be some units off. A Newton step leaves
// it less than one unit off, where `fma` gives the rest without an error, by which it is rounded; in the units of the result, which
// are coarser if that is subnormal.
FN float divide(float n, float d) {
    // NaN, zeros and infinities come out right anywhere.
    if (!(n > 0.0f && d > 0.0f && n < INFINITY && d < INFINITY)) return n / d;
    int above, below;
    float a = mantissa(n, &above), b = mantissa(d, &below);
    int exponent = above - below;
    if (a < b) {
        a *= 2.0f;
        exponent--;
    }
    if (exponent > 127) return INFINITY;
    float inverse = 1.0f / b, quotient = a * inverse;
    quotient = fma(fma(-b, quotient, a), inverse, quotient);
    int lost = clamp(-126 - exponent, 0, 25);
    uint units = (uint)(quotient * power_of_two(23 - lost));
    float unit = b * power_of_two(lost - 23), rest = fma(-(float)units, unit, a);
    if (rest < 0.0f) {
        units--;
        rest += unit;
    }
    float half_unit = 0.5f * unit;
    if (rest > half_unit || (rest == half_unit && units % 2)) units++;
    // The leading bit of a normal result adds one to its exponent.
    return as_float(units + ((uint)max(exponent + 126, 0) << 23));
}

FN float fixed_sigmoid(float x) {
    float e = fixed_exp(x < 0.0f ? x : -x);
    return divide(x < 0.0f ? e : 1.0f, 1.0f + e);
}
