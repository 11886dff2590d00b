//! Sizes that do not fit: a typed error that says what was wanted and got, and nothing panics. After it the same values can be
//! used again.

use crate::devices::HOST;
use crate::rig::{Failed, Setup, is_length, is_limit};
use crate::step::{layer, stamped, step_with, tokens};
use crate::variants::{EXPERTS, TOP_K, WIDTH, changed, plain};
use moe_core::ndarray::{Array2, s};
use moe_core::ops::Activation;
use moe_core::{Batch, Error, Limits, MemoryPolicy, MoeConfig, Runner, ShapeError, SharedExperts};

#[test]
fn rows_of_the_wrong_shape_are_named() {
    let mut setup = Setup::new(&plain());
    let (narrow, mut short) = (setup.rows(4, WIDTH - 1), setup.rows(3, WIDTH));
    let Setup { layer, runner, saved, x, y, .. } = &mut setup;
    is_length(runner.forward(layer, &narrow, y), "x's width");
    is_length(runner.forward(layer, x, &mut short), "y");
    is_length(runner.route(layer, &narrow, saved), "x's width");
    is_length(runner.forward_train(layer, x, saved, &mut short), "y");
    setup.still_works();

    let (good, mut dx) = (setup.rows(4, WIDTH), setup.rows(4, WIDTH));
    setup.train().expect("forward");
    is_length(setup.backward(&short, &mut dx), "dy");
    setup.train().expect("forward");
    is_length(setup.backward(&good, &mut short), "dx");
    setup.train().expect("forward");
    let kept = std::mem::replace(&mut setup.x, short);
    is_length(setup.backward(&good, &mut dx), "x");
    setup.x = kept;
    setup.still_works();
}

#[test]
fn more_than_the_runner_was_made_for_is_a_limit() {
    let mut setup = Setup::new(&plain());
    let (many, mut out) = (setup.rows(5, WIDTH), setup.rows(5, WIDTH));
    is_limit(setup.runner.forward(&setup.layer, &many, &mut out), "tokens");
    is_limit(setup.runner.route(&setup.layer, &many, &mut setup.saved), "tokens");
    is_limit(setup.runner.set_batch(&Batch { sequences: &[1; 5], ..Batch::default() }), "sequences");
    let counts = [1; EXPERTS + 1];
    is_limit(
        setup.runner.set_batch(&Batch { step_counts: Some(&counts), ..Batch::default() }),
        "step_counts",
    );
    let shared = |gated| Some(SharedExperts { hidden: 4, gated });
    let larger: [(&str, MoeConfig); 7] = [
        ("width", changed(plain(), |c| c.width = WIDTH + 1)),
        ("hidden", changed(plain(), |c| c.hidden = plain().hidden + 1)),
        ("experts", changed(plain(), |c| c.experts = EXPERTS + 1)),
        ("top_k", changed(plain(), |c| c.top_k = TOP_K + 1)),
        ("shared hidden", changed(plain(), |c| c.shared = shared(false))),
        ("shared hidden", changed(plain(), |c| c.shared = shared(true))),
        ("recomputation", changed(plain(), |c| c.memory = MemoryPolicy::Recompute)),
    ];
    for (name, config) in larger {
        let mut layer = layer::<f32, _>(&HOST, &config);
        let x = setup.rows(4, config.width);
        let mut y = setup.rows(4, config.width);
        is_limit(setup.runner.forward(&layer, &x, &mut y), name);
        is_limit(setup.runner.saved(&config), name);
        is_limit(layer.update(&mut setup.runner, |_, _| Ok(())), name);
        let mut own = Runner::new(&HOST, &config, 4).expect("a runner of its own");
        own.forward(&layer, &x, &mut y).expect("a refused update changes nothing");
    }
    setup.still_works();
}

#[test]
fn a_runner_runs_smaller_layers() {
    let shared = Some(SharedExperts { hidden: 6, gated: true });
    let large = changed(plain(), |c| {
        c.width = 9;
        c.hidden = 8;
        c.experts = 8;
        c.top_k = 3;
        c.shared = shared;
    });
    let mut runner = Runner::new(&HOST, &large, 6).expect("a runner");
    for config in [plain(), changed(plain(), |c| c.activation = Activation::Gelu)] {
        let layer = layer::<f32, _>(&HOST, &config);
        let (x, dy) = (tokens(1, 4, WIDTH), tokens(2, 4, WIDTH));
        let want = crate::step::step(&layer, &stamped(), x.view(), dy.view());
        let mut grads = layer.grads().expect("gradients");
        let got = step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
        assert_eq!(want, got);
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    let setup = Setup::new(&plain());
    let (runner, mut rows) = (&setup.runner, setup.rows(2, 3));
    let wide: Array2<f32> = Array2::zeros((2, 6));
    let gaps = wide.slice(s![.., ..;2]);
    let combination = |result: Result<(), Failed>| {
        assert!(matches!(result, Err(Error::Shape(ShapeError::Combination { .. }))), "{result:?}");
    };
    combination(runner.upload(gaps).map(|_| ()));
    combination(runner.write(gaps, &mut rows));
    let mut target: Array2<f32> = Array2::zeros((2, 6));
    combination(runner.read(&rows, target.slice_mut(s![.., ..;2])));
    is_length(runner.write(Array2::zeros((3, 3)).view(), &mut rows), "rows");
    is_length(runner.write(wide.view(), &mut rows), "width");
    is_length(runner.read(&rows, target.view_mut()), "width");
    let huge = runner.rows(usize::MAX, 2).map(|_| ());
    assert!(matches!(huge, Err(Error::Shape(ShapeError::Overflow { .. }))), "{huge:?}");
}

#[test]
fn limits_that_no_runner_can_have_are_refused() {
    let make = |tokens, sequences| {
        let limits = Limits { sequences, ..Limits::training(tokens) };
        Runner::<_, f32>::with_limits(&HOST, &plain(), limits).map(|_| ())
    };
    let range = |result: Result<(), Failed>, name| match result {
        Err(Error::Shape(ShapeError::Range { what, .. })) => assert_eq!(what, name),
        other => panic!("{other:?}"),
    };
    range(make(usize::MAX, 1), "tokens");
    range(make(u32::MAX as usize, 1), "tokens");
    range(make(4, 0), "sequences");
    range(make(4, 5), "sequences");
    make(0, 1).expect("a runner for no tokens");
}

#[test]
fn no_tokens_are_no_mistake() {
    for (variant, config) in crate::variants::variants() {
        let layer = layer::<f32, _>(&HOST, &config);
        let none = tokens(1, 0, WIDTH);
        let outcome = crate::step::step(&layer, &stamped(), none.view(), none.view());
        for (name, gradient) in outcome.grads {
            assert!(gradient.iter().all(|g| *g == 0.0), "{variant}: {name}");
        }
        assert_eq!(outcome.figures.load_entropy, 1.0, "{variant}");
    }
}
