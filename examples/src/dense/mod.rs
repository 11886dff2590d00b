//! The dense parts of the model, on the host: forward and hand-written backward side by side.
//!
//! Everything is generic over [`Real`](crate::real::Real), so that each backward pass is checked against
//! finite differences in f64. Rows are tokens, sequence after sequence. Work is split over threads by whole
//! rows or whole sequences, and sums over tokens are added up in a fixed order: results do not depend on the
//! number of threads.

pub mod conv;
pub mod embed;
pub mod linear;
pub mod loss;
pub mod mixing;
pub mod norm;
pub mod param;
pub mod recurrence;

#[cfg(test)]
pub(crate) mod check;
