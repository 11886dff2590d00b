//! ExpertDown: the bias is added before the one rounding, and rows are stored where the index says.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Crew, Float, Product, Rows, Store, form, path, weights};
use moe_core::ops::{ExpertDims, ExpertDown, ExpertDownArgs, PackUse};
use moe_core::{Device, Op, Out, Path, View};

impl<T: Float> Launch<ExpertDown<T>> for Cpu {
    fn scratch(&self, dims: &ExpertDims) -> usize {
        Store::<T>::bytes(&Crew::of(self), dims.rows)
    }

    fn launch(
        &self,
        (): &(),
        dims: &ExpertDims,
        args: ExpertDownArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<ExpertDown<T>>(self, dims, &args, scratch.len())?;
        let (crew, op, pack) = (Crew::of(self), ExpertDown::<T>::ID, dims.pack(PackUse::Down));
        let offsets = args.offsets.host();
        dims.check_values(op, offsets, None)?;
        let weights = weights(crew.unit, (op, "w2"), args.w2, &pack)?;
        let left = Rows::plain(args.a.host(), dims.hidden);
        let product = Product { unit: crew.unit, left, weights, size: form(&pack).0 };
        let store = Store {
            out: args.y.host(),
            index: args.out_index.map(View::host),
            bias: args.b2.map(|b2| (b2.host(), dims.bias_shares as f32)),
            factors: None,
        };
        let scratch = scratch.host();
        self.enter(|| store.run(&crew, op, &product, offsets, scratch))?;
        Ok(path(crew.unit, &product.weights))
    }
}
