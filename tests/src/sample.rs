//! Sample: one set of arguments of an op.

use crate::tolerance::Tolerance;
use crate::values::Values;
use moe_core::ops::PackDims;
use moe_core::{Elem, Op, Scalar};

/// What an argument is to the op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// read, and the same afterwards
    Input,
    /// read as it is, or in the device's own layout
    Weight(PackDims),
    /// written, or read and written; compared with the reference
    Output(Tolerance),
    /// room that the op may use: what it holds afterwards is left open
    Room,
    /// weights in the device's own layout, written: as long as the device says, and its secret
    Layout(PackDims),
}

/// One argument.
#[derive(Clone, Debug)]
pub struct Arg {
    /// its name in the op's arguments; shape errors leave out what stands in brackets
    pub name: &'static str,
    /// what it holds before the launch
    pub values: Values,
    /// what it is to the op
    pub role: Role,
}

impl Arg {
    /// The name that a shape error gives it: `base[1] scale` is `base scale` there.
    pub fn name_in_errors(&self) -> String {
        match (self.name.find('['), self.name.find(']')) {
            (Some(open), Some(close)) => [&self.name[..open], &self.name[close + 1..]].concat(),
            _ => self.name.into(),
        }
    }
}

/// One set of arguments of `O`, and what is particular about it.
pub struct Sample<O: Op> {
    /// what is particular
    pub label: String,
    /// sizes and settings
    pub dims: O::Dims,
    /// the arguments that are given, optional ones among them
    pub args: Vec<Arg>,
    /// arguments that are no views, and true
    pub flags: Vec<&'static str>,
}

impl<O: Op> Clone for Sample<O> {
    fn clone(&self) -> Self {
        Self {
            label: self.label.clone(),
            dims: self.dims,
            args: self.args.clone(),
            flags: self.flags.clone(),
        }
    }
}

impl<O: Op> Sample<O> {
    /// A sample without arguments yet.
    pub fn new(label: impl Into<String>, dims: O::Dims) -> Self {
        Self { label: label.into(), dims, args: Vec::new(), flags: Vec::new() }
    }

    fn with(mut self, name: &'static str, values: Values, role: Role) -> Self {
        self.args.push(Arg { name, values, role });
        self
    }

    /// An argument that is read.
    pub fn input<E: Elem>(self, name: &'static str, values: Vec<E>) -> Self {
        self.with(name, Values::of(values), Role::Input)
    }

    /// An optional argument that is read, if it is there.
    pub fn maybe<E: Elem>(self, name: &'static str, values: Option<Vec<E>>) -> Self {
        match values {
            Some(values) => self.input(name, values),
            None => self,
        }
    }

    /// Weights, which the device may read in its own layout.
    pub fn weight<T: Scalar>(self, name: &'static str, values: Vec<T>, pack: PackDims) -> Self {
        self.with(name, Values::of(values), Role::Weight(pack))
    }

    /// An argument that is overwritten: poisoned before the launch.
    pub fn output<E: Elem>(self, name: &'static str, len: usize, tolerance: Tolerance) -> Self {
        self.with(name, Values::poison(E::DTYPE, len), Role::Output(tolerance))
    }

    /// An optional argument that is overwritten, if it is wanted.
    pub fn output_if<E: Elem>(
        self,
        wanted: bool,
        name: &'static str,
        len: usize,
        tolerance: Tolerance,
    ) -> Self {
        if wanted { self.output::<E>(name, len, tolerance) } else { self }
    }

    /// An argument that is read and written.
    pub fn update<E: Elem>(self, name: &'static str, values: Vec<E>, tolerance: Tolerance) -> Self {
        self.with(name, Values::of(values), Role::Output(tolerance))
    }

    /// An argument that the op may use as it likes: poisoned before the launch.
    pub fn room<E: Elem>(self, name: &'static str, len: usize) -> Self {
        self.with(name, Values::poison(E::DTYPE, len), Role::Room)
    }

    /// Weights to be written in the device's own layout.
    pub fn layout<T: Scalar>(self, name: &'static str, pack: PackDims) -> Self {
        let bytes = pack.groups * pack.rows * pack.cols * size_of::<T>();
        self.with(name, Values::poison(u8::DTYPE, bytes), Role::Layout(pack))
    }

    /// An argument that is a truth value.
    pub fn flag(mut self, name: &'static str, value: bool) -> Self {
        if value {
            self.flags.push(name);
        }
        self
    }

    /// The argument of this name, if it is given.
    pub fn arg(&self, name: &str) -> Option<&Arg> {
        self.args.iter().find(|arg| arg.name == name)
    }

    /// The argument of this name, to change it.
    pub fn arg_mut(&mut self, name: &str) -> Option<&mut Arg> {
        self.args.iter_mut().find(|arg| arg.name == name)
    }
}
