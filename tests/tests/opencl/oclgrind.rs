//! Every kernel at small sizes, and nothing else: what `.ci/oclgrind` interprets, access by access.

use moe_core::ops::{ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad, PackWeights};
use moe_core::{Kernel, Op};
use moe_opencl::{OpenCl, Way};
use moe_tests::{Case, Random, Sample, Setup, available, launch};
use std::collections::BTreeSet;
use std::time::Instant;

type T = f32;

/// Which samples are launched: the smallest of each kind. Others would be interpreted for hours, and run no other kernels.
#[derive(Clone, Copy)]
struct Choice {
    /// elements of all arguments together, at most
    largest: usize,
    /// a kind is a label and the arguments that are given; without settings, what stands before the label's first comma
    settings: bool,
}

impl Choice {
    fn of<O: Case>(self) -> Vec<Sample<O>> {
        let elements = |sample: &Sample<O>| sample.args.iter().map(|arg| arg.values.len()).sum::<usize>();
        let mut samples = O::samples(&mut Random::new(1));
        samples.retain(|sample| elements(sample) <= self.largest);
        samples.sort_by_key(elements);
        let mut seen = BTreeSet::new();
        samples.retain(|sample| {
            let label = sample.label.split(',').take(if self.settings { usize::MAX } else { 1 });
            let args = sample.args.iter().map(|arg| arg.name).chain(sample.flags.iter().copied());
            seen.insert((label.map(str::to_owned).collect::<Vec<_>>(), args.collect::<Vec<_>>()))
        });
        samples
    }
}

/// Launches the samples chosen, and says which paths they took.
fn launched<O: Case>(device: &OpenCl, choice: Choice) -> BTreeSet<&'static str>
where
    OpenCl: Kernel<O>,
{
    let (start, samples) = (Instant::now(), choice.of::<O>());
    let mut paths = BTreeSet::new();
    for sample in &samples {
        // Nothing stands behind a buffer's last element, where an access would be taken for a good one.
        match launch::<O, T, _>(device, sample, Setup { bare: true, ..Setup::default() }) {
            Ok(outputs) => paths.insert(outputs.path.0),
            Err(error) => panic!("{}, {}: {error:?}", O::ID, sample.label),
        };
    }
    println!("{}: {} samples, {:.1} s, {paths:?}", O::ID, samples.len(), start.elapsed().as_secs_f64());
    paths
}

/// Every device that the loader finds, opened for one of the ways if it has room for it.
fn on_way(test: &str, way: Way, run: impl Fn(&OpenCl)) {
    let listed = OpenCl::list();
    let found = available(test, "opencl", &listed).into_iter().flatten();
    for found in found.filter(|found| way.fits(&found.facts)) {
        run(&OpenCl::open_way(found.clone(), way).expect("the device fits"));
    }
}

/// The vectors that need the least local memory; `.ci/oclgrind` has exactly as much.
const VECTORS: Way = Way::Vector { lanes: 4, columns: 32 };

macro_rules! launch_all {
    ($($op:ty),*) => {
        #[test]
        fn every_op_is_launched() {
            let choice = Choice { largest: 1500, settings: true };
            on_way("every_op_is_launched", VECTORS, |device| {
                $(
                    // This backend packs nothing.
                    if <$op>::ID != PackWeights::<T>::ID {
                        launched::<$op>(device, choice);
                    }
                )*
            });
        }
    };
}
moe_core::for_each_op!(launch_all);

fn products_are_launched(test: &str, way: Way, largest: usize) {
    let choice = Choice { largest, settings: false };
    on_way(test, way, |device| {
        for paths in [
            launched::<ExpertUp<T>>(device, choice),
            launched::<ExpertDown<T>>(device, choice),
            launched::<ExpertDownBwd<T>>(device, choice),
            launched::<ExpertUpBwd<T>>(device, choice),
            launched::<ExpertWgrad<T>>(device, choice),
        ] {
            assert_eq!(paths, BTreeSet::from([way.path().0]));
        }
    });
}

#[test]
fn products_with_vectors_are_launched_across_tiles() {
    products_are_launched("products_with_vectors_are_launched_across_tiles", VECTORS, 100_000);
}

#[test]
fn products_through_local_memory_are_launched() {
    for tile in [64, 128] {
        let way = Way::Local { tile };
        products_are_launched("products_through_local_memory_are_launched", way, 1000);
    }
}
