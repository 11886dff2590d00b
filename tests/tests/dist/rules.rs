//! The table of section 5, against the axiom that it follows from.

use crate::ranks::placed;
use moe_core::{MoeConfig, Sizes};
use moe_dist::gradients::{RULES, clip};
use moe_dist::mesh::Mesh;

#[test]
fn the_rules_are_those_of_the_tensors_in_their_order() {
    let mut config = MoeConfig::new(Sizes { width: 4, hidden: 4, experts: 4, top_k: 1 }).expect("a layer");
    (config.gate_bias, config.expert_bias) = (true, true);
    config.shared = Some(moe_core::SharedExperts { hidden: 4, gated: true });
    let names = config.tensors().map(|spec| spec.expect("all tensors are there").name);
    assert_eq!(RULES.map(|rule| rule.name), names);
}

#[test]
fn shards_and_copies_make_up_what_is_summed() {
    for mesh in [1, 6, 8, 12].into_iter().flat_map(Mesh::all) {
        for rule in RULES {
            for rank in 0..mesh.world() {
                let copies = mesh.members(rule.copies, rank);
                let mut all: Vec<usize> =
                    copies.iter().flat_map(|&copy| mesh.members(rule.shards, copy)).collect();
                all.sort_unstable();
                assert_eq!(all, mesh.members(rule.sum, rank), "{} on {mesh:?}", rule.name);
            }
        }
    }
}

/// Every rank's place in the layer says which part of a tensor it has. Whether it has worked on it together with another that
/// has the same part follows from the tokens that both saw and from the part of the experts' width that they saw them through.
#[test]
fn every_part_of_a_parameter_is_summed_over_the_ranks_that_have_it_unless_their_work_was_the_same() {
    let mut config = MoeConfig::new(Sizes { width: 4, hidden: 24, experts: 24, top_k: 1 }).expect("a layer");
    (config.gate_bias, config.expert_bias) = (true, true);
    config.shared = Some(moe_core::SharedExperts { hidden: 24, gated: true });
    for mesh in [2, 6, 8].into_iter().flat_map(Mesh::all) {
        let parts = |rank| placed(&config, &mesh, rank).tensors();
        for (tensor, rule) in RULES.iter().enumerate() {
            let counted = (0..mesh.world())
                .filter(|&rank| rule.counts(&mesh, &mesh.seat(rank).expect("a rank of the mesh"), false));
            let elements: usize = counted.map(|rank| parts(rank)[tensor].expect("a tensor").len()).sum();
            let whole = config.tensors()[tensor].expect("a tensor").len();
            assert_eq!(elements, whole, "{} is counted once on {mesh:?}", rule.name);
            for rank in 0..mesh.world() {
                let own = parts(rank)[tensor].expect("a tensor");
                let holders: Vec<usize> = (0..mesh.world())
                    .filter(|&other| parts(other)[tensor].expect("a tensor").runs().eq(own.runs()))
                    .collect();
                let mut with_same = mesh.members(rule.sum, rank);
                if let Some(same) = rule.same {
                    with_same = with_same.iter().flat_map(|&other| mesh.members(same, other)).collect();
                    with_same.sort_unstable();
                }
                assert_eq!(with_same, holders, "{} on {mesh:?}", rule.name);
            }
        }
    }
}

#[test]
fn a_clipped_gradient_has_the_norm_that_is_allowed() {
    assert_eq!(clip(0.5, 1.0), 1.0);
    assert!((clip(4.0, 1.0) * 4.0 - 1.0).abs() < 1e-6);
    assert_eq!(clip(4.0, 0.0), 1.0);
}
