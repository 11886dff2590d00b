//! Values: the elements of one argument on the host, of any type, and the poison that unwritten ones keep.

use half::{bf16, f16};
use moe_core::{DType, Elem};
use std::fmt;

/// Elements of one of the types that device memory holds.
#[derive(Clone, Debug)]
pub enum Values {
    /// 32-bit floats
    F32(Vec<f32>),
    /// 64-bit floats
    F64(Vec<f64>),
    /// bfloat16
    Bf16(Vec<bf16>),
    /// 16-bit IEEE floats
    F16(Vec<f16>),
    /// 32-bit unsigned integers
    U32(Vec<u32>),
    /// bytes
    U8(Vec<u8>),
}

/// Runs an expression on the vector inside.
macro_rules! each {
    ($values:expr, $v:ident => $body:expr) => {
        match $values {
            $crate::values::Values::F32($v) => $body,
            $crate::values::Values::F64($v) => $body,
            $crate::values::Values::Bf16($v) => $body,
            $crate::values::Values::F16($v) => $body,
            $crate::values::Values::U32($v) => $body,
            $crate::values::Values::U8($v) => $body,
        }
    };
}
pub(crate) use each;

/// One element, as comparisons see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// its bits
    pub bits: u64,
    /// its value; exact
    pub value: f64,
    /// it still is what an unwritten element holds
    pub poison: bool,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.poison {
            f.write_str("unwritten")
        } else {
            write!(f, "{:e} (bits {:x})", self.value, self.bits)
        }
    }
}

impl Values {
    /// The elements of a vector of any element type.
    ///
    /// # Panics
    /// If `E` is a type that this list does not know.
    pub fn of<E: Elem>(values: Vec<E>) -> Self {
        use bytemuck::cast_vec;
        match E::DTYPE {
            DType::F32 => Self::F32(cast_vec(values)),
            DType::F64 => Self::F64(cast_vec(values)),
            DType::Bf16 => Self::Bf16(cast_vec(values)),
            DType::F16 => Self::F16(cast_vec(values)),
            DType::U32 => Self::U32(cast_vec(values)),
            DType::U8 => Self::U8(values.into_iter().map(bytemuck::cast).collect()),
            other => panic!("no values of type {other}"),
        }
    }

    /// The elements, if they are of type `E`.
    ///
    /// # Panics
    /// If they are of another type.
    pub fn get<E: Elem>(&self) -> &[E] {
        assert_eq!(self.dtype(), E::DTYPE, "values of another type were asked for");
        each!(self, v => bytemuck::cast_slice(v))
    }

    /// `len` elements that no op writes: NaNs with a payload of their own, or a pattern of bits.
    pub fn poison(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::F32 => Self::F32(vec![f32::from_bits(0x7fc5_a5a5); len]),
            DType::F64 => Self::F64(vec![f64::from_bits(0x7ff8_a5a5_a5a5_a5a5); len]),
            DType::Bf16 => Self::Bf16(vec![bf16::from_bits(0x7fc5); len]),
            DType::F16 => Self::F16(vec![f16::from_bits(0x7e5a); len]),
            DType::U32 => Self::U32(vec![0xa5a5_a5a5; len]),
            _ => Self::U8(vec![0xa5; len]),
        }
    }

    /// Poisoned elements of type `E`.
    pub fn poisoned<E: Elem>(len: usize) -> Vec<E> {
        Self::poison(E::DTYPE, len).get::<E>().to_vec()
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        fn of<E: Elem>(_: &[E]) -> DType {
            E::DTYPE
        }
        each!(self, v => of(v))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        each!(self, v => v.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These elements with `front` poisoned ones before and `back` behind.
    pub fn guarded(&self, front: usize, back: usize) -> Self {
        fn join<E: Elem>(values: &[E], front: usize, back: usize) -> Values {
            let mut all = Values::poisoned::<E>(front);
            all.extend_from_slice(values);
            all.extend(Values::poisoned::<E>(back));
            Values::of(all)
        }
        each!(self, v => join(v, front, back))
    }

    /// The element at `at`.
    pub fn cell(&self, at: usize) -> Cell {
        let (bits, value) = match self {
            Self::F32(v) => (u64::from(v[at].to_bits()), f64::from(v[at])),
            Self::F64(v) => (v[at].to_bits(), v[at]),
            Self::Bf16(v) => (u64::from(v[at].to_bits()), f64::from(v[at])),
            Self::F16(v) => (u64::from(v[at].to_bits()), f64::from(v[at])),
            Self::U32(v) => (u64::from(v[at]), f64::from(v[at])),
            Self::U8(v) => (u64::from(v[at]), f64::from(v[at])),
        };
        let poison = match self.dtype() {
            DType::F32 => 0x7fc5_a5a5,
            DType::F64 => 0x7ff8_a5a5_a5a5_a5a5,
            DType::Bf16 => 0x7fc5,
            DType::F16 => 0x7e5a,
            DType::U32 => 0xa5a5_a5a5,
            _ => 0xa5,
        };
        Cell { bits, value, poison: bits == poison }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_is_told_from_an_ordinary_nan() {
        for dtype in [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::U32, DType::U8] {
            let poison = Values::poison(dtype, 2);
            assert!(poison.cell(1).poison, "{dtype}");
        }
        let nan = Values::of(vec![f32::NAN]);
        assert!(!nan.cell(0).poison && nan.cell(0).value.is_nan());
    }

    #[test]
    fn guards_stand_on_both_sides() {
        let guarded = Values::of(vec![1_u32, 2]).guarded(1, 2);
        let poison: Vec<bool> = (0..5).map(|at| guarded.cell(at).poison).collect();
        assert_eq!(poison, [true, false, false, true, true]);
    }
}
