//! State: saving, loading, and moving between devices.

use crate::devices::{HOST, cpu, on_every_device};
use crate::step::{Outcome, layer, stamped, step, step_with, tokens};
use crate::variants::{WIDTH, variants};
use half::{bf16, f16};
use moe_core::ndarray::Array2;
use moe_core::ops::MoeDevice;
use moe_core::{Accum, AdamW, AdamWOptions, Grads, MoeConfig, MoeLayer, Runner, Scalar, whole_mut};
use moe_tests::{Tolerance, Values};

/// A layer in training, and everything that a checkpoint must bring back.
struct Training<T: Scalar, D: MoeDevice<T>> {
    layer: MoeLayer<D, T>,
    adam: AdamW<D, T>,
}

impl<T: Scalar, D: MoeDevice<T>> Training<T, D> {
    fn step(&mut self, seed: u64) -> Outcome<T> {
        let mut runner = Runner::new(self.layer.device(), self.layer.config(), 9).expect("a runner");
        let mut grads: Grads<D, T> = self.layer.grads().expect("gradients");
        let (x, dy) = (tokens::<T>(seed, 9, WIDTH), tokens::<T>(seed + 1, 9, WIDTH));
        let outcome = step_with(&mut runner, &self.layer, &mut grads, &stamped(), x.view(), dy.view());
        self.adam.step(&mut runner, &mut self.layer, &mut grads, 0.01).expect("a step");
        // What comes next is another stream's.
        runner.session().sync().expect("no fault");
        outcome
    }
}

fn training_resumes<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for (variant, config) in variants() {
        let layer = layer::<T, D>(device, &config);
        let adam = AdamW::new(&layer).expect("an optimizer");
        let mut kept = Training { layer, adam };
        kept.step(1);
        kept.step(3);
        let (weights, moments) =
            (kept.layer.state().expect("a state"), kept.adam.state(&kept.layer).expect("a state"));
        let layer = MoeLayer::<D, T>::from_state(device, &config, weights.clone()).expect("its own state");
        assert_eq!(layer.state().expect("a state"), weights, "{variant}");
        let adam =
            AdamW::from_state(&layer, AdamWOptions::default(), moments.clone()).expect("its own state");
        assert_eq!(adam.state(&layer).expect("a state"), moments, "{variant}");
        let mut loaded = Training { layer, adam };
        for seed in [5, 7] {
            assert_eq!(kept.step(seed), loaded.step(seed), "{variant}");
        }
        assert_eq!(kept.layer.state().expect("a state"), loaded.layer.state().expect("a state"), "{variant}");
        assert_eq!(loaded.adam.steps(), 4);
    }
}
on_every_device!(training_resumes_with_the_same_bits => training_resumes);

fn close<T: Scalar>(variant: &str, name: &str, tolerance: Tolerance, want: &[T], got: &[T]) {
    let (want, got) = (Values::of(want.to_vec()), Values::of(got.to_vec()));
    let mismatch = tolerance.compare(&want, &got);
    assert_eq!(mismatch, None, "{variant}: {name}");
}

fn moves_to_cpu<T: Scalar>()
where
    moe_cpu::Cpu: MoeDevice<T>,
{
    let device = cpu(2);
    for (variant, config) in variants() {
        let there = layer::<T, _>(&HOST, &config);
        let here =
            MoeLayer::from_state(&device, &config, there.state().expect("a state")).expect("its state");
        assert_eq!(here.state().expect("a state"), there.state().expect("a state"), "{variant}");
        let (x, dy) = (tokens::<T>(1, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
        let (want, got) =
            (step(&there, &stamped(), x.view(), dy.view()), step(&here, &stamped(), x.view(), dy.view()));
        assert_eq!((&want.ids, &want.load), (&got.ids, &got.load), "{variant}");
        assert_eq!(want.figures.dropped, got.figures.dropped, "{variant}");
        close(&variant, "y", Tolerance::stored::<T>(), &want.y, &got.y);
        // Gradients pass through several products, each rounded to the storage type.
        let tolerance = Tolerance::gradient::<T>().floor(0.05);
        close(&variant, "dx", tolerance, &want.dx, &got.dx);
        for ((name, want), (_, got)) in want.grads.iter().zip(&got.grads) {
            close(&variant, name, tolerance, want, got);
        }
    }
}

#[test]
fn a_layer_moved_to_another_device_computes_the_same() {
    moves_to_cpu::<f32>();
    moves_to_cpu::<bf16>();
    moves_to_cpu::<f16>();
}

#[test]
fn equal_seeds_give_equal_weights_on_every_device() {
    for (variant, config) in variants() {
        let state = |seed| MoeLayer::<_, f32>::init(&HOST, &config, seed).and_then(|layer| layer.state());
        let there = state(3).expect("a state");
        let here = MoeLayer::<_, f32>::init(&cpu(1), &config, 3).expect("a layer").state().expect("a state");
        assert_eq!(there, here, "{variant}");
        assert_ne!(there, state(4).expect("a state"), "{variant}");
    }
}

fn clipping<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let config: MoeConfig = variants()[0].1;
    let layer = layer::<T, D>(device, &config);
    let mut runner = Runner::new(device, &config, 9).expect("a runner");
    let mut grads = layer.grads().expect("gradients");
    let (x, dy): (Array2<T>, _) = (tokens(1, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
    let outcome = step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
    let squares = outcome.grads.iter().flat_map(|(_, values)| values).map(|g| g.to_f64() * g.to_f64());
    let want: f64 = squares.sum();
    let got = runner.sum_squares(&grads).expect("filled gradients");
    assert!((want - got).abs() < 1e-5 * want, "{want} {got}");
    let zeros = vec![T::Acc::ZERO; outcome.grads[0].1.len()];
    runner.session().upload(&zeros, whole_mut::<D, T::Acc>(&mut grads.weights.gate)).expect("zeros");
    assert!(read_sum(&mut runner, &grads) < got, "every tensor counts");
}
on_every_device!(the_norm_counts_every_gradient_once => clipping);

fn read_sum<T: Scalar, D: MoeDevice<T>>(runner: &mut Runner<D, T>, grads: &Grads<D, T>) -> f64 {
    let sums =
        [runner.sum_squares(grads), runner.sum_squares(grads)].map(|sum| sum.expect("filled gradients"));
    assert_eq!(sums[0], sums[1], "a second sum does not add to the first");
    sums[0]
}
