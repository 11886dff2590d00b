//! Launches every op once on a small fixed layer, to have its instructions counted: `.ci/callgrind` runs this under valgrind.
//!
//! `count avx2 f32` launches each op twice, the second time by a function of the name `counted_OP`.

#[path = "../benches/cases/mod.rs"]
mod cases;

use cases::{Case, OPS, Shape};
use half::bf16;
use moe_core::Device;
use moe_cpu::{Cpu, Float, Isa};
use std::error::Error;

/// Small, with remainders: 24 rows an expert, widths that are no multiples of the tiles.
const SHAPE: Shape = Shape::new([48, 72, 80, 4, 2]);

macro_rules! counted {
    ($($name:literal => $function:ident,)*) => {
        $(
            #[inline(never)]
            fn $function<T: Float>(case: &mut Case<T>) -> cases::Outcome<()> {
                case.launch($name).map(|_| ())
            }
        )*

        fn counted<T: Float>(case: &mut Case<T>, op: &str) -> cases::Outcome<()> {
            match op {
                $($name => $function(case),)*
                other => panic!("no op is called {other}"),
            }
        }
    };
}

counted! {
    "route" => counted_route,
    "route_stats" => counted_route_stats,
    "sort" => counted_sort,
    "expert_up" => counted_expert_up,
    "expert_down" => counted_expert_down,
    "combine" => counted_combine,
    "expert_down_bwd" => counted_expert_down_bwd,
    "wgrad_down" => counted_wgrad_down,
    "wgrad_up" => counted_wgrad_up,
    "expert_up_bwd" => counted_expert_up_bwd,
    "route_bwd" => counted_route_bwd,
    "gate_bwd" => counted_gate_bwd,
    "combine_bwd" => counted_combine_bwd,
    "sum_squares" => counted_sum_squares,
    "adamw" => counted_adamw,
    "pack_weights" => counted_pack_weights,
    "gather" => counted_gather,
    "merge" => counted_merge,
    "bias_update" => counted_bias_update,
    "decode" => counted_decode,
}

fn all<T: Float>(isa: Isa) -> Result<(), Box<dyn Error>> {
    let cpu = Cpu::with_isa(1, isa)?;
    let mut case = Case::<T>::new(&cpu, SHAPE)?;
    cpu.enter(|| {
        OPS.into_iter().try_for_each(|op| {
            case.prepare(op);
            case.launch(op)?;
            case.prepare(op);
            counted(&mut case, op)
        })
    })?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let isa = match args.first().map(String::as_str) {
        Some("avx2") => Isa::Avx2Fma,
        Some("portable") => Isa::Portable,
        _ => return Err("wanted avx2 or portable".into()),
    };
    match args.get(1).map(String::as_str) {
        Some("f32") => all::<f32>(isa),
        Some("bf16") => all::<bf16>(isa),
        _ => Err("wanted f32 or bf16".into()),
    }
}
