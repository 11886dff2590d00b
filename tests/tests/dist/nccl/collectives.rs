//! What each collective gives is what the same ranks get from each other on the host: for two ranks, bit for bit in all types, since a sum
//! of two is rounded once however it is made. Everything is done twice, and the same comes again.

use super::rig::{Rank, all, all_mut, on, two_gpus, values};
use half::{bf16, f16};
use moe_core::{Collective, Device, Host, Reduce, Reducible, View, ViewMut};
use moe_cuda::Cuda;
use moe_dist::channel;
use moe_dist::nccl::NcclGroup;

/// Nothing, less than a rank each, odd, more than any of NCCL's chunks.
const LENGTHS: [usize; 5] = [0, 1, 3, 1001, 3_000_001];

fn same<T: Reducible>(what: &str, got: &[T], want: &[T]) {
    let bytes = |values: &[T]| bytemuck::cast_slice::<T, u8>(values).to_vec();
    assert!(bytes(got) == bytes(want), "{what} of {} {}", want.len(), T::DTYPE);
}

fn all_operations<T: Reducible>(rank: &Rank, gpus: &mut NcclGroup, len: usize) {
    let me = rank.world.rank();
    let mut host = rank.world.group(&Host, "host", &[0, 1]).expect("a group");
    let mine = values::<T>(me, len);
    let source = rank.upload(&mine);
    let splits = [[len / 2, len - len / 2], [len / 3, len - len / 3], [0, len], [len, 0]];
    for how in [Reduce::Sum, Reduce::Max] {
        let mut want = mine.clone();
        host.all_reduce(&(), how, ViewMut::of(&mut want)).expect("the host's");
        let mut got = rank.upload(&mine);
        gpus.all_reduce(&rank.stream, how, all_mut(&mut got)).expect("the GPUs'");
        same(&format!("all_reduce {how:?}"), &rank.download(&got), &want);

        for counts in splits {
            let mut want = vec![T::default(); counts[me]];
            host.reduce_scatter(&(), how, View::of(&mine), ViewMut::of(&mut want), &counts)
                .expect("the host's");
            let mut got = rank.cuda.alloc::<T>(&rank.stream, counts[me]).expect("memory");
            gpus.reduce_scatter(&rank.stream, how, all(&source), all_mut(&mut got), &counts)
                .expect("the GPUs'");
            same(&format!("reduce_scatter {how:?} {counts:?}"), &rank.download(&got), &want);
        }
    }
    for counts in splits {
        let mut want = vec![T::default(); len];
        let part = &mine[..counts[me]];
        host.all_gather(&(), View::of(part), ViewMut::of(&mut want), &counts).expect("the host's");
        let mut got = rank.cuda.alloc::<T>(&rank.stream, len).expect("memory");
        let part = all(&source).slice(0..counts[me]).expect("a part");
        gpus.all_gather(&rank.stream, part, all_mut(&mut got), &counts).expect("the GPUs'");
        same(&format!("all_gather {counts:?}"), &rank.download(&got), &want);
    }
    // What rank 0 sends, and what rank 1 sends.
    for sends in splits.iter().zip(splits.iter().cycle().skip(1)) {
        let (send, other) = if me == 0 { sends } else { (sends.1, sends.0) };
        let receive = if me == 0 { [send[0], other[0]] } else { [other[1], send[1]] };
        let mut want = vec![T::default(); receive[0] + receive[1]];
        host.all_to_all(&(), View::of(&mine), send, ViewMut::of(&mut want), &receive).expect("the host's");
        let mut got = rank.cuda.alloc::<T>(&rank.stream, want.len()).expect("memory");
        gpus.all_to_all(&rank.stream, all(&source), send, all_mut(&mut got), &receive).expect("the GPUs'");
        same(&format!("all_to_all {send:?} {receive:?}"), &rank.download(&got), &want);
    }
    for root in 0..2 {
        let mut got = rank.upload(&mine);
        gpus.broadcast(&rank.stream, root, all_mut(&mut got)).expect("the GPUs'");
        same("broadcast", &rank.download(&got), &values::<T>(root, len));
    }
    gpus.barrier(&rank.stream).expect("a barrier");
}

fn all_types(rank: &Rank, gpus: &mut NcclGroup) {
    for len in LENGTHS {
        all_operations::<f32>(rank, gpus, len);
        all_operations::<f64>(rank, gpus, len);
        all_operations::<bf16>(rank, gpus, len);
        all_operations::<f16>(rank, gpus, len);
        all_operations::<u32>(rank, gpus, len);
        all_operations::<u8>(rank, gpus, len);
    }
}

#[test]
fn collectives_give_what_they_give_on_the_host_every_time() {
    let Some(gpus) = two_gpus("collectives_give_what_they_give_on_the_host_every_time") else { return };
    on(&gpus, |rank| {
        let mut group = rank.both();
        all_types(&rank, &mut group);
        all_types(&rank, &mut group);
    });
}

#[test]
fn they_do_so_without_comparing_what_was_called() {
    let Some(gpus) = two_gpus("they_do_so_without_comparing_what_was_called") else { return };
    on(&gpus, |rank| {
        let mut group = rank.both();
        group.set_checked(false);
        all_types(&rank, &mut group);
    });
}

#[test]
fn a_group_has_its_ranks_in_its_own_order_and_goes_side_by_side_with_others() {
    let test = "a_group_has_its_ranks_in_its_own_order_and_goes_side_by_side_with_others";
    let Some(gpus) = two_gpus(test) else { return };
    on(&gpus, |rank| {
        let me = rank.world.rank() as u32;
        let mut turned = NcclGroup::new(&rank.world, &rank.cuda, "turned", &[1, 0]).expect("a group");
        let mut both = rank.both();
        for _ in 0..100 {
            let mut got = rank.upload(&[9_u32; 2]);
            turned
                .all_gather(&rank.stream, all(&rank.upload(&[me])), all_mut(&mut got), &[1, 1])
                .expect("both");
            both.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut got)).expect("both");
            assert_eq!(rank.download(&got), [2, 0]);
        }
    });
}

#[test]
fn the_host_runs_ahead_of_many_operations_and_their_order_stays() {
    let Some(gpus) = two_gpus("the_host_runs_ahead_of_many_operations_and_their_order_stays") else { return };
    on(&gpus, |rank| {
        let mut group = rank.both();
        group.set_checked(false);
        let mut got = rank.upload(&vec![1_u32; 1 << 20]);
        for _ in 0..31 {
            group.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut got)).expect("the GPUs'");
        }
        assert!(rank.download(&got).iter().all(|&value| value == 1 << 31));
        for _ in 0..200 {
            group.all_reduce(&rank.stream, Reduce::Max, all_mut(&mut got)).expect("the GPUs'");
        }
        assert!(rank.download(&got).iter().all(|&value| value == 1 << 31));
    });
}

#[test]
fn a_group_of_one_needs_no_nccl() {
    let opened = Cuda::new();
    let Some(cuda) = moe_tests::available("a_group_of_one_needs_no_nccl", "cuda", &opened) else { return };
    let rank = Rank::new(channel::world(1).remove(0), cuda.clone());
    let mut alone = NcclGroup::new(&rank.world, cuda, "alone", &[0]).expect("a group");
    let source = rank.upload(&[1.5_f32, 2.5]);
    let mut got = cuda.alloc::<f32>(&rank.stream, 2).expect("memory");
    alone.all_to_all(&rank.stream, all(&source), &[2], all_mut(&mut got), &[2]).expect("a copy");
    alone.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut got)).expect("nothing to do");
    alone.barrier(&rank.stream).expect("nobody to wait for");
    assert_eq!(rank.download(&got), [1.5, 2.5]);
}
