//! Layers of published models, from their own configuration files.

use super::{Balance, BalanceLoss, MoeConfig, ScoreOrder, SharedExperts, Sizes};
use crate::ops::{Activation, RouteRule, ScoreFunction};

impl MoeConfig {
    const fn sized(width: usize, hidden: usize, experts: usize, top_k: usize) -> Self {
        Self::of(Sizes { width, hidden, experts, top_k })
    }

    /// DeepSeek-V3 and R1, 671B (arXiv 2412.19437, section 4.2; `config.json` of deepseek-ai/DeepSeek-V3).
    pub fn deepseek_v3() -> Self {
        let base = Self::sized(7168, 2048, 256, 8);
        Self {
            rule: RouteRule {
                score: ScoreFunction::Sigmoid,
                groups: 8,
                groups_kept: 4,
                scale: 2.5,
                ..base.rule
            },
            selection_bias: true,
            shared: Some(SharedExperts { hidden: 2048, gated: false }),
            balance: Balance { loss: Some(BalanceLoss::Sequence(1e-4)), z_loss: 0.0, bias_rate: 1e-3 },
            ..base
        }
    }

    /// The 16B sibling, DeepSeek-V2-Lite (arXiv 2405.04434, appendix B; `config.json` of
    /// deepseek-ai/DeepSeek-V2-Lite), as torchtitan's `deepseek_v3` 16B.
    pub fn deepseek_16b() -> Self {
        let base = Self::sized(2048, 1408, 64, 6);
        Self {
            rule: RouteRule { normalize: false, ..base.rule },
            shared: Some(SharedExperts { hidden: 2816, gated: false }),
            ..base
        }
    }

    /// Qwen3-30B-A3B (arXiv 2505.09388, table 2; `config.json` of Qwen/Qwen3-30B-A3B).
    pub fn qwen3_30b_a3b() -> Self {
        Self::sized(2048, 768, 128, 8)
    }

    /// Qwen3-235B-A22B (arXiv 2505.09388, table 2; `config.json` of Qwen/Qwen3-235B-A22B).
    pub fn qwen3_235b_a22b() -> Self {
        Self::sized(4096, 1536, 128, 8)
    }

    /// Mixtral 8x7B (arXiv 2401.04088, table 1).
    pub fn mixtral_8x7b() -> Self {
        Self::sized(4096, 14336, 8, 2)
    }

    /// Mixtral 8x22B (`config.json` of mistralai/Mixtral-8x22B-v0.1).
    pub fn mixtral_8x22b() -> Self {
        Self::sized(6144, 16384, 8, 2)
    }

    /// OLMoE-1B-7B (arXiv 2409.02060, table 1; `config.json` of allenai/OLMoE-1B-7B-0924).
    pub fn olmoe_1b_7b() -> Self {
        let base = Self::sized(2048, 1024, 64, 8);
        Self {
            rule: RouteRule { normalize: false, ..base.rule },
            balance: Balance { loss: Some(BalanceLoss::Batch(0.01)), z_loss: 1e-3, bias_rate: 0.0 },
            ..base
        }
    }

    /// Llama 4 Scout, 16 experts (`config.json` of meta-llama/Llama-4-Scout-17B-16E).
    pub fn llama4_scout() -> Self {
        Self::llama4(16)
    }

    /// Llama 4 Maverick, 128 experts (`config.json` of meta-llama/Llama-4-Maverick-17B-128E).
    pub fn llama4_maverick() -> Self {
        Self::llama4(128)
    }

    fn llama4(experts: usize) -> Self {
        let base = Self::sized(5120, 8192, experts, 1);
        Self {
            rule: RouteRule { score: ScoreFunction::Sigmoid, normalize: false, ..base.rule },
            score_order: ScoreOrder::BeforeExperts,
            shared: Some(SharedExperts { hidden: 8192, gated: false }),
            ..base
        }
    }

    /// gpt-oss 20B (`config.json` of openai/gpt-oss-20b).
    pub fn gpt_oss_20b() -> Self {
        Self::gpt_oss(32)
    }

    /// gpt-oss 120B (`config.json` of openai/gpt-oss-120b).
    pub fn gpt_oss_120b() -> Self {
        Self::gpt_oss(128)
    }

    fn gpt_oss(experts: usize) -> Self {
        let base = Self::sized(2880, 2880, experts, 4);
        Self {
            activation: Activation::ClampedSwiGlu { alpha: 1.702, limit: 7.0 },
            expert_bias: true,
            gate_bias: true,
            rule: RouteRule { score: ScoreFunction::SoftmaxTopK, normalize: false, ..base.rule },
            ..base
        }
    }

    /// Qwen1.5-MoE-A2.7B, the Qwen2-MoE architecture (`config.json` of Qwen/Qwen1.5-MoE-A2.7B).
    pub fn qwen2_moe_a2_7b() -> Self {
        let base = Self::sized(2048, 1408, 60, 4);
        Self {
            rule: RouteRule { normalize: false, ..base.rule },
            shared: Some(SharedExperts { hidden: 5632, gated: true }),
            ..base
        }
    }

    /// Qwen2-57B-A14B (arXiv 2407.10671, table 1; `config.json` of Qwen/Qwen2-57B-A14B).
    pub fn qwen2_57b_a14b() -> Self {
        let base = Self::sized(3584, 2560, 64, 8);
        Self {
            rule: RouteRule { normalize: false, ..base.rule },
            shared: Some(SharedExperts { hidden: 20480, gated: true }),
            ..base
        }
    }

    /// Every preset with its name.
    pub fn presets() -> [(&'static str, Self); 13] {
        [
            ("deepseek-v3", Self::deepseek_v3()),
            ("deepseek-16b", Self::deepseek_16b()),
            ("qwen3-30b-a3b", Self::qwen3_30b_a3b()),
            ("qwen3-235b-a22b", Self::qwen3_235b_a22b()),
            ("mixtral-8x7b", Self::mixtral_8x7b()),
            ("mixtral-8x22b", Self::mixtral_8x22b()),
            ("olmoe-1b-7b", Self::olmoe_1b_7b()),
            ("llama4-scout", Self::llama4_scout()),
            ("llama4-maverick", Self::llama4_maverick()),
            ("gpt-oss-20b", Self::gpt_oss_20b()),
            ("gpt-oss-120b", Self::gpt_oss_120b()),
            ("qwen2-moe-a2.7b", Self::qwen2_moe_a2_7b()),
            ("qwen2-57b-a14b", Self::qwen2_57b_a14b()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for (name, preset) in MoeConfig::presets() {
            assert_eq!(preset.validate(), Ok(()), "{name}");
        }
    }

    #[test]
    fn presets_have_the_published_sizes() {
        // 58 MoE layers of DeepSeek-V3 hold 654 of its 671 billion parameters; 48 of Qwen3-30B-A3B 29 of 30.5.
        let billions = |config: MoeConfig, layers: usize| (config.parameters() * layers) as f64 / 1e9;
        assert!((billions(MoeConfig::deepseek_v3(), 58) - 656.6).abs() < 1.0);
        assert!((billions(MoeConfig::qwen3_30b_a3b(), 48) - 29.0).abs() < 0.1);
        assert!((billions(MoeConfig::mixtral_8x7b(), 32) - 45.1).abs() < 0.1);
        assert!((billions(MoeConfig::gpt_oss_120b(), 36) - 114.7).abs() < 0.1);
    }
}
