//! Two ranks with a GPU each, as threads of this process.

use moe_core::{BackendError, Device, Elem, ErrorKind, In, Out, whole, whole_mut};
use moe_cuda::{Cuda, Stream};
use moe_dist::nccl::{NcclError, NcclGroup};
use moe_dist::{World, channel};
use moe_tests::available;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Why there are no two GPUs that can exchange.
#[derive(Debug)]
struct Missing(String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

impl BackendError for Missing {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unavailable
    }
}

/// One rank, its GPU and a stream there.
pub(crate) struct Rank {
    pub(crate) world: World,
    pub(crate) cuda: Cuda,
    pub(crate) stream: Stream,
}

impl Rank {
    pub(crate) fn new(world: World, cuda: Cuda) -> Self {
        let stream = cuda.stream().expect("a stream");
        Self { world, cuda, stream }
    }

    /// The group of both ranks.
    pub(crate) fn both(&self) -> NcclGroup {
        NcclGroup::new(&self.world, &self.cuda, "all", &[0, 1]).expect("a group")
    }

    /// A buffer with these values.
    pub(crate) fn upload<T: Elem>(&self, values: &[T]) -> <Cuda as Device>::Owned<T> {
        let mut buffer = self.cuda.alloc::<T>(&self.stream, values.len()).expect("memory");
        self.cuda.upload(&self.stream, values, whole_mut::<Cuda, T>(&mut buffer)).expect("a copy");
        buffer
    }

    pub(crate) fn download<T: Elem>(&self, buffer: &<Cuda as Device>::Owned<T>) -> Vec<T> {
        let mut values = vec![T::default(); Cuda::len(buffer)];
        self.cuda.download(&self.stream, whole::<Cuda, T>(buffer), &mut values).expect("a copy");
        values
    }
}

/// All of a buffer.
pub(crate) fn all<T: Elem>(buffer: &<Cuda as Device>::Owned<T>) -> In<'_, Cuda, T> {
    whole::<Cuda, T>(buffer)
}

/// As [`all`], to write to.
pub(crate) fn all_mut<T: Elem>(buffer: &mut <Cuda as Device>::Owned<T>) -> Out<'_, Cuda, T> {
    whole_mut::<Cuda, T>(buffer)
}

/// The first two GPUs, or none if this machine has not as many, or no NCCL: then the test is counted as skipped.
pub(crate) fn two_gpus(test: &str) -> Option<[Cuda; 2]> {
    let missing = |error: &dyn std::fmt::Display| Missing(error.to_string());
    let opened = Cuda::open(0).and_then(|first| Ok([first, Cuda::open(1)?]));
    let opened = match opened {
        Err(error) if error.kind() == ErrorKind::Unavailable => Err(missing(&error)),
        opened => Ok(opened.expect("the GPUs are there")),
    };
    let usable = opened.and_then(|gpus| match on(&gpus, |rank| try_group(&rank)).remove(0) {
        Err(error @ NcclError::Unusable { .. }) => Err(missing(&error)),
        made => Ok(made.map(|()| gpus).expect("a group")),
    });
    available(test, "nccl", &usable).cloned()
}

fn try_group(rank: &Rank) -> Result<(), NcclError> {
    NcclGroup::new(&rank.world, &rank.cuda, "try", &[0, 1]).map(drop)
}

/// Runs `work` as both ranks, and returns what it returned. One test at a time has the GPUs: kernels that wait for each other need
/// room for both.
pub(crate) fn on<R: Send>(gpus: &[Cuda; 2], work: impl Fn(Rank) -> R + Sync) -> Vec<R> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let ranks = channel::world(2).into_iter().zip(gpus);
        let start = |(world, cuda): (World, &Cuda)| {
            let (work, cuda) = (&work, cuda.clone());
            scope.spawn(move || work(Rank::new(world, cuda)))
        };
        let threads: Vec<_> = ranks.map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("the rank's own panic is above")).collect()
    })
}

/// `len` elements that differ by rank, of all magnitudes.
pub(crate) fn values<T: Elem>(rank: usize, len: usize) -> Vec<T> {
    let mut random = moe_tests::Random::new(rank as u64 + 1);
    let floats = |random: &mut moe_tests::Random| -> Vec<f64> { random.scaled(len, 1000.0) };
    match T::DTYPE {
        moe_core::DType::F32 => cast(&random.scaled::<f32>(len, 1000.0)),
        moe_core::DType::F64 => cast(&floats(&mut random)),
        moe_core::DType::Bf16 => cast(&random.scaled::<half::bf16>(len, 1000.0)),
        moe_core::DType::F16 => cast(&random.scaled::<half::f16>(len, 1000.0)),
        moe_core::DType::U32 => {
            cast(&floats(&mut random).iter().map(|value| value.to_bits() as u32).collect::<Vec<_>>())
        }
        _ => cast(&floats(&mut random).iter().map(|value| value.to_bits() as u8).collect::<Vec<_>>()),
    }
}

fn cast<T: Elem, S: Elem>(values: &[S]) -> Vec<T> {
    bytemuck::cast_slice(values).to_vec()
}
