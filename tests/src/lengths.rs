//! Lengths: an argument of the wrong length is an error that names it, before anything runs.

use crate::case::Case;
use crate::judge::failure;
use crate::launch::{Refusal, Setup, launch_guarded};
use crate::report::Report;
use crate::sample::{Arg, Role, Sample};
use moe_core::ops::PackWeights;
use moe_core::{BackendError, Error, ErrorKind, Kernel, Scalar, ShapeError};

/// Samples with more elements are not tried: many launches of large samples say no more.
const MOST: usize = 4096;

/// Gives each argument one element short, and one element long.
pub(crate) fn check_lengths<O, T, D>(device: &D, report: &mut Report, sample: &Sample<O>)
where
    O: Case,
    T: Scalar,
    D: Kernel<O> + Kernel<PackWeights<T>>,
{
    if sample.args.iter().map(|arg| arg.values.len()).sum::<usize>() > MOST {
        return;
    }
    for arg in &sample.args {
        for by in [-1, 1] {
            if by < 0 && arg.values.is_empty() {
                continue;
            }
            let setup = |packed| Setup { packed, resized: Some((arg.name, by)), ..Setup::default() };
            let own_layout = match arg.role {
                Role::Layout(_) => true,
                Role::Weight(dims) if device.packed_len::<T>(&dims) > 0 => {
                    let result = launch_guarded::<O, T, D>(device, sample, setup(true)).map(|_| ());
                    judge(report, sample, arg, by, true, result);
                    false
                }
                _ => false,
            };
            let result = launch_guarded::<O, T, D>(device, sample, setup(false)).map(|_| ());
            judge(report, sample, arg, by, own_layout, result);
        }
    }
}

/// Only the device knows how long its own layout is, so there the error is its own, of kind `Shape`.
fn judge<O: Case, B: BackendError>(
    report: &mut Report,
    sample: &Sample<O>,
    arg: &Arg,
    by: isize,
    own_layout: bool,
    result: Result<(), Refusal<Error<B>>>,
) {
    let problem = match &result {
        Err(Refusal::Error(Error::Shape(ShapeError::Length { what, .. }))) => {
            if *what == arg.name_in_errors() {
                return report.pass(O::ID);
            }
            format!("gives an error that names `{what}`")
        }
        Err(Refusal::Error(Error::Device(error))) if own_layout && error.kind() == ErrorKind::Shape => {
            return report.pass(O::ID);
        }
        Err(Refusal::Error(error)) => format!("gives another error: {error}"),
        Err(Refusal::Panic) => "panics".into(),
        Ok(()) => "is taken".into(),
    };
    let length = if by < 0 { "short" } else { "long" };
    let form = if own_layout { " (the device's layout)" } else { "" };
    let problem = format!("one element {length}{form} {problem}");
    report.fail(failure(sample, arg.name, problem));
}
