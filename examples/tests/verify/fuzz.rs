//! A short run of the fuzzers' entry points: mutations of good input, from a fixed seed. cargo-fuzz runs them for long.

use crate::damage::{Dice, Parts};
use crate::fixture;
use moe_examples::fuzz;
use serde_json::{Value, json};

/// Small files of every group, so that many mutations fit into seconds.
const SEEDS: [&str; 17] = [
    "router/t0",
    "router/ties_group_e12_g4",
    "router/force_balance_e6_k4_norm",
    "router/softmax_e16_k2_norm_gatebias",
    "dispatch/permute_ep2_e2",
    "dispatch/reorder_e4_k1",
    "dispatch/round_robin",
    "experts/e3_odd_dims",
    "aux/batch_dp_dp2",
    "aux/expert_bias_e6_edge",
    "aux/hf_load_balancing_3layers_mask",
    "aux/load_balance_sigmoid_e7_k1_b1",
    "aux/microbatch_b8_n4",
    "aux/seq_cp_cp2",
    "aux/z_loss_e8",
    "layer/odd_dims",
    "dist/tp2_ep2_etp1",
];

#[test]
fn damaged_fixtures_neither_panic_nor_pass_the_reader_by_force() {
    let dice = &mut Dice(1);
    let mut verified = 0;
    for name in SEEDS {
        let file = fixture(name);
        let parts = Parts::of(&file);
        for _ in 0..40 {
            let damaged = match dice.below(4) {
                0 => flipped(&file, dice),
                1 => file[..dice.below(file.len())].to_vec(),
                2 => changed_header(&parts, dice),
                _ => changed_case(&parts, dice),
            };
            verified += usize::from(fuzz::fixture(&damaged).is_some());
        }
    }
    assert!(verified > 100, "only {verified} mutations were whole enough to be verified");
}

#[test]
fn any_configuration_is_refused_or_runs() {
    let dice = &mut Dice(2);
    let mut valid = 0;
    for _ in 0..6000 {
        // Half of the bytes are 1: more configurations get through to the layer.
        let mut bytes = [1; 64];
        for byte in &mut bytes {
            if dice.below(2) == 0 {
                *byte = dice.roll() as u8;
            }
        }
        valid += usize::from(fuzz::config(&bytes));
    }
    assert!(valid > 100, "only {valid} configurations were valid");
}

fn flipped(file: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..=dice.below(8) {
        let at = dice.below(file.len());
        file[at] ^= 1 << dice.below(8);
    }
    file
}

fn changed_header(parts: &Parts, dice: &mut Dice) -> Vec<u8> {
    let mut parts = parts.clone();
    let mut header = Value::Object(parts.header);
    change(&mut header, dice);
    parts.header = header.as_object().cloned().unwrap_or_default();
    parts.file()
}

fn changed_case(parts: &Parts, dice: &mut Dice) -> Vec<u8> {
    let (mut parts, mut case) = (parts.clone(), parts.case());
    for _ in 0..=dice.below(3) {
        let config = if dice.below(4) == 0 { &mut case } else { &mut case["config"] };
        change(config, dice);
    }
    parts.set_case(&case);
    parts.file()
}

/// Changes one value somewhere below `value`.
fn change(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(dice.below(map.len())).cloned().unwrap_or_default();
            if dice.below(12) == 0 {
                map.remove(&key);
            } else {
                change(&mut map[&key], dice);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = dice.below(list.len());
            change(&mut list[at], dice);
        }
        _ => {
            let others = [
                json!(0),
                json!(1),
                json!(2),
                json!(3),
                json!(1 << 20),
                json!(1_u64 << 40),
                json!(u64::MAX),
                json!(-1),
                json!(0.5),
                json!(1e300),
                json!(null),
                json!(true),
                json!("softmax"),
                json!("bfloat16"),
                json!([]),
                json!({}),
            ];
            *value = others[dice.below(others.len())].clone();
        }
    }
}
