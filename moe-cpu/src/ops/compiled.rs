//! Kernels are compiled in this crate, once for each storage type. A generic [`Kernel`] would be compiled in every program that
//! launches it, with all that it calls for every vector unit, and as the program is optimised, not as this crate is.

use crate::device::Cpu;
use crate::error::CpuError;
use half::{bf16, f16};
use moe_core::ops::{
    AdamW, BiasUpdate, Combine, Decode, ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad,
    GateBwd, Gather, PackWeights, Route, RouteBwd, RouteStats, Sort, SumSquares,
};
use moe_core::{Kernel, Op, Out, Path, Scalar};

/// What a device does for an op of any storage type; each op's file has it.
pub(super) trait Launch<O: Op> {
    /// As [`Kernel::scratch`].
    fn scratch(&self, dims: &O::Dims) -> usize {
        let _ = dims;
        0
    }

    /// As [`Kernel::launch`].
    fn launch(
        &self,
        stream: &(),
        dims: &O::Dims,
        args: O::Args<'_, Cpu>,
        scratch: Out<'_, Cpu, u8>,
    ) -> Result<Path, CpuError>;
}

/// The same of one storage type. Not nameable outside, as [`Float`](crate::Float) must stay as it is.
pub trait Compiled<O: Op> {
    #[doc(hidden)]
    fn launch(
        cpu: &Cpu,
        dims: &O::Dims,
        args: O::Args<'_, Cpu>,
        scratch: Out<'_, Cpu, u8>,
    ) -> Result<Path, CpuError>;
}

macro_rules! compiled {
    ($op:ident: $($float:ident),*) => {$(
        impl Compiled<$op<$float>> for $float {
            fn launch(
                cpu: &Cpu,
                dims: &<$op<$float> as Op>::Dims,
                args: <$op<$float> as Op>::Args<'_, Cpu>,
                scratch: Out<'_, Cpu, u8>,
            ) -> Result<Path, CpuError> {
                Launch::<$op<$float>>::launch(cpu, &(), dims, args, scratch)
            }
        }
    )*};
    ($($op:ident),*) => {
        /// A storage type with the kernels of all ops.
        pub trait Ops: Scalar<Acc = f32> + $(Compiled<$op<Self>> +)* {}
        impl<T: Scalar<Acc = f32> + $(Compiled<$op<T>> +)*> Ops for T {}
        $(
            compiled!($op: f32, bf16, f16);
            impl<T: crate::Float> Kernel<$op<T>> for Cpu {
                fn scratch(&self, dims: &<$op<T> as Op>::Dims) -> usize {
                    Launch::<$op<T>>::scratch(self, dims)
                }

                fn launch(
                    &self,
                    (): &(),
                    dims: &<$op<T> as Op>::Dims,
                    args: <$op<T> as Op>::Args<'_, Self>,
                    scratch: Out<'_, Self, u8>,
                ) -> Result<Path, CpuError> {
                    <T as Compiled<$op<T>>>::launch(self, dims, args, scratch)
                }
            }
        )*
    };
}
compiled! {
    AdamW, BiasUpdate, Combine, Decode, ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad,
    GateBwd, Gather, PackWeights, Route, RouteBwd, RouteStats, Sort, SumSquares
}
