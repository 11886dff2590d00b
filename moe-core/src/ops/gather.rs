//! Gather: rows copied in the order of an index, for sending.
//!
//! `out[p] = rows[index[r] / fan]` for all rows r of all groups. Groups are destinations: their rows lie end to end (p = r), or
//! each group starts `pitch` rows after the one before, for equal splits. Rows of `out` beyond a group's are not written.

use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, check_index, check_offsets, expect, within};
use crate::host::Host;
use crate::scalar::Scalar;
use crate::view::{In, Out};
use core::marker::PhantomData;

/// Copy of rows by index, for element type `T`.
pub struct Gather<T>(PhantomData<T>);

/// Sizes of [`Gather`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherDims {
    /// rows of the source
    pub sources: usize,
    /// slots per source row
    pub fan: usize,
    /// most rows copied: the length of `index`
    pub rows: usize,
    /// elements of a row
    pub width: usize,
    /// destinations
    pub groups: usize,
    /// rows from one group's start to the next in `out`; 0 if groups lie end to end
    pub pitch: usize,
}

impl GatherDims {
    /// Rows of `out`.
    pub fn out_rows(&self) -> usize {
        if self.pitch > 0 { self.groups.saturating_mul(self.pitch) } else { self.rows }
    }
}

/// Views of [`Gather`].
pub struct GatherArgs<'a, D: Device, T: Scalar> {
    /// (sources, width)
    pub source: In<'a, D, T>,
    /// (rows): slots
    pub index: In<'a, D, u32>,
    /// (groups + 1): the groups' first rows
    pub offsets: In<'a, D, u32>,
    /// (groups * pitch, width), or (rows, width) without a pitch
    pub out: Out<'a, D, T>,
}

impl<T: Scalar> Op for Gather<T> {
    const ID: OpId = OpId("gather");
    type Dims = GatherDims;
    type Args<'a, D: Device> = GatherArgs<'a, D, T>;

    fn check<D: Device>(dims: &GatherDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        within(Self::ID, "fan", 1, u32::MAX as usize, dims.fan)?;
        within(Self::ID, "groups", 0, i32::MAX as usize, dims.groups)?;
        expect(Self::ID, "source", &[dims.sources, dims.width], args.source.len())?;
        expect(Self::ID, "index", &[dims.rows], args.index.len())?;
        expect(Self::ID, "offsets", &[dims.groups + 1], args.offsets.len())?;
        expect(Self::ID, "out", &[dims.out_rows(), dims.width], args.out.len())
    }

    fn reference(dims: &GatherDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let GatherDims { sources, fan, rows, width, pitch, .. } = *dims;
        let (source, index, offsets) = (args.source.host(), args.index.host(), args.offsets.host());
        let out = args.out.host();
        check_offsets(Self::ID, offsets, rows)?;
        let used = offsets[dims.groups] as usize;
        check_index(Self::ID, "index", &index[..used], sources * fan)?;
        for (group, bounds) in offsets.windows(2).enumerate() {
            let (first, last) = (bounds[0] as usize, bounds[1] as usize);
            if pitch > 0 {
                within(Self::ID, "rows of a group", 0, pitch, last - first)?;
            }
            for row in first..last {
                let place = if pitch > 0 { group * pitch + row - first } else { row };
                let from = index[row] as usize / fan;
                out[place * width..][..width].copy_from_slice(&source[from * width..][..width]);
            }
        }
        Ok(())
    }
}
