//! Kernels for `Cpu`: rows in parallel. Every element is computed as in the reference, so the bits are the same.

use crate::reglu::reglu;
use crate::reglu_bwd::reglu_bwd;
use crate::{ReGlu, ReGluArgs, ReGluBwd, ReGluBwdArgs, ReGluDims};
use moe_core::{Device, Kernel, Op, Out, Path, Scalar, check_offsets};
use moe_cpu::{Cpu, CpuError};
use rayon::prelude::*;

/// Rows that a thread takes at a time.
const ROWS: usize = 16;

impl<T: Scalar> Kernel<ReGlu<T>> for Cpu {
    fn launch(
        &self,
        (): &(),
        dims: &ReGluDims,
        args: ReGluArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        let (z, offsets, a) = (args.z.host(), args.offsets.host(), args.a.host());
        check_offsets(ReGlu::<T>::ID, offsets, dims.rows)?;
        let (used, hidden) = (offsets[dims.experts] as usize, dims.hidden.max(1));
        let rows = z.par_chunks_exact(2 * hidden).zip(a.par_chunks_exact_mut(hidden)).take(used);
        self.enter(|| {
            rows.with_min_len(ROWS).for_each(|(z, a)| {
                let (g, u) = z.split_at(hidden);
                for (f, a) in a.iter_mut().enumerate() {
                    *a = reglu(g[f], u[f]);
                }
            });
        });
        Ok(Path("rows"))
    }
}

impl<T: Scalar> Kernel<ReGluBwd<T>> for Cpu {
    fn launch(
        &self,
        (): &(),
        dims: &ReGluDims,
        args: ReGluBwdArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        let (da, offsets, z) = (args.da.host(), args.offsets.host(), args.z.host());
        check_offsets(ReGluBwd::<T>::ID, offsets, dims.rows)?;
        let (used, hidden) = (offsets[dims.experts] as usize, dims.hidden.max(1));
        let rows = z.par_chunks_exact_mut(2 * hidden).zip(da.par_chunks_exact(hidden)).take(used);
        self.enter(|| {
            rows.with_min_len(ROWS).for_each(|(z, da)| {
                let (g, u) = z.split_at_mut(hidden);
                for (f, da) in da.iter().enumerate() {
                    (g[f], u[f]) = reglu_bwd(g[f], u[f], *da);
                }
            });
        });
        Ok(Path("rows"))
    }
}
