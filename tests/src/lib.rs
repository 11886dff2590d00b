//! Conformance: whether a device computes what the ops' definitions say.
//!
//! [`conformance`] runs every op of the layer on a device and on [`Host`](moe_core::Host), with equal arguments over a menu of
//! sizes and settings: odd sizes, empty groups, no tokens, one token, NaN and infinite logits, every optional argument
//! with and without. Outputs are poisoned before each launch, so that an element that should have been written and was
//! not is found, and one that was and should not. Buffers are surrounded by poison too. Each launch is repeated and must give
//! the same bits. Rows must not depend on other rows. Each argument is given one element short and long, which must be an
//! error that names it.
//!
//! The whole suite is one call, `conformance::<f32, _>(&device).assert_passed()`; one op is asked by [`check_op`]:
//!
//! ```
//! use moe_core::{Host, ops::Sort};
//! use moe_tests::{Report, check_op};
//!
//! let mut report = Report::new();
//! check_op::<Sort<f32>, f32, _>(&Host, &mut report);
//! report.assert_passed();
//! ```
//!
//! An op from outside this repository implements [`Case`] and is asked in the same way. The list of ops requires it of
//! every op of the layer, so that none can be forgotten.

#![forbid(unsafe_code)]

mod case;
mod independence;
mod judge;
mod launch;
mod lengths;
mod memory;
mod ops;
mod random;
mod report;
mod sample;
mod skip;
mod tolerance;
mod values;
mod views;

pub use case::{Case, check_op};
pub use independence::check_independence;
pub use launch::{Outputs, Setup, launch};
pub use memory::check_memory;
pub use ops::{Rows, Spread};
pub use random::Random;
pub use report::{Failure, Report, Skip};
pub use sample::{Arg, Role, Sample};
pub use skip::{available, skipped};
pub use tolerance::{Mismatch, Tolerance};
pub use values::{Cell, Values};
pub use views::Views;

use moe_core::{MoeDevice, Scalar};

macro_rules! ask_all {
    ($($op:ty),*) => {
        /// Asks everything of every op of the layer, for storage type `T`.
        pub fn conformance<T: Scalar, D: MoeDevice<T>>(device: &D) -> Report {
            let mut report = Report::new();
            check_memory::<T, D>(device, &mut report);
            $( check_op::<$op, T, D>(device, &mut report); )*
            check_independence::<T, D>(device, &mut report);
            report
        }
    };
}
moe_core::for_each_op!(ask_all);
