//! Alike: what all ranks of a group must have been given alike, as a word that ranks can compare.

use super::Limits;
use crate::config::{MoeConfig, Place};
use crate::error::ConfigError;
use alloc::format;

/// A digest (FNV-1a) of a layer's description, but for this rank's place in it, and of the limits that decide what travels.
pub(super) fn word(config: &MoeConfig, limits: &Limits) -> u32 {
    let mut layer = *config;
    let Place { ep, tp, etp, .. } = &mut layer.place;
    for axis in [ep, tp, etp] {
        axis.rank = 0;
    }
    let text = format!("{layer:?} {} {}", limits.tokens, limits.padded);
    text.bytes().fold(0x811c_9dc5, |digest, byte| (digest ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Words of the ranks of a group, in their order, must be equal.
pub(super) fn check(group: &'static str, mut words: impl Iterator<Item = u32>) -> Result<(), ConfigError> {
    let first = words.next();
    match words.position(|word| Some(word) != first) {
        None => Ok(()),
        Some(at) => Err(ConfigError {
            field: "the layer or its limits",
            got: format!("another on rank {} than on rank 0 of {group}", at + 1),
            wanted: "all fields of MoeConfig but ranks, Limits::tokens and Limits::padded must be the same on every rank"
                .into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Axis, Sizes};
    use alloc::string::ToString;

    #[test]
    fn places_are_a_ranks_own_and_all_else_is_compared() {
        let config = MoeConfig::new(Sizes { width: 8, hidden: 8, experts: 4, top_k: 2 }).unwrap();
        let limits = Limits::training(16);
        let mut other = config;
        other.place.ep = Axis { size: 2, rank: 1 };
        let mut sized = config;
        sized.place.ep = Axis { size: 2, rank: 0 };
        assert_eq!(word(&other, &limits), word(&sized, &limits));
        assert_ne!(word(&config, &limits), word(&sized, &limits));
        let own = Limits { received: Some(3), sequences: 2, training: false, ..limits };
        assert_eq!(word(&config, &limits), word(&config, &own));
        for limits in [Limits { tokens: 15, ..limits }, Limits { padded: true, ..limits }] {
            assert_ne!(word(&config, &own), word(&config, &limits));
        }
        let mut scaled = config;
        scaled.rule.scale = 1.5;
        assert_ne!(word(&scaled, &limits), word(&config, &limits));
    }

    #[test]
    fn the_first_rank_that_differs_is_named() {
        assert_eq!(check("ep", [5, 5, 5].into_iter()), Ok(()));
        let error = check("ep", [5, 5, 4].into_iter()).unwrap_err().to_string();
        assert!(
            error.starts_with("the layer or its limits is another on rank 2 than on rank 0 of ep"),
            "{error}"
        );
    }
}
