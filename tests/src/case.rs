//! Case: what the suite must know of an op, and what it asks of a device that runs it.

use crate::judge;
use crate::launch::{Setup, launch, launch_guarded};
use crate::lengths::check_lengths;
use crate::random::Random;
use crate::report::Report;
use crate::sample::{Arg, Role, Sample};
use crate::views::Views;
use moe_core::ops::PackWeights;
use moe_core::{Device, Host, Kernel, Op, Scalar};
use std::fmt::Debug;

/// An op with samples of its arguments.
pub trait Case: Op<Dims: Debug> {
    /// Arguments over the sizes and settings where devices go wrong.
    fn samples(random: &mut Random) -> Vec<Sample<Self>>;

    /// The views of a sample's arguments, by name.
    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> Self::Args<'a, D>;
}

/// Asks everything that can be asked of one op.
pub fn check_op<O, T, D>(device: &D, report: &mut Report)
where
    O: Case,
    T: Scalar,
    D: Kernel<O> + Kernel<PackWeights<T>>,
{
    for (nth, sample) in O::samples(&mut Random::new(7)).iter().enumerate() {
        let no_layout = |arg: &Arg| match arg.role {
            Role::Layout(dims) => device.packed_len::<T>(&dims) == 0,
            _ => false,
        };
        if sample.args.iter().any(no_layout) {
            report.skip(O::ID, "the device reads these weights as they are");
            continue;
        }
        let front = if nth % 4 == 3 { 3 } else { 0 };
        check_sample::<O, T, D>(device, report, sample, front);
        check_lengths::<O, T, D>(device, report, sample);
    }
}

fn check_sample<O, T, D>(device: &D, report: &mut Report, sample: &Sample<O>, front: usize)
where
    O: Case,
    T: Scalar,
    D: Kernel<O> + Kernel<PackWeights<T>>,
{
    let plain = Setup { front, ..Setup::default() };
    let want = match launch::<O, T, Host>(&Host, sample, plain) {
        Ok(want) => want,
        Err(error) => {
            let problem = format!("is refused by the reference: {error}");
            return report.fail(judge::failure(sample, "sample", problem));
        }
    };
    let own_layout = sample.args.iter().any(|arg| match arg.role {
        Role::Weight(dims) => device.packed_len::<T>(&dims) > 0,
        _ => false,
    });
    let packed = Setup { packed: true, ..plain };
    for setup in if own_layout { vec![plain, packed] } else { vec![plain] } {
        let run = || launch_guarded::<O, T, D>(device, sample, setup);
        let (got, again) = match (run(), run()) {
            (Ok(got), Ok(again)) => (got, again),
            (Err(refusal), _) | (_, Err(refusal)) => {
                let form = if setup.packed { "packed weights" } else { "plain weights" };
                report.fail(judge::failure(sample, form, refusal.to_string()));
                continue;
            }
        };
        let wrong = judge::compare(sample, setup, &want, &got)
            .or_else(|| judge::guards(sample, &got))
            .or_else(|| judge::repeats(sample, &got, &again));
        match wrong {
            None => report.pass(O::ID),
            Some(failure) => report.fail(failure),
        }
    }
}
