//! The ops under the suite that the layer's own ops pass: samples of their arguments, and the names of these.

use crate::{ReGlu, ReGluArgs, ReGluBwd, ReGluBwdArgs, ReGluDims};
use half::bf16;
use moe_core::ops::PackWeights;
use moe_core::{Device, Host, Kernel, Scalar};
use moe_cpu::Cpu;
use moe_tests::{Case, Random, Report, Sample, Tolerance, Views, check_op};

/// What is particular, sizes, and rows of each expert.
const SHAPES: [(&str, ReGluDims, [u32; 3]); 4] = [
    ("odd sizes", ReGluDims { rows: 33, experts: 3, hidden: 5 }, [7, 0, 26]),
    ("rows to spare", ReGluDims { rows: 70, experts: 3, hidden: 17 }, [19, 21, 1]),
    ("no rows in use", ReGluDims { rows: 4, experts: 3, hidden: 3 }, [0; 3]),
    ("no rows", ReGluDims { rows: 0, experts: 3, hidden: 8 }, [0; 3]),
];

fn offsets(counts: [u32; 3]) -> Vec<u32> {
    let [a, b, c] = counts;
    vec![0, a, a + b, a + b + c]
}

impl<T: Scalar> Case for ReGlu<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let sample = |(label, dims, counts): (&str, ReGluDims, _)| {
            Sample::new(label, dims)
                .input("z", random.values::<T>(dims.rows * 2 * dims.hidden))
                .input("offsets", offsets(counts))
                .output::<T>("a", dims.rows * dims.hidden, Tolerance::stored::<T>())
        };
        SHAPES.map(sample).into()
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> ReGluArgs<'a, D, T> {
        ReGluArgs { z: views.read("z"), offsets: views.read("offsets"), a: views.write("a") }
    }
}

impl<T: Scalar> Case for ReGluBwd<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let sample = |(label, dims, counts): (&str, ReGluDims, _)| {
            Sample::new(label, dims)
                .input("da", random.values::<T>(dims.rows * dims.hidden))
                .input("offsets", offsets(counts))
                .update("z", random.values::<T>(dims.rows * 2 * dims.hidden), Tolerance::stored::<T>())
        };
        SHAPES.map(sample).into()
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> ReGluBwdArgs<'a, D, T> {
        ReGluBwdArgs { da: views.read("da"), offsets: views.read("offsets"), z: views.write("z") }
    }
}

fn conforms<T, D>(device: &D)
where
    T: Scalar,
    D: Kernel<ReGlu<T>> + Kernel<ReGluBwd<T>> + Kernel<PackWeights<T>>,
{
    let mut report = Report::new();
    check_op::<ReGlu<T>, T, D>(device, &mut report);
    check_op::<ReGluBwd<T>, T, D>(device, &mut report);
    report.assert_passed();
}

#[test]
fn the_ops_conform_on_the_cpu() {
    let cpu = Cpu::new().unwrap();
    conforms::<f32, _>(&cpu);
    conforms::<bf16, _>(&cpu);
}

#[test]
fn the_samples_are_good() {
    conforms::<f64, _>(&Host);
}
