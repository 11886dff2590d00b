//! What each operation is, in the plainest way, for all element types, numbers of ranks and lengths, bit for bit.

use super::rig::{groups, values, worlds};
use half::{bf16, f16};
use moe_core::{Collective, Host, Reduce, Reducible, View, ViewMut};

/// Nothing, less than a rank each, one round, several segments with a short last one.
const LENGTHS: [usize; 5] = [0, 1, 3, 1000, 600_001];

fn reduced<T: Reducible>(how: Reduce, parts: &[Vec<T>]) -> Vec<T> {
    let one = |at: usize| {
        let column = parts.iter().map(|part| part[at]);
        match how {
            Reduce::Max => column.reduce(T::larger).unwrap(),
            _ => T::end(column.skip(1).fold(parts[0][at].begin(), |sum, value| value.add_to(sum))),
        }
    };
    (0..parts[0].len()).map(one).collect()
}

fn bytes<T: Reducible>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// `total` elements over the ranks, unevenly, some ranks without any.
fn uneven(total: usize, ranks: usize, salt: usize) -> Vec<usize> {
    let mut left = total;
    let mut counts: Vec<_> = (0..ranks)
        .map(|rank| {
            let count = if (rank + salt).is_multiple_of(3) { 0 } else { left / 2 };
            left -= count;
            count
        })
        .collect();
    counts[(ranks - 1 + salt) % ranks] += left;
    counts
}

fn each_type(ranks: usize, len: usize) {
    all_operations::<f32>(ranks, len);
    all_operations::<f64>(ranks, len);
    all_operations::<bf16>(ranks, len);
    all_operations::<f16>(ranks, len);
    all_operations::<u32>(ranks, len);
    all_operations::<u8>(ranks, len);
}

fn all_operations<T: Reducible>(ranks: usize, len: usize) {
    let all: Vec<Vec<T>> = (0..ranks).map(|rank| values(rank, len)).collect();
    let counts = uneven(len, ranks, len);
    // What rank r sends to rank s.
    let sends: Vec<Vec<usize>> = (0..ranks).map(|rank| uneven(len, ranks, rank)).collect();
    groups(ranks, |mut group| {
        let me = Collective::<Host>::rank(&group);
        for how in [Reduce::Sum, Reduce::Max] {
            let want = reduced(how, &all);
            let mut got = all[me].clone();
            group.all_reduce(&(), how, ViewMut::of(&mut got)).unwrap();
            assert_eq!(bytes(&got), bytes(&want), "all_reduce {how:?}");

            let start: usize = counts[..me].iter().sum();
            let mut got = vec![T::default(); counts[me]];
            group.reduce_scatter(&(), how, View::of(&all[me]), ViewMut::of(&mut got), &counts).unwrap();
            assert_eq!(bytes(&got), bytes(&want[start..start + counts[me]]), "reduce_scatter {how:?}");
        }

        let want: Vec<T> =
            all.iter().zip(&counts).flat_map(|(part, &count)| part[..count].to_vec()).collect();
        let mut got = vec![T::default(); len];
        let source = View::of(&all[me][..counts[me]]);
        group.all_gather(&(), source, ViewMut::of(&mut got), &counts).unwrap();
        assert_eq!(bytes(&got), bytes(&want), "all_gather");

        let receive: Vec<usize> = sends.iter().map(|counts| counts[me]).collect();
        let want: Vec<T> = (0..ranks)
            .flat_map(|from| {
                let start: usize = sends[from][..me].iter().sum();
                all[from][start..start + sends[from][me]].to_vec()
            })
            .collect();
        let mut got = vec![T::default(); receive.iter().sum()];
        let source = View::of(&all[me][..]);
        group.all_to_all(&(), source, &sends[me], ViewMut::of(&mut got), &receive).unwrap();
        assert_eq!(bytes(&got), bytes(&want), "all_to_all");

        for (root, want) in all.iter().enumerate() {
            let mut got = all[me].clone();
            group.broadcast(&(), root, ViewMut::of(&mut got)).unwrap();
            assert_eq!(bytes(&got), bytes(want), "broadcast from {root}");
        }
        Collective::<Host>::barrier(&mut group, &()).unwrap();
    });
}

#[test]
fn one_rank() {
    LENGTHS.iter().for_each(|&len| each_type(1, len));
}

#[test]
fn two_ranks() {
    LENGTHS.iter().for_each(|&len| each_type(2, len));
}

#[test]
fn three_ranks() {
    LENGTHS.iter().for_each(|&len| each_type(3, len));
}

#[test]
fn five_ranks() {
    LENGTHS[..4].iter().for_each(|&len| each_type(5, len));
    all_operations::<bf16>(5, LENGTHS[4]);
}

#[test]
fn a_sum_has_the_same_bits_in_a_message_of_any_length() {
    groups(4, |mut group| {
        let me = Collective::<Host>::rank(&group);
        let mut long: Vec<f32> = values(me, 300_000);
        let mut short = long[..500].to_vec();
        group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut long)).unwrap();
        group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut short)).unwrap();
        assert_eq!(bytes(&long[..500]), bytes(&short));
    });
}

#[test]
fn a_group_has_its_ranks_in_its_own_order() {
    worlds(4, |world| {
        let ranks: &[usize] = if world.rank() % 2 == 0 { &[2, 0] } else { &[1, 3] };
        let mut group = world.group(&Host, "half", ranks).unwrap();
        let mut got = [0_u32; 2];
        let mine = [world.rank() as u32];
        group.all_gather(&(), View::of(&mine[..]), ViewMut::of(&mut got[..]), &[1, 1]).unwrap();
        assert_eq!(got.map(|rank| rank as usize), *ranks);
    });
}

#[test]
fn a_rank_may_run_ahead_of_the_others() {
    groups(3, |mut group| {
        for step in 0..200_u32 {
            let mut root = [step];
            group.broadcast(&(), step as usize % 3, ViewMut::of(&mut root[..])).unwrap();
            assert_eq!(root, [step]);
        }
    });
}
