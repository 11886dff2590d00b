//! The group `dist`: a layer that is spread over many processes.
//!
//! The layer as a whole on all tokens; then the layer over ranks, each a thread with a runner of its own; and what no runner shows,
//! each process's share, by the rules that its layout states: the library runs the tokens that the process routes with the
//! process's part of the hidden width, and its rows are sorted, sent and merged. What a collective would do between processes, sums
//! and concatenations, is done there on the host.

mod exchange;
mod layout;
mod losses;
mod process;
mod ranks;
mod reduced;

use super::check::Check;
use super::layer::compare_whole;
use super::layer_spec::LayerSpec;
use super::rig::Rig;
use super::routing::PARAM;
use crate::fixture::Case;
use anyhow::Result;
use layout::Layout;
use losses::StepLosses;
use moe_core::{Balance, MoeDevice, Scalar};
use moe_dist::World;
use process::{Tokens, share};
use ranks::Spread;

/// A case as it is read.
struct Step<T> {
    spec: LayerSpec<T>,
    /// those of the spec's parameters, in their place
    gradients: LayerSpec<f32>,
    layout: Layout,
    all: Tokens<T>,
}

impl<T: Scalar<Acc = f32>> Step<T> {
    fn of(case: &Case) -> Result<Self> {
        let keys = case.keys();
        let [tokens, width] = case.dims("in.x")?;
        let spec = LayerSpec::of(case, &keys, PARAM, tokens)?;
        let gradients = LayerSpec::of(case, &keys, GRADIENT, tokens)?;
        keys.get("dtype");
        let layout = Layout::of(&keys, &spec, tokens)?;
        keys.finish()?;
        let shape = [tokens, width];
        let all = Tokens { x: case.scalars("in.x", &shape)?, dout: case.scalars("in.g", &shape)? };
        Ok(Self { spec, gradients, layout, all })
    }
}

/// What the names of the whole layer's gradients start with.
const GRADIENT: &str = "grad.";

/// Number of the ranks that a case is for.
///
/// # Errors
/// Fixture errors.
pub(crate) fn ranks<T: Scalar<Acc = f32>>(case: &Case) -> Result<usize> {
    Ok(Step::<T>::of(case)?.layout.spread().processes.len())
}

/// Compares what this rank of a case has.
///
/// # Errors
/// What keeps the case from being compared, and failures of other ranks.
pub(crate) fn check_rank<T, D>(rig: &Rig<D>, check: &mut Check<'_>, world: &World) -> Result<()>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T>,
{
    let Step { spec, gradients, layout, all } = Step::<T>::of(check.case)?;
    let layout = layout.spread();
    Spread { spec: &spec, gradients: &gradients, layout: &layout, all: &all }.compare_one(rig, check, world)
}

/// Compares one case.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<T, D>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T> + MoeDevice<f32>,
{
    let case = check.case;
    let Step { spec, gradients, layout, all } = Step::<T>::of(case)?;
    compare_whole(rig, check, &spec, all.x.len() / spec.experts.width)?;
    let losses = StepLosses::of(rig, &spec, &all.x)?;
    // The losses of a process are added from the whole step's counts.
    let routed = LayerSpec { balance: Balance::default(), ..spec.clone() };
    let mut shares = Vec::new();
    for process in &layout.processes {
        shares.push(share(rig, &routed, &layout, process, &all, losses.as_ref())?);
    }
    let counts: Vec<u32> = shares.iter().flat_map(|share| share.run.counts.clone()).collect();
    if case.find("exch.counts").is_some() {
        check.same("exch.counts", &counts)?;
    }
    exchange::compare::<T, D>(rig, check, &spec, &layout, &shares)?;
    reduced::compare(check, &spec, &layout, &shares)?;
    Spread { spec: &spec, gradients: &gradients, layout: &layout.spread(), all: &all }.compare(rig, check)?;
    tensor_parallel(rig, check, &routed, &layout, &all)
}

/// `tpJ.*` of cases by rank: the routed experts' part of each tensor-parallel rank, on all tokens.
fn tensor_parallel<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    check: &mut Check<'_>,
    spec: &LayerSpec<T>,
    layout: &Layout,
    all: &Tokens<T>,
) -> Result<()> {
    for rank in 0..layout.hidden_parts {
        let part = process::routed_part(rig, spec, layout, rank, all, 0)?;
        check.close_if_any(&format!("tp{rank}.out.routed_partial"), &part.run.y)?;
        for (name, values) in super::layer_spec::named(&part.spec, &part.run.gradients)? {
            check.close_if_any(&format!("tp{rank}.grad.{name}"), &values)?;
        }
    }
    Ok(())
}
