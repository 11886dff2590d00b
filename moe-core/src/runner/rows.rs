//! Rows: a matrix of tokens on the device, and its way from and to `ndarray`.

use super::Runner;
use crate::collective::Collective;
use crate::device::Device;
use crate::error::{Error, OpId, ShapeError, expect};
use crate::ops::MoeDevice;
use crate::scalar::{Elem, Scalar};
use crate::view::{In, Out, whole, whole_mut};
use alloc::vec;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

/// A row-major matrix on the device.
pub struct Rows<D: Device, T: Elem> {
    pub(crate) mem: D::Owned<T>,
    rows: usize,
    width: usize,
}

impl<D: Device, T: Elem> Rows<D, T> {
    /// Rows and elements of a row.
    pub fn dim(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// All elements.
    pub fn view(&self) -> In<'_, D, T> {
        whole::<D, T>(&self.mem)
    }

    /// All elements, to be written.
    pub fn view_mut(&mut self) -> Out<'_, D, T> {
        whole_mut::<D, T>(&mut self.mem)
    }
}

fn contiguous<'a, T>(what: &'static str, slice: Option<&'a [T]>) -> Result<&'a [T], ShapeError> {
    let why = "is not contiguous in row-major order; pass a standard-layout array";
    slice.ok_or(ShapeError::Combination { op: OpId("ndarray"), what, why })
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// A zeroed matrix.
    ///
    /// # Errors
    /// [`Error::Device`] if memory runs out.
    pub fn rows(&self, rows: usize, width: usize) -> Result<Rows<D, T>, Error<D::Error>> {
        let len = crate::product(OpId("rows"), "rows", &[rows, width])?;
        Ok(Rows { mem: self.session.alloc(len)?, rows, width })
    }

    /// A zeroed matrix of the same shape.
    ///
    /// # Errors
    /// [`Error::Device`] if memory runs out.
    pub fn like(&self, other: &Rows<D, T>) -> Result<Rows<D, T>, Error<D::Error>> {
        self.rows(other.rows, other.width)
    }

    /// A copy of a host matrix on the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if the view is not contiguous; [`Error::Device`].
    pub fn upload(&self, source: ArrayView2<'_, T>) -> Result<Rows<D, T>, Error<D::Error>> {
        let (rows, width) = source.dim();
        let mut target = self.rows(rows, width)?;
        self.write(source, &mut target)?;
        Ok(target)
    }

    /// Overwrites a matrix on the device; allocates nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ or the view is not contiguous; [`Error::Device`].
    pub fn write(&self, source: ArrayView2<'_, T>, target: &mut Rows<D, T>) -> Result<(), Error<D::Error>> {
        same(source.dim(), target.dim())?;
        self.session.upload(contiguous("source", source.as_slice())?, target.view_mut())
    }

    /// Copies a matrix into a host view; waits for the device and allocates nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ or the view is not contiguous; [`Error::Device`].
    pub fn read(&self, source: &Rows<D, T>, target: ArrayViewMut2<'_, T>) -> Result<(), Error<D::Error>> {
        same(source.dim(), target.dim())?;
        let why = "is not contiguous in row-major order; pass a standard-layout array";
        let wrong = ShapeError::Combination { op: OpId("ndarray"), what: "target", why };
        self.session.download(source.view(), target.into_slice().ok_or(wrong)?)
    }

    /// A copy of the matrix on the host; waits for the device.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn download(&self, source: &Rows<D, T>) -> Result<Array2<T>, Error<D::Error>> {
        let mut values = vec![T::default(); source.rows * source.width];
        self.session.download(source.view(), &mut values)?;
        let wrong = ShapeError::Overflow { op: OpId("ndarray"), what: "rows" };
        Array2::from_shape_vec(source.dim(), values).map_err(|_| Error::Shape(wrong))
    }
}

fn same(source: (usize, usize), target: (usize, usize)) -> Result<(), ShapeError> {
    expect(OpId("rows"), "rows", &[target.0], source.0)?;
    expect(OpId("rows"), "width", &[target.1], source.1)
}
