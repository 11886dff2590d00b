//! The stages of a forward pass, used one by one: recorded ids, another router, inference beside training.

use crate::devices::{HOST, on_every_device};
use crate::step::{layer, read, stamped, tokens};
use crate::variants::{EXPERTS, TOP_K, WIDTH, changed, plain, variants};
use moe_core::ops::MoeDevice;
use moe_core::{MoeLayer, Runner, Scalar, ScoreOrder, SharedExperts};
use moe_tests::Random;

fn training_is_inference<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for (variant, config) in variants() {
        let layer = layer::<T, D>(device, &config);
        let mut runner = Runner::new(device, &config, 9).expect("a runner");
        runner.set_batch(&stamped()).expect("a good batch");
        let mut saved = runner.saved(&config).expect("room");
        let x = runner.upload(tokens::<T>(1, 9, WIDTH).view()).expect("x");
        let (mut trained, mut served) = (runner.like(&x).expect("y"), runner.like(&x).expect("y"));
        runner.forward_train(&layer, &x, &mut saved, &mut trained).expect("forward");
        runner.forward(&layer, &x, &mut served).expect("forward");
        let [trained, served] = [trained, served].map(|y| runner.download(&y).expect("y"));
        assert_eq!(trained, served, "{variant}");
        let (figures, loads) = (runner.figures(&saved), runner.forward_figures());
        let [figures, loads] = [figures, loads].map(|figures| figures.expect("figures").tokens_per_expert);
        assert_eq!(figures, loads, "{variant}");
    }
}
on_every_device!(inference_gives_the_bits_of_training => training_is_inference);

fn replaying<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for (variant, config) in variants() {
        let layer = layer::<T, D>(device, &config);
        let mut runner = Runner::new(device, &config, 9).expect("a runner");
        runner.set_batch(&stamped()).expect("a good batch");
        let (x, dy) = (tokens::<T>(1, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
        let (x, dy) = (runner.upload(x.view()).expect("x"), runner.upload(dy.view()).expect("dy"));
        let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
        let mut saved = runner.saved(&config).expect("room");
        let mut record: Option<Vec<u32>> = None;
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            let mut grads = layer.grads().expect("gradients");
            match &record {
                None => runner.route(&layer, &x, &mut saved).expect("routing"),
                Some(ids) => runner.replay(&layer, &x, ids, &mut saved).expect("its own ids"),
            }
            let ids = read::<u32, D>(device, runner.session().stream(), saved.routing().ids().expect("ids"));
            record = Some(ids);
            runner.experts(&layer, &x, &mut saved, &mut y).expect("experts");
            let figures = runner.figures(&saved).expect("figures");
            runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
            let sum = runner.sum_squares(&grads).expect("filled gradients");
            outcomes.push((figures, runner.download(&y).expect("y"), runner.download(&dx).expect("dx"), sum));
        }
        assert_eq!(outcomes[0], outcomes[1], "{variant}");
    }
}
on_every_device!(replayed_ids_give_the_bits_of_the_routing_that_chose_them => replaying);

/// `<dy, y>` for another router's weights, and their gradients.
fn adopted(layer: &MoeLayer<moe_core::Host, f64>, ids: &[u32], weights: &[f64]) -> (f64, Vec<f64>) {
    let mut runner = Runner::new(&HOST, layer.config(), 6).expect("a runner");
    let mut saved = runner.saved(layer.config()).expect("room");
    let mut grads = layer.grads().expect("gradients");
    let (x, dy) = (tokens::<f64>(1, 6, WIDTH), tokens::<f64>(2, 6, WIDTH));
    let (x, upstream) = (runner.upload(x.view()).expect("x"), runner.upload(dy.view()).expect("dy"));
    let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
    runner.adopt(layer, &x, ids, weights, &mut saved).expect("as many as slots");
    runner.experts(layer, &x, &mut saved, &mut y).expect("experts");
    let loss = runner.download(&y).expect("y").iter().zip(&dy).map(|(y, dy)| y * dy).sum();
    runner.experts_backward(layer, &x, &mut saved, &upstream, &mut dx, &mut grads).expect("backward");
    let dweights = runner.dweights(&saved).expect("a runner for training");
    (loss, read::<f64, _>(&HOST, &(), dweights))
}

#[test]
fn the_weights_of_another_router_have_their_slopes() {
    for order in [ScoreOrder::AfterExperts, ScoreOrder::BeforeExperts] {
        let config = changed(plain(), |c| {
            c.score_order = order;
            c.expert_bias = true;
            c.shared = Some(SharedExperts { hidden: 4, gated: true });
        });
        let layer = layer::<f64, _>(&HOST, &config);
        let mut random = Random::new(3);
        let ids = random.ids(6, TOP_K, EXPERTS);
        let mut weights: Vec<f64> = random.scores(6 * TOP_K);
        let (_, dweights) = adopted(&layer, &ids, &weights);
        for (slot, gradient) in dweights.into_iter().enumerate() {
            let kept = weights[slot];
            let mut loss_at = |weight| {
                weights[slot] = weight;
                adopted(&layer, &ids, &weights).0
            };
            let slope = (loss_at(kept + 1e-5) - loss_at(kept - 1e-5)) / 2e-5;
            weights[slot] = kept;
            assert!((slope - gradient).abs() < 1e-7, "{order:?}, slot {slot}: {slope} and {gradient}");
        }
    }
}
