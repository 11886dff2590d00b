//! Every kernel once at every small size of the suite, and nothing else: what `.ci/oclgrind` interprets, access by access.

use crate::devices::devices;
use moe_core::ops::{ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad, PackWeights};
use moe_core::{Kernel, Op};
use moe_opencl::{OpenCl, Way};
use moe_tests::{Case, Random, Sample, Setup, available, launch};
use std::collections::BTreeSet;
use std::time::Instant;

type T = f32;

/// Elements of a sample's arguments, fewer than this.
const LARGEST: usize = 4096;

fn launched<O: Case>(device: &OpenCl)
where
    OpenCl: Kernel<O>,
{
    // This backend packs nothing.
    if O::ID == PackWeights::<T>::ID {
        return;
    }
    // Larger ones would be interpreted for hours, and are no other kernels.
    let small = |sample: &Sample<O>| sample.args.iter().map(|arg| arg.values.len()).sum::<usize>() < LARGEST;
    let start = Instant::now();
    let (mut count, mut paths) = (0, BTreeSet::new());
    for sample in O::samples(&mut Random::new(1)).into_iter().filter(small) {
        // Nothing stands behind a buffer's last element, where an access would be taken for a good one.
        match launch::<O, T, _>(device, &sample, Setup { bare: true, ..Setup::default() }) {
            Ok(outputs) => paths.insert(outputs.path.0),
            Err(error) => panic!("{}, {}: {error:?}", O::ID, sample.label),
        };
        count += 1;
    }
    assert!(count > 0, "{}: no sample is small enough", O::ID);
    println!("{}: {count} samples, {:.1} s, {paths:?}", O::ID, start.elapsed().as_secs_f64());
}

macro_rules! launch_all {
    ($($op:ty),*) => {
        #[test]
        fn every_kernel_runs() {
            for device in devices("every_kernel_runs") {
                $( launched::<$op>(device); )*
            }
        }
    };
}
moe_core::for_each_op!(launch_all);

#[test]
fn every_way_of_the_products_runs() {
    let listed = OpenCl::list();
    let ways = [Way::Vector { lanes: 4, columns: 32 }, Way::Local { tile: 64 }, Way::Local { tile: 128 }];
    for found in available("every_way_of_the_products_runs", "opencl", &listed).into_iter().flatten() {
        for way in ways.into_iter().filter(|way| way.fits(&found.facts)) {
            let device = OpenCl::open_way(found.clone(), way).expect("the device fits");
            launched::<ExpertUp<T>>(&device);
            launched::<ExpertDown<T>>(&device);
            launched::<ExpertDownBwd<T>>(&device);
            launched::<ExpertUpBwd<T>>(&device);
            launched::<ExpertWgrad<T>>(&device);
        }
    }
}
