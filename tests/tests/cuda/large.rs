//! Layers of real sizes against f64, at sampled elements: tiles that are full and cut, uneven experts, some of them empty.

use crate::exact::Exact;
use crate::rig::{cuda, matrix};
use half::{bf16, f16};
use moe_core::ops::{ExpertDown, ExpertUp};
use moe_core::{
    DType, Device, Elem, In, MoeConfig, MoeDevice, MoeLayer, Op, Runner, Scalar, Sizes, Trace, whole,
};
use moe_cuda::Cuda;
use moe_tests::Random;

/// A layer and a number of tokens.
#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    sizes: Sizes,
    biases: bool,
    /// backwards before gradients are read; those after the first add to it
    passes: u32,
}

/// A number in `from..=to` that is `odd` more than a multiple of `step`.
fn number(random: &mut Random, from: usize, to: usize, step: usize, odd: usize) -> usize {
    let most = (to - from) / step;
    let base = from + step * random.below(most + 1);
    base.min(to - odd) / step * step + odd
}

impl Shape {
    /// A random one whose widths are `odd` more than multiples of `step`. Experts are few where they are large.
    fn random(seed: u64, step: usize, odd: usize) -> Self {
        let mut random = Random::new(seed);
        let tokens = number(&mut random, 1000, 8000, 1, 0);
        let width = number(&mut random, 256, 2048, step, odd);
        let hidden = number(&mut random, 128, 1536, step, odd);
        let mut experts = 4 + random.below(61);
        while experts > 4 && experts * width * hidden > 1 << 23 {
            experts /= 2;
        }
        let experts = experts.max(4);
        let top_k = 1 + random.below(8.min(experts / 2));
        Self { tokens, sizes: Sizes { width, hidden, experts, top_k }, biases: false, passes: 1 }
    }

    fn config(&self) -> MoeConfig {
        let mut config = MoeConfig::new(self.sizes).expect("a good layer");
        config.expert_bias = self.biases;
        config.selection_bias = true;
        // One normalised weight is 1, and the gate has no gradient.
        config.rule.normalize = self.sizes.top_k > 1;
        config
    }

    /// Experts that nothing is sent to.
    fn empty(&self) -> usize {
        self.sizes.experts / 4
    }

    fn text(&self) -> String {
        let Sizes { width, hidden, experts, top_k } = self.sizes;
        format!("T {}, D {width}, F {hidden}, E {experts}, K {top_k}", self.tokens)
    }
}

fn bytes<E: Elem>(values: &[E]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Random weights, biases that are not 0, and a selection bias that keeps the first experts empty and the others uneven.
fn layer<T: Scalar<Acc = f32>>(device: &Cuda, shape: &Shape) -> MoeLayer<Cuda, T>
where
    Cuda: MoeDevice<T>,
{
    let (config, mut random) = (shape.config(), Random::new(7));
    let mut state =
        MoeLayer::<Cuda, T>::init(device, &config, 6).and_then(|layer| layer.state()).expect("a layer");
    let spread = 1.0 / config.experts as f64;
    for tensor in &mut state {
        match tensor.name.as_str() {
            "selection_bias" => {
                let mut bias: Vec<f32> = random.scaled(config.experts, spread);
                bias[..shape.empty()].fill(-10.0);
                tensor.bytes = bytes(&bias);
            }
            "b13" | "b2" => {
                tensor.bytes = bytes(&random.scaled::<T>(tensor.bytes.len() / size_of::<T>(), 0.2))
            }
            _ => {}
        }
    }
    MoeLayer::from_state(device, &config, state).expect("its own tensors")
}

/// Sampled elements of one result.
struct Samples {
    what: &'static str,
    bound: f64,
    difference: f64,
    norm: f64,
}

impl Samples {
    fn new(what: &'static str, bound: f64) -> Self {
        Self { what, bound, difference: 0.0, norm: 0.0 }
    }

    fn add(&mut self, want: f64, got: impl Into<f64>) {
        self.difference += (got.into() - want).powi(2);
        self.norm += want.powi(2);
    }

    fn check(&self, shape: &str) {
        let error = (self.difference / self.norm).sqrt();
        println!("{shape}: {:8} {error:.2e}, bound {:.0e}", self.what, self.bound);
        assert!(error < self.bound, "{shape}: {} is off by {error:e}, more than {:e}", self.what, self.bound);
    }
}

/// What only sums in f32 have been through, of up to 8000 terms: a few 1e-6.
const SUMS: f64 = 1e-5;

/// The gate's gradient is such a sum; matrix units cut what they add where others round it.
const CUT_SUMS: f64 = 1e-4;

/// Results that were stored on their way: h, a, dz and the experts' rows lie in memory between products. Each time rounds by up to
/// 2^-9 (bf16) or 2^-12 (f16) of a value; the four or so on the longest way, independent of each other, make half of the bound.
fn bound<T: Scalar>() -> f64 {
    match T::DTYPE {
        DType::F32 => SUMS,
        DType::F16 => 2e-3,
        _ => 1e-2,
    }
}

/// The experts' path on this GPU: Hopper's reads lines 16 bytes at a time.
fn tiled<T: Scalar>(device: &Cuda, sizes: &Sizes) -> &'static str {
    let aligned = sizes.width.is_multiple_of(8) && sizes.hidden.is_multiple_of(8);
    match device.capability().0 {
        9 if aligned && T::DTYPE != DType::F32 => "hopper 128x256",
        8.. if T::DTYPE != DType::F32 => "mma 128x128",
        _ => "general 128x128",
    }
}

fn check_paths<T: Scalar>(device: &Cuda, shape: &Shape, trace: &Trace) {
    let few = shape.tokens * shape.sizes.top_k <= 512 && device.capability().0 >= 8;
    for (op, path, _) in trace.counts().iter().filter(|(op, ..)| op.0.starts_with("expert_")) {
        let forward = [ExpertUp::<T>::ID, ExpertDown::<T>::ID].contains(op);
        let want = if few && forward { "decode 32" } else { tiled::<T>(device, &shape.sizes) };
        assert_eq!(path.0, want, "{}: {op:?}", shape.text());
    }
    assert!(trace.launches(ExpertUp::<T>::ID) > 0, "the trace has the experts' launches");
}

/// Distinct places below `len`, the last among them: it lies in a tile that may be cut.
fn places(random: &mut Random, len: usize, count: usize) -> Vec<usize> {
    let mut places = vec![len - 1];
    while places.len() < count.min(len) {
        let place = random.below(len);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

fn agrees<T: Scalar<Acc = f32>>(device: &Cuda, shape: Shape)
where
    Cuda: MoeDevice<T>,
{
    let config = shape.config();
    let MoeConfig { width, hidden, experts, top_k, .. } = config;
    let layer = layer::<T>(device, &shape);
    let mut runner = Runner::new(device, &config, shape.tokens).expect("a runner");
    let (mut saved, mut grads) = (runner.saved(&config).expect("room"), layer.grads().expect("gradients"));
    let (x_host, dy_host) = (matrix::<T>(1, shape.tokens, width), matrix::<T>(2, shape.tokens, width));
    let (x, dy) = (runner.upload(x_host.view()).expect("x"), runner.upload(dy_host.view()).expect("dy"));
    let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
    // What an earlier step left in the gradients must go: x in the place of dy.
    runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
    runner.backward(&layer, &x, &mut saved, &x, &mut dx, &mut grads).expect("backward");
    grads.clear();
    for _ in 0..shape.passes {
        runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
        runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
    }
    check_paths::<T>(device, &shape, runner.trace());

    fn read<E: Elem, T: Scalar>(runner: &Runner<Cuda, T>, view: In<'_, Cuda, E>) -> Vec<E>
    where
        Cuda: MoeDevice<T>,
    {
        let mut values = vec![E::default(); view.len()];
        runner.device().download(runner.session().stream(), view, &mut values).expect("a download");
        values
    }
    let weights = layer.weights().expect("a layer for training");
    let half = |buffer: &_| read::<T, T>(&runner, whole::<Cuda, T>(buffer));
    let full = |buffer: &_| read::<f32, T>(&runner, whole::<Cuda, f32>(buffer));
    let routing = saved.routing();
    let exact = Exact {
        config,
        x: x_host.iter().copied().collect(),
        dy: dy_host.iter().copied().collect(),
        gate: half(&weights.gate),
        selection_bias: full(layer.selection_bias().expect("it has one")),
        w13: half(&weights.w13),
        b13: weights.b13.as_ref().map_or_else(Vec::new, half),
        w2: half(&weights.w2),
        b2: weights.b2.as_ref().map_or_else(Vec::new, half),
        ids: read(&runner, routing.ids().expect("ids")),
        weights: read(&runner, routing.weights().expect("weights")),
        dweights: read(&runner, runner.dweights(&saved).expect("their gradients")),
        logits: read(&runner, routing.logits().expect("logits")),
    };
    let (y, dx) = (read(&runner, y.view()), read(&runner, dx.view()));
    let load = read::<u32, T>(&runner, whole::<Cuda, u32>(&grads.load));
    let grads = &grads.weights;
    let (dgate, dw13, dw2) = (full(&grads.gate), full(&grads.w13), full(&grads.w2));
    let (db13, db2) = (grads.b13.as_ref().map(full), grads.b2.as_ref().map(full));

    let text = format!("{} {}", T::DTYPE, shape.text());
    let (bound, mut random) = (bound::<T>(), Random::new(11));
    let names = ["y", "dx", "dweights", "dw13", "dw2", "db13"];
    let [mut of_y, mut of_dx, mut of_dweights, mut of_dw13, mut of_dw2, mut of_db13] =
        names.map(|name| Samples::new(name, bound));
    let [mut of_weights, mut of_db2] = ["weights", "db2"].map(|name| Samples::new(name, SUMS));
    let mut of_dgate = Samples::new("dgate", if T::DTYPE == DType::F32 { SUMS } else { CUT_SUMS });
    let wide = |value: T| f64::from(value.widen());
    for token in places(&mut random, shape.tokens, 16) {
        let columns = places(&mut random, width, 20);
        let want = exact.token(token, &columns);
        assert!(want.regret < 1e-5, "{text}: token {token} missed an expert by {}", want.regret);
        for (n, &column) in columns.iter().enumerate() {
            of_y.add(want.y[n], wide(y[token * width + column]));
            of_dx.add(want.dx[n], wide(dx[token * width + column]));
        }
        for k in 0..top_k {
            of_weights.add(want.weights[k], exact.weights[token * top_k + k]);
            of_dweights.add(want.dweights[k], exact.dweights[token * top_k + k]);
        }
    }

    let times = f64::from(shape.passes);
    let busiest = (0..experts).max_by_key(|e| load[*e]).expect("it has experts");
    let sampled = [busiest, experts - 1, shape.empty() + random.below(experts - shape.empty())];
    for expert in sampled {
        let (lines, columns) = (places(&mut random, hidden, 4), places(&mut random, width, 20));
        let want = exact.expert(expert, &lines, &columns);
        for (c, &column) in columns.iter().enumerate() {
            for (n, &f) in lines.iter().enumerate() {
                let at = n * columns.len() + c;
                let up = |line: usize| dw13[(expert * 2 * hidden + line) * width + column];
                of_dw13.add(times * want.gate_half[at], up(f));
                of_dw13.add(times * want.up_half[at], up(hidden + f));
                of_dw2.add(times * want.down[at], dw2[(expert * width + column) * hidden + f]);
            }
            if let Some(db2) = &db2 {
                of_db2.add(times * want.b2[c], db2[expert * width + column]);
            }
        }
        if let Some(db13) = &db13 {
            for (n, &f) in lines.iter().enumerate() {
                of_db13.add(times * want.b13[0][n], db13[2 * expert * hidden + f]);
                of_db13.add(times * want.b13[1][n], db13[(2 * expert + 1) * hidden + f]);
            }
        }
    }
    let columns = places(&mut random, width, 60);
    for (at, want) in exact.dgate(&sampled, &columns).into_iter().enumerate() {
        let place = sampled[at / columns.len()] * width + columns[at % columns.len()];
        of_dgate.add(times * want, dgate[place]);
    }
    for samples in [&of_y, &of_dx, &of_weights, &of_dweights, &of_dw13, &of_dw2, &of_dgate] {
        samples.check(&text);
    }
    if shape.biases {
        of_db13.check(&text);
        of_db2.check(&text);
    }
    let empty = shape.empty();
    assert!(load[..empty].iter().all(|load| *load == 0), "{text}: these experts were to be empty");
    let (up, down) = (empty * 2 * hidden * width, empty * hidden * width);
    let zero = |values: &[f32]| values.iter().all(|value| *value == 0.0);
    assert!(zero(&dw13[..up]) && zero(&dw2[..down]), "{text}: an empty expert has a gradient");
}

#[test]
fn large_aligned_layers_agree_with_f64() {
    let Some(device) = cuda("large_aligned_layers_agree_with_f64") else { return };
    agrees::<bf16>(device, Shape::random(1, 64, 0));
    agrees::<bf16>(device, Shape::random(32, 64, 0));
    agrees::<f16>(device, Shape::random(42, 64, 0));
    agrees::<f32>(device, Shape::random(39, 64, 0));
}

#[test]
fn layers_with_cut_tiles_agree_with_f64() {
    let Some(device) = cuda("layers_with_cut_tiles_agree_with_f64") else { return };
    agrees::<bf16>(device, Shape::random(5, 64, 8));
    agrees::<f16>(device, Shape::random(20, 64, 40));
    agrees::<f32>(device, Shape::random(24, 64, 24));
}

#[test]
fn odd_layers_agree_with_f64() {
    let Some(device) = cuda("odd_layers_agree_with_f64") else { return };
    agrees::<bf16>(device, Shape::random(40, 64, 1));
    agrees::<f16>(device, Shape::random(3, 64, 37));
    agrees::<f32>(device, Shape::random(47, 64, 63));
}

#[test]
fn large_layers_with_biases_add_up_as_in_f64() {
    let Some(device) = cuda("large_layers_with_biases_add_up_as_in_f64") else { return };
    let summed = |seed, odd| Shape { biases: true, passes: 2, ..Shape::random(seed, 64, odd) };
    agrees::<bf16>(device, summed(11, 0));
    agrees::<bf16>(device, summed(19, 0));
    agrees::<bf16>(device, summed(3, 3));
    agrees::<f16>(device, summed(42, 16));
    agrees::<f32>(device, summed(20, 0));
}

#[test]
fn few_tokens_agree_with_f64() {
    let Some(device) = cuda("few_tokens_agree_with_f64") else { return };
    let few = |biases| {
        let sizes = Sizes { width: 1024, hidden: 512, experts: 32, top_k: 4 };
        Shape { tokens: 48, sizes, biases, passes: 1 }
    };
    agrees::<bf16>(device, few(false));
    agrees::<f16>(device, few(true));
    agrees::<f32>(device, few(false));
}
