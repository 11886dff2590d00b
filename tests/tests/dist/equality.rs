//! A layer over eight ranks equals the layer in one process, on every mesh.

use crate::alone::{Outcome, Step};
use crate::cases::{Case, case, cases};
use crate::layout::{Layout, Shape};
use crate::part::{Mistake, Part, part, placed};
use crate::ranks::on_ranks;
use moe_core::ops::Activation;
use moe_core::{BalanceLoss, Host, MoeConfig, ScoreOrder, SharedExperts};
use moe_dist::mesh::{Degrees, Mesh, Span};
use std::collections::BTreeSet;

/// Runs a case on a mesh and compares every rank with one process.
///
/// # Errors
/// What differs.
pub(crate) fn run(case: &Case, mesh: Mesh, mistake: Option<Mistake>) -> Result<Vec<Part<f64>>, String> {
    let layout = Layout::new(mesh, case.shape, case.sequence_parallel);
    let step = Step::new(&Host, case, &layout);
    let want = step.alone(&Host, case, &layout);
    let parts = on_ranks(mesh.world(), |world| part(&Host, &world, case, &layout, &step, mistake));
    compare(case, &layout, &want, &parts).map_err(|what| {
        let (order, split) = (case.config.score_order, case.sequence_parallel);
        format!("{}, {order:?}, sequence parallel {split}, {:?}: {what}", case.name, mesh.degrees())
    })?;
    Ok(parts)
}

fn compare(case: &Case, layout: &Layout, want: &Outcome<f64>, parts: &[Part<f64>]) -> Result<(), String> {
    for (rank, part) in parts.iter().enumerate() {
        compare_rank(case, layout, want, rank, part)?;
    }
    // With etp = tp the ranks of tp route the same tokens, and drop the same slots.
    let copies = layout.mesh.degrees().etp as u64;
    let dropped: u64 = parts.iter().map(|part| part.out.dropped).sum();
    if dropped != copies * want.dropped || (want.dropped > 0 && case.config.capacity.is_none()) {
        return Err(format!("{dropped} slots dropped on {copies} copies, wanted {}", want.dropped));
    }
    if case.idle && want.load[..case.config.experts / 2].iter().any(|slots| *slots > 0) {
        return Err("no expert of the first half should have a token".to_owned());
    }
    for (at, what) in ["balancing loss", "z-loss"].into_iter().enumerate() {
        let sum: f64 = parts.iter().map(|part| part.out.losses[at]).sum();
        near(what, &[sum], &[want.losses[at]], &[want.losses[at]])?;
    }
    replicas(case, layout, parts)
}

/// Compares what one rank has with its part of the process alone.
///
/// # Errors
/// What differs.
pub(crate) fn compare_rank(
    case: &Case,
    layout: &Layout,
    want: &Outcome<f64>,
    rank: usize,
    Part { out, .. }: &Part<f64>,
) -> Result<(), String> {
    let width = case.config.width;
    let rows = |all: &[f64]| -> Vec<f64> {
        layout.local(rank).iter().flat_map(|token| all[token * width..][..width].to_vec()).collect()
    };
    near(&format!("rank {rank}: y"), &out.y, &rows(&want.y), &want.y)?;
    near(&format!("rank {rank}: dx"), &out.dx, &rows(&want.dx), &want.dx)?;
    let specs = placed(case, layout, rank).tensors();
    for ((spec, got), want) in specs.iter().zip(&out.grads).zip(&want.grads) {
        if let (Some(spec), Some(got), Some(want)) = (spec, got, want) {
            let part: Vec<f64> = spec.runs().flatten().map(|at| want[at]).collect();
            near(&format!("rank {rank}: gradient of {}", spec.name), got, &part, want)?;
        }
    }
    if out.load != want.load {
        return Err(format!("rank {rank}: load {:?}, wanted {:?}", out.load, want.load));
    }
    Ok(())
}

/// Whether values are those wanted, to 1e-12 of the largest of `scale`.
fn near(what: &str, got: &[f64], want: &[f64], scale: &[f64]) -> Result<(), String> {
    let largest = scale.iter().fold(1e-3_f64, |most, value| most.max(value.abs()));
    if got.len() != want.len() {
        return Err(format!("{what}: {} elements, wanted {}", got.len(), want.len()));
    }
    // A NaN is near nothing.
    let is_near = |(got, want): (&f64, &f64)| (got - want).abs() <= 1e-12 * largest;
    match got.iter().zip(want).position(|pair| !is_near(pair)) {
        Some(at) => Err(format!("{what}: element {at} is {}, wanted {}", got[at], want[at])),
        None => Ok(()),
    }
}

/// What several ranks have has the same bits on all of them.
fn replicas(case: &Case, layout: &Layout, parts: &[Part<f64>]) -> Result<(), String> {
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let specs: Vec<_> = (0..parts.len()).map(|rank| placed(case, layout, rank).tensors()).collect();
    for (rank, Part { out, .. }) in parts.iter().enumerate() {
        for tensor in 0..specs[rank].len() {
            let Some(spec) = specs[rank][tensor] else { continue };
            let same = |peer: &usize| specs[*peer][tensor].is_some_and(|peer| peer.runs().eq(spec.runs()));
            let Some(peer) = (0..rank).find(same) else { continue };
            let of = |out: &Outcome<f64>| out.grads[tensor].as_deref().map(bits);
            if of(out) != of(&parts[peer].out) {
                return Err(format!(
                    "ranks {peer} and {rank} have other bits in the gradient of {}",
                    spec.name
                ));
            }
        }
        let peer = layout.mesh.members(Span::Tp, rank)[0];
        let other = &parts[peer].out;
        if !case.sequence_parallel && (bits(&out.y), bits(&out.dx)) != (bits(&other.y), bits(&other.dx)) {
            return Err(format!("ranks {peer} and {rank} have other bits of the same tokens"));
        }
    }
    Ok(())
}

/// Every case, on every mesh of eight ranks that `chosen` takes.
fn on_meshes(chosen: impl Fn(&Degrees) -> bool) {
    let meshes: Vec<Mesh> = Mesh::all(8).into_iter().filter(|mesh| chosen(mesh.degrees())).collect();
    assert!(!meshes.is_empty());
    let (mut dropped, mut paths) = (0, BTreeSet::new());
    for mesh in meshes {
        for case in cases().into_iter().flat_map(each_way) {
            let parts = run(&case, mesh, None).unwrap_or_else(|what| panic!("{what}"));
            dropped += parts.iter().map(|part| part.out.dropped).sum::<u64>();
            paths.extend(parts.iter().flat_map(|part| &part.exchanges).map(|(path, _)| *path));
        }
    }
    assert!(dropped > 0, "a capacity that never drops says nothing");
    assert_eq!(Vec::from_iter(paths), ["equal", "padded", "variable"], "the paths that rows took");
}

/// A case with both orders of scores, and with tokens replicated over tp and split.
pub(crate) fn each_way(case: Case) -> impl Iterator<Item = Case> {
    let ways =
        [ScoreOrder::AfterExperts, ScoreOrder::BeforeExperts].map(|order| [(order, false), (order, true)]);
    ways.into_iter().flatten().map(move |(order, sequence_parallel)| {
        let mut case = Case { sequence_parallel, ..case.clone() };
        case.config.score_order = order;
        case
    })
}

#[test]
fn eight_ranks_form_67_meshes() {
    assert_eq!(Mesh::all(8).len(), 67);
}

#[test]
fn meshes_without_tensor_parallelism_equal_one_process() {
    on_meshes(|degrees| degrees.tp == 1);
}

#[test]
fn meshes_that_split_tokens_over_tp_equal_one_process() {
    on_meshes(|degrees| degrees.tp > 1 && degrees.etp == 1);
}

#[test]
fn meshes_that_split_experts_over_tp_equal_one_process() {
    on_meshes(|degrees| degrees.etp > 1);
}

/// The mistake is noticed where it is made, and without it nothing is.
fn is_caught(mistake: Mistake, degrees: Degrees, at: &str, change: impl FnOnce(&mut MoeConfig)) {
    let mesh = Mesh::new(8, degrees).expect("a mesh");
    let case = case("with a mistake", |case| {
        change(&mut case.config);
        case.shape = Shape::Ragged;
    });
    run(&case, mesh, None).expect("nothing is wrong yet");
    let what = run(&case, mesh, Some(mistake)).expect_err("a mistake that nobody notices");
    assert!(what.contains(&format!(": {at}: element")), "{what}");
}

const SPLIT_TOKENS: Degrees = Degrees { dp_replicate: 1, dp_shard: 2, cp: 1, tp: 4, ep: 4, etp: 1 };
const SPLIT_EXPERTS: Degrees = Degrees { dp_replicate: 1, dp_shard: 2, cp: 1, tp: 4, ep: 2, etp: 4 };

/// No sum but that over tp.
const ONLY_TP: Degrees = Degrees { dp_replicate: 1, dp_shard: 1, cp: 1, tp: 8, ep: 4, etp: 1 };

#[test]
fn a_gate_that_is_not_summed_is_caught() {
    for degrees in [SPLIT_TOKENS, SPLIT_EXPERTS, ONLY_TP] {
        is_caught(Mistake::GateNotSummed, degrees, "gradient of gate", |_| {});
    }
}

#[test]
fn losses_on_every_rank_of_tp_are_caught() {
    let by_sequence = |config: &mut MoeConfig| config.balance.loss = Some(BalanceLoss::Sequence(0.5));
    is_caught(Mistake::LossesOnEveryRank, SPLIT_EXPERTS, "dx", by_sequence);
    is_caught(Mistake::LossesOnEveryRank, SPLIT_EXPERTS, "dx", |config| config.balance.z_loss = 0.5);
}

#[test]
fn a_whole_bias_in_the_gradient_of_the_weights_is_caught() {
    is_caught(Mistake::WholeBiasInWeights, SPLIT_EXPERTS, "dx", |config| {
        config.expert_bias = true;
        config.activation = Activation::SwiGlu;
    });
}

#[test]
fn a_shared_gate_that_is_not_summed_is_caught() {
    let gated = |config: &mut MoeConfig| config.shared = Some(SharedExperts { hidden: 8, gated: true });
    for degrees in [SPLIT_TOKENS, SPLIT_EXPERTS, ONLY_TP] {
        is_caught(Mistake::SharedGateNotSummed, degrees, "gradient of shared.gate", gated);
    }
}

#[test]
fn tokens_that_are_not_sliced_are_caught() {
    is_caught(Mistake::TokensNotSliced, SPLIT_TOKENS, "y", |_| {});
}
