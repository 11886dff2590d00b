//! ExpertUpBwd: the product with w13 as it lies, rows scaled before the one rounding.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Crew, Factors, Float, Product, Rows, Store, form, path, weights};
use moe_core::ops::{ExpertDims, ExpertUpBwd, ExpertUpBwdArgs, PackUse};
use moe_core::{Device, Op, Out, Path, View};

impl<T: Float> Launch<ExpertUpBwd<T>> for Cpu {
    fn scratch(&self, dims: &ExpertDims) -> usize {
        Store::<T>::bytes(&Crew::of(self), dims.rows)
    }

    fn launch(
        &self,
        (): &(),
        dims: &ExpertDims,
        args: ExpertUpBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<ExpertUpBwd<T>>(self, dims, &args, scratch.len())?;
        let (crew, op, pack) = (Crew::of(self), ExpertUpBwd::<T>::ID, dims.pack(PackUse::UpBwd));
        let (offsets, index) = (args.offsets.host(), args.index.map(View::host));
        dims.check_values(op, offsets, index)?;
        let weights = weights(crew.unit, (op, "w13"), args.w13, &pack)?;
        let left = Rows::plain(args.dz.host(), dims.up_width());
        let product = Product { unit: crew.unit, left, weights, size: form(&pack).0 };
        let store = Store {
            out: args.dx.host(),
            index: args.out_index.map(View::host),
            bias: None,
            factors: args.weights.map(|weights| Factors { values: weights.host(), index }),
        };
        let scratch = scratch.host();
        self.enter(|| store.run(&crew, op, &product, offsets, scratch))?;
        Ok(path(crew.unit, &product.weights))
    }
}
