//! Padding: groups rounded up to whole blocks of rows.
//!
//! `Gather` with a pitch lays each group at a fixed place and leaves the rest alone. With one group per block of A rows and
//! the pitch A this is the padded layout: what no row was copied to keeps its -1.

use super::check::Check;
use super::dispatch::{integers, lengths};
use super::moving::gather;
use super::rig::Rig;
use crate::fixture::Case;
use anyhow::Result;
use moe_core::MoeDevice;
use moe_core::ops::GatherDims;

/// One padded layout: `out.padA.*`, or `out.padA_min1.*` with a block for an empty group.
pub(crate) struct Padding {
    /// `padA` or `padA_min1`
    name: String,
    /// the tensor of the indices
    tensor: String,
    /// rows of a block
    align: usize,
    /// an empty group gets one block
    at_least_one: bool,
}

/// Rows of the largest block.
const LARGEST: usize = 1 << 16;

/// The padded layouts that a case has, whose indices are called `out.PADDING.{indices}`.
pub(crate) fn paddings(case: &Case, indices: &str) -> Vec<Padding> {
    let padding = |tensor: &str| {
        let name = tensor.strip_prefix("out.")?.strip_suffix(indices)?.strip_suffix('.')?;
        let (align, at_least_one) = match name.strip_suffix("_min1") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let align = align.strip_prefix("pad")?.parse().ok().filter(|align| (1..=LARGEST).contains(align))?;
        Some(Padding { name: name.to_owned(), tensor: tensor.to_owned(), align, at_least_one })
    };
    case.names().filter_map(padding).collect()
}

impl Padding {
    /// Compares the layout of the rows `index` in groups `offsets`; `source` holds the numbers of the source's rows.
    ///
    /// # Errors
    /// Fixture errors, shape errors and the device's.
    pub(crate) fn compare<D: MoeDevice<f32>>(
        &self,
        rig: &Rig<D>,
        check: &mut Check<'_>,
        source: &[f32],
        fan: usize,
        index: &[u32],
        offsets: &[u32],
    ) -> Result<()> {
        let align = u32::try_from(self.align)?;
        let (mut blocks, mut counts) = (vec![0_u32], Vec::new());
        for (group, len) in lengths(offsets).into_iter().enumerate() {
            let wanted = len.div_ceil(align).max(u32::from(self.at_least_one));
            counts.push(wanted * align);
            let block_end = |block: u32| offsets[group] + len.min((block + 1) * align);
            blocks.extend((0..wanted).map(block_end));
        }
        // The file's own length bounds what is allocated.
        let wanted = check.case.tensor(&self.tensor)?.shape().iter().product::<usize>();
        let rows = (blocks.len() - 1) * self.align;
        anyhow::ensure!(rows == wanted, "`{}` has {wanted} rows, wanted {rows}", self.tensor);
        let dims = GatherDims {
            sources: source.len(),
            fan,
            rows: index.len(),
            width: 1,
            groups: blocks.len() - 1,
            pitch: self.align,
        };
        let moved = gather(rig, dims, source, index, &blocks, -1.0)?;
        check.exact(&self.tensor, &integers(&moved))?;
        check.same(&format!("out.{}.counts", self.name), &counts)?;
        Ok(())
    }
}
