//! Training on an OpenCL device is training on the processor: the losses of the first steps agree. Without a driver the programs say
//! what to install.

use moe_examples::device::DeviceName;
use moe_examples::ranks::Ranks;
use moe_examples::text::Text;
use moe_examples::train::options::Settings;
use moe_examples::train::run::{Place, Run};
use moe_opencl::OpenCl;
use moe_tests::available;
use std::process::Command;
use std::sync::Arc;

const STEPS: u64 = 50;

fn losses(line: &str, name: DeviceName) -> Vec<f64> {
    let settings = Settings::from_line(line).expect("good settings");
    let ranks = Arc::new(Ranks::alone().expect("a world of one"));
    let place = Place { device: name, threads: 0, ranks, sharded: false };
    let mut run = Run::start(settings, STEPS, Text::embedded(), &place).expect("a run");
    (0..STEPS).map(|_| run.step().expect("a step").loss).collect()
}

#[test]
fn losses_on_opencl_are_those_of_the_processor() {
    let opened = OpenCl::new();
    if available("losses_on_opencl_are_those_of_the_processor", "opencl", &opened).is_none() {
        return;
    }
    let line = "--dtype f32 --balance sequence";
    let (cpu, opencl) = (losses(line, DeviceName::Cpu), losses(line, DeviceName::OpenCl(None)));
    assert!(cpu[STEPS as usize - 1] < 0.8 * cpu[0], "nothing was learned: {cpu:?}");
    let apart = cpu.iter().zip(&opencl).map(|(cpu, opencl)| (cpu - opencl).abs() / cpu).fold(0.0, f64::max);
    assert!(apart < 1e-4, "losses are {apart:.1e} apart: {cpu:?}, {opencl:?}");
}

#[test]
fn without_a_driver_the_programs_say_what_to_install() {
    // Where the loader looks for drivers.
    let none = std::env::temp_dir().join(format!("moe-examples-no-driver-{}", std::process::id()));
    std::fs::create_dir_all(&none).expect("a temporary folder");
    let run = |program: &str, args: &[&str]| {
        let output =
            Command::new(program).args(args).env("OCL_ICD_VENDORS", &none).output().expect("it starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (listed, list) = run(env!("CARGO_BIN_EXE_devices"), &[]);
    let (trained, error) = run(env!("CARGO_BIN_EXE_train"), &["--device", "opencl"]);
    assert!(listed && !trained, "{list}{error}");
    for text in [list, error] {
        assert!(text.contains("no OpenCL platform found: install"), "{text}");
    }
    std::fs::remove_dir_all(none).expect("it was made");
}
