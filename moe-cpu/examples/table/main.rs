//! The speed of the layer and of its ops as shares of what the processor can do, measured in the same run.
//!
//! ```sh
//! cargo run --release -p moe-cpu --example table -- [--threads 2] [--seconds 2] [--isa avx2] [--shapes S,M,L,D1,D8] \
//!     [--types f32,bf16] [--passes fwd,fwdbwd,step,ops] [--op expert_up]
//! ```
//!
//! A shape is a name or T,D,F,E,K joined by `x`. Passes and limits are measured in turns. Each line gives the middle of the turns'
//! ratios, and what the fastest pass is of the fastest limit, which other programs disturb least.

#[path = "../../benches/cases/mod.rs"]
mod cases;
#[path = "../../benches/cases/floors.rs"]
mod floors;
mod layer;
mod ops;
mod turns;

use cases::Shape;
use half::{bf16, f16};
use moe_cpu::{Cpu, Isa};
use std::error::Error;
use std::time::Duration;

/// What to measure.
pub(crate) struct Options {
    threads: usize,
    budget: Duration,
    isa: Isa,
    shapes: Vec<(String, Shape)>,
    types: Vec<String>,
    passes: Vec<String>,
    op: Option<String>,
}

const SHAPES: [(&str, [usize; 5]); 5] = [
    ("S", [512, 256, 512, 8, 2]),
    ("M", [512, 2048, 768, 128, 8]),
    ("L", [256, 1024, 3584, 8, 2]),
    ("D1", [1, 2048, 768, 128, 8]),
    ("D8", [8, 2048, 768, 128, 8]),
];

fn shape(text: &str) -> Result<(String, Shape), Box<dyn Error>> {
    if let Some((name, sizes)) = SHAPES.iter().find(|(name, _)| *name == text) {
        return Ok((name.to_string(), Shape::new(*sizes)));
    }
    let sizes = text.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    Ok((text.to_string(), Shape::new(sizes.try_into().map_err(|_| "wanted five sizes TxDxFxExK")?)))
}

impl Options {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let list = |text: &str| text.split(',').map(str::to_string).collect::<Vec<_>>();
        let mut options = Self {
            threads: 2,
            budget: Duration::from_secs(2),
            isa: Isa::best(),
            shapes: Vec::new(),
            types: list("f32,bf16"),
            passes: list("fwd,fwdbwd"),
            op: None,
        };
        let mut shapes = list("S,M,L,D1,D8");
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} wants a value"))?;
            match name.as_str() {
                "--threads" => options.threads = value.parse()?,
                "--seconds" => options.budget = Duration::from_secs_f64(value.parse()?),
                "--shapes" => shapes = list(&value),
                "--types" => options.types = list(&value),
                "--passes" => options.passes = list(&value),
                "--op" => options.op = Some(value),
                "--isa" => {
                    options.isa = match value.as_str() {
                        "amx" => Isa::Amx,
                        "avx512bf16" => Isa::Avx512 { bf16: true },
                        "avx512" => Isa::Avx512 { bf16: false },
                        "avx2" => Isa::Avx2Fma,
                        "neon" => Isa::Neon,
                        "portable" => Isa::Portable,
                        other => return Err(format!("no unit is called {other}").into()),
                    }
                }
                other => return Err(format!("no option is called {other}").into()),
            }
        }
        options.shapes = shapes.iter().map(|text| shape(text)).collect::<Result<_, _>>()?;
        Ok(options)
    }

    fn wants(&self, pass: &str) -> bool {
        self.passes.iter().any(|wanted| wanted == pass)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    let cpu = Cpu::with_isa(options.threads, options.isa)?;
    println!("{:?}, {} threads", cpu.isa(), cpu.threads());
    let read = turns::fastest_rate(&cpu.reader(1 << 28)?, 9);
    println!("reading: {:.1} GB/s", read / 1e9);
    for (name, shape) in &options.shapes {
        for dtype in &options.types {
            let title = format!("{name} {dtype}");
            match dtype.as_str() {
                "f32" => measure::<f32>(&cpu, &options, &title, *shape)?,
                "bf16" => measure::<bf16>(&cpu, &options, &title, *shape)?,
                "f16" => measure::<f16>(&cpu, &options, &title, *shape)?,
                other => return Err(format!("no type is called {other}").into()),
            }
        }
    }
    Ok(())
}

fn measure<T: moe_cpu::Float>(
    cpu: &Cpu,
    options: &Options,
    title: &str,
    shape: Shape,
) -> Result<(), Box<dyn Error>>
where
    Cpu: moe_core::MoeDevice<T>,
{
    layer::measure::<T>(cpu, options, title, shape)?;
    if options.wants("ops") {
        ops::measure::<T>(cpu, options, title, shape)?;
    }
    Ok(())
}
