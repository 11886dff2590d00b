//! Combine has the bits of the reference.

use super::{below, bits, cpus, launch, values};
use half::{bf16, f16};
use moe_core::ops::{Base, Combine, CombineArgs, CombineDims, NO_ROW};
use moe_core::{Host, View, ViewMut};
use moe_cpu::Float;

fn agree<T: Float>(dims: CombineDims, weighted: bool, bases: usize) {
    let CombineDims { tokens, top_k, width, rows } = dims;
    let (y, weights) = (values::<T>(rows * width, 1), values::<f32>(tokens * top_k, 2));
    let row_of_slot: Vec<u32> = below(rows + 1, tokens * top_k, 3)
        .into_iter()
        .map(|row| if row as usize == rows { NO_ROW } else { row })
        .collect();
    let terms: [_; 3] =
        std::array::from_fn(|at| (values::<T>(tokens * width, 4 + at as u64), values::<f32>(tokens, 9)));
    macro_rules! combine {
        ($device:expr) => {{
            let mut out = vec![T::narrow(9.0); tokens * width];
            let base = |at: usize| {
                let scale = (at == 1).then(|| View::of(&terms[at].1[..]));
                (at < bases).then(|| Base { rows: View::of(&terms[at].0[..]), scale })
            };
            let args = CombineArgs {
                y: View::of(&y),
                row_of_slot: View::of(&row_of_slot),
                weights: weighted.then(|| View::of(&weights[..])),
                base: [base(0), base(1), base(2)],
                out: ViewMut::of(&mut out),
            };
            launch!($device, Combine<T>, dims, args).unwrap();
            bits(&out)
        }};
    }
    let want = combine!(&Host);
    for cpu in cpus() {
        assert_eq!(combine!(&cpu), want, "{cpu:?} {dims:?}");
    }
}

#[test]
fn all_widths_and_terms() {
    for (tokens, top_k, width) in
        [(0, 2, 8), (1, 1, 1), (5, 8, 16), (40, 3, 77), (17, 2, 128), (3, 0, 9), (4, 2, 0)]
    {
        for (weighted, bases) in [(true, 0), (false, 0), (true, 1), (false, 3)] {
            let dims = CombineDims { tokens, top_k, width, rows: tokens * top_k };
            agree::<f32>(dims, weighted, bases);
            agree::<bf16>(dims, weighted, bases);
            agree::<f16>(dims, weighted, bases);
        }
    }
}
