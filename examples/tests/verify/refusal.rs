//! What must not pass does not pass, and says why.

use crate::damage::Parts;
use crate::{fixture, fixtures};
use moe_core::Host;
use moe_examples::fixture::{Case, FixtureError};
use moe_examples::verify::{Outcome, verify, verify_case};
use serde_json::json;

/// What comes of a file after a change.
fn after(name: &str, change: impl FnOnce(&mut Parts)) -> String {
    let mut parts = Parts::of(&fixture(name));
    change(&mut parts);
    match Case::parse(&parts.file()) {
        Ok(case) => match verify_case(&Host, &case) {
            Outcome::Passed(_) => "passed".to_owned(),
            Outcome::Differs(worst) => format!("{} differs", worst.name),
            Outcome::Failed(why) => why,
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
        },
        Err(error) => error.to_string(),
    }
}

fn with_key(name: &str, key: &str, value: serde_json::Value) -> String {
    after(name, |parts| {
        let mut case = parts.case();
        case["config"][key] = value;
        parts.set_case(&case);
    })
}

#[test]
fn a_file_that_is_put_together_unchanged_passes() {
    assert_eq!(after("router/t1", |_| {}), "passed");
}

#[test]
fn one_wrong_element_of_any_reference_is_seen() {
    for name in
        ["router/softmax_e16_k2_norm_gatebias", "dispatch/reorder_e7_k3", "aux/seq_cp_cp2", "dist/ep2"]
    {
        let parts = Parts::of(&fixture(name));
        let references = parts.header.keys().filter(|key| {
            key.split('.').take(2).any(|part| ["out", "grad", "exch", "grad_partial"].contains(&part))
        });
        for tensor in references.filter(|tensor| !parts.range(tensor).is_empty()) {
            let changed = after(name, |parts| {
                // The highest byte: another exponent, or a huge integer.
                let last = parts.range(tensor).end - 1;
                parts.data[last] ^= 0x41;
            });
            assert_eq!(changed, format!("{tensor} differs"), "{name}");
        }
    }
}

#[test]
fn a_key_that_could_change_the_result_is_not_passed_over() {
    let unknown = with_key("router/t1", "temperature", json!(0.5));
    assert_eq!(unknown, "the configuration has unknown keys: temperature");
    let unknown = with_key("router/t1", "score_func", json!("sparsemax"));
    assert_eq!(unknown, r#"`config.score_func` is "sparsemax", but must be one of softmax, sigmoid"#);
    let changed = with_key("router/t1", "route_scale", json!(2.0));
    assert!(changed.ends_with("differs"), "{changed}");
}

#[test]
fn sizes_must_agree_with_the_tensors() {
    let wrong = with_key("layer/odd_dims", "hidden_dim", json!(8));
    assert_eq!(wrong, "`hidden_dim` is 8, but the tensors say 7");
    let wrong = with_key("router/t1", "top_k", json!(3));
    assert_eq!(wrong, "tensor `in.R` has the shape [1, 2], wanted [1, 3]");
}

#[test]
fn an_unknown_group_or_reference_fails() {
    let unknown = after("router/t1", |parts| {
        let mut case = parts.case();
        case["case"] = json!("attention/t1");
        parts.set_case(&case);
    });
    assert_eq!(unknown, "the group `attention` is not known");
    let unknown = after("router/t1", |parts| {
        let tensor = parts.header.remove("out32.scores").expect("it is in the file");
        parts.header.insert("out.entropy".to_owned(), tensor);
    });
    assert_eq!(unknown, "nothing to compare with out.entropy");
}

#[test]
fn a_missing_tensor_is_named() {
    let file = fixture("router/t1");
    let text = String::from_utf8_lossy(&file).replace("in.x", "in.z");
    assert_eq!(text.matches("in.z").count(), 1);
    let at = file.windows(4).position(|window| window == b"in.x").expect("the name is there");
    let mut renamed = file;
    renamed[at..at + 4].copy_from_slice(b"in.z");
    let case = Case::parse(&renamed).expect("the container is whole");
    let missing = Outcome::Failed("tensor `in.x` is missing".to_owned());
    assert_eq!(verify_case(&Host, &case), missing);
}

#[test]
fn a_shared_expert_of_another_activation_is_skipped() {
    let skipped = with_key("layer/gptoss", "shared_hidden_dim", json!(8));
    assert!(skipped.starts_with("skipped: shared-activation"), "{skipped}");
}

#[test]
fn a_damaged_container_is_an_error() {
    let file = fixture("router/t1");
    for length in [0, 7, 8, 9, 100, file.len() - 1] {
        assert!(matches!(Case::parse(&file[..length]), Err(FixtureError::Container(_))), "{length} bytes");
    }
    let mut endless = file.clone();
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(Case::parse(&endless), Err(FixtureError::Container(_))));
    let overlapping = after("router/t1", |parts| {
        let offsets = parts.header["in.x"]["data_offsets"].clone();
        parts.header["in.R"]["data_offsets"] = offsets;
    });
    assert!(overlapping.starts_with("no valid safetensors file"), "{overlapping}");
    let huge = after("router/t1", |parts| {
        parts.header.insert(
            "in.huge".to_owned(),
            json!({"dtype": "F32", "shape": [1_u64 << 40, 0], "data_offsets": [parts.data.len(), parts.data.len()]}),
        );
    });
    assert_eq!(huge, "tensor `in.huge` has the shape [1099511627776, 0], whose product is too large");
}

#[test]
fn a_folder_without_fixtures_is_no_success() {
    let summary = verify(&Host, &fixtures().join("../src"), |_| {}).expect("the folder is there");
    assert!(!summary.good());
    assert!(verify(&Host, &fixtures().join("nowhere"), |_| {}).is_err());
}
