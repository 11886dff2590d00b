//! One dense product, `out = left * right^T`, by the kernels of the expert products: what their speed is compared with.

use super::float::Float;
use super::grouped::Crew;
use super::left::Rows;
use super::packing::{pack_all, packed_len};
use super::panel::{Size, Weights};
use super::product::Product;
use super::rows::narrow;
use super::shared::Shared;
use crate::device::Cpu;
use crate::error::CpuError;
use crate::memory::Buffer;
use moe_core::ops::{PackDims, PackUse};
use moe_core::{Device, OpId, expect, within};
use std::time::Instant;

const OP: OpId = OpId("dense");

/// A dense right operand in packed form, with the scratch memory to multiply by it.
pub struct Dense<T> {
    cpu: Cpu,
    size: Size,
    panels: Buffer<u8>,
    scratch: Buffer<u8>,
    storage: core::marker::PhantomData<T>,
}

impl Cpu {
    /// Packs `right`, which is (n, k), for dense products.
    ///
    /// # Errors
    /// [`CpuError::Shape`] if the length is wrong or n or k is 0; [`CpuError::Memory`].
    pub fn dense<T: Float>(&self, right: &[T], n: usize, k: usize) -> Result<Dense<T>, CpuError> {
        within(OP, "n", 1, i32::MAX as usize, n)?;
        within(OP, "k", 1, i32::MAX as usize, k)?;
        expect(OP, "right", &[n, k], right.len())?;
        let dims = PackDims { groups: 1, rows: n, cols: k, use_: PackUse::Up };
        let crew = Crew::of(self);
        let mut panels = self.alloc::<u8>(&(), packed_len(crew.unit, T::DTYPE, &dims))?;
        self.enter(|| pack_all(&crew, OP, &dims, right, &mut panels))?;
        let scratch = self.alloc::<u8>(&(), crew.bytes::<T>(0))?;
        Ok(Dense {
            cpu: self.clone(),
            size: Size { n, k },
            panels,
            scratch,
            storage: core::marker::PhantomData,
        })
    }

    /// Floating-point operations a second of a dense product of `size` rows, columns and depth, both operands in place: the
    /// fastest of `rounds`.
    ///
    /// # Errors
    /// As [`dense`](Cpu::dense).
    pub fn dense_flops<T: Float>(&self, size: usize, rounds: usize) -> Result<f64, CpuError> {
        let mut operand = self.alloc::<T>(&(), size * size)?;
        for (at, value) in operand.iter_mut().enumerate() {
            *value = T::narrow((at % 19) as f32 / 19.0 - 0.5);
        }
        let mut out = self.alloc::<T>(&(), size * size)?;
        let mut dense = self.dense(&operand, size, size)?;
        let mut fastest = f64::INFINITY;
        for _ in 0..rounds.max(1) {
            let start = Instant::now();
            dense.multiply(&operand, &mut out)?;
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        Ok(2.0 * (size as f64).powi(3) / fastest)
    }
}

impl<T: Float> Dense<T> {
    /// `out = left * right^T` for `left` (m, k) and `out` (m, n).
    ///
    /// # Errors
    /// [`CpuError::Shape`] if the lengths do not fit.
    pub fn multiply(&mut self, left: &[T], out: &mut [T]) -> Result<(), CpuError> {
        let (size, crew) = (self.size, Crew::of(&self.cpu));
        let rows = left.len() / size.k;
        within(OP, "m", 0, i32::MAX as usize, rows)?;
        expect(OP, "left", &[rows, size.k], left.len())?;
        expect(OP, "out", &[rows, size.n], out.len())?;
        let weights = Weights::Packed(bytemuck::cast_slice(&self.panels));
        let product = Product { unit: crew.unit, left: Rows::plain(left, size.k), weights, size };
        let (out, scratch) = (Shared::new(out), &mut self.scratch);
        self.cpu.enter(|| {
            crew.grouped(&product, &[0, rows as u32], (1, size.n), (scratch, 0), |task, space, _| {
                for (at, row) in task.rows.clone().enumerate() {
                    let place = row * size.n + task.columns.start..row * size.n + task.columns.end;
                    // SAFETY: each task has its own rows and columns.
                    narrow(crew.unit, space.row(at)[0], unsafe { out.part(place) });
                }
            });
        });
        Ok(())
    }
}
