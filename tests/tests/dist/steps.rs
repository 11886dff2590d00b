//! Optimizer steps on a mesh: parameters whole or in shards, against one process that has all tokens.

use crate::ranks::{on_ranks, placed};
use moe_core::ndarray::{Array2, s};
use moe_core::ops::Activation;
use moe_core::{
    AdamW, AdamWOptions, Host, Limits, MoeConfig, MoeLayer, Runner, Scalar, SharedExperts, Sizes,
    StateTensor, TensorSpec,
};
use moe_dist::World;
use moe_dist::fsdp::Fsdp;
use moe_dist::gradients::{Replicated, clip};
use moe_dist::mesh::{Degrees, Mesh, Span};
use moe_tests::Random;
use std::ops::Range;

const STEPS: u64 = 3;
const TOKENS: usize = 37;
/// Small enough to bite.
const CLIP: f64 = 0.5;
const LR: f64 = 0.05;
/// Large, so that a gradient near 0 does not turn rounding into a step of its own.
const ADAM: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.95, eps: 0.1, weight_decay: 0.1 };

/// A layer with every parameter that there can be.
pub(crate) fn config() -> MoeConfig {
    let mut config = MoeConfig::new(Sizes { width: 12, hidden: 8, experts: 8, top_k: 2 }).expect("a layer");
    config.gate_bias = true;
    config.expert_bias = true;
    config.activation = Activation::SwiGlu;
    config.selection_bias = true;
    config.balance.bias_rate = 0.01;
    config.shared = Some(SharedExperts { hidden: 8, gated: true });
    config
}

/// How parameters lie on their ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kept {
    Whole,
    Sharded,
}

/// What a rank has at the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) state: Vec<StateTensor>,
    pub(crate) norms: Vec<f64>,
}

/// Tokens and the gradients of their outputs in a step.
fn data<T: Scalar>(step: u64, width: usize) -> [Array2<T>; 2] {
    [0, 1].map(|which| {
        let values = Random::new(7 + 2 * step + which).scaled(TOKENS * width, 1.0);
        Array2::from_shape_vec((TOKENS, width), values).expect("the shape of the values")
    })
}

/// A layer whose biases are not 0, so that they count: the whole's values at the place of `config`.
fn layer<T: Scalar>(config: &MoeConfig) -> MoeLayer<Host, T>
where
    Host: moe_core::MoeDevice<T>,
{
    let mut whole =
        MoeLayer::<Host, T>::init(&Host, &config.whole(), 3).expect("a layer").state().expect("its state");
    let part = MoeLayer::<Host, T>::init(&Host, config, 3).expect("a part").state().expect("its state");
    for (tensor, mut random) in whole.iter_mut().zip((0..).map(Random::new)) {
        if matches!(tensor.name.as_str(), "gate_bias" | "b13" | "b2") {
            let values = random.scaled::<T>(tensor.bytes.len() / size_of::<T>(), 0.3);
            tensor.bytes = bytemuck::cast_slice(&values).to_vec();
        }
    }
    let cut = part.into_iter().zip(whole).map(|(part, whole)| {
        let bytes = spec(config, &part.name).map_or(whole.bytes.clone(), |spec| at(&spec, &whole));
        StateTensor { bytes, ..part }
    });
    MoeLayer::from_state(&Host, config, cut).expect("its own tensors")
}

fn spec(config: &MoeConfig, name: &str) -> Option<TensorSpec> {
    config.tensors().into_iter().flatten().find(|spec| spec.name == name)
}

/// The bytes of a whole tensor where a rank's part stands.
fn at(spec: &TensorSpec, whole: &StateTensor) -> Vec<u8> {
    let size = whole.dtype.size();
    spec.runs().flat_map(|run| whole.bytes[run.start * size..run.end * size].to_vec()).collect()
}

/// The steps in one process.
pub(crate) fn alone<T: Scalar>(config: &MoeConfig) -> End
where
    Host: moe_core::MoeDevice<T>,
{
    let mut layer = layer::<T>(config);
    let mut runner = Runner::new(&Host, config, TOKENS).expect("a runner");
    let (mut saved, mut grads) = (runner.saved(config).expect("room"), layer.grads().expect("gradients"));
    let mut adam = AdamW::with_options(&layer, ADAM).expect("an optimizer");
    let mut norms = Vec::new();
    for step in 0..STEPS {
        let [x, dy] = data::<T>(step, config.width).map(|rows| runner.upload(rows.view()).expect("rows"));
        let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
        runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
        runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
        let norm = runner.sum_squares(&grads).expect("squares").sqrt();
        adam.step_scaled(&mut runner, &mut layer, &mut grads, LR, clip(norm, CLIP)).expect("a step");
        norms.push(norm);
    }
    End { state: layer.state().expect("its state"), norms }
}

/// The steps of one rank.
pub(crate) fn rank<T: Scalar>(world: &World, mesh: &Mesh, config: &MoeConfig, kept: Kept) -> End
where
    Host: moe_core::MoeDevice<T>,
{
    let rank = world.rank();
    let at = mesh.seat(rank).expect("a rank of the mesh");
    let config = placed(config, mesh, rank);
    let mut make = |name, ranks: &[usize]| world.group(&Host, name, ranks);
    let groups = mesh.groups_of(rank, &mut make).expect("groups");
    let mut layer = layer::<T>(&config);
    let own = tokens(mesh, mesh.place_in(Span::Data, &at));
    let limits = Limits::training(TOKENS);
    let mut runner = Runner::with_groups(&Host, &config, limits, groups).expect("a runner");
    let (mut saved, mut grads) = (runner.saved(&config).expect("room"), layer.grads().expect("gradients"));
    let mut adam = AdamW::with_options(&layer, ADAM).expect("an optimizer");
    let session = runner.session();
    let mut whole = Replicated::new(session, mesh, rank, &[config], &mut make).expect("groups");
    let mut fsdp = Fsdp::new(session, mesh, rank, &config, 1, &mut make).expect("groups");
    let mut shards = fsdp.shard(session, &layer, ADAM).expect("shards");
    let mut norms = Vec::new();
    for step in 0..STEPS {
        let [x, dy] = data::<T>(step, config.width)
            .map(|rows| runner.upload(rows.slice(s![own.clone(), ..]).view()).expect("rows"));
        let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
        runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
        runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
        let norm = match kept {
            Kept::Whole => {
                whole.reduce(runner.session(), &mut [&mut grads]).expect("sums");
                let norm = whole.norm(runner.session_mut(), &[&grads], 0.0).expect("a norm");
                adam.step_scaled(&mut runner, &mut layer, &mut grads, LR, clip(norm, CLIP)).expect("a step");
                norm
            }
            Kept::Sharded => {
                fsdp.reduce(runner.session(), &mut [&mut shards], &mut [&mut grads]).expect("sums");
                let norm = fsdp.norm(runner.session_mut(), &[&shards], 0.0).expect("a norm");
                let scale = clip(norm, CLIP);
                fsdp.step(&mut runner, &mut layer, &mut shards, &mut grads, LR, scale).expect("a step");
                norm
            }
        };
        norms.push(norm);
    }
    End { state: layer.state().expect("its state"), norms }
}

/// The tokens of a rank of the data axes: ragged, and none for the last of more than 4.
fn tokens(mesh: &Mesh, data: usize) -> Range<usize> {
    let ranks = mesh.dp() * mesh.degrees().cp;
    let parts = if ranks > 4 { ranks - 1 } else { ranks };
    let start = |data: usize| data.min(parts) * TOKENS / parts;
    start(data)..start(data + 1)
}

/// Every tensor of every rank is its part of the whole; equal parts have equal bits, and all ranks the same norms.
fn expect_equal(mesh: &Mesh, kept: Kept, config: &MoeConfig, want: &End, ranks: &[End]) {
    for (rank, end) in ranks.iter().enumerate() {
        let what = format!("rank {rank} of {mesh:?}, {kept:?}");
        assert_eq!(end.norms, ranks[0].norms, "{what}");
        expect_part(&what, &placed(config, mesh, rank), want, end);
        for tensor in &end.state {
            let runs = |rank| {
                let spec = spec(&placed(config, mesh, rank), &tensor.name)?;
                Some(spec.runs().collect::<Vec<_>>())
            };
            if let Some(copy) = (0..rank).find(|&peer| runs(peer) == runs(rank)) {
                let of_copy = ranks[copy].state.iter().find(|other| other.name == tensor.name);
                assert_eq!(of_copy, Some(tensor), "{what}: rank {copy} has other bits");
            }
        }
    }
}

/// What a rank has is its part of what one process has.
pub(crate) fn expect_part(what: &str, config: &MoeConfig, want: &End, end: &End) {
    for (got, want) in end.norms.iter().zip(&want.norms) {
        assert!((got - want).abs() <= 1e-12 * want, "{what}: norm {got}, wanted {want}");
    }
    for (tensor, whole) in end.state.iter().zip(&want.state) {
        let Some(spec) = spec(config, &tensor.name) else {
            assert_eq!(tensor, whole, "{what}");
            continue;
        };
        let values = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, f64>(bytes);
        for (got, want) in values(&tensor.bytes).into_iter().zip(values(&at(&spec, whole))) {
            let name = &tensor.name;
            assert!((got - want).abs() <= 1e-12 * (1.0 + want.abs()), "{what}: {name} {got}, wanted {want}");
        }
    }
}

#[test]
fn steps_on_every_mesh_are_those_of_one_process() {
    let config = config();
    let want = alone::<f64>(&config);
    for mesh in [2, 6, 8].into_iter().flat_map(Mesh::all).filter(|mesh| fits(mesh, &config)) {
        for kept in [Kept::Whole, Kept::Sharded] {
            let ranks = on_ranks(mesh.world(), |world| rank::<f64>(&world, &mesh, &config, kept));
            expect_equal(&mesh, kept, &config, &want, &ranks);
        }
    }
}

/// Whether the layer's sizes are divided.
fn fits(mesh: &Mesh, config: &MoeConfig) -> bool {
    placed(config, mesh, 0).validate().is_ok()
}

#[test]
fn more_shards_than_experts_cut_inside_the_experts() {
    let mut config = config();
    config.experts = 3;
    let want = alone::<f64>(&config);
    let mesh = Mesh::new(5, Degrees { dp_shard: 5, ..Degrees::default() }).expect("a mesh");
    let ranks = on_ranks(5, |world| rank::<f64>(&world, &mesh, &config, Kept::Sharded));
    expect_equal(&mesh, Kept::Sharded, &config, &want, &ranks);
}
