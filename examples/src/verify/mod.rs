//! The program `verify`: runs the library on reference data and compares.
//!
//! Every group of fixtures has a file of its own here, which runs the ops, or the layer, on the device that was asked for.
//! docs/verify.md describes the program.

mod aux;
mod check;
mod dispatch;
mod dist;
mod experts;
mod gradient;
mod grouped;
mod layer;
mod layer_run;
mod layer_spec;
mod moving;
mod padding;
mod report;
mod rig;
mod router;
mod routing;
mod train;
mod weights;

pub use report::{Difference, Line, Outcome, Skip, Summary};

use crate::device::AnyDevice;
use crate::fixture::{Case, Entry, FixtureError, walk};
use anyhow::Result;
use check::Check;
use half::{bf16, f16};
use moe_core::{DType, Scalar};
use moe_dist::World;
use rig::Rig;
use std::path::Path;

/// Verifies all fixtures below `folder` on `device`, and hands each line to `report`.
///
/// # Errors
/// If the folder cannot be read. What is wrong with a file is a line.
pub fn verify<D: AnyDevice>(
    device: &D,
    folder: &Path,
    mut report: impl FnMut(&Line),
) -> Result<Summary, FixtureError> {
    let mut summary = Summary::default();
    for entry in walk(folder)? {
        let line = match entry {
            Entry::Checkpoint(path) => {
                Line { name: shown(&path, folder), outcome: Outcome::Skipped(report::CHECKPOINT) }
            }
            Entry::File(path) => match Case::read(&path) {
                Ok(case) => Line { outcome: verify_case(device, &case), name: case.name },
                Err(error) => {
                    let why = format!("{:#}", anyhow::Error::from(error));
                    Line { name: shown(&path, folder), outcome: Outcome::Failed(why) }
                }
            },
        };
        summary.add(&line);
        report(&line);
    }
    Ok(summary)
}

/// Verifies one case.
pub fn verify_case<D: AnyDevice>(device: &D, case: &Case) -> Outcome {
    let outcome = match case.dtype() {
        Ok(DType::Bf16) => compared::<bf16, D>(device, case),
        Ok(DType::F16) => compared::<f16, D>(device, case),
        Ok(_) => compared::<f32, D>(device, case),
        Err(error) => Err(error.into()),
    };
    outcome.unwrap_or_else(|error| match error.downcast_ref() {
        Some(skip) => Outcome::Skipped(*skip),
        None => Outcome::Failed(format!("{error:#}")),
    })
}

/// Number of the ranks that a case of the group `dist` is for.
///
/// # Errors
/// What is wrong with the case.
pub fn ranks(case: &Case) -> Result<usize> {
    match case.dtype()? {
        DType::Bf16 => dist::ranks::<bf16>(case),
        DType::F16 => dist::ranks::<f16>(case),
        _ => dist::ranks::<f32>(case),
    }
}

/// Verifies what this rank of a world does of a case of the group `dist`. The others verify the same case at the same time.
pub fn verify_rank<D: AnyDevice>(device: &D, case: &Case, world: &World) -> Outcome {
    let verified = || {
        let (rig, mut check) = (Rig::new(device)?, Check::new(case, case.tolerances()?));
        match case.dtype()? {
            DType::Bf16 => dist::check_rank::<bf16, D>(&rig, &mut check, world),
            DType::F16 => dist::check_rank::<f16, D>(&rig, &mut check, world),
            _ => dist::check_rank::<f32, D>(&rig, &mut check, world),
        }?;
        anyhow::Ok(check.finish_part())
    };
    verified().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")))
}

fn compared<T: Scalar<Acc = f32>, D: AnyDevice + moe_core::MoeDevice<T>>(
    device: &D,
    case: &Case,
) -> Result<Outcome> {
    let training = case.group == "train";
    let tolerances = if training { train::tolerances(case)? } else { case.tolerances()? };
    let mut check = Check::new(case, tolerances);
    let rig = Rig::new(device)?;
    match case.group.as_str() {
        "router" => router::check::<T, D>(&rig, &mut check)?,
        "dispatch" => dispatch::check::<T, D>(&rig, &mut check)?,
        "experts" => experts::check::<T, D>(&rig, &mut check)?,
        "layer" => layer::check::<T, D>(&rig, &mut check)?,
        "dist" => dist::check::<T, D>(&rig, &mut check)?,
        "train" => train::check::<D>(&rig, &mut check)?,
        "aux" => aux::check::<D>(&rig, &mut check)?,
        group => anyhow::bail!("the group `{group}` is not known"),
    }
    Ok(check.finish())
}

/// A path as the report names it: below the folder that was asked for, without its extension.
fn shown(path: &Path, folder: &Path) -> String {
    let below = path.strip_prefix(folder).unwrap_or(path);
    let name = below.with_extension("").display().to_string();
    if name.is_empty() { path.display().to_string() } else { name }
}
