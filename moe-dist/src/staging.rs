//! Staging: elements of any device as slices of the host. In place where the host can read the device's memory; otherwise by way of a
//! buffer that grows to what was needed once.

use bytemuck::cast_slice_mut;
use moe_core::{Device, Elem, In, Out};

/// Memory of the host for elements of a device.
pub(crate) type Staging = Vec<u64>;

/// The first `len` elements of the buffer, with whatever is in them.
pub(crate) fn room<T: Elem>(staging: &mut Staging, len: usize) -> &mut [T] {
    let words = (len * size_of::<T>()).div_ceil(size_of::<u64>());
    if staging.len() < words {
        staging.resize(words, 0);
    }
    &mut cast_slice_mut(&mut staging[..words])[..len]
}

/// The elements of `source`.
pub(crate) fn read<'a, D: Device, T: Elem>(
    device: &D,
    stream: &D::Stream,
    source: In<'a, D, T>,
    staging: &'a mut Staging,
) -> Result<&'a [T], D::Error> {
    let (mem, range) = source.parts();
    if let Some(elements) = D::host(mem) {
        return Ok(&elements[range]);
    }
    let elements = room(staging, source.len());
    device.download(stream, source, elements)?;
    Ok(elements)
}

/// What a piece of work needs of a target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// the elements as they are
    Keep,
    /// nothing, it overwrites them
    Overwrite,
}

/// Runs `work` on the elements of `target`. They are written back if it succeeds.
pub(crate) fn write<D: Device, T: Elem, E>(
    device: &D,
    stream: &D::Stream,
    mut target: Out<'_, D, T>,
    before: Before,
    staging: &mut Staging,
    work: impl FnOnce(&mut [T]) -> Result<(), E>,
) -> Result<Result<(), E>, D::Error> {
    let (mem, range) = target.reborrow().parts();
    if let Some(elements) = D::host_mut(mem) {
        return Ok(work(&mut elements[range]));
    }
    let elements = room(staging, target.len());
    if before == Before::Keep {
        device.download(stream, target.read(), elements)?;
    }
    let done = work(elements);
    if done.is_ok() {
        device.upload(stream, elements, target)?;
    }
    Ok(done)
}
