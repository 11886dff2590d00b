//! The arithmetic of the gate, by name.

use clap::ValueEnum;
use moe_core::ops::GateMath;

/// How the gate's logits are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GateName {
    /// One chain of fused steps per logit: the same routing on every device
    #[default]
    Exact,
    /// The device's fastest product: routing may differ between devices
    Native,
}

impl GateName {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Native => "native",
        }
    }
}

impl From<GateName> for GateMath {
    fn from(name: GateName) -> Self {
        match name {
            GateName::Exact => Self::Exact,
            GateName::Native => Self::Native,
        }
    }
}
