//! What is timed and counted: every op of the layer.

#[path = "../../benches/cases/mod.rs"]
mod cases;

use cases::{Case, OPS, Shape};
use moe_core::{Op, OpId};
use moe_cpu::Cpu;
use std::collections::BTreeSet;

macro_rules! names {
    ($($op:ty),*) => {
        fn ops<T: moe_cpu::Float>() -> BTreeSet<&'static str> {
            [$(<$op>::ID),*].map(|OpId(name)| name).into()
        }
    };
}
moe_core::for_each_op!(names);

#[test]
fn benches_and_counts_leave_out_no_op() {
    let cpu = Cpu::with_threads(2).unwrap();
    let mut case = Case::<f32>::new(&cpu, Shape::new([48, 72, 80, 4, 2])).unwrap();
    let launched: BTreeSet<_> = OPS
        .iter()
        .map(|op| {
            case.prepare(op);
            case.launch(op).unwrap().0
        })
        .collect();
    assert_eq!(launched, ops::<f32>());
}
