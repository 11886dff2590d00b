//! A rank is killed or stopped at every point of every operation: the others say so in time, and leave nothing behind.

mod hosts;
#[path = "../network/mod.rs"]
mod network;

use moe_dist::Launch;
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What each rank calls in turn, and whether the victim's frames have a payload.
const OPERATIONS: [(&str, bool); 11] = [
    ("all_reduce", true),
    ("all_gather", true),
    ("reduce_scatter", true),
    // in parts of different lengths; the victim's own is empty
    ("all_gather", false),
    ("reduce_scatter", true),
    ("all_to_all", true),
    // another length for each pair
    ("all_to_all", true),
    // from the victim, then to it
    ("broadcast", true),
    ("broadcast", false),
    ("barrier", false),
    // so short that it goes whole
    ("all_reduce", true),
];
/// The rank with the fault.
const VICTIM: usize = 1;
/// How much later than its deadline a rank may be on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// Three ranks; the victim has this fault.
fn start(fault: &str, timeout: Duration, encrypt: bool) -> Vec<Child> {
    let launches = Launch::local(3).unwrap();
    let start = |launch: Launch| {
        let launch = Launch { encrypt, ..launch };
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
fn killed(fault: &str, timeout: Duration, encrypt: bool) -> Vec<String> {
    let mut ranks = start(fault, timeout, encrypt);
    let mut victim = ranks.remove(VICTIM);
    let errors = ranks.into_iter().map(|rank| error_of(rank, timeout)).collect();
    assert!(!victim.wait().unwrap().success(), "the fault did not come: {fault}");
    errors
}

/// The victim stops; the others' errors, and what it says itself when it is continued after they are gone.
fn stopped(fault: &str, timeout: Duration, encrypt: bool) -> (Vec<String>, String) {
    let mut ranks = start(fault, timeout, encrypt);
    let victim = ranks.remove(VICTIM);
    let errors = ranks.into_iter().map(|rank| error_of(rank, timeout)).collect();
    kill_process(Pid::from_child(&victim), Signal::CONT).unwrap();
    (errors, lines(victim, timeout + SLACK)[0].clone())
}

/// A fault at `point` in one of the operations.
struct Fault {
    /// as `MOE_FAULT` names it, but for kill or stop
    place: String,
    /// the operation with its number
    here: String,
    next: String,
    /// Whether all of the operation's frames may have been here, so that a survivor sees what happened in its next operation only.
    may_pass: bool,
}

impl Fault {
    fn is_named(&self, error: &str, what: &str) -> bool {
        let named = |place: &str| error == format!("rank {VICTIM} {what}, in {place} of group all");
        named(&self.here) || self.may_pass && named(&self.next)
    }
}

/// That fault in every operation that has such a point.
fn in_each_operation(point: &str) -> Vec<Fault> {
    let has_point = |(_, (_, payload)): &(usize, &(&str, bool))| point != "half" || *payload;
    let name = |at: usize| format!("{} {}", OPERATIONS[at % OPERATIONS.len()].0, at + 1);
    let fault = |(at, (operation, payload)): (usize, &(&str, bool))| Fault {
        place: format!(
            "{point} {operation} {}",
            OPERATIONS[..=at].iter().filter(|other| other.0 == *operation).count()
        ),
        here: name(at),
        next: name(at + 1),
        may_pass: point == "return" || point == "header" && !payload,
    };
    OPERATIONS.iter().enumerate().filter(has_point).map(fault).collect()
}

fn a_rank_killed_is_named(point: &str) {
    let timeout = Duration::from_secs(20);
    for fault in in_each_operation(point) {
        for encrypt in [false, true] {
            let begin = Instant::now();
            for error in killed(&format!("{} kill", fault.place), timeout, encrypt) {
                assert!(fault.is_named(&error, "is gone"), "{}, encrypted {encrypt}: {error}", fault.place);
            }
            assert!(begin.elapsed() < timeout, "death is seen at once, not at the deadline");
        }
    }
}

#[test]
fn a_rank_killed_after_a_header_is_named() {
    a_rank_killed_is_named("header");
}

#[test]
fn a_rank_killed_in_a_payload_is_named() {
    a_rank_killed_is_named("half");
}

#[test]
fn a_rank_killed_before_it_returns_is_named() {
    a_rank_killed_is_named("return");
}

/// Several at once, since they wait; not all, for a busy machine would make ranks late that were not stopped.
fn a_rank_stopped_is_named(point: &str) {
    let timeout = Duration::from_secs(8);
    let check = |fault: Fault, encrypt| {
        let (errors, own) = stopped(&format!("{} stop", fault.place), timeout, encrypt);
        for error in errors {
            assert!(fault.is_named(&error, "did not answer in time"), "{}: {error}", fault.place);
        }
        // It goes on where it was, and finds either the others' word or that they are gone.
        let heard = fault.is_named(&own, "did not answer in time") || own.contains("is gone");
        assert!(heard, "{}: {own}", fault.place);
    };
    let mut faults = in_each_operation(point);
    while !faults.is_empty() {
        let some = faults.split_off(faults.len().saturating_sub(4));
        std::thread::scope(|scope| {
            for (at, fault) in some.into_iter().enumerate() {
                scope.spawn(move || check(fault, at % 2 == 1));
            }
        });
    }
}

#[test]
fn a_rank_stopped_after_a_header_is_named_at_the_deadline_and_hears_of_it_later() {
    a_rank_stopped_is_named("header");
}

#[test]
fn a_rank_stopped_in_a_payload_is_named_at_the_deadline_and_hears_of_it_later() {
    a_rank_stopped_is_named("half");
}

#[test]
fn a_rank_stopped_before_it_returns_is_named_at_the_deadline_and_hears_of_it_later() {
    a_rank_stopped_is_named("return");
}

/// Connections are made once, for all operations.
#[test]
fn a_rank_killed_or_stopped_before_it_comes_is_named() {
    let timeout = Duration::from_secs(4);
    let missing = "rank 1 did not answer in time, in connect 0 of group world";
    let gone = "rank 1 is gone, in connect 0 of group world";
    let check = |point: &str, call, encrypt| {
        let what = format!("{point} connect {call}");
        // Who calls for the first time is not known yet, and missed; later it has a connection, which ends.
        for error in killed(&format!("{what} kill"), timeout, encrypt) {
            assert_eq!(error, if call == 1 { missing } else { gone }, "killed at {what}");
        }
        let (errors, own) = stopped(&format!("{what} stop"), timeout, encrypt);
        for error in errors {
            assert_eq!(error, missing, "stopped at {what}");
        }
        assert!(own.ends_with("in connect 0 of group world"), "{own}");
    };
    std::thread::scope(|scope| {
        for point in ["connect", "handshake"] {
            // to rank 0 on the control line, then on the data line: over a Unix socket, or TCP
            for (call, encrypt) in [(1, false), (2, false), (2, true)] {
                scope.spawn(move || check(point, call, encrypt));
            }
        }
    });
}

#[test]
fn a_rank_killed_when_all_have_met_is_named() {
    // Its last frame may have been all that another rank waited for.
    let [here, next] = ["connect 0 of group world", "all_reduce 1 of group all"];
    for point in ["header", "return"] {
        for error in killed(&format!("{point} connect 3 kill"), Duration::from_secs(20), false) {
            let rest = error.strip_prefix("rank 1 is gone, in ");
            assert!(rest.is_some_and(|rest| rest == here || rest == next), "{error}");
        }
    }
}

#[test]
fn without_a_fault_all_ranks_come_to_the_end() {
    for encrypt in [false, true] {
        for rank in start("none barrier 1 kill", Duration::from_secs(20), encrypt) {
            assert_eq!(lines(rank, Duration::from_secs(60)), ["done"]);
        }
    }
}
