//! Independence: a row's bits do not depend on the other rows, and an expert's gradient on its own rows alone.
//!
//! Each sample of an expert product is run a second time with some of its rows only, in another order inside their
//! group. What these rows give must have the bits that they gave among all rows. Sizes stay the same, so that the device
//! takes the same path.

use crate::case::Case;
use crate::judge::failure;
use crate::launch::{Outputs, Refusal, Setup, launch_guarded};
use crate::random::Random;
use crate::report::Report;
use crate::sample::{Role, Sample};
use crate::values::{Values, each};
use moe_core::ops::{ExpertDims, ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad, PackWeights};
use moe_core::{Elem, Error, Kernel, MoeDevice, Op, Scalar};

/// Asks whether the expert products of a device keep rows and experts apart.
pub fn check_independence<T: Scalar, D: MoeDevice<T>>(device: &D, report: &mut Report) {
    use Place::{OutIndex, Row, Slot};
    check_rows::<ExpertUp<T>, T, D>(device, report, &["index", "h", "a"], &[("h", Row), ("a", Row)]);
    check_rows::<ExpertDown<T>, T, D>(device, report, &["a", "out_index"], &[("y", OutIndex)]);
    let outputs = [("h", Row), ("a", Row), ("ds", Slot)];
    check_rows::<ExpertDownBwd<T>, T, D>(device, report, &["index", "h", "a"], &outputs);
    check_rows::<ExpertUpBwd<T>, T, D>(device, report, &["index", "dz", "out_index"], &[("dx", OutIndex)]);
    check_experts::<T, D>(device, report);
}

/// Where a row's result stands.
#[derive(Clone, Copy)]
enum Place {
    Row,
    OutIndex,
    Slot,
}

fn check_rows<O, T, D>(device: &D, report: &mut Report, by_row: &[&str], outputs: &[(&'static str, Place)])
where
    O: Case + Op<Dims = ExpertDims>,
    T: Scalar,
    D: Kernel<O> + Kernel<PackWeights<T>>,
{
    let mut random = Random::new(11);
    for sample in O::samples(&mut Random::new(7)) {
        let offsets = sample.arg("offsets").map(|arg| arg.values.get::<u32>().to_vec());
        let Some(offsets) = offsets.filter(|_| sample.arg("index").is_some() || by_row[0] != "index") else {
            continue;
        };
        let groups = offsets.windows(2).map(|bounds| {
            let rows = (bounds[0]..bounds[1]).rev();
            rows.filter(|_| random.below(2) == 0).collect()
        });
        let groups: Vec<Vec<u32>> = groups.collect();
        let (fewer, kept) = (thin(&sample, by_row, sample.dims.rows, &groups), groups.concat());
        for packed in forms::<O, T, D>(device, &sample) {
            let pair = match both::<O, T, D>(device, &sample, &fewer, *packed) {
                Ok(pair) => pair,
                Err(refusal) => {
                    report.fail(failure(&sample, "some of the rows", refusal.to_string()));
                    continue;
                }
            };
            let differs = outputs.iter().filter(|(name, _)| sample.arg(name).is_some());
            let differs = differs.into_iter().find(|(name, place)| {
                let at = |sample: &Sample<O>, row: usize| match place {
                    Place::Row => row,
                    Place::OutIndex => entry(sample, "out_index", row),
                    Place::Slot => entry(sample, "index", row),
                };
                let moves = kept.iter().enumerate();
                let moves = moves.map(|(new, old)| (at(&sample, *old as usize), at(&fewer, new)));
                let count = match place {
                    Place::Slot => sample.dims.slots(),
                    _ => sample.dims.rows,
                };
                !same_blocks(name, &pair, count, moves)
            });
            match differs {
                None => report.pass(O::ID),
                Some((name, _)) => {
                    let problem = "of a row has other bits when other rows are absent".into();
                    report.fail(failure(&sample, name, problem));
                }
            }
        }
    }
}

fn check_experts<T: Scalar, D: MoeDevice<T>>(device: &D, report: &mut Report) {
    type Wgrad<T> = ExpertWgrad<T>;
    for sample in Wgrad::<T>::samples(&mut Random::new(7)) {
        let (Some(offsets), Some(_)) = (sample.arg("offsets"), sample.arg("index")) else {
            continue;
        };
        let offsets = offsets.values.get::<u32>().to_vec();
        let experts = sample.dims.experts;
        let busiest = (0..experts).max_by_key(|expert| offsets[expert + 1] - offsets[*expert]);
        let Some(expert) = busiest else { continue };
        let mut groups = vec![Vec::new(); experts];
        groups[expert] = (offsets[expert]..offsets[expert + 1]).collect();
        let by_row = [
            "index",
            if sample.dims.gather_left { "" } else { "left" },
            if sample.dims.gather_right { "" } else { "right" },
        ];
        let alone = thin(&sample, &by_row, sample.dims.rows, &groups);
        match both::<Wgrad<T>, T, D>(device, &sample, &alone, false) {
            Err(refusal) => report.fail(failure(&sample, "one expert's rows", refusal.to_string())),
            Ok(pair) => {
                let mut names = ["dw", "dbias"].into_iter().filter(|name| sample.arg(name).is_some());
                match names.find(|name| !same_blocks(name, &pair, experts, [(expert, expert)])) {
                    None => report.pass(Wgrad::<T>::ID),
                    Some(name) => {
                        let problem = "of an expert has other bits when other experts have no rows".into();
                        report.fail(failure(&sample, name, problem));
                    }
                }
            }
        }
    }
}

/// The sample with these rows only: group by group, moved to the front of every argument that has one block per row.
fn thin<O: Case>(sample: &Sample<O>, by_row: &[&str], bound: usize, groups: &[Vec<u32>]) -> Sample<O> {
    fn pick<E: Elem>(values: &[E], bound: usize, kept: &[u32]) -> Values {
        let block = values.len().checked_div(bound).unwrap_or(0);
        let rows = kept.iter().map(|row| &values[*row as usize * block..][..block]);
        let mut picked: Vec<E> = rows.flatten().copied().collect();
        picked.extend(Values::poisoned::<E>(values.len() - picked.len()));
        Values::of(picked)
    }
    let mut thin = sample.clone();
    let kept = groups.concat();
    for name in by_row {
        if let Some(arg) = thin.arg_mut(name) {
            arg.values = each!(&arg.values, values => pick(values, bound, &kept));
        }
    }
    let mut offsets = vec![0];
    for group in groups {
        offsets.push(offsets[offsets.len() - 1] + group.len() as u32);
    }
    if let Some(arg) = thin.arg_mut("offsets") {
        arg.values = Values::of(offsets);
    }
    thin
}

fn entry<O: Case>(sample: &Sample<O>, index: &str, row: usize) -> usize {
    let index = sample.arg(index).map(|arg| arg.values.get::<u32>());
    index.map_or(row, |index| index[row] as usize)
}

/// Plain weights, and packed ones if the device has a layout of its own for them.
fn forms<O: Case, T: Scalar, D: Kernel<O>>(device: &D, sample: &Sample<O>) -> &'static [bool] {
    let own_layout = sample.args.iter().any(|arg| match arg.role {
        Role::Weight(dims) => device.packed_len::<T>(&dims) > 0,
        _ => false,
    });
    if own_layout { &[false, true] } else { &[false] }
}

type Pair = (Outputs, Outputs);

fn both<O, T, D>(
    device: &D,
    all: &Sample<O>,
    some: &Sample<O>,
    packed: bool,
) -> Result<Pair, Refusal<Error<D::Error>>>
where
    O: Case,
    T: Scalar,
    D: Kernel<O> + Kernel<PackWeights<T>>,
{
    let setup = Setup { packed, ..Setup::default() };
    Ok((launch_guarded::<O, T, D>(device, all, setup)?, launch_guarded::<O, T, D>(device, some, setup)?))
}

/// Whether blocks of one output, out of `count`, have the same bits at (place in the first, place in the second).
fn same_blocks(
    name: &str,
    (first, second): &Pair,
    count: usize,
    moves: impl IntoIterator<Item = (usize, usize)>,
) -> bool {
    let (Some(first), Some(second)) = (first.guarded(name), second.guarded(name)) else {
        return false;
    };
    let block = (first.len() - crate::views::GUARD).checked_div(count).unwrap_or(0);
    moves
        .into_iter()
        .all(|(a, b)| (0..block).all(|i| first.cell(a * block + i).bits == second.cell(b * block + i).bits))
}
