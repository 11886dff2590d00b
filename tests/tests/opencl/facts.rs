//! What a device reports decides what it is asked for.

use moe_core::ndarray::Array2;
use moe_core::ops::GateMath;
use moe_core::{BackendError, Error, ErrorKind, MoeConfig, MoeLayer, Runner, Sizes};
use moe_opencl::{OpenCl, OpenClError};
use moe_tests::available;

fn forward(device: &OpenCl, gate: GateMath) -> Result<(), Error<OpenClError>> {
    let mut config =
        MoeConfig::new(Sizes { width: 8, hidden: 8, experts: 4, top_k: 2 }).expect("a good layer");
    config.rule.gate = gate;
    let layer = MoeLayer::<_, f32>::init(device, &config, 1)?;
    let mut runner = Runner::new(device, &config, 3)?;
    let x = runner.upload(Array2::ones((3, 8)).view())?;
    let mut y = runner.like(&x)?;
    runner.forward(&layer, &x, &mut y)
}

#[test]
fn a_device_without_subnormals_is_refused_the_exact_gate() {
    let listed = OpenCl::list();
    let test = "a_device_without_subnormals_is_refused_the_exact_gate";
    for found in available(test, "opencl", &listed).into_iter().flatten() {
        let mut without = found.clone();
        without.facts.subnormals = false;
        let device = OpenCl::open_listed(without, None).expect("it can do all else");
        match forward(&device, GateMath::Exact) {
            Err(Error::Device(error)) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(matches!(error, OpenClError::Inexact { .. }), "{error}");
                assert!(error.to_string().contains("GateMath::Native"), "{error}");
            }
            other => panic!("wanted the device's error, got {other:?}"),
        }
        forward(&device, GateMath::Native).expect("the native gate promises no bits");
    }
}
