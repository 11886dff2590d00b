//! Ranks that are processes: one is killed while both are inside a collective. The other gets a typed error in time, and makes a new
//! group with a new process on the same GPUs.

use super::failures::of_stream;
use super::rig::{Rank, all_mut, two_gpus};
use moe_core::{Collective, Device, Reduce};
use moe_cuda::Cuda;
use moe_dist::nccl::NcclGroup;
use moe_dist::{Launch, World};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Tells a process of this test's what it is to do.
const PART: &str = "MOE_TEST_PART";
/// The world that comes after, as `Launch` puts it into variables, one a line.
const NEXT: &str = "MOE_TEST_NEXT";
const CONNECT: Duration = Duration::from_secs(45);
/// Well below the groups' own two minutes.
const IN_TIME: Duration = Duration::from_secs(10);

/// What the rank that is killed does meanwhile.
const PARTS: [&str; 2] = ["stays away", "is in the middle"];

#[test]
fn a_killed_rank_is_an_error_on_the_other_in_time_and_a_new_group_can_be_made() {
    let test = "a_killed_rank_is_an_error_on_the_other_in_time_and_a_new_group_can_be_made";
    if std::env::var_os(PART).is_some() {
        return process();
    }
    if two_gpus(test).is_none() {
        return;
    }
    for part in PARTS {
        let [first, second] = [(); 2].map(|()| Launch::local(2).expect("two ranks"));
        let lines: Vec<_> =
            second[0].variables().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut survivor = start("survives", &first[0], &lines.join("\n"));
        let mut victim = start(part, &first[1], "");
        let mut replacement = start("replaces", &second[1], "");
        let mut said = BufReader::new(victim.stdout.take().expect("it is piped")).lines();
        assert!(said.any(|line| line.is_ok_and(|line| line.contains("inside"))), "it got there");
        victim.kill().expect("it is there");
        victim.wait().expect("it is gone");
        succeeds(&mut survivor, part);
        succeeds(&mut replacement, part);
    }
}

/// The process ends well, and before it could be for a deadline.
fn succeeds(process: &mut Child, part: &str) {
    let start = Instant::now();
    let status = loop {
        match process.try_wait().expect("it is there") {
            Some(status) => break status,
            None if start.elapsed() > CONNECT => process.kill().expect("it is there"),
            None => sleep(Duration::from_millis(50)),
        }
    };
    assert!(status.success(), "{part}: {status}; the process's own panic is above");
}

fn start(part: &str, launch: &Launch, next: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "--nocapture", "--test-threads", "1"]);
    command.arg("nccl::killed::a_killed_rank_is_an_error_on_the_other_in_time_and_a_new_group_can_be_made");
    command.env(PART, part).env(NEXT, next).envs(launch.variables());
    if PARTS.contains(&part) {
        command.stdout(Stdio::piped());
    }
    command.spawn().expect("it starts")
}

/// One of the processes.
fn process() {
    let part = std::env::var(PART).expect("it was asked for");
    let launch = Launch::from_env().expect("good variables").expect("a launch");
    let cuda = Cuda::open(launch.local_rank).expect("a GPU");
    let (rank, mut group) = join(&launch, cuda);
    match part.as_str() {
        "replaces" => sum_of_both(&rank, &mut group),
        "stays away" => {
            // The other one is inside by then.
            sleep(Duration::from_secs(1));
            println!("inside");
            sleep(CONNECT);
        }
        "is in the middle" => {
            let mut values = many(&rank);
            group.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut values)).expect("both come");
            rank.cuda.sync(&rank.stream).expect("the first sum");
            for at in 0_u64.. {
                group.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut values)).expect("both come");
                if at == 100 {
                    println!("inside");
                }
            }
        }
        _ => survive(rank, group),
    }
}

fn survive(rank: Rank, mut group: NcclGroup) {
    let mut values = many(&rank);
    let start = Instant::now();
    // The other one may go on for a while before it is killed; a host that runs ahead waits in its call.
    let in_call =
        (0..1_000_000).find_map(|_| group.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut values)).err());
    let text = match in_call {
        Some(error) => error.to_string(),
        None => of_stream(rank.cuda.sync(&rank.stream)),
    };
    assert!(text.starts_with("rank 1 is gone, in all_reduce "), "{text}");
    assert!(text.ends_with(" of group all"), "{text}");
    assert_eq!(of_stream(rank.cuda.sync(&rank.stream)), text);
    let (cuda, waited) = (rank.cuda.clone(), start.elapsed());
    let dropping = Instant::now();
    drop((values, group, rank));
    assert!(dropping.elapsed() < IN_TIME, "after {:?}", dropping.elapsed());
    println!("survived: {text}, after {waited:?}");
    let next = std::env::var(NEXT).expect("it is set");
    let of = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        next.lines().find_map(value)
    };
    let launch = Launch::from_variables(of).expect("good variables").expect("a launch");
    let (rank, mut group) = join(&launch, cuda);
    sum_of_both(&rank, &mut group);
    println!("summed again");
}

fn join(launch: &Launch, cuda: Cuda) -> (Rank, NcclGroup) {
    let rank = Rank::new(World::connect(launch, CONNECT).expect("the other rank"), cuda);
    let mut group = rank.both();
    group.set_checked(false);
    (rank, group)
}

/// Enough that a sum takes a while.
fn many(rank: &Rank) -> <Cuda as Device>::Owned<f32> {
    rank.cuda.alloc::<f32>(&rank.stream, 16 << 20).expect("memory")
}

fn sum_of_both(rank: &Rank, group: &mut NcclGroup) {
    let mut values = rank.upload(&[1.0_f32, 2.0]);
    group.all_reduce(&rank.stream, Reduce::Sum, all_mut(&mut values)).expect("both come");
    assert_eq!(rank.download(&values), [2.0, 4.0]);
}
