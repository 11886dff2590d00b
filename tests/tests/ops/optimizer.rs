//! AdamW, BiasUpdate and SumSquares against the formulas that papers give.

use crate::run::{read, run, write};
use approx::assert_relative_eq;
use moe_core::ops::{
    AdamW, AdamWArgs, AdamWDims, AdamWSettings, BiasUpdate, BiasUpdateArgs, BiasUpdateDims, SumSquares,
    SumSquaresArgs, SumSquaresDims,
};
use moe_tests::Random;

#[test]
fn three_steps_of_adamw_are_those_of_the_paper() {
    let (lr, beta1, beta2, eps, decay) = (0.01, 0.9, 0.99, 1e-8, 0.1);
    let mut random = Random::new(5);
    let (mut w, mut m, mut v) = (random.values::<f64>(7), vec![0.0; 7], vec![0.0; 7]);
    let (mut want, mut first, mut second) = (w.clone(), vec![0.0; 7], vec![0.0; 7]);
    for step in 1..=3 {
        let grad = random.values::<f64>(7);
        let settings =
            AdamWSettings { lr, beta1, beta2, eps, weight_decay: decay, step, scale: 0.5 }.words::<f64>();
        let args = AdamWArgs {
            settings: read(&settings),
            grad: read(&grad),
            w: write(&mut w),
            master: None,
            m: write(&mut m),
            v: write(&mut v),
        };
        run::<AdamW<f64>>(AdamWDims { len: 7 }, args);
        for i in 0..7 {
            let g = 0.5 * grad[i];
            want[i] *= 1.0 - lr * decay;
            first[i] = beta1 * first[i] + (1.0 - beta1) * g;
            second[i] = beta2 * second[i] + (1.0 - beta2) * g * g;
            let (mean, square) =
                (first[i] / (1.0 - beta1.powi(step as i32)), second[i] / (1.0 - beta2.powi(step as i32)));
            want[i] -= lr * mean / (square.sqrt() + eps);
        }
    }
    w.iter().zip(&want).for_each(|(w, want)| assert_relative_eq!(w, want, max_relative = 1e-12));
}

#[test]
fn overloaded_experts_lose_bias_and_the_mean_stays() {
    let mut bias = [0.5, 0.5, 0.5, 0.5];
    let args = BiasUpdateArgs { counts: read(&[9, 1, 4, 2]), rate: read(&[0.1]), bias: write(&mut bias) };
    run::<BiasUpdate<f64>>(BiasUpdateDims { experts: 4 }, args);
    // The mean count is 4: signs -1, +1, 0, +1 have the mean 1/4.
    let want = [0.5 - 0.125, 0.5 + 0.075, 0.5 - 0.025, 0.5 + 0.075];
    bias.iter().zip(&want).for_each(|(bias, want)| assert_relative_eq!(bias, want, max_relative = 1e-12));
}

#[test]
fn equal_loads_leave_the_bias_alone() {
    let mut bias = [0.25_f32, -1.0, 0.0];
    let args = BiasUpdateArgs { counts: read(&[3, 3, 3]), rate: read(&[0.1]), bias: write(&mut bias) };
    run::<BiasUpdate<f32>>(BiasUpdateDims { experts: 3 }, args);
    assert_eq!(bias, [0.25, -1.0, 0.0]);
}

#[test]
fn squares_are_added_to_what_was_there_only_if_asked() {
    let mut sum = [10.0];
    for (accumulate, want) in [(true, 15.0), (false, 5.0)] {
        let args = SumSquaresArgs { values: read(&[1.0, 2.0]), sum: write(&mut sum) };
        run::<SumSquares<f64>>(SumSquaresDims { len: 2, accumulate }, args);
        assert_eq!(sum, [want]);
    }
}
