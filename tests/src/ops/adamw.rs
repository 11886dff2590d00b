//! Samples of AdamW.

use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{AdamW, AdamWArgs, AdamWDims, AdamWSettings};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for AdamW<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let (stored, sum) = (Tolerance::stored::<T>(), Tolerance::sum::<T>());
        let mut all = Vec::new();
        for (len, step, decay, master) in [
            (0, 1, 0.1, true),
            (1, 1, 0.0, false),
            (37, 1, 0.1, true),
            (64, 3, 0.0, true),
            (65, 1000, 0.5, false),
            (5000, 100_000, 0.01, true),
        ] {
            let settings = AdamWSettings {
                lr: 3e-3,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: decay,
                step,
                scale: 0.5,
            };
            let squares = random.scaled::<T::Acc>(len, 0.1).into_iter().map(|m| m * m);
            let squares: Vec<T::Acc> = squares.collect();
            let mut sample = Sample::new(format!("step {step}"), AdamWDims { len })
                .input("settings", settings.words::<T::Acc>().to_vec())
                .input("grad", random.values::<T::Acc>(len))
                .update("w", random.values::<T>(len), stored)
                .update("m", random.scaled::<T::Acc>(len, 0.1), sum)
                .update("v", squares, sum);
            if master {
                sample = sample.update("master", random.values::<T::Acc>(len), sum);
            }
            all.push(sample);
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> AdamWArgs<'a, D, T> {
        AdamWArgs {
            settings: views.read("settings"),
            grad: views.read("grad"),
            w: views.write("w"),
            master: views.write_if("master"),
            m: views.write("m"),
            v: views.write("v"),
        }
    }
}
