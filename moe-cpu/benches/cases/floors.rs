//! What an op cannot do without: operations and bytes.

use super::cases::{Case, Shape};
use moe_cpu::Float;

impl<T: Float> Case<T> {
    /// Operations of an op's products.
    pub(crate) fn work(&self, op: &str) -> f64 {
        let Shape { tokens, width, hidden, experts, .. } = self.shape;
        let down = 2.0 * (self.shape.slots() * width * hidden) as f64;
        let gate = 2.0 * (tokens * width * experts) as f64;
        match op {
            "expert_up" | "expert_up_bwd" | "wgrad_up" => 2.0 * down,
            "expert_down" | "expert_down_bwd" | "wgrad_down" => down,
            "route" => gate,
            "gate_bwd" => 2.0 * gate,
            "decode" => gate + 3.0 * down,
            _ => 0.0,
        }
    }

    /// Bytes that an op must read and write, each once; weights of experts without tokens are not read.
    pub(crate) fn traffic(&self, op: &str) -> f64 {
        let Shape { tokens, width, hidden, experts, .. } = self.shape;
        let (slots, t) = (self.shape.slots(), size_of::<T>());
        let touched = self.offsets.windows(2).filter(|ends| ends[0] < ends[1]).count();
        let (x, y, h, a) =
            (tokens * width * t, slots * width * t, slots * 2 * hidden * t, slots * hidden * t);
        let (w2, dw2) = (touched * width * hidden * t, experts * width * hidden * 4);
        let (gate, logits) = (experts * width * t, tokens * experts * 4);
        let all = experts * 2 * width * hidden;
        let bytes = match op {
            "route" => x + gate + logits + slots * 8,
            "route_stats" => logits + slots * 4,
            "sort" => slots * 12,
            "expert_up" => x + 2 * w2 + h + a,
            "expert_down" => a + w2 + y,
            "combine" => y + x + slots * 8,
            "combine_bwd" => y + 2 * x + slots * 4,
            "expert_down_bwd" => x + w2 + 2 * h + a,
            "wgrad_down" => x + a + dw2,
            "wgrad_up" => h + x + 2 * dw2,
            "expert_up_bwd" => h + 2 * w2 + y,
            "route_bwd" => 2 * logits + slots * 12,
            "gate_bwd" => logits + 2 * x + gate + experts * width * 4,
            "sum_squares" => all * 4,
            "pack_weights" => 2 * all * t,
            "gather" => x + y + slots * 4,
            "merge" => slots * 4 + experts * 8,
            "bias_update" => experts * 12,
            "decode" => x + gate + 3 * w2 + x,
            "adamw" => all * (2 * t + 20 + if t < 4 { 8 } else { 0 }),
            _ => 0,
        };
        bytes as f64
    }
}
