//! The suite itself: a device that goes wrong must fail it. The answers of a good device are falsified here, since a kernel
//! that is wrong on purpose would have to be written for every op.

use moe_core::ops::Sort;
use moe_core::{Host, Op};
use moe_tests::{Case, Random, Report, Role, Setup, Tolerance, Values, check_op, launch};

fn values_after_sort() -> (Values, Values) {
    let samples = Sort::<f32>::samples(&mut Random::new(1));
    let sample = samples.iter().find(|sample| sample.label.contains("odd sizes")).expect("is in the menu");
    let rows = |_| {
        let outputs = launch::<Sort<f32>, f32, _>(&Host, sample, Setup::default());
        Values::of(outputs.expect("the reference takes its sample").get::<u32>("row_of_slot"))
    };
    (rows(0), rows(1))
}

#[test]
fn one_wrong_row_is_found() {
    let (want, mut got) = values_after_sort();
    assert_eq!(Tolerance::EXACT.compare(&want, &got), None);
    if let Values::U32(rows) = &mut got {
        rows[7] ^= 1;
    }
    let mismatch = Tolerance::EXACT.compare(&want, &got).expect("a row differs");
    assert_eq!(mismatch.at, 7);
}

#[test]
fn every_output_of_every_sample_starts_poisoned_or_has_values_to_keep() {
    for sample in Sort::<f32>::samples(&mut Random::new(1)) {
        let outputs = sample.args.iter().filter(|arg| matches!(arg.role, Role::Output(_)));
        for arg in outputs {
            assert!((0..arg.values.len()).all(|at| arg.values.cell(at).poison), "{}", arg.name);
        }
    }
}

#[test]
fn an_op_is_asked_on_its_own() {
    let mut report = Report::new();
    check_op::<Sort<f32>, f32, _>(&Host, &mut report);
    report.assert_passed();
    assert_eq!(report.passed(), report.passed_by(Sort::<f32>::ID));
}

#[test]
fn views_that_start_inside_a_buffer_give_the_same_values() {
    for sample in Sort::<f32>::samples(&mut Random::new(1)) {
        let run = |front| {
            let setup = Setup { front, ..Setup::default() };
            let outputs = launch::<Sort<f32>, f32, _>(&Host, &sample, setup).expect("a good sample");
            outputs.get::<u32>("offsets")
        };
        assert_eq!(run(0), run(3), "{}", sample.label);
    }
}
