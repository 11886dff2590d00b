// What an expert does between its two products, and its derivative, for vectors; the definitions are `Activation`'s of moe-core.

// The order of `Formula::of` in ops/products.rs; the gated ones come first.
#define SWIGLU 0
#define GEGLU 1
#define GEGLU_TANH 2
#define CLAMPED_SWIGLU 3
#define GELU 4
#define GELU_TANH 5
#define SQUARED_RELU 6
#define LINEAR 7

// Twin of `Formula` in ops/products.rs.
typedef struct {
    uint kind;
    float alpha, limit;
} Formula;

FN bool is_gated(Formula f) { return f.kind <= CLAMPED_SWIGLU; }

// NaN stays NaN in both.
FN FV least(FV value, float bound) { return value > bound ? (FV)bound : value; }
FN FV most(FV value, float bound) { return value < bound ? (FV)bound : value; }

FN FV sigmoid(FV x) {
    FV e = exp(-fabs(x));
    return (x < 0.0f ? e : (FV)1.0f) / (1.0f + e);
}

FN void gelu(FV x, FV *value, FV *slope) {
    FV cdf = 0.5f * (1.0f + erf(x * 0.707106781f));
    *value = x * cdf;
    *slope = cdf + x * (0.398942280f * exp(-0.5f * x * x));
}

FN void gelu_tanh(FV x, FV *value, FV *slope) {
    const float root = 0.797884561f, cubic = 0.044715f;
    FV t = tanh(root * (x + cubic * x * x * x));
    FV inner = root * (1.0f + 3.0f * cubic * x * x);
    *value = 0.5f * x * (1.0f + t);
    *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}

typedef struct {
    FV value, dg, du;
} Gradient;

// The activation at g and u, and the gradients there for the gradient `da` at the activation.
FN Gradient gradient(Formula f, FV g, FV u, FV da) {
    FV value = g, slope = 1.0f;
    if (f.kind == SWIGLU) {
        FV s = sigmoid(g);
        value = g * s;
        slope = s * (1.0f + g * (1.0f - s));
    } else if (f.kind == GEGLU || f.kind == GELU) {
        gelu(g, &value, &slope);
    } else if (f.kind == GEGLU_TANH || f.kind == GELU_TANH) {
        gelu_tanh(g, &value, &slope);
    } else if (f.kind == CLAMPED_SWIGLU) {
        FV gc = least(g, f.limit), uc = most(least(u, f.limit), -f.limit);
        FV s = sigmoid(f.alpha * gc);
        FV dg = g > f.limit ? (FV)0.0f : da * (uc + 1.0f) * (s * (1.0f + f.alpha * gc * (1.0f - s)));
        FV du = (u > f.limit) || (u < -f.limit) ? (FV)0.0f : da * gc * s;
        Gradient clamped = {gc * s * (uc + 1.0f), dg, du};
        return clamped;
    } else if (f.kind == SQUARED_RELU) {
        FV positive = most(g, 0.0f);
        value = positive * positive;
        slope = 2.0f * positive;
    }
    if (is_gated(f)) {
        Gradient gated = {value * u, da * u * slope, da * value};
        return gated;
    }
    Gradient plain = {value, da * slope, 0.0f};
    return plain;
}

FN FV activate(Formula f, FV g, FV u) { return gradient(f, g, u, 0.0f).value; }
