//! Ops on the reference device, on slices.

use moe_core::{Host, Op, View, ViewMut};

/// Runs an op that must succeed.
#[track_caller]
pub(crate) fn run<O: Op>(dims: O::Dims, args: O::Args<'_, Host>) {
    moe_core::run::<O, Host>(&Host, &(), &dims, args, ViewMut::of(&mut [])).expect("good arguments");
}

pub(crate) fn read<T>(values: &[T]) -> View<'_, [T]> {
    View::of(values)
}

pub(crate) fn write<T>(values: &mut [T]) -> ViewMut<'_, [T]> {
    ViewMut::of(values)
}
