//! Judge: what a device left in its arguments against what it should have left.

use crate::case::Case;
use crate::launch::{Outputs, Setup};
use crate::report::Failure;
use crate::sample::{Arg, Role, Sample};
use crate::tolerance::{Mismatch, Tolerance};
use crate::views::GUARD;

/// A wrong answer to a sample.
pub(crate) fn failure<O: Case>(sample: &Sample<O>, argument: &str, problem: String) -> Failure {
    Failure {
        op: O::ID,
        sample: sample.label.clone(),
        dims: format!("{:?}", sample.dims),
        argument: argument.into(),
        problem,
    }
}

/// The first argument that is not as the reference left it. Arguments that are only read must be as they were.
pub(crate) fn compare<O: Case>(
    sample: &Sample<O>,
    setup: Setup,
    want: &Outputs,
    got: &Outputs,
) -> Option<Failure> {
    sample.args.iter().find_map(|arg| {
        let tolerance = match arg.role {
            Role::Output(tolerance) => tolerance,
            Role::Weight(_) if setup.packed => return None,
            Role::Layout(_) | Role::Room => return None,
            Role::Weight(_) | Role::Input => Tolerance::EXACT,
        };
        let mismatch = tolerance.compare(want.guarded(arg.name)?, got.guarded(arg.name)?)?;
        let problem = describe(&mismatch, arg, setup.front, tolerance, got);
        Some(failure(sample, arg.name, problem))
    })
}

fn describe(mismatch: &Mismatch, arg: &Arg, front: usize, tolerance: Tolerance, got: &Outputs) -> String {
    let len = arg.values.len();
    let place = match mismatch.at.checked_sub(front) {
        None => format!("{} before its start", front - mismatch.at),
        Some(at) if at >= len => format!("{} behind its end", at - len),
        Some(at) => format!("at {at} of {len}"),
    };
    let (want, result, path) = (mismatch.want, mismatch.got, got.path.0);
    let measure = if mismatch.measure.is_finite() {
        let (measure, most) = (mismatch.measure, tolerance.relative);
        format!(" (difference {measure:.1e} of the largest value, at most {most:.1e})")
    } else {
        String::new()
    };
    format!("{place}: wanted {want}, got {result}{measure}; path \"{path}\", views start at {front}")
}

/// The first argument that was written behind its end.
pub(crate) fn guards<O: Case>(sample: &Sample<O>, got: &Outputs) -> Option<Failure> {
    let mut names = sample.args.iter().map(|arg| arg.name).chain(["scratch"]);
    names.find_map(|name| {
        let values = got.guarded(name)?;
        let behind = values.len().saturating_sub(GUARD)..values.len();
        let written = behind.into_iter().any(|at| !values.cell(at).poison);
        written.then(|| failure(sample, name, "was written behind its end".into()))
    })
}

/// The first output whose bits differ between two equal launches.
pub(crate) fn repeats<O: Case>(sample: &Sample<O>, first: &Outputs, second: &Outputs) -> Option<Failure> {
    let outputs = sample.args.iter().filter(|arg| !matches!(arg.role, Role::Input | Role::Room));
    outputs.into_iter().find_map(|arg| {
        let (first, second) = (first.guarded(arg.name)?, second.guarded(arg.name)?);
        let at = (0..first.len()).find(|at| first.cell(*at).bits != second.cell(*at).bits)?;
        let (first, second) = (first.cell(at), second.cell(at));
        let problem = format!("differs between two equal launches, at {at}: {first} and {second}");
        Some(failure(sample, arg.name, problem))
    })
}
