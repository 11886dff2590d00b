//! Values that point outside: an error that says where, and no panic.

use crate::run::{read, write};
use moe_core::ops::{Combine, CombineArgs, CombineDims, Gather, GatherArgs, GatherDims};
use moe_core::{Error, Host, HostError, OpId, ShapeError, run};
use moe_tests::Values;

fn gather(index: &[u32], offsets: &[u32]) -> Result<(), ShapeError> {
    let dims =
        GatherDims { sources: 2, fan: 1, rows: index.len(), width: 1, groups: offsets.len() - 1, pitch: 0 };
    let mut out = vec![0.0_f32; index.len()];
    let args = GatherArgs {
        source: read(&[1.0, 2.0]),
        index: read(index),
        offsets: read(offsets),
        out: write(&mut out),
    };
    match run::<Gather<f32>, Host>(&Host, &(), &dims, args, write(&mut [])) {
        Ok(_) => Ok(()),
        Err(Error::Device(HostError::Shape(error))) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn an_index_beyond_the_sources_is_named() {
    let error = gather(&[0, 2], &[0, 2]).expect_err("2 is no source");
    assert_eq!(error, ShapeError::Value { op: OpId("gather"), what: "index", at: 1, max: 1, got: 2 });
}

#[test]
fn an_index_beyond_the_rows_in_use_is_not_read() {
    assert_eq!(gather(&[0, Values::poisoned::<u32>(1)[0]], &[0, 1]), Ok(()));
}

#[test]
fn offsets_must_start_at_0_ascend_and_stay_inside() {
    let at = |offsets: &[u32]| match gather(&[0, 1, 0], offsets) {
        Err(ShapeError::Value { what: "offsets", at, .. }) => Some(at),
        _ => None,
    };
    assert_eq!(at(&[1, 2]), Some(0));
    assert_eq!(at(&[0, 2, 1]), Some(2));
    assert_eq!(at(&[0, 1, 4]), Some(2));
    assert_eq!(at(&[0, 1, 3]), None);
}

#[test]
fn a_row_that_does_not_exist_is_named() {
    let dims = CombineDims { tokens: 1, top_k: 2, width: 1, rows: 1 };
    let mut out = [0.0_f32];
    let args = CombineArgs {
        y: read(&[1.0]),
        row_of_slot: read(&[0, 1]),
        weights: None,
        base: [None, None, None],
        out: write(&mut out),
    };
    let error =
        run::<Combine<f32>, Host>(&Host, &(), &dims, args, write(&mut [])).expect_err("row 1 is none");
    assert!(error.to_string().contains("`row_of_slot[1]` is 1"), "{error}");
}
