//! Memory: what a device must do with buffers before any kernel runs.

use crate::random::Random;
use crate::report::{Failure, Report};
use moe_core::{BackendError, Device, Elem, ErrorKind, OpId, Scalar, whole, whole_mut};
use std::fmt::Debug;
use std::ops::Range;

const MEMORY: OpId = OpId("memory");

/// Asks for zeroed memory, copies both ways and on the device, parts of buffers, streams and events.
pub fn check_memory<T: Scalar, D: Device>(device: &D, report: &mut Report) {
    let mut random = Random::new(17);
    let values = random.values::<T>(101);
    let words: Vec<u32> = (0..101).map(|_| random.bits() as u32).collect();
    check_elements(device, report, &values);
    check_elements(device, report, &words);
    check_elements(device, report, &words.iter().map(|word| *word as u8).collect::<Vec<u8>>());
}

fn check_elements<D: Device, E: Elem>(device: &D, report: &mut Report, values: &[E]) {
    let mut ask = |what: &str, result: Result<Vec<E>, D::Error>, want: &[E]| {
        let problem = match result {
            Ok(got) if got == want => return report.pass(MEMORY),
            Ok(got) => differs(want, &got),
            Err(error) => format!("gives an error: {error}"),
        };
        let (sample, dims) = (E::DTYPE.to_string(), format!("{} elements", want.len()));
        report.fail(Failure { op: MEMORY, sample, dims, argument: what.into(), problem });
    };
    let zeros = vec![E::default(); values.len()];
    ask("alloc", zeroed(device, values.len()), &zeros);
    ask("alloc of nothing", zeroed(device, 0), &[]);
    ask("upload and download", there_and_back(device, values, 0..values.len()), values);
    for part in [0..1, 3..50, 100..101, 7..7] {
        ask("parts of a buffer", there_and_back(device, values, part.clone()), &values[part]);
    }
    ask("copy", copied(device, values, 5), &values[5..]);
    ask("hand_over", handed_over(device, values), values);
    ask("wait", waited(device, values), values);
    for (what, refused) in wrong_lengths(device, values) {
        let problem = match refused {
            Err(ErrorKind::Shape) => {
                report.pass(MEMORY);
                continue;
            }
            Err(kind) => format!("of different lengths gives an error of kind {kind:?}, not Shape"),
            Ok(()) => "of different lengths is taken".into(),
        };
        let (sample, dims) = (E::DTYPE.to_string(), format!("{} elements", values.len()));
        report.fail(Failure { op: MEMORY, sample, dims, argument: what.into(), problem });
    }
}

fn differs<E: Debug + PartialEq>(want: &[E], got: &[E]) -> String {
    match want.iter().zip(got).position(|(want, got)| want != got) {
        Some(at) => format!("at {at}: wanted {:?}, got {:?}", want[at], got[at]),
        None => format!("wanted {} elements, got {}", want.len(), got.len()),
    }
}

fn zeroed<D: Device, E: Elem>(device: &D, len: usize) -> Result<Vec<E>, D::Error> {
    let stream = device.stream()?;
    // Memory that was used before must come back as zeros too.
    let mut used = device.alloc::<u8>(&stream, len * size_of::<E>())?;
    device.upload(&stream, &vec![0xa5; len * size_of::<E>()], whole_mut::<D, u8>(&mut used))?;
    drop(used);
    let buffer = device.alloc::<E>(&stream, len)?;
    read::<D, E>(device, &stream, &buffer)
}

fn read<D: Device, E: Elem>(
    device: &D,
    stream: &D::Stream,
    buffer: &D::Owned<E>,
) -> Result<Vec<E>, D::Error> {
    let view = whole::<D, E>(buffer);
    // Elements that are not copied differ from every value in use.
    let mut values = vec![crate::Values::poisoned::<E>(1)[0]; view.len()];
    device.download(stream, view, &mut values)?;
    Ok(values)
}

/// Uploads everything, then a part once more in its place, and downloads that part.
fn there_and_back<D: Device, E: Elem>(
    device: &D,
    values: &[E],
    part: Range<usize>,
) -> Result<Vec<E>, D::Error> {
    let stream = device.stream()?;
    let mut buffer = device.alloc::<E>(&stream, values.len())?;
    let target = whole_mut::<D, E>(&mut buffer).slice(part.clone()).expect("a part of the buffer");
    device.upload(&stream, &values[part.clone()], target)?;
    let source = whole::<D, E>(&buffer).slice(part.clone()).expect("a part of the buffer");
    let mut got = vec![E::default(); part.len()];
    device.download(&stream, source, &mut got)?;
    Ok(got)
}

/// Copies the values from `start` on to the front of another buffer.
fn copied<D: Device, E: Elem>(device: &D, values: &[E], start: usize) -> Result<Vec<E>, D::Error> {
    let stream = device.stream()?;
    let mut source = device.alloc::<E>(&stream, values.len())?;
    let mut target = device.alloc::<E>(&stream, values.len() - start)?;
    device.upload(&stream, values, whole_mut::<D, E>(&mut source))?;
    let view = whole::<D, E>(&source).slice(start..values.len()).expect("a part of the buffer");
    device.copy(&stream, view, whole_mut::<D, E>(&mut target))?;
    read::<D, E>(device, &stream, &target)
}

fn handed_over<D: Device, E: Elem>(device: &D, values: &[E]) -> Result<Vec<E>, D::Error> {
    let (from, to) = (device.stream()?, device.stream()?);
    let mut buffer = device.alloc::<E>(&from, values.len())?;
    device.upload(&from, values, whole_mut::<D, E>(&mut buffer))?;
    device.hand_over(&mut buffer, &from, &to)?;
    read::<D, E>(device, &to, &buffer)
}

fn waited<D: Device, E: Elem>(device: &D, values: &[E]) -> Result<Vec<E>, D::Error> {
    let (first, second) = (device.stream()?, device.stream()?);
    let mut buffer = device.alloc::<E>(&first, values.len())?;
    device.upload(&first, values, whole_mut::<D, E>(&mut buffer))?;
    let event = device.record(&first)?;
    device.wait(&second, &event)?;
    device.sync(&second)?;
    device.sync(&first)?;
    read::<D, E>(device, &first, &buffer)
}

type Refused = Result<(), ErrorKind>;

fn wrong_lengths<D: Device, E: Elem>(device: &D, values: &[E]) -> Vec<(&'static str, Refused)> {
    let all = || -> Result<Vec<(&'static str, Refused)>, D::Error> {
        let stream = device.stream()?;
        let mut buffer = device.alloc::<E>(&stream, values.len() - 1)?;
        let other = device.alloc::<E>(&stream, values.len())?;
        let kind = |result: Result<(), D::Error>| result.map_err(|error| error.kind());
        let upload = device.upload(&stream, values, whole_mut::<D, E>(&mut buffer));
        let copy = device.copy(&stream, whole::<D, E>(&other), whole_mut::<D, E>(&mut buffer));
        let download = device.download(&stream, whole::<D, E>(&buffer), &mut values.to_vec());
        Ok(vec![("upload", kind(upload)), ("copy", kind(copy)), ("download", kind(download))])
    };
    all().unwrap_or_else(|error| vec![("alloc", Err(error.kind()))])
}
