//! Speed of the expert products beside that of one dense product by the same kernels.
//!
//! `cargo run --release -p moe-cpu --example experts -- [threads] [T,D,F,E,K]`, by default two threads and two shapes. The ratio is
//! the rate of the op divided by the dense rate; both are the best of several rounds, taken in turns.

use half::{bf16, f16};
use moe_core::ops::*;
use moe_core::{Device, Error, Kernel, Op, View, ViewMut, run};
use moe_cpu::{Buffer, Cpu, CpuError, Float};
use std::time::Instant;

type Outcome<T> = Result<T, Error<CpuError>>;

/// A fixed spread of values.
fn values<T: Float>(cpu: &Cpu, len: usize) -> Outcome<Buffer<T>> {
    let mut buffer = cpu.alloc::<T>(&(), len).map_err(Error::Device)?;
    buffer
        .iter_mut()
        .enumerate()
        .for_each(|(at, value)| *value = T::narrow((at % 1013) as f32 / 1013.0 - 0.5));
    Ok(buffer)
}

/// Slots in the order of experts, each token's K experts chosen at random, and where the experts' rows begin.
fn routing(tokens: usize, experts: usize, top_k: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut state, mut rows) = (1_u64, Vec::new());
    for token in 0..tokens {
        let mut chosen: Vec<usize> = Vec::new();
        while chosen.len() < top_k {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let expert = (state >> 33) as usize % experts;
            if !chosen.contains(&expert) {
                rows.push((expert, (token * top_k + chosen.len()) as u32));
                chosen.push(expert);
            }
        }
    }
    rows.sort_unstable();
    let offsets = (0..=experts).map(|expert| rows.partition_point(|row| row.0 < expert) as u32).collect();
    (rows.into_iter().map(|row| row.1).collect(), offsets)
}

fn launch<O: Op>(cpu: &Cpu, dims: &O::Dims, args: O::Args<'_, Cpu>, scratch: &mut Buffer<u8>) -> Outcome<f64>
where
    Cpu: Kernel<O>,
{
    let start = Instant::now();
    run::<O, Cpu>(cpu, &(), dims, args, ViewMut::of(scratch))?;
    Ok(start.elapsed().as_secs_f64())
}

fn measure<T: Float>(threads: usize, [tokens, width, hidden, experts, top_k]: [usize; 5]) -> Outcome<()> {
    let cpu = Cpu::with_threads(threads).map_err(Error::Device)?;
    let (activation, rows) = (Activation::SwiGlu, tokens * top_k);
    let dims = ExpertDims { tokens, fan: top_k, rows, experts, width, hidden, activation, bias_shares: 1 };
    let (index, offsets) = routing(tokens, experts, top_k);
    let (x, mut h) = (values::<T>(&cpu, tokens * width)?, values::<T>(&cpu, rows * 2 * hidden)?);
    let (mut a, mut y) = (values::<T>(&cpu, rows * hidden)?, values::<T>(&cpu, rows * width)?);
    let mut dw = values::<f32>(&cpu, experts * width * hidden)?;
    let wgrad = WgradDims {
        tokens,
        fan: top_k,
        rows,
        experts,
        left: width,
        right: hidden,
        gather_left: true,
        gather_right: false,
        accumulate: false,
    };
    let bytes = Kernel::<ExpertUp<T>>::scratch(&cpu, &dims)
        .max(Kernel::<ExpertDown<T>>::scratch(&cpu, &dims))
        .max(Kernel::<ExpertWgrad<T>>::scratch(&cpu, &wgrad));
    let mut scratch = cpu.alloc::<u8>(&(), bytes).map_err(Error::Device)?;
    let mut packing = 0.0;
    let mut pack = |use_, scratch: &mut Buffer<u8>| -> Outcome<Buffer<u8>> {
        let dims = dims.pack(use_);
        let plain = values::<T>(&cpu, dims.groups * dims.rows * dims.cols)?;
        let mut packed = cpu.alloc::<u8>(&(), cpu.packed_len::<T>(&dims)).map_err(Error::Device)?;
        let args = PackWeightsArgs { plain: View::of(&plain), packed: ViewMut::of(&mut packed) };
        packing += launch::<PackWeights<T>>(&cpu, &dims, args, scratch)?;
        Ok(packed)
    };
    let (w13, w2) = (pack(PackUse::Up, &mut scratch)?, pack(PackUse::Down, &mut scratch)?);
    let (mut dense, mut fastest) = (0.0_f64, [f64::INFINITY; 3]);
    for _ in 0..5 {
        dense = dense.max(cpu.dense_flops::<T>(1024, 3).map_err(Error::Device)?);
        let args = ExpertUpArgs {
            x: View::of(&x),
            index: Some(View::of(&index)),
            offsets: View::of(&offsets),
            w13: Weight::Packed(View::of(&w13)),
            b13: None,
            weights: None,
            h: Some(ViewMut::of(&mut h)),
            a: ViewMut::of(&mut a),
        };
        fastest[0] = fastest[0].min(launch::<ExpertUp<T>>(&cpu, &dims, args, &mut scratch)?);
        let args = ExpertDownArgs {
            a: View::of(&a),
            offsets: View::of(&offsets),
            w2: Weight::Packed(View::of(&w2)),
            b2: None,
            out_index: None,
            y: ViewMut::of(&mut y),
        };
        fastest[1] = fastest[1].min(launch::<ExpertDown<T>>(&cpu, &dims, args, &mut scratch)?);
        let args = ExpertWgradArgs {
            left: View::of(&x),
            right: View::of(&a),
            index: Some(View::of(&index)),
            offsets: View::of(&offsets),
            right_weights: None,
            bias_weights: None,
            dw: ViewMut::of(&mut dw),
            dbias: None,
        };
        fastest[2] = fastest[2].min(launch::<ExpertWgrad<T>>(&cpu, &wgrad, args, &mut scratch)?);
    }
    let work = 2.0 * (rows * width * hidden) as f64;
    let [up, down, dw2] = [2.0, 1.0, 1.0].map(|factor| factor * work / dense);
    println!(
        "{} {tokens},{width},{hidden},{experts},{top_k} {:?} x {}: dense {:.1} GFLOP/s; ratios: forward {:.2}, up {:.2}, down {:.2}, \
         dw2 {:.2}; packing takes {:.2} of a forward pass",
        T::DTYPE,
        cpu.isa(),
        cpu.threads(),
        dense / 1e9,
        (up + down) / (fastest[0] + fastest[1]),
        up / fastest[0],
        down / fastest[1],
        dw2 / fastest[2],
        packing / (fastest[0] + fastest[1]),
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(Ok(2), |threads| threads.parse())?;
    let shapes = match args.next() {
        Some(shape) => {
            let sizes = shape.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
            vec![sizes.try_into().map_err(|_| "wanted five sizes: T,D,F,E,K")?]
        }
        None => vec![[512, 256, 512, 8, 2], [512, 2048, 768, 32, 2]],
    };
    for shape in shapes {
        measure::<f32>(threads, shape)?;
        measure::<bf16>(threads, shape)?;
        measure::<f16>(threads, shape)?;
    }
    Ok(())
}
