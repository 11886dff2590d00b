//! Launch: a sample run on a device, and what came out.

use crate::case::Case;
use crate::sample::{Role, Sample};
use crate::values::Values;
use crate::views::{Buffer, GUARD, Views, on_device};
use moe_core::ops::{PackDims, PackWeights, PackWeightsArgs};
use moe_core::{Elem, Error, Kernel, Path, Scalar, run};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a sample is laid out on the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// weights in the device's own layout, where it has one
    pub packed: bool,
    /// elements between the start of a buffer and the view of it
    pub front: usize,
    /// makes the view of one argument longer or shorter than it should be
    pub resized: Option<(&'static str, isize)>,
    /// nothing behind the views, for tools that watch the ends of buffers
    pub bare: bool,
}

/// What a launch left in its arguments.
#[derive(Debug)]
pub struct Outputs {
    /// the way that the device took
    pub path: Path,
    args: Vec<(&'static str, Values)>,
    front: usize,
    lens: Vec<usize>,
}

impl Outputs {
    /// The elements of an argument after the launch, without its guards.
    ///
    /// # Panics
    /// If there is no such argument of this type.
    pub fn get<E: Elem>(&self, name: &str) -> Vec<E> {
        let at = self.args.iter().position(|(arg, _)| *arg == name);
        let at = at.unwrap_or_else(|| panic!("there is no argument `{name}`"));
        let front = if self.args[at].1.len() > self.lens[at] + GUARD { self.front } else { 0 };
        self.args[at].1.get::<E>()[front..][..self.lens[at]].to_vec()
    }

    /// The elements of an argument after the launch, guards included.
    pub(crate) fn guarded(&self, name: &str) -> Option<&Values> {
        let found = self.args.iter().find(|(arg, _)| *arg == name);
        found.map(|(_, values)| values)
    }
}

/// Why a launch gave no result.
#[derive(Debug)]
pub(crate) enum Refusal<E> {
    /// the device, or the check before it, returned an error
    Error(E),
    /// the device panicked
    Panic,
}

impl<E: fmt::Display> fmt::Display for Refusal<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => write!(f, "give an error: {error}"),
            Self::Panic => f.write_str("make the device panic"),
        }
    }
}

/// Uploads a sample, runs the op, and downloads everything again.
///
/// # Errors
/// The device's, or the shape check's.
///
/// # Panics
/// If the sample and the op's arguments do not have the same names and types.
pub fn launch<O, T, D>(device: &D, sample: &Sample<O>, setup: Setup) -> Result<Outputs, Error<D::Error>>
where
    O: Case,
    T: Scalar,
    D: Kernel<O> + Kernel<PackWeights<T>>,
{
    let stream = device.stream().map_err(Error::Device)?;
    let mut buffers = Vec::new();
    let back = if setup.bare { 0 } else { GUARD };
    for arg in &sample.args {
        let buffer = match arg.role {
            Role::Weight(dims) if setup.packed && device.packed_len::<T>(&dims) > 0 => {
                pack::<T, D>(device, &stream, arg.name, arg.values.get(), &dims)?
            }
            _ => {
                let values = on_device::<D, T>(device, arg);
                let front = if values.dtype() == u8::DTYPE { 0 } else { setup.front };
                Buffer::upload(device, &stream, arg.name, &values, [front, back]).map_err(Error::Device)?
            }
        };
        buffers.push(buffer);
    }
    let lens = buffers.iter().map(|buffer| buffer.range.len()).collect();
    for buffer in &mut buffers {
        if let Some((name, by)) = setup.resized.filter(|(name, _)| *name == buffer.name()) {
            let end = buffer.range.end.checked_add_signed(by);
            buffer.range.end = end.unwrap_or_else(|| panic!("`{name}` is too short to be resized"));
        }
    }
    buffers.extend(sample.flags.iter().map(|name| Buffer::flag(name)));
    let mut scratch = scratch::<O, D>(device, &stream, &sample.dims, back)?;

    let mut views = Views::new(&mut buffers);
    let args = O::args(&mut views);
    let left = views.left();
    assert!(left.is_empty(), "{} has no argument {left:?}", O::ID);
    let mut views = Views::<D>::new(std::slice::from_mut(&mut scratch));
    let path = run::<O, D>(device, &stream, &sample.dims, args, views.write("scratch"))?;
    device.sync(&stream).map_err(Error::Device)?;

    buffers.push(scratch);
    let mut outputs = Outputs { path, args: Vec::new(), front: setup.front, lens };
    outputs.lens.resize(buffers.len(), 0);
    for buffer in &buffers {
        let values = buffer.download(device, &stream).map_err(Error::Device)?;
        outputs.args.push((buffer.name(), values));
    }
    Ok(outputs)
}

/// As [`launch`], with a panic of the device as a result.
pub(crate) fn launch_guarded<O, T, D>(
    device: &D,
    sample: &Sample<O>,
    setup: Setup,
) -> Result<Outputs, Refusal<Error<D::Error>>>
where
    O: Case,
    T: Scalar,
    D: Kernel<O> + Kernel<PackWeights<T>>,
{
    match catch_unwind(AssertUnwindSafe(|| launch::<O, T, D>(device, sample, setup))) {
        Ok(result) => result.map_err(Refusal::Error),
        Err(_) => Err(Refusal::Panic),
    }
}

/// Scratch memory of exactly the size that the device asks for, poisoned.
fn scratch<O: Case, D: Kernel<O>>(
    device: &D,
    stream: &D::Stream,
    dims: &O::Dims,
    back: usize,
) -> Result<Buffer, Error<D::Error>> {
    let poison = Values::poison(u8::DTYPE, Kernel::<O>::scratch(device, dims));
    Buffer::upload(device, stream, "scratch", &poison, [0, back]).map_err(Error::Device)
}

/// Weights in the device's own layout.
fn pack<T: Scalar, D: Kernel<PackWeights<T>>>(
    device: &D,
    stream: &D::Stream,
    name: &'static str,
    plain: &[T],
    dims: &PackDims,
) -> Result<Buffer, Error<D::Error>> {
    let plain = Values::of(plain.to_vec());
    let poison = Values::poison(u8::DTYPE, device.packed_len::<T>(dims));
    let plain = Buffer::upload(device, stream, "plain", &plain, [0, GUARD]).map_err(Error::Device)?;
    let packed = Buffer::upload(device, stream, name, &poison, [0, GUARD]).map_err(Error::Device)?;
    let mut scratch = scratch::<PackWeights<T>, D>(device, stream, dims, GUARD)?;
    let mut buffers = [plain, packed];
    let mut views = Views::<D>::new(&mut buffers);
    let args = PackWeightsArgs { plain: views.read::<T>("plain"), packed: views.write(name) };
    let mut views = Views::<D>::new(std::slice::from_mut(&mut scratch));
    run::<PackWeights<T>, D>(device, stream, dims, args, views.write("scratch"))?;
    device.sync(stream).map_err(Error::Device)?;
    let [_, packed] = buffers;
    Ok(packed.packed())
}
