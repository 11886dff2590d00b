//! Loss curves on one rank and on many.

use crate::rig::{End, Folder, Spread, train, train_and};
use moe_dist::mesh::Degrees;

const SMALL: &str = "--width 16 --hidden 16 --experts 4 --batch 6 --seq 16 --lr 4e-3";

fn spread(ranks: usize, degrees: Degrees, sharded: bool) -> Spread {
    Spread { ranks, degrees, sharded, sequence_parallel: false }
}

/// The ranks of tp have different tokens.
fn split(ranks: usize, degrees: Degrees, sharded: bool) -> Spread {
    Spread { sequence_parallel: true, ..spread(ranks, degrees, sharded) }
}

fn one() -> Degrees {
    Degrees::default()
}

/// All ranks say the same; the curve is that of one rank.
fn expect_curve(what: &str, ends: &[End], want: &End) {
    for end in ends {
        assert_eq!(
            (&end.losses, &end.norms, &end.loads),
            (&ends[0].losses, &ends[0].norms, &ends[0].loads),
            "{what}"
        );
    }
    let slots: u32 = want.loads[0].iter().sum();
    assert!(
        ends[0].loads.iter().all(|load| load.iter().sum::<u32>() == slots),
        "{what}: slots are counted once"
    );
    for (step, (got, want)) in ends[0].losses.iter().zip(&want.losses).enumerate() {
        assert!((got - want).abs() < 1e-4, "{what}: loss {got} in step {step}, wanted {want}");
    }
}

#[test]
fn a_hundred_steps_have_the_curve_of_one_rank_and_repeat_bit_for_bit() {
    let run = |spread| train(SMALL, [100, 100], spread, None);
    let want = &run(Spread::ALONE)[0];
    assert!(want.losses[99] < 0.8 * want.losses[0], "something was learned: {:?}", want.losses);
    for spread in [
        spread(2, Degrees { dp_shard: 2, ep: 2, ..one() }, false),
        spread(4, Degrees { dp_shard: 2, tp: 2, ep: 4, ..one() }, false),
        spread(4, Degrees { dp_replicate: 2, dp_shard: 2, ep: 2, ..one() }, true),
        split(4, Degrees { cp: 2, tp: 2, ep: 4, ..one() }, false),
    ] {
        let ends = run(spread);
        expect_curve(&format!("{spread:?}"), &ends, want);
        assert!(run(spread) == ends, "{spread:?}: the same run has other bits");
    }
}

#[test]
fn every_kind_of_balancing_and_storage_goes_over_ranks() {
    for line in ["--balance sequence", "--balance batch", "--balance none --no-mixing", "--dtype bf16"] {
        let line = format!("{SMALL} {line}");
        let want = &train(&line, [8, 8], Spread::ALONE, None)[0];
        for spread in [
            spread(4, Degrees { dp_shard: 2, tp: 2, ep: 2, etp: 2, ..one() }, false),
            spread(4, Degrees { dp_shard: 4, ep: 2, ..one() }, true),
        ] {
            let ends = train(&line, [8, 8], spread, None);
            let near = if line.contains("bf16") { 3e-2 } else { 1e-4 };
            for (got, want) in ends[0].losses.iter().zip(&want.losses) {
                assert!((got - want).abs() < near, "{line}, {spread:?}: {got}, wanted {want}");
            }
            assert!(ends.iter().all(|end| end.losses == ends[0].losses && end.norms == ends[0].norms));
        }
    }
}

/// Sequences and their parts do not divide evenly; the mixing sees the past on other ranks.
#[test]
fn parts_of_sequences_and_of_tokens_learn_as_whole_ones_do() {
    let odd = "--width 16 --hidden 16 --experts 4 --batch 5 --seq 13 --lr 4e-3 --shared 8";
    for line in ["--balance sequence", "--balance batch", "--balance bias", "--balance none --no-mixing"] {
        let line = format!("{odd} {line}");
        let want = &train(&line, [8, 8], Spread::ALONE, None)[0];
        for spread in [
            spread(2, Degrees { cp: 2, ..one() }, false),
            spread(4, Degrees { dp_shard: 2, cp: 2, ep: 4, ..one() }, true),
            split(2, Degrees { tp: 2, ..one() }, false),
            split(4, Degrees { dp_shard: 2, tp: 2, ep: 2, etp: 2, ..one() }, true),
            split(4, Degrees { cp: 2, tp: 2, ep: 2, etp: 2, ..one() }, false),
            split(4, Degrees { cp: 2, tp: 2, ep: 4, ..one() }, true),
        ] {
            let ends = train(&line, [8, 8], spread, None);
            expect_curve(&format!("{line}, {spread:?}"), &ends, want);
        }
    }
}

/// Where copies of the router drift apart if a sum over tp is left out or made twice.
#[test]
fn gates_of_tensor_parallel_ranks_are_equal_bit_for_bit_after_50_steps() {
    for (etp, ep) in [(1, 4), (2, 2)] {
        let degrees = Degrees { dp_shard: 2, tp: 2, ep, etp, ..one() };
        for spread in [spread(4, degrees, false), split(4, degrees, false)] {
            let mut gates = Vec::new();
            let kept = std::sync::Mutex::new(&mut gates);
            train_and(SMALL, [50, 50], spread, None, |run| {
                kept.lock().expect("no rank has panicked").push(run.gates().expect("gates"));
            });
            assert_eq!(gates.len(), 4);
            assert!(gates.iter().all(|gate| gate == &gates[0]), "{spread:?}");
        }
    }
}

#[test]
fn a_run_resumed_on_the_same_mesh_has_the_bits_of_an_unbroken_one() {
    let folder = Folder::new("resume");
    let path = folder.0.join("half");
    for spread in [
        spread(2, Degrees { dp_shard: 2, ep: 2, ..one() }, false),
        spread(4, Degrees { dp_shard: 4, ep: 2, ..one() }, true),
        split(4, Degrees { cp: 2, tp: 2, ep: 2, etp: 2, ..one() }, false),
    ] {
        let unbroken = train(SMALL, [8, 8], spread, None);
        train_and(SMALL, [3, 8], spread, None, |run| run.save(&path).expect("a checkpoint"));
        let resumed = train(SMALL, [5, 8], spread, Some(&path));
        for (resumed, unbroken) in resumed.iter().zip(&unbroken) {
            assert_eq!(resumed.losses, unbroken.losses[3..]);
            assert!(resumed.pieces == unbroken.pieces, "{spread:?}");
        }
    }
}

#[test]
fn a_run_goes_on_with_other_ranks() {
    let folder = Folder::new("other");
    let path = folder.0.join("half");
    let want = &train(SMALL, [8, 8], Spread::ALONE, None)[0];
    let first = spread(4, Degrees { dp_shard: 4, ep: 2, ..one() }, true);
    train_and(SMALL, [3, 8], first, None, |run| run.save(&path).expect("a checkpoint"));
    for second in [Spread::ALONE, spread(2, Degrees { tp: 2, etp: 2, ..one() }, false)] {
        let resumed = train(SMALL, [5, 8], second, Some(&path));
        for (got, want) in resumed[0].losses.iter().zip(&want.losses[3..]) {
            assert!((got - want).abs() < 1e-4, "{second:?}: {got}, wanted {want}");
        }
    }
}
