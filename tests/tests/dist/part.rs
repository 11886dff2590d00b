//! One rank of a step, and what a mistake in it would be.

use crate::alone::{Outcome, Step, cut, read, tensors};
use crate::cases::Case;
use crate::layout::Layout;
use moe_core::{
    ALL_TO_ALL, Axis, BalanceLoss, Batch, COUNTS, Collective, Error, Limits, MoeConfig, MoeDevice, MoeLayer,
    Reduce, Runner, Scalar, StateTensor, TENSORS, whole,
};
use moe_dist::World;
use moe_dist::gradients::Replicated;
use std::fmt::Debug;

/// A mistake, made in the wiring around the runner or in what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// the gate's gradient stays each rank's own
    GateNotSummed,
    /// every rank of tp adds the losses of all its tokens
    LossesOnEveryRank,
    /// each rank of etp puts the whole b2 into the gradient of the weights
    WholeBiasInWeights,
    /// the gradient of the shared experts' gate stays each rank's own
    SharedGateNotSummed,
    /// with etp = 1 every rank of tp routes all tokens
    TokensNotSliced,
}

/// What a rank had, with the paths that rows and counts took.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part<T: Scalar> {
    pub(crate) out: Outcome<T>,
    pub(crate) exchanges: Vec<(&'static str, u64)>,
    pub(crate) counts: u64,
}

/// The layer at a rank's place.
pub(crate) fn placed(case: &Case, layout: &Layout, rank: usize) -> MoeConfig {
    let (mesh, mut config) = (&layout.mesh, case.config);
    config.place = mesh.place(&mesh.seat(rank).expect("a rank of the mesh"), case.sequence_parallel);
    config
}

/// Runs the step of one rank, and sums its gradients over the mesh.
pub(crate) fn part<T: Scalar, D: MoeDevice<T>>(
    device: &D,
    world: &World,
    case: &Case,
    layout: &Layout,
    step: &Step<T>,
    mistake: Option<Mistake>,
) -> Part<T> {
    let mut make = |name, ranks: &[usize]| world.group(device, name, ranks);
    part_in(&mut make, device, world.rank(), case, layout, step, mistake)
}

/// As [`part`], in groups that `make` makes.
pub(crate) fn part_in<T: Scalar, D: MoeDevice<T>, C: Collective<D>, E: Debug + Into<Error<D::Error>>>(
    make: &mut impl FnMut(&'static str, &[usize]) -> Result<C, E>,
    device: &D,
    rank: usize,
    case: &Case,
    layout: &Layout,
    step: &Step<T>,
    mistake: Option<Mistake>,
) -> Part<T> {
    let mesh = &layout.mesh;
    let mut config = placed(case, layout, rank);
    let mut groups = mesh.groups_of(rank, make).expect("groups");
    let mut real_tp = None;
    match mistake {
        Some(Mistake::TokensNotSliced) => {
            let alone = make("alone", &[rank]).expect("a group");
            real_tp = Some(std::mem::replace(&mut groups.tp, alone));
            config.place.tp = Axis::ONE;
        }
        Some(Mistake::LossesOnEveryRank) => {
            let times = mesh.degrees().tp as f32;
            let balance = &mut config.balance;
            balance.z_loss *= times;
            if let Some(BalanceLoss::Sequence(c) | BalanceLoss::Batch(c)) = &mut balance.loss {
                *c *= times;
            }
        }
        _ => {}
    }
    let state = cut(&config, &step.state);
    let layer = MoeLayer::<D, T>::from_state(device, &config, state.clone()).expect("its own tensors");
    let backward = match mistake {
        Some(Mistake::WholeBiasInWeights) => {
            Some(with_bias_times::<T, D>(device, &config, state, mesh.degrees().etp))
        }
        _ => None,
    };
    let limits = Limits { padded: case.padded, ..Limits::training(layout.most()) };
    let mut runner = Runner::with_groups(device, &config, limits, groups).expect("a runner");
    let mut reduction = Replicated::new(runner.session(), mesh, rank, &[config], make).expect("groups");
    let (mut saved, mut grads) = (runner.saved(&config).expect("room"), layer.grads().expect("gradients"));
    let (tokens, sequences) = (layout.total(), layout.all().len());
    let group = layout.group(rank);
    let mut batch = Batch {
        sequences: &layout.parts(rank),
        whole_sequences: &layout.wholes(rank),
        split: &layout.split(rank),
        batch_tokens: Some(tokens),
        step_tokens: Some(case.repeats * tokens),
        step_sequences: Some(case.repeats * sequences),
        ..Batch::default()
    };
    batch.stamp.first_token = group.first().map_or(0, |token| *token as u64);
    runner.set_batch(&batch).expect("a good batch");
    let local = layout.local(rank);
    let [x, dy] =
        [&step.x, &step.dy].map(|rows| runner.upload(step.rows(rows, &local).view()).expect("rows"));
    let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
    let (mut losses, mut dropped) = ([0.0; 2], 0);
    for micro_batch in 0..case.repeats {
        if micro_batch == 0 {
            runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
        } else {
            runner.route(&layer, &x, &mut saved).expect("a routing");
            runner.experts(&layer, &x, &mut saved, &mut y).expect("the experts");
        }
        let figures = runner.figures(&saved).expect("figures");
        losses[0] += figures.balance_loss;
        losses[1] += figures.z_loss;
        dropped += figures.dropped;
        let layer = backward.as_ref().unwrap_or(&layer);
        runner.backward(layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
    }
    let mut inferred = runner.like(&x).expect("y");
    runner.forward(&layer, &x, &mut inferred).expect("inference");
    let [trained, inferred] = [&y, &inferred].map(|rows| read(runner.session(), rows.view()));
    assert_eq!(trained, inferred, "inference has the outputs of training");
    if let Some(mut tp) = real_tp {
        let stream = runner.session().stream();
        tp.all_reduce(stream, Reduce::Sum, y.view_mut()).expect("a sum");
        tp.all_reduce(stream, Reduce::Sum, dx.view_mut()).expect("a sum");
    }
    let ids = read(runner.session(), saved.routing().ids().expect("a routing"));
    let weights = read(runner.session(), saved.routing().weights().expect("a routing"));
    let own = tensors(runner.session(), &grads);
    reduction.reduce(runner.session(), &mut [&mut grads]).expect("sums");
    let mut sums = tensors(runner.session(), &grads);
    let kept: &[usize] = match mistake {
        Some(Mistake::GateNotSummed) => &[0],
        Some(Mistake::SharedGateNotSummed) => &[TENSORS - 1],
        _ => &[],
    };
    for tensor in kept {
        sums[*tensor].clone_from(&own[*tensor]);
    }
    let trace = runner.trace();
    let of = |op| trace.counts().iter().filter(move |(id, ..)| *id == op);
    Part {
        exchanges: of(ALL_TO_ALL).map(|(_, path, count)| (path.0, *count)).collect(),
        counts: of(COUNTS).map(|(.., count)| count).sum(),
        out: Outcome {
            y: read(runner.session(), y.view()),
            dx: read(runner.session(), dx.view()),
            ids,
            weights,
            grads: sums,
            load: read(runner.session(), whole::<D, u32>(&grads.load)),
            losses,
            dropped,
        },
    }
}

fn with_bias_times<T: Scalar, D: MoeDevice<T>>(
    device: &D,
    config: &MoeConfig,
    mut state: Vec<StateTensor>,
    times: usize,
) -> MoeLayer<D, T> {
    for tensor in state.iter_mut().filter(|tensor| tensor.name == "b2") {
        let mut values: Vec<T> = bytemuck::pod_collect_to_vec(&tensor.bytes);
        for value in &mut values {
            *value = T::narrow(value.widen() * <T::Acc as moe_core::Accum>::count(times));
        }
        tensor.bytes = bytemuck::cast_slice(&values).to_vec();
    }
    MoeLayer::from_state(device, config, state).expect("its own tensors")
}
