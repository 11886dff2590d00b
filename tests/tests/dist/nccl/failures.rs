//! What goes wrong on one rank is an error on both, in time, also for a host that only waits for its stream.

use super::rig::{Rank, all_mut, on, two_gpus};
use moe_core::{Collective, CollectiveError, CollectiveFault, Device, Error, Reduce};
use moe_cuda::{Cuda, CudaError};
use moe_dist::nccl::NcclGroup;
use std::thread::sleep;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(2);

fn sum(rank: &Rank, group: &mut NcclGroup, len: usize) -> Result<(), CollectiveError> {
    let mut values = rank.upload(&vec![1.0_f32; len]);
    group.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut values))
}

fn cause(error: &CollectiveError) -> String {
    error.source.as_ref().map_or(String::new(), |source| source.to_string())
}

/// The collective's error that a wait for the stream returns.
pub(crate) fn of_stream(waited: Result<(), CudaError>) -> String {
    match waited {
        Err(CudaError::Collective(error)) => error.to_string(),
        other => panic!("wanted the collective's error, got {other:?}"),
    }
}

/// GPUs that have failed before work again in a new world.
fn goes_on(gpus: &[Cuda; 2]) {
    on(gpus, |rank| {
        let mut group = rank.both();
        let mut values = rank.upload(&[1.0_f32, 2.0]);
        group.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut values)).expect("a new group");
        assert_eq!(rank.download(&values), [2.0, 4.0]);
    });
}

#[test]
fn a_rank_that_does_not_come_is_named_by_who_waits_for_the_stream() {
    let test = "a_rank_that_does_not_come_is_named_by_who_waits_for_the_stream";
    let Some(gpus) = two_gpus(test) else { return };
    on(&gpus, |rank| {
        let mut group = rank.both();
        group.set_checked(false);
        group.set_timeout(LIMIT);
        sum(&rank, &mut group, 1000).expect("both come");
        let text = "rank 1 did not answer in time, in all_reduce 3 of group all";
        if rank.world.rank() == 1 {
            sleep(2 * LIMIT);
            // It was told meanwhile, or hears of it from the operation that nobody else takes part in.
            let late = match sum(&rank, &mut group, 1000) {
                Err(error) => error.to_string(),
                Ok(()) => of_stream(rank.cuda.sync(&rank.stream)),
            };
            assert_eq!(late, text);
            return;
        }
        sum(&rank, &mut group, 1000).expect("it is on the stream");
        let start = Instant::now();
        assert_eq!(of_stream(rank.cuda.sync(&rank.stream)), text);
        let waited = start.elapsed();
        assert!((LIMIT / 2..LIMIT * 2).contains(&waited), "after {waited:?}");
        assert_eq!(sum_error(&rank, &mut group), text);
        assert_eq!(of_stream(rank.cuda.sync(&rank.stream)), text, "the stream stays failed");
        assert_eq!(of_stream(rank.cuda.alloc::<u8>(&rank.stream, 1).map(drop)), text);
    });
    goes_on(&gpus);
}

/// The error of another operation, whose values are on a stream that works.
fn sum_error(rank: &Rank, group: &mut NcclGroup) -> String {
    let fresh = rank.cuda.stream().expect("a stream");
    let mut values = rank.cuda.alloc::<f32>(&fresh, 8).expect("memory");
    group.all_reduce(&fresh, Reduce::Sum, all_mut(&mut values)).expect_err("the world is closed").to_string()
}

#[test]
fn a_rank_that_leaves_is_named_long_before_the_deadline() {
    let Some(gpus) = two_gpus("a_rank_that_leaves_is_named_long_before_the_deadline") else { return };
    on(&gpus, |rank| {
        let mut group = rank.both();
        group.set_checked(false);
        sum(&rank, &mut group, 1000).expect("both come");
        if rank.world.rank() == 0 {
            return;
        }
        sum(&rank, &mut group, 1000).expect("it is on the stream");
        let start = Instant::now();
        let text = of_stream(rank.cuda.sync(&rank.stream));
        assert_eq!(text, "rank 0 is gone, in all_reduce 3 of group all");
        assert!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());
    });
    goes_on(&gpus);
}

#[test]
fn abort_on_one_rank_frees_the_other() {
    let Some(gpus) = two_gpus("abort_on_one_rank_frees_the_other") else { return };
    on(&gpus, |rank| {
        let mut group = rank.both();
        group.set_checked(false);
        sum(&rank, &mut group, 1000).expect("both come");
        let text = "rank 1 aborted the group, in abort 2 of group all";
        if rank.world.rank() == 1 {
            rank.cuda.sync(&rank.stream).expect("the sum");
            sleep(Duration::from_millis(300));
            group.abort();
            assert_eq!(sum_error(&rank, &mut group), text);
            return;
        }
        sum(&rank, &mut group, 1000).expect("it is on the stream");
        let start = Instant::now();
        assert_eq!(of_stream(rank.cuda.sync(&rank.stream)), text);
        assert!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());
    });
    goes_on(&gpus);
}

#[test]
fn ranks_that_call_different_things_get_one_error_that_lists_them() {
    let test = "ranks_that_call_different_things_get_one_error_that_lists_them";
    let Some(gpus) = two_gpus(test) else { return };
    let errors = on(&gpus, |rank| {
        let mut group = rank.both();
        sum(&rank, &mut group, if rank.world.rank() == 0 { 8 } else { 9 }).expect_err("lengths differ")
    });
    for error in &errors {
        assert_eq!(error.fault, CollectiveFault::Mismatch);
        assert_eq!(cause(error), "rank 0: all_reduce 2 (sum) of 8 f32; rank 1: all_reduce 2 (sum) of 9 f32");
    }
    let errors = on(&gpus, |rank| {
        let mut group = rank.both();
        let [source, mut target] = [0, 1].map(|_| rank.upload(&[0_u8; 4]));
        let (send, receive) = if rank.world.rank() == 0 { ([2, 2], [2, 2]) } else { ([1, 3], [1, 3]) };
        let source = super::rig::all(&source);
        group.all_to_all(&rank.stream, source, &send, all_mut(&mut target), &receive)
    });
    assert!(errors.iter().any(Result::is_err));
    for error in errors.into_iter().filter_map(Result::err) {
        assert_eq!(error.fault, CollectiveFault::Mismatch);
        assert!(cause(&error).starts_with("it sends "), "{}", cause(&error));
    }
    goes_on(&gpus);
}

#[test]
fn a_collective_in_a_captured_graph_is_refused() {
    let Some(gpus) = two_gpus("a_collective_in_a_captured_graph_is_refused") else { return };
    on(&gpus, |rank| {
        let mut group = rank.both();
        let mut values = rank.upload(&[1.0_f32; 8]);
        let captured = rank.stream.capture(|| {
            group
                .all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut values))
                .map_err(Error::<CudaError>::Collective)
        });
        let Err(Error::Collective(error)) = captured else { panic!("it was captured") };
        assert_eq!(error.fault, CollectiveFault::Device);
        assert!(cause(&error).contains("cannot be part of a graph"), "{}", cause(&error));
    });
    goes_on(&gpus);
}
