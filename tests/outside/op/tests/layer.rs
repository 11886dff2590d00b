//! The activation and the router in a layer: gradients by finite differences in f64, and the CPU beside the reference.

use moe_core::ndarray::Array2;
use moe_core::{
    Accum, Device, Error, Host, HostError, Kernel, MoeConfig, MoeDevice, MoeLayer, Rows, Runner, Saved,
    Scalar, Sizes, Tensors,
};
use moe_cpu::Cpu;
use moe_tests::Random;
use reglu::{Experts, ReGlu, ReGluBwd, hash_route};

const TOKENS: usize = 6;
const SIZES: Sizes = Sizes { width: 4, hidden: 3, experts: 4, top_k: 2 };
const STEP: f64 = 1e-6;

/// A layer with ReGlu experts behind a router by hash.
struct Model<D: Device, T: Scalar> {
    layer: MoeLayer<D, T>,
    runner: Runner<D, T>,
    saved: Saved<D, T>,
    experts: Experts<D, T>,
    ids: Vec<u32>,
    weights: Vec<T::Acc>,
    x: Rows<D, T>,
    y: Rows<D, T>,
}

impl<T: Scalar, D: MoeDevice<T> + Kernel<ReGlu<T>> + Kernel<ReGluBwd<T>>> Model<D, T> {
    fn new(device: &D) -> Result<Self, Error<D::Error>> {
        let config = MoeConfig::new(SIZES)?;
        let layer = MoeLayer::init(device, &config, 5)?;
        let mut runner = Runner::new(device, &config, TOKENS)?;
        let saved = runner.saved(&config)?;
        let experts = Experts::new(&mut runner, &config)?;
        let (ids, weights) = hash_route(&[3, 14, 15, 92, 65, 35], SIZES.top_k, SIZES.experts);
        let weights = weights.into_iter().map(|weight| T::Acc::of(weight.into())).collect();
        let x = runner.upload(values(1).view())?;
        let y = runner.like(&x)?;
        Ok(Self { layer, runner, saved, experts, ids, weights, x, y })
    }

    fn forward(&mut self) -> Result<Array2<T>, Error<D::Error>> {
        let Self { layer, runner, saved, experts, ids, weights, x, y } = self;
        runner.adopt(layer, x, ids, weights, saved)?;
        experts.forward(runner, layer, x, saved, y)?;
        runner.download(y)
    }

    /// dx for a loss `<dy, y>`; the other gradients are in `experts`.
    fn backward(&mut self, dy: &Array2<T>) -> Result<Array2<T>, Error<D::Error>> {
        let Self { layer, runner, saved, experts, x, .. } = self;
        let (dy, mut dx) = (runner.upload(dy.view())?, runner.like(x)?);
        experts.backward(runner, layer, x, saved, &dy, &mut dx)?;
        runner.download(&dx)
    }
}

fn values<T: Scalar>(seed: u64) -> Array2<T> {
    let values = Random::new(seed).values(TOKENS * SIZES.width);
    Array2::from_shape_vec((TOKENS, SIZES.width), values).unwrap()
}

/// The slope of the loss `<dy, y>` as `change` moves something by its second argument.
fn slope(
    model: &mut Model<Host, f64>,
    dy: &Array2<f64>,
    change: impl Fn(&mut Model<Host, f64>, f64),
) -> Result<f64, Error<HostError>> {
    change(model, STEP);
    let above = (model.forward()? * dy).sum();
    change(model, -2.0 * STEP);
    let below = (model.forward()? * dy).sum();
    change(model, STEP);
    Ok((above - below) / (2.0 * STEP))
}

#[track_caller]
fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-8, "got {got}, wanted {want}");
}

#[test]
fn every_gradient_is_a_slope() -> Result<(), Error<HostError>> {
    let (mut model, dy) = (Model::new(&Host)?, values(2));
    model.forward()?;
    let dx = model.backward(&dy)?;
    let Experts { dw13, dw2, dweights, .. } = &model.experts;
    let (dw13, dw2, dweights) = (dw13.clone(), dw2.clone(), dweights.clone());
    for (at, dx) in dx.indexed_iter() {
        let wanted = slope(&mut model, &dy, |model, by| {
            let mut x = model.runner.download(&model.x).unwrap();
            x[at] += by;
            model.runner.write(x.view(), &mut model.x).unwrap();
        })?;
        near(*dx, wanted);
    }
    for (slot, dweight) in dweights.iter().enumerate() {
        near(*dweight, slope(&mut model, &dy, |model, by| model.weights[slot] += by)?);
    }
    for (at, dw) in dw13.iter().enumerate() {
        let wanted = slope(&mut model, &dy, |model, by| moved(model, |weights| weights.w13[at] += by))?;
        near(*dw, wanted);
    }
    for (at, dw) in dw2.iter().enumerate() {
        let wanted = slope(&mut model, &dy, |model, by| moved(model, |weights| weights.w2[at] += by))?;
        near(*dw, wanted);
    }
    Ok(())
}

fn moved(model: &mut Model<Host, f64>, change: impl FnOnce(&mut Tensors<Host, f64>)) {
    let Model { layer, runner, .. } = model;
    let changed = layer.update(runner, |weights, _| {
        change(weights);
        Ok(())
    });
    changed.unwrap();
}

#[test]
fn the_cpu_agrees_with_the_reference() {
    fn run<D: MoeDevice<f32> + Kernel<ReGlu<f32>> + Kernel<ReGluBwd<f32>>>(
        device: &D,
    ) -> Result<[Array2<f32>; 2], Error<D::Error>> {
        let mut model = Model::new(device)?;
        Ok([model.forward()?, model.backward(&values(2))?])
    }
    let (cpu, host) = (run(&Cpu::new().unwrap()).unwrap(), run(&Host).unwrap());
    for (cpu, host) in cpu.iter().flatten().zip(host.iter().flatten()) {
        assert!((cpu - host).abs() < 1e-5, "{cpu} {host}");
    }
}

#[test]
fn the_layers_own_experts_follow_another_router() -> Result<(), Error<HostError>> {
    let (mut model, dy) = (Model::<Host, f64>::new(&Host)?, values(2));
    let mut grads = model.layer.grads()?;
    let fused = |model: &mut Model<Host, f64>| {
        let Model { layer, runner, saved, ids, weights, x, y, .. } = model;
        runner.adopt(layer, x, ids, weights, saved)?;
        runner.experts(layer, x, saved, y)?;
        Ok::<f64, Error<HostError>>((runner.download(y)? * &dy).sum())
    };
    fused(&mut model)?;
    let Model { layer, runner, saved, x, .. } = &mut model;
    let (dy_rows, mut dx) = (runner.upload(dy.view())?, runner.like(x)?);
    runner.experts_backward(layer, x, saved, &dy_rows, &mut dx, &mut grads)?;
    let dweights = runner.dweights(saved)?.host().to_vec();
    for (slot, dweight) in dweights.into_iter().enumerate() {
        model.weights[slot] += STEP;
        let above = fused(&mut model)?;
        model.weights[slot] -= 2.0 * STEP;
        let below = fused(&mut model)?;
        model.weights[slot] += STEP;
        near(dweight, (above - below) / (2.0 * STEP));
    }
    Ok(())
}
