//! Meshes: which degrees go together, and who is in which group.

use moe_dist::mesh::{Coordinates, Degrees, Mesh, MeshError, Span};
use proptest::prelude::*;
use std::collections::HashSet;

/// A legal mesh of up to 24 ranks.
fn meshes() -> impl Strategy<Value = Mesh> {
    (1_usize..=24).prop_flat_map(|world| proptest::sample::select(Mesh::all(world)))
}

/// Ranks by the two formulas of the mesh.
fn ranks_at(mesh: &Mesh, at: &Coordinates) -> [usize; 2] {
    let Degrees { dp_shard, cp, tp, ep, etp, .. } = *mesh.degrees();
    [
        ((at.dp_replicate * dp_shard + at.dp_shard) * cp + at.cp) * tp + at.tp,
        ((at.dp_replicate * mesh.efsdp() + at.efsdp) * ep + at.ep) * etp + at.etp,
    ]
}

proptest! {
    #[test]
    fn coordinates_give_the_rank_back_by_both_formulas(mesh in meshes()) {
        for rank in 0..mesh.world() {
            let at = mesh.coordinates(rank).expect("a rank of the world");
            prop_assert_eq!(ranks_at(&mesh, &at), [rank; 2]);
            prop_assert!(mesh.dp_of(&at) < mesh.dp() && mesh.edp_of(&at) < mesh.edp());
        }
        prop_assert_eq!(mesh.coordinates(mesh.world()), None);
    }

    #[test]
    fn groups_along_an_axis_part_the_world_into_equal_pieces(mesh in meshes()) {
        let Degrees { dp_replicate, dp_shard, cp, tp, ep, etp } = *mesh.degrees();
        for span in Span::ALL {
            let size = match span {
                Span::World => mesh.world(),
                Span::DpReplicate => dp_replicate,
                Span::DpShard => dp_shard,
                Span::Dp => mesh.dp(),
                Span::Cp => cp,
                Span::Tp => tp,
                Span::Data => mesh.dp() * cp,
                Span::Fsdp => dp_shard * cp,
                Span::ReplicateTp => dp_replicate * tp,
                Span::Ep => ep,
                Span::Etp => etp,
                Span::Edp => mesh.edp(),
                Span::Efsdp => mesh.efsdp(),
                other => panic!("no size for {}", other.name()),
            };
            let groups = mesh.groups(span);
            prop_assert!(groups.iter().all(|group| group.len() == size && group.is_sorted()), "{}", span.name());
            let mut all = groups.concat();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..mesh.world()), "{}", span.name());
            for group in &groups {
                prop_assert!(group.iter().all(|&rank| mesh.members(span, rank) == *group));
            }
        }
    }

    #[test]
    fn a_replica_holds_every_expert_once_per_shard(mesh in meshes()) {
        let experts = |rank| mesh.coordinates(rank).map(|at| (at.dp_replicate, at.ep, at.etp));
        let all: HashSet<_> = (0..mesh.world()).map(experts).collect();
        let Degrees { dp_replicate, ep, etp, .. } = *mesh.degrees();
        prop_assert_eq!(all.len(), dp_replicate * ep * etp);
    }

    #[test]
    fn any_degrees_are_a_mesh_or_an_error(degrees in prop::array::uniform6(0_usize..6), world in 0_usize..20) {
        let [dp_replicate, dp_shard, cp, tp, ep, etp] = degrees;
        let degrees = Degrees { dp_replicate, dp_shard, cp, tp, ep, etp };
        match Mesh::new(world, degrees) {
            Ok(mesh) => prop_assert!(mesh.world() == world && Mesh::all(world).contains(&mesh)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn eight_ranks_form_67_meshes() {
    let all = Mesh::all(8);
    assert_eq!(all.len(), 67);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 67);
    assert_eq!(Mesh::all(1), [Mesh::new(1, Degrees::default()).unwrap()]);
}

#[test]
fn an_error_names_the_degrees_that_clash_and_what_would_fit() {
    let one = Degrees::default();
    let wrong = |world, degrees: Degrees| Mesh::new(world, degrees).unwrap_err().to_string();
    for (world, degrees, words) in [
        (8, Degrees { cp: 0, dp_shard: 8, ..one }, "cp is 0"),
        (
            8,
            Degrees { dp_shard: 2, tp: 2, ..one },
            "dp_shard 2 * cp 1 * tp 2 is not the world of 8 ranks: dp_shard 4 would fit",
        ),
        (
            8,
            Degrees { tp: 3, ..one },
            "tp 3 is not the world of 8 ranks: dp_replicate * cp * tp does not divide it",
        ),
        (8, Degrees { dp_shard: 2, tp: 4, etp: 2, ..one }, "etp is 2, but must be 1 or tp, which is 4"),
        (
            8,
            Degrees { dp_replicate: 2, dp_shard: 4, ep: 8, ..one },
            "ep 8 * etp 1 must divide dp_shard 4 * cp 1 * tp 1: ep has to divide 4",
        ),
        (
            8,
            Degrees { dp_shard: 2, tp: 4, ep: 4, etp: 4, ..one },
            "ep 4 * etp 4 must divide dp_shard 2 * cp 1 * tp 4: ep has to divide 2",
        ),
        (8, Degrees { dp_replicate: 4, tp: 2, ..one }, "dp_replicate is 4, but dp_shard is 1: dp_shard 4"),
        (0, one, "not the world of 0 ranks"),
    ] {
        let error = wrong(world, degrees);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn degrees_beyond_all_memory_are_an_error() {
    let huge = Degrees { dp_shard: usize::MAX, tp: 2, ep: usize::MAX, ..Degrees::default() };
    assert!(matches!(Mesh::new(8, huge), Err(MeshError::World { .. })));
    let experts = Degrees { dp_shard: 4, tp: 2, ep: usize::MAX, etp: 2, ..Degrees::default() };
    assert!(matches!(Mesh::new(8, experts), Err(MeshError::Experts { .. })));
}
