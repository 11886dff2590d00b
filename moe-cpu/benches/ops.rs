//! Every op at the small shape, T,D,F,E,K = 512,256,512,8,2, in f32 and bf16: `cargo bench -p moe-cpu --bench ops`.

mod cases;
#[path = "cases/floors.rs"]
mod floors;

use cases::{Case, OPS, Shape};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use moe_core::{DType, Device, Elem};
use moe_cpu::{Cpu, Float};
use std::time::{Duration, Instant};

const SHAPE: Shape = Shape::new([512, 256, 512, 8, 2]);

fn ops<T: Float>(criterion: &mut Criterion, dtype: DType) {
    let cpu = Cpu::new().expect("threads start");
    let mut case = Case::<T>::new(&cpu, SHAPE).expect("the layer fits the machine");
    let mut group = criterion.benchmark_group(format!("ops {dtype}"));
    for op in OPS {
        // Products count their operations, the others the bytes that they must move.
        group.throughput(match case.work(op) {
            0.0 => Throughput::Bytes(case.traffic(op) as u64),
            work => Throughput::Elements(work as u64),
        });
        group.bench_function(op, |bencher| {
            cpu.enter(|| {
                bencher.iter_custom(|rounds| {
                    (0..rounds).fold(Duration::ZERO, |sum, _| {
                        case.prepare(op);
                        let start = Instant::now();
                        case.launch(op).expect("the op runs");
                        sum + start.elapsed()
                    })
                })
            });
        });
    }
    group.finish();
}

fn every_type(criterion: &mut Criterion) {
    ops::<f32>(criterion, f32::DTYPE);
    ops::<bf16>(criterion, bf16::DTYPE);
}

criterion_group!(all, every_type);
criterion_main!(all);
