//! The gate in panels of columns, f32: panel p is (experts, COLS), column c being column `p * COLS + c` of the gate.

use crate::gemm::{Float, Shared, Unit, Weights, share, widen};
use moe_core::ops::GateBwdDims;

/// Elements of all panels.
pub(super) fn turned(unit: Unit, dims: &GateBwdDims) -> usize {
    dims.width.next_multiple_of(unit.cols()) * dims.experts
}

/// Fills the panels; what lies outside the gate is 0.
pub(super) fn turn<T: Float>(
    unit: Unit,
    threads: usize,
    dims: &GateBwdDims,
    gate: &Weights<'_, T>,
    panels: &mut [f32],
) {
    let GateBwdDims { width, experts, .. } = *dims;
    let cols = unit.cols();
    let panels = Shared::new(panels);
    share(threads, width.div_ceil(cols), &mut [], 0, |queue, _| {
        for panel in queue {
            // SAFETY: each task has its own panel.
            let place = unsafe { panels.part(panel * experts * cols..(panel + 1) * experts * cols) };
            let columns = panel * cols..width.min((panel + 1) * cols);
            for (expert, row) in place.chunks_exact_mut(cols).enumerate() {
                row[columns.len()..].fill(0.0);
                match gate {
                    Weights::Plain(plain, _) => widen(unit, &plain[expert * width..][columns.clone()], row),
                    Weights::Packed(packed) => {
                        let from = &packed[expert / cols * cols * width.next_multiple_of(T::STEP)..];
                        for (value, d) in row.iter_mut().zip(columns.clone()) {
                            *value =
                                from[(d / T::STEP * cols + expert % cols) * T::STEP + d % T::STEP].widen();
                        }
                    }
                }
            }
        }
    });
}
