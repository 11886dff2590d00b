//! The ops, one file each, named as in `moe-core`.

mod adamw;
mod bias_update;
mod combine;
mod compiled;
mod decode;
mod expert_down;
mod expert_down_bwd;
mod expert_up;
mod expert_up_bwd;
mod expert_wgrad;
mod gate_bwd;
mod gather;
mod merge;
mod pack_weights;
mod route;
mod route_bwd;
mod route_stats;
mod sort;
mod sum_squares;

use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::Isa;
use compiled::Launch;
use moe_core::{Kernel, Op, Path, ShapeError};

pub(crate) use compiled::Ops;

/// Checks what code without bounds checks relies on: the arguments' lengths, and that the scratch memory is long enough.
fn ready<O: Op>(cpu: &Cpu, dims: &O::Dims, args: &O::Args<'_, Cpu>, scratch: usize) -> Result<(), CpuError>
where
    Cpu: Kernel<O>,
{
    O::check::<Cpu>(dims, args)?;
    let want = Kernel::<O>::scratch(cpu, dims);
    if scratch < want {
        return Err(ShapeError::Length { op: O::ID, what: "scratch", want, got: scratch }.into());
    }
    Ok(())
}

/// The way that code compiled for each unit took.
fn path(cpu: &Cpu) -> Path {
    Path(match cpu.isa() {
        Isa::Amx | Isa::Avx512 { .. } => "avx512",
        Isa::Avx2Fma => "avx2",
        Isa::Neon => "neon",
        Isa::Portable => "portable",
    })
}
