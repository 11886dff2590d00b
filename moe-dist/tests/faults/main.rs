//! A rank is killed or stopped at every point of every operation: the others say so in time, and leave nothing behind.

mod hosts;

use moe_dist::Launch;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What each rank calls in turn.
const OPERATIONS: [&str; 7] =
    ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier", "all_reduce"];
/// The rank with the fault.
const VICTIM: usize = 1;
/// How much later than its deadline a rank may be on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// Three ranks; the victim has this fault.
fn start(fault: &str, timeout: Duration) -> Vec<Child> {
    let launches = Launch::local(3).unwrap();
    let start = |launch: Launch| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rank"));
        command.envs(launch.variables()).env("MOE_TEST_TIMEOUT", timeout.as_millis().to_string());
        if launch.rank == VICTIM {
            command.env("MOE_FAULT", fault);
        }
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    launches.into_iter().map(start).collect()
}

/// What a rank said, within `limit`; a rank that hangs is killed and fails the test.
fn lines(mut rank: Child, limit: Duration) -> Vec<String> {
    let begin = Instant::now();
    while rank.try_wait().unwrap().is_none() {
        if begin.elapsed() > limit {
            rank.kill().unwrap();
            panic!("a rank hangs");
        }
        sleep(Duration::from_millis(5));
    }
    assert!(rank.wait().unwrap().success());
    let mut said = String::new();
    rank.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    said.lines().map(String::from).collect()
}

/// A survivor's error, within the deadline, with no thread or socket left.
fn error_of(rank: Child, timeout: Duration) -> String {
    let said = lines(rank, 2 * timeout + SLACK);
    let [error, cause, took, left] = &said[..] else { panic!("{said:?}") };
    let took = Duration::from_millis(took.parse().unwrap());
    assert!(took < timeout + SLACK, "{error} ({cause}) after {took:?}");
    assert_eq!(left, "0 0", "threads and sockets left after: {error}");
    error.clone()
}

/// The victim dies of the fault; the others' errors.
fn killed(fault: &str, timeout: Duration) -> Vec<String> {
    let mut ranks = start(fault, timeout);
    let mut victim = ranks.remove(VICTIM);
    let errors = ranks.into_iter().map(|rank| error_of(rank, timeout)).collect();
    assert!(!victim.wait().unwrap().success(), "the fault did not come: {fault}");
    errors
}

/// Killed at `point` of each operation, the survivors name it. A frame without payload has left whole with its header, so whom
/// it went to may see the death in its next operation.
fn killed_in_each_operation(point: &str) {
    let timeout = Duration::from_secs(20);
    for (at, operation) in OPERATIONS.iter().enumerate() {
        let number = OPERATIONS[..=at].iter().filter(|other| other == &operation).count();
        let begin = Instant::now();
        let errors = killed(&format!("{point} {operation} {number} kill"), timeout);
        let here = format!("rank 1 is gone, in {operation} {} of group all", at + 1);
        let next = format!("rank 1 is gone, in all_reduce {} of group all", at + 2);
        for error in errors {
            assert!(error == here || *operation == "barrier" && error == next, "{operation}: {error}");
        }
        assert!(begin.elapsed() < timeout, "death is seen at once, not at the deadline");
    }
}

#[test]
fn a_rank_killed_after_a_header_is_named() {
    killed_in_each_operation("header");
}

#[test]
fn a_rank_killed_in_a_payload_is_named() {
    killed_in_each_operation("half");
}

#[test]
fn a_rank_killed_before_it_returns_is_named_in_the_next_operation() {
    // The points come once per round: this one is in the last of an operation with one round.
    let timeout = Duration::from_secs(20);
    for (at, operation) in
        OPERATIONS.iter().enumerate().filter(|(_, operation)| !operation.contains("reduce"))
    {
        let errors = killed(&format!("return {operation} 1 kill"), timeout);
        let (next, sequence) = (OPERATIONS[at + 1], at + 2);
        for error in errors {
            assert_eq!(error, format!("rank 1 is gone, in {next} {sequence} of group all"));
        }
    }
}

#[test]
fn a_rank_killed_before_it_comes_is_named() {
    for (point, number) in [("connect", 1), ("handshake", 1)] {
        let timeout = Duration::from_secs(4);
        for error in killed(&format!("{point} connect {number} kill"), timeout) {
            assert_eq!(error, "rank 1 did not answer in time, in connect 0 of group world", "{point}");
        }
    }
}

#[test]
fn a_rank_killed_when_all_have_met_is_named() {
    // Its last frame may have been all that another rank waited for.
    let [here, next] = ["connect 0 of group world", "all_reduce 1 of group all"];
    for error in killed("header connect 2 kill", Duration::from_secs(20)) {
        let rest = error.strip_prefix("rank 1 is gone, in ");
        assert!(rest.is_some_and(|rest| rest == here || rest == next), "{error}");
    }
}

#[test]
fn a_stopped_rank_is_named_at_the_deadline_and_hears_of_it_later() {
    let timeout = Duration::from_secs(4);
    for (fault, operation, sequence) in [
        ("half all_reduce 1 stop", "all_reduce", 1),
        ("header all_to_all 1 stop", "all_to_all", 4),
        ("half broadcast 1 stop", "broadcast", 5),
    ] {
        let mut ranks = start(fault, timeout);
        let victim = ranks.remove(VICTIM);
        let want = format!("rank 1 did not answer in time, in {operation} {sequence} of group all");
        for rank in ranks {
            assert_eq!(error_of(rank, timeout), want);
        }
        kill_process(Pid::from_child(&victim), Signal::CONT).unwrap();
        // It goes on where it was, and finds either the others' word or that they are gone.
        let said = lines(victim, timeout + SLACK);
        assert!(said[0] == want || said[0].contains("is gone"), "{said:?}");
    }
}

#[test]
fn without_a_fault_all_ranks_come_to_the_end() {
    for rank in start("none barrier 1 kill", Duration::from_secs(20)) {
        assert_eq!(lines(rank, Duration::from_secs(60)), ["done"]);
    }
}
