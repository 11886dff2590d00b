//! Embedding: a token's row is the row of its byte.

use super::param::Matrix;
use crate::real::Real;
use ndarray::{Array2, ArrayView2};

/// The rows of `bytes` in the table (256, width).
pub fn forward<R: Real>(table: &Matrix<R>, bytes: &[u8]) -> Array2<R> {
    let mut x = Array2::zeros((bytes.len(), table.value.ncols()));
    for (mut row, &byte) in x.rows_mut().into_iter().zip(bytes) {
        row.assign(&table.value.row(byte.into()));
    }
    x
}

/// Adds the rows' gradients to those of their bytes, in the order of the tokens.
pub fn backward<R: Real>(table: &mut Matrix<R>, bytes: &[u8], dx: ArrayView2<'_, R>) {
    for (row, &byte) in dx.rows().into_iter().zip(bytes) {
        let mut sum = table.grad.row_mut(byte.into());
        sum += &row;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::random;

    #[test]
    fn a_byte_gathers_the_gradients_of_all_its_tokens() {
        let mut table = Matrix::new(random((256, 3), 1));
        let x = forward(&table, b"aba");
        assert_eq!(x.row(0), table.value.row(97));
        assert_eq!(x.row(1), table.value.row(98));
        let dx = random((3, 3), 2);
        backward(&mut table, b"aba", dx.view());
        assert_eq!(table.grad.row(97), &dx.row(0) + &dx.row(2));
        assert_eq!(table.grad.row(98), dx.row(1));
        assert_eq!(table.grad.row(99).sum(), 0.0);
    }
}
