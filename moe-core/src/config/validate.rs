//! The rules that a configuration must keep.

use super::{BalanceLoss, MoeConfig};
use crate::error::ConfigError;
use crate::ops::Activation;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Display;

/// Largest width, hidden width and number of experts: products of three stay within 64 bits.
const LARGEST: usize = 1 << 20;

impl MoeConfig {
    /// Checks every field, and the fields against each other.
    ///
    /// # Errors
    /// [`ConfigError`] with the first field that is wrong and its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.sizes()?;
        self.router()?;
        self.parts()?;
        self.balancing()?;
        self.check_place()
    }

    fn sizes(&self) -> Result<(), ConfigError> {
        range("width", self.width, 1, LARGEST)?;
        range("hidden", self.hidden, 1, LARGEST)?;
        range("experts", self.experts, 1, LARGEST)?;
        range("top_k", self.top_k, 1, self.experts)?;
        let elements = (self.experts as u128) * (self.up_width() as u128) * (self.width as u128);
        let most = (isize::MAX as u128 / 16).min(1 << 40);
        if elements > most {
            return Err(wrong(
                "experts",
                self.experts,
                format!("the weights would have more than {most} elements"),
            ));
        }
        Ok(())
    }

    fn router(&self) -> Result<(), ConfigError> {
        let rule = &self.rule;
        range("rule.groups", rule.groups, 1, self.experts)?;
        if !self.experts.is_multiple_of(rule.groups) {
            return Err(wrong("rule.groups", rule.groups, format!("must divide experts = {}", self.experts)));
        }
        range("rule.groups_kept", rule.groups_kept, 1, rule.groups)?;
        let reachable = rule.groups_kept * (self.experts / rule.groups);
        if reachable < self.top_k {
            let why = format!("leaves {reachable} experts to choose top_k = {} from", self.top_k);
            return Err(wrong("rule.groups_kept", rule.groups_kept, why));
        }
        if !rule.scale.is_finite() {
            return Err(wrong("rule.scale", rule.scale, "must be finite"));
        }
        match rule.jitter {
            Some(jitter) if !(0.0..1.0).contains(&jitter.amplitude) => {
                Err(wrong("rule.jitter.amplitude", jitter.amplitude, "must be at least 0 and below 1"))
            }
            _ => Ok(()),
        }
    }

    fn parts(&self) -> Result<(), ConfigError> {
        if let Activation::ClampedSwiGlu { alpha, limit } = self.activation {
            if !alpha.is_finite() {
                return Err(wrong("activation.alpha", alpha, "must be finite"));
            }
            if !(limit > 0.0 && limit.is_finite()) {
                return Err(wrong("activation.limit", limit, "must be above 0 and finite"));
            }
        }
        if let Some(shared) = self.shared {
            let most = LARGEST.min(isize::MAX as usize / 32 / self.width);
            range("shared.hidden", shared.hidden, 1, most)?;
        }
        match self.capacity {
            Some(capacity) if !(capacity.factor > 0.0 && capacity.factor.is_finite()) => {
                Err(wrong("capacity.factor", capacity.factor, "must be above 0 and finite"))
            }
            _ => Ok(()),
        }
    }

    fn balancing(&self) -> Result<(), ConfigError> {
        let balance = &self.balance;
        if let Some(BalanceLoss::Sequence(coefficient) | BalanceLoss::Batch(coefficient)) = balance.loss {
            not_negative("balance.loss", coefficient)?;
        }
        not_negative("balance.z_loss", balance.z_loss)?;
        not_negative("balance.bias_rate", balance.bias_rate)?;
        if balance.bias_rate > 0.0 && !self.selection_bias {
            return Err(wrong("balance.bias_rate", balance.bias_rate, "needs selection_bias = true"));
        }
        Ok(())
    }
}

pub(super) fn wrong(field: &'static str, got: impl Display, wanted: impl Into<String>) -> ConfigError {
    ConfigError { field, got: got.to_string(), wanted: wanted.into() }
}

fn range(field: &'static str, got: usize, min: usize, max: usize) -> Result<(), ConfigError> {
    if (min..=max).contains(&got) {
        Ok(())
    } else {
        Err(wrong(field, got, format!("must be {min} to {max}")))
    }
}

fn not_negative(field: &'static str, got: f32) -> Result<(), ConfigError> {
    if got >= 0.0 && got.is_finite() {
        Ok(())
    } else {
        Err(wrong(field, got, "must be at least 0 and finite"))
    }
}
