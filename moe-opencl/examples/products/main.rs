//! The experts' products in f32 beside CLBlast, which does the same products one expert after the other, on one device in one run.
//!
//! `products [PLATFORM:DEVICE [TOKENS,WIDTH,HIDDEN,EXPERTS,TOP_K]]` prints, for each form of product, billions of operations per
//! second of both, the best of several runs. CLBlast is loaded from the loader's path (Debian: libclblast1).

use moe_core::ops::{
    Activation, ExpertDims, ExpertDown, ExpertDownArgs, ExpertUpBwd, ExpertUpBwdArgs, ExpertWgrad,
    ExpertWgradArgs, Weight, WgradDims,
};
use moe_core::{Kernel, Op, Session, whole, whole_mut};
use moe_opencl::OpenCl;
use std::env;
use std::error::Error;
use std::time::Instant;

mod clblast;
use clblast::{Clblast, Side};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let device = arguments.next().unwrap_or_else(|| "0:0".into());
    let (platform, number) = device.split_once(':').ok_or("the device is PLATFORM:DEVICE")?;
    let (platform, number) = (platform.parse()?, number.parse()?);
    let shape = arguments.next().unwrap_or_else(|| "1024,512,1024,8,2".into());
    let shape: Vec<usize> = shape.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [tokens, width, hidden, experts, top_k] = shape[..] else {
        return Err("the shape is T,D,F,E,K".into());
    };
    let device = OpenCl::open(platform, number)?;
    println!("{}: {tokens},{width},{hidden},{experts},{top_k}", device.facts().name);
    Bench::new(&device, Clblast::open(platform, number)?, [tokens * top_k, width, hidden, experts])?.all()
}

struct Bench {
    session: Session<OpenCl>,
    clblast: Clblast,
    dims: ExpertDims,
    /// rows of each expert: uneven, as routing leaves them
    counts: Vec<usize>,
}

impl Bench {
    fn new(device: &OpenCl, clblast: Clblast, [rows, width, hidden, experts]: [usize; 4]) -> Result<Self> {
        let (activation, fan, bias_shares) = (Activation::Linear, 1, 1);
        let dims = ExpertDims { tokens: rows, fan, rows, experts, width, hidden, activation, bias_shares };
        let scratch = Kernel::<ExpertDown<f32>>::scratch(device, &dims);
        let parts = (1..=experts).map(|nth| nth + experts).sum::<usize>();
        let mut counts: Vec<usize> = (1..=experts).map(|nth| rows * (nth + experts) / parts).collect();
        counts[experts - 1] += rows - counts.iter().sum::<usize>();
        Ok(Self { session: Session::new(device, scratch)?, clblast, dims, counts })
    }

    /// Each form: the depth along both operands, across the right one, across both.
    fn all(&mut self) -> Result<()> {
        let ExpertDims { rows, experts, width, hidden, .. } = self.dims;
        let offsets: Vec<u32> = std::iter::once(0)
            .chain(self.counts.iter().scan(0, |sum, count| {
                *sum += *count as u32;
                Some(*sum)
            }))
            .collect();
        let (a, w, z) =
            (random(rows * hidden, 1), random(experts * width * hidden, 2), random(rows * width, 3));
        let session = &mut self.session;
        let upload = |session: &Session<OpenCl>, values: &[f32]| -> Result<_> {
            let mut buffer = session.alloc::<f32>(values.len())?;
            session.upload(values, whole_mut::<OpenCl, f32>(&mut buffer))?;
            Ok(buffer)
        };
        let (a_here, w_here, z_here) = (upload(session, &a)?, upload(session, &w)?, upload(session, &z)?);
        let mut offsets_here = session.alloc::<u32>(offsets.len())?;
        session.upload(&offsets, whole_mut::<OpenCl, u32>(&mut offsets_here))?;
        let mut y = session.alloc::<f32>(rows * width)?;
        let mut dx = session.alloc::<f32>(rows * hidden)?;
        let mut dw = session.alloc::<f32>(experts * width * hidden)?;
        let (a_there, w_there, z_there) =
            (self.clblast.upload(&a)?, self.clblast.upload(&w)?, self.clblast.upload(&z)?);
        let out = self.clblast.room((rows * width).max(rows * hidden).max(experts * width * hidden))?;
        let operations = 2.0 * (rows * width * hidden) as f64;

        // y = a * w^T
        let ours = best(session, &self.dims, |session, dims| {
            let args = ExpertDownArgs {
                a: whole::<OpenCl, f32>(&a_here),
                offsets: whole::<OpenCl, u32>(&offsets_here),
                w2: Weight::Plain(whole::<OpenCl, f32>(&w_here)),
                b2: None,
                out_index: None,
                y: whole_mut::<OpenCl, f32>(&mut y),
            };
            run::<ExpertDown<f32>>(session, dims, args)
        })?;
        let theirs = self.clblast.best(&self.counts, |blast, nth, first, count| {
            let left = Side { buffer: &a_there, start: first * hidden, line: hidden, turned: false };
            let right = Side { buffer: &w_there, start: nth * width * hidden, line: hidden, turned: true };
            blast.product([count, width, hidden], left, right, (&out, first * width, width))
        })?;
        report("y = a * w^T", operations, ours, theirs);
        self.compare(&y, &out, rows * width)?;

        // dx = z * w, with w as the up-projection's weights
        let dims = ExpertDims { width: hidden, hidden: width, ..self.dims };
        let ours = best(&mut self.session, &dims, |session, dims| {
            let args = ExpertUpBwdArgs {
                dz: whole::<OpenCl, f32>(&z_here),
                offsets: whole::<OpenCl, u32>(&offsets_here),
                w13: Weight::Plain(whole::<OpenCl, f32>(&w_here)),
                weights: None,
                index: None,
                out_index: None,
                dx: whole_mut::<OpenCl, f32>(&mut dx),
            };
            run::<ExpertUpBwd<f32>>(session, dims, args)
        })?;
        let theirs = self.clblast.best(&self.counts, |blast, nth, first, count| {
            let left = Side { buffer: &z_there, start: first * width, line: width, turned: false };
            let right = Side { buffer: &w_there, start: nth * width * hidden, line: hidden, turned: false };
            blast.product([count, hidden, width], left, right, (&out, first * hidden, hidden))
        })?;
        report("dx = z * w", operations, ours, theirs);
        self.compare(&dx, &out, rows * hidden)?;

        // dw = z^T * a
        let dims = WgradDims {
            tokens: rows,
            fan: 1,
            rows,
            experts,
            left: width,
            right: hidden,
            gather_left: false,
            gather_right: false,
            accumulate: false,
        };
        let ours = best(&mut self.session, &dims, |session, dims| {
            let args = ExpertWgradArgs {
                left: whole::<OpenCl, f32>(&z_here),
                right: whole::<OpenCl, f32>(&a_here),
                index: None,
                offsets: whole::<OpenCl, u32>(&offsets_here),
                right_weights: None,
                bias_weights: None,
                dw: whole_mut::<OpenCl, f32>(&mut dw),
                dbias: None,
            };
            run::<ExpertWgrad<f32>>(session, dims, args)
        })?;
        let theirs = self.clblast.best(&self.counts, |blast, nth, first, count| {
            let left = Side { buffer: &z_there, start: first * width, line: width, turned: true };
            let right = Side { buffer: &a_there, start: first * hidden, line: hidden, turned: false };
            blast.product([width, hidden, count], left, right, (&out, nth * width * hidden, hidden))
        })?;
        report("dw = z^T * a", operations, ours, theirs);
        self.compare(&dw, &out, experts * width * hidden)
    }

    /// Both must have computed the same, or their speed says nothing.
    fn compare(&self, ours: &moe_opencl::Buffer<f32>, theirs: &clblast::Memory, len: usize) -> Result<()> {
        let (mut left, mut right) = (vec![0.0_f32; len], vec![0.0_f32; len]);
        self.session.download(whole::<OpenCl, f32>(ours), &mut left)?;
        self.clblast.download(theirs, &mut right)?;
        let largest = right.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let apart = left.iter().zip(&right).fold(0.0_f32, |most, (l, r)| most.max((l - r).abs()));
        if apart > 1e-4 * largest {
            return Err(format!("results differ by {apart}, the largest is {largest}").into());
        }
        Ok(())
    }
}

fn run<O: Op>(session: &mut Session<OpenCl>, dims: &O::Dims, args: O::Args<'_, OpenCl>) -> Result<()>
where
    OpenCl: Kernel<O>,
{
    session.run::<O>(dims, args)?;
    Ok(session.sync()?)
}

const RUNS: usize = 10;

/// Seconds of the fastest run, after one that is not counted.
fn best<Dims>(
    session: &mut Session<OpenCl>,
    dims: &Dims,
    mut work: impl FnMut(&mut Session<OpenCl>, &Dims) -> Result<()>,
) -> Result<f64> {
    fastest(|| work(session, dims))
}

fn fastest(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn report(what: &str, operations: f64, ours: f64, theirs: f64) {
    let (us, them) = (operations / ours / 1e9, operations / theirs / 1e9);
    println!("{what:14} moe-opencl {us:9.1}   CLBlast {them:9.1}   ratio {:.2}", us / them);
}

/// Values between -1 and 1.
fn random(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}
