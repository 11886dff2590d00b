// AdamW: one optimizer step over one tensor, with the reference's order of operations. A work item has one element.

typedef struct {
    ulong len;
} AdamWParams;

kernel void adamw(IN(float, settings), IN(float, grad), OUT(T, w), OUT(float, master), OUT(float, m), OUT(float, v),
                  const AdamWParams p) {
    OPEN(settings), OPEN(grad), OPEN(w), OPEN(master), OPEN(m), OPEN(v);
    ulong at = get_global_id(0);
    if (at >= p.len) return;
    float decay = settings[0], beta1 = settings[1], beta2 = settings[2], eps = settings[3], rate = settings[4];
    float root = settings[5], scale = settings[6];
    float g = scale * grad[at], old = master ? master[at] : load(w, at);
    float first = beta1 * m[at] + (1.0f - beta1) * g;
    float second = beta2 * v[at] + (1.0f - beta2) * g * g;
    float updated = old - decay * old - rate * (first / (sqrt(second) / root + eps));
    m[at] = first;
    v[at] = second;
    if (master) master[at] = updated;
    store(updated, w, at);
}
