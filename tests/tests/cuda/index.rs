//! Indices that point nowhere, which a host cannot see: such a row is one of zeros on every path, and no other row changes.

use crate::rig::cuda;
use half::bf16;
use moe_core::Scalar;
use moe_core::ops::{Activation, ExpertDims, ExpertUp, ExpertWgrad, PackUse, WgradDims};
use moe_cuda::Cuda;
use moe_tests::{Outputs, Random, Sample, Setup, Tolerance, launch};

const TOKENS: usize = 300;
const FAN: usize = 2;
const ROWS: usize = TOKENS * FAN;
const EXPERTS: usize = 2;
const WIDTH: usize = 128;
const HIDDEN: usize = 64;

/// Some rows of the index.
const LOST: [usize; 3] = [0, 130, 599];

/// Rows of both experts in order; those that are lost name the first slot that does not exist, or the last number there is.
fn index(lost: bool) -> Vec<u32> {
    let mut index: Vec<u32> = (0..ROWS as u32).collect();
    for (nth, row) in LOST.into_iter().enumerate().filter(|_| lost) {
        index[row] = if nth % 2 == 0 { ROWS as u32 } else { u32::MAX };
    }
    index
}

fn up<T: Scalar<Acc = f32>>(device: &Cuda, lost: bool) -> Outputs
where
    Cuda: moe_core::MoeDevice<T>,
{
    let mut random = Random::new(8);
    let dims = ExpertDims {
        tokens: TOKENS,
        fan: FAN,
        rows: ROWS,
        experts: EXPERTS,
        width: WIDTH,
        hidden: HIDDEN,
        activation: Activation::SwiGlu,
        bias_shares: 1,
    };
    let near = Tolerance::stored::<T>();
    let sample = Sample::<ExpertUp<T>>::new("lost rows", dims)
        .input("x", random.values::<T>(TOKENS * WIDTH))
        .input("index", index(lost))
        .input("offsets", vec![0_u32, 140, ROWS as u32])
        .weight("w13", random.values::<T>(EXPERTS * 2 * HIDDEN * WIDTH), dims.pack(PackUse::Up))
        .output::<T>("h", ROWS * 2 * HIDDEN, near)
        .output::<T>("a", ROWS * HIDDEN, near);
    launch::<ExpertUp<T>, T, _>(device, &sample, Setup::default()).expect("a launch")
}

fn rows_are_zeros<T: Scalar<Acc = f32>>(device: &Cuda)
where
    Cuda: moe_core::MoeDevice<T>,
{
    let (whole, lost) = (up::<T>(device, false), up::<T>(device, true));
    assert_eq!(whole.path, lost.path);
    for name in ["h", "a"] {
        let (whole, lost) = (whole.get::<T>(name), lost.get::<T>(name));
        let width = whole.len() / ROWS;
        for (row, (whole, lost)) in whole.chunks(width).zip(lost.chunks(width)).enumerate() {
            if LOST.contains(&row) {
                assert!(lost.iter().all(|value| value.widen() == 0.0), "row {row} of {name}");
            } else {
                assert!(whole == lost, "row {row} of {name}");
            }
        }
    }
}

#[test]
fn a_row_that_points_nowhere_is_zeros() {
    let Some(device) = cuda("a_row_that_points_nowhere_is_zeros") else { return };
    rows_are_zeros::<f32>(device);
    rows_are_zeros::<bf16>(device);
}

/// The gradient of rows whose index, or whose values, are those of nothing.
fn gradient<T: Scalar<Acc = f32>>(device: &Cuda, lost: bool, cleared: bool) -> Outputs
where
    Cuda: moe_core::MoeDevice<T>,
{
    let mut random = Random::new(9);
    let dims = WgradDims {
        tokens: TOKENS,
        fan: FAN,
        rows: ROWS,
        experts: EXPERTS,
        left: 2 * HIDDEN,
        right: WIDTH,
        gather_left: false,
        gather_right: true,
        accumulate: false,
    };
    let mut left = random.values::<T>(ROWS * dims.left);
    for row in LOST.into_iter().filter(|_| cleared) {
        left[row * dims.left..][..dims.left].fill(T::default());
    }
    let sample = Sample::<ExpertWgrad<T>>::new("lost rows", dims)
        .input("left", left)
        .input("right", random.values::<T>(TOKENS * WIDTH))
        .input("index", index(lost))
        .input("offsets", vec![0_u32, 140, ROWS as u32])
        .output::<f32>("dw", EXPERTS * dims.left * dims.right, Tolerance::EXACT);
    launch::<ExpertWgrad<T>, T, _>(device, &sample, Setup::default()).expect("a launch")
}

#[test]
fn a_row_that_points_nowhere_has_no_gradient() {
    let Some(device) = cuda("a_row_that_points_nowhere_has_no_gradient") else { return };
    assert_eq!(
        gradient::<f32>(device, true, false).get::<f32>("dw"),
        gradient::<f32>(device, false, true).get::<f32>("dw")
    );
    assert_eq!(
        gradient::<bf16>(device, true, false).get::<f32>("dw"),
        gradient::<bf16>(device, false, true).get::<f32>("dw")
    );
}
