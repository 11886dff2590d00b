//! Ops one by one: the floor of operations or bytes, and the time.

use crate::Options;
use crate::cases::{Case, OPS, Shape};
use crate::turns::{fastest_rate, turns};
use moe_core::Device;
use moe_cpu::{Cpu, Float};
use std::error::Error;

/// A line per op. The floor is the longer of operations at the multipliers' rate and bytes at the rate of reading.
pub(crate) fn measure<T: Float>(
    cpu: &Cpu,
    options: &Options,
    title: &str,
    shape: Shape,
) -> Result<(), Box<dyn Error>> {
    let mut case = Case::<T>::new(cpu, shape)?;
    let read = fastest_rate(&cpu.reader(1 << 28)?, 5);
    for op in OPS.into_iter().filter(|op| options.op.as_deref().is_none_or(|only| only == *op)) {
        let (work, traffic) = (case.work(op), case.traffic(op));
        let budget = options.budget / 4;
        let times = cpu.enter(|| {
            let case = std::cell::RefCell::new(&mut case);
            let limit = || {
                case.borrow_mut().prepare(op);
                cpu.peak_flops::<T>(3)
            };
            turns(budget, cpu.threads(), limit, || case.borrow_mut().launch(op).map(|_| ()))
        })?;
        let (compute, memory) = (work / times.limit(), traffic / read);
        let floor = compute.max(memory);
        println!(
            "{title} {op}: {:.3} ms; floors: products {:.3}, memory {:.3}; fastest turn {:.2}, by processor time {:.2} of the floor",
            times.fastest() * 1e3,
            compute * 1e3,
            memory * 1e3,
            times.fastest() / floor,
            times.alone() / floor,
        );
    }
    Ok(())
}
