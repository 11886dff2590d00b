//! Key: what the ranks of a world share and nobody else knows.

use moe_core::ConfigError;
use std::fmt;

/// 32 secret bytes. Whoever holds them may be any rank; holders are trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// These bytes; they must come from a source of randomness.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// New random bytes.
    ///
    /// # Errors
    /// [`ConfigError`] if the system gives no randomness.
    pub fn random() -> Result<Self, ConfigError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| ConfigError {
            field: "key",
            got: "random bytes".into(),
            wanted: format!("the system has none: {error}"),
        })?;
        Ok(Self(bytes))
    }

    /// From 64 hexadecimal digits, as `openssl rand -hex 32` makes them.
    ///
    /// # Errors
    /// [`ConfigError`] for anything else; it does not repeat the digits.
    pub fn from_hex(digits: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError {
            field: "key",
            got: format!("{} characters", digits.chars().count()),
            wanted: "it must be 64 hexadecimal digits, as `openssl rand -hex 32` makes them".into(),
        };
        let values: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(16)).collect();
        let values = values.filter(|values| values.len() == 64).ok_or_else(wrong)?;
        Ok(Self(std::array::from_fn(|at| (values[2 * at] << 4 | values[2 * at + 1]) as u8)))
    }

    /// 64 hexadecimal digits, to hand the key to another process.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Does not show the bytes.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_back() {
        let key = Key::random().unwrap();
        assert_eq!(Key::from_hex(&key.to_hex()), Ok(key.clone()));
        assert_ne!(key, Key::random().unwrap());
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        for wrong in ["", "12", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            let error = Key::from_hex(wrong).unwrap_err().to_string();
            assert!(error.contains("64 hexadecimal digits") && (wrong.len() < 3 || !error.contains(wrong)));
        }
    }
}
