//! Steps of every variant on every device are the reference's: routing bit for bit, the rest but for the order of sums.

use crate::devices::{HOST, on_every_device};
use crate::step::{layer, stamped, step, tokens};
use crate::variants::{WIDTH, variants};
use moe_core::{Accum, Batch, Host, MoeDevice, Scalar};

fn distance<T: Scalar>(want: &[T], got: &[T]) -> f64 {
    let float = |value: &T| value.widen().to_f64();
    let largest = want.iter().map(|value| float(value).abs()).fold(1e-30, f64::max);
    want.iter().zip(got).map(|(want, got)| (float(want) - float(got)).abs() / largest).fold(0.0, f64::max)
}

fn is_the_references<T: Scalar, D: MoeDevice<T>>(device: &D)
where
    Host: MoeDevice<T>,
{
    // Sums of a few terms in another order; stored values are off by a unit, and what follows from them by a few.
    let bound = if size_of::<T>() == 2 { 3e-2 } else { 1e-5 };
    for (variant, config) in variants() {
        let batch =
            Batch { sequences: &[7, 11], step_tokens: Some(40), step_sequences: Some(4), ..stamped() };
        let (x, dy) = (tokens::<T>(1, 18, WIDTH), tokens::<T>(2, 18, WIDTH));
        let want = step(&layer::<T, _>(&HOST, &config), &batch, x.view(), dy.view());
        let got = step(&layer::<T, _>(device, &config), &batch, x.view(), dy.view());
        assert_eq!(want.ids, got.ids, "{variant}");
        assert_eq!(want.load, got.load, "{variant}");
        let mut parts = vec![("y", distance(&want.y, &got.y)), ("dx", distance(&want.dx, &got.dx))];
        let grads = want.grads.iter().zip(&got.grads);
        parts.extend(grads.map(|((name, want), (_, got))| (*name, distance(want, got))));
        for (name, distance) in parts {
            assert!(distance < bound, "{variant}: {name} is {distance:.1e} of its largest value off");
        }
        let again = step(&layer::<T, _>(device, &config), &batch, x.view(), dy.view());
        assert!(got == again, "{variant}: a second step has other bits");
    }
}
on_every_device!(steps_are_the_references => is_the_references);
