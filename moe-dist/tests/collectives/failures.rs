//! What ranks do wrong is one error on every rank, and nothing waits for longer than the deadline.

use super::rig::{cause, gist, groups, values, worlds};
use moe_core::{Collective, CollectiveError, CollectiveFault, Host, Reduce, View, ViewMut};
use moe_dist::Group;
use std::thread::sleep;
use std::time::{Duration, Instant};

type Outcome = Result<(), CollectiveError>;

fn me(group: &Group<Host>) -> usize {
    Collective::<Host>::rank(group)
}

fn sum(group: &mut Group<Host>, len: usize) -> Outcome {
    group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut values::<f32>(0, len)[..]))
}

fn barrier(group: &mut Group<Host>) -> Outcome {
    Collective::<Host>::barrier(group, &())
}

/// Every rank fails, with the same words.
fn same_error(outcomes: Vec<Outcome>) -> CollectiveError {
    let mut errors: Vec<_> = outcomes.into_iter().map(Result::unwrap_err).collect();
    for error in &errors[1..] {
        assert_eq!((gist(error), cause(error)), (gist(&errors[0]), cause(&errors[0])));
    }
    errors.remove(0)
}

#[test]
fn different_operations_are_one_error_that_lists_them() {
    let error = same_error(groups(3, |mut group| {
        barrier(&mut group)?;
        if me(&group) == 1 { barrier(&mut group) } else { sum(&mut group, 8) }
    }));
    assert_eq!(gist(&error), "rank 1 called something else than the others, in all_reduce 2 of group all");
    assert_eq!(
        cause(&error),
        "rank 0: all_reduce 2 (sum) of 8 f32; rank 1: barrier 2; rank 2: all_reduce 2 (sum) of 8 f32"
    );
}

#[test]
fn different_lengths_types_and_reductions_are_errors() {
    let lengths = same_error(groups(3, |mut group| {
        let len = if me(&group) == 2 { 500_000 } else { 400_000 };
        sum(&mut group, len)
    }));
    assert_eq!((lengths.rank, lengths.fault), (2, CollectiveFault::Mismatch));

    let types = same_error(groups(2, |mut group| match me(&group) {
        0 => group.broadcast(&(), 0, ViewMut::of(&mut [1.0_f32][..])),
        _ => group.broadcast(&(), 0, ViewMut::of(&mut [1_u32][..])),
    }));
    assert_eq!(
        cause(&types),
        "rank 0: broadcast 1 of 1 f32 from rank 0; rank 1: broadcast 1 of 1 u32 from rank 0"
    );

    let how = same_error(groups(2, |mut group| {
        let how = if me(&group) == 0 { Reduce::Sum } else { Reduce::Max };
        group.all_reduce(&(), how, ViewMut::of(&mut [1.0_f32][..]))
    }));
    assert_eq!(cause(&how), "rank 0: all_reduce 1 (sum) of 1 f32; rank 1: all_reduce 1 (max) of 1 f32");
}

#[test]
fn different_roots_and_counts_are_errors() {
    let roots = same_error(groups(3, |mut group| {
        let root = usize::from(me(&group) == 0);
        group.broadcast(&(), root, ViewMut::of(&mut [1_u8; 9][..]))
    }));
    assert_eq!((roots.rank, roots.op, roots.fault), (0, "broadcast", CollectiveFault::Mismatch));

    let counts = same_error(groups(2, |mut group| {
        let counts = if me(&group) == 0 { [1, 2] } else { [2, 1] };
        group.all_gather(&(), View::of(&[1_u8][..]), ViewMut::of(&mut [0_u8; 3][..]), &counts)
    }));
    assert_eq!((counts.op, counts.fault), ("all_gather", CollectiveFault::Mismatch));
}

#[test]
fn a_pair_that_disagrees_on_its_part_names_both_lengths() {
    let outcomes = groups(2, |mut group| match me(&group) {
        0 => group.all_to_all(&(), View::of(&[1_u8; 7]), &[0, 7], ViewMut::of(&mut [0_u8; 2]), &[0, 2]),
        _ => group.all_to_all(&(), View::of(&[1_u8; 2]), &[2, 0], ViewMut::of(&mut [0_u8; 6]), &[6, 0]),
    });
    let [first, second] = outcomes.try_into().unwrap();
    // Rank 0 got what it wanted, and hears of it in its next operation at the latest.
    let error = second.unwrap_err();
    assert_eq!(gist(&error), "rank 0 called something else than the others, in all_to_all 1 of group all");
    assert_eq!(cause(&error), "it sends 7 elements to rank 1, which expects 6 from it");
    assert!(first.is_ok() || first.is_err_and(|first| gist(&first) == gist(&error)));
}

#[test]
fn groups_used_in_different_orders_are_an_error() {
    let error = same_error(worlds(2, |world| {
        let mut first = world.group(&Host, "ep", &[0, 1]).unwrap();
        let mut second = world.group(&Host, "tp", &[0, 1]).unwrap();
        if world.rank() == 0 { barrier(&mut first) } else { barrier(&mut second) }
    }));
    assert_eq!(error.fault, CollectiveFault::Mismatch);
    assert!(cause(&error).contains("in group"), "{}", cause(&error));
}

#[test]
fn a_rank_with_wrong_arguments_is_an_error_on_all() {
    let error = same_error(groups(3, |mut group| {
        let counts: &[usize] = if me(&group) == 2 { &[1, 1] } else { &[1, 1, 1] };
        group.all_gather(&(), View::of(&[1_u8][..]), ViewMut::of(&mut [0_u8; 3][..]), counts)
    }));
    assert_eq!(gist(&error), "rank 2 was called with wrong arguments, in all_gather 1 of group all");
    assert_eq!(cause(&error), "all_gather: `counts` has 2 elements, wanted 3");
}

#[test]
fn a_rank_that_does_not_come_is_named_at_the_deadline() {
    let limit = Duration::from_millis(300);
    let outcomes = worlds(3, |world| {
        let mut group = world.group(&Host, "all", &[0, 1, 2]).unwrap();
        group.set_timeout(limit);
        barrier(&mut group)?;
        if world.rank() == 1 {
            // The others' frames wait for this rank; it hears in its next operation at the latest.
            sleep(3 * limit);
            return barrier(&mut group).and_then(|()| barrier(&mut group));
        }
        let start = Instant::now();
        let outcome = barrier(&mut group);
        assert!(start.elapsed() < limit + Duration::from_secs(1), "after {:?}", start.elapsed());
        outcome
    });
    let error = same_error(outcomes);
    assert_eq!(gist(&error), "rank 1 did not answer in time, in barrier 2 of group all");
    assert!(cause(&error).ends_with("within 300ms"), "{}", cause(&error));
}

#[test]
fn a_rank_that_leaves_is_named_at_once() {
    let start = Instant::now();
    let outcomes = worlds(3, |world| {
        let mut group = world.group(&Host, "all", &[2, 1, 0]).unwrap();
        if world.rank() == 0 {
            return Ok(());
        }
        barrier(&mut group)
    });
    for outcome in &outcomes[1..] {
        let error = outcome.as_ref().unwrap_err();
        assert_eq!(gist(error), "rank 2 is gone, in barrier 1 of group all");
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn abort_closes_all_groups_of_all_ranks() {
    worlds(3, |world| {
        let mut all = world.group(&Host, "all", &[0, 1, 2]).unwrap();
        let mut alone = world.group(&Host, "alone", &[world.rank()]).unwrap();
        barrier(&mut all).unwrap();
        if world.rank() == 2 {
            Collective::<Host>::abort(&mut all);
        }
        let error = barrier(&mut all).unwrap_err();
        assert_eq!(gist(&error), "rank 2 aborted the group, in abort 1 of group all");
        assert_eq!(gist(&barrier(&mut alone).unwrap_err()), gist(&error));
    });
}

#[test]
fn a_group_needs_this_rank_and_only_ranks_of_the_world() {
    worlds(2, |world| {
        let other = 1 - world.rank();
        let refused = |ranks: &[usize]| world.group(&Host, "g", ranks).unwrap_err().to_string();
        assert!(refused(&[other]).contains("is not among them"));
        assert!(refused(&[0, 1, 2]).contains("2 is not a rank of a world of 2"));
        assert!(refused(&[0, 1, 0]).contains("0 stands there twice"));
        assert!(refused(&[]).contains("is not among them"));
    });
}
