//! The fixtures of layers over ranks, on ranks that are processes and meet over TCP: this program again, once per rank.

use crate::fixtures;
use moe_dist::{Launch, World};
use moe_examples::device::{AnyDevice, DeviceName, DeviceTask};
use moe_examples::fixture::{Case, Entry, walk};
use moe_examples::verify::{Outcome, ranks, verify_rank};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Tells a process that it is a rank, and on which device.
const DEVICE: &str = "MOE_TEST_DEVICE";

/// The cases of the group `dist`, by the number of their ranks.
fn cases() -> BTreeMap<usize, Vec<Case>> {
    let mut cases: BTreeMap<usize, Vec<Case>> = BTreeMap::new();
    for entry in walk(&fixtures().join("dist")).expect("tests/fixtures/dist can be read") {
        let Entry::File(path) = entry else { panic!("no checkpoint is there") };
        let case = Case::read(&path).expect("a good fixture");
        cases.entry(ranks(&case).expect("a good case")).or_default().push(case);
    }
    cases
}

#[test]
fn every_layout_passes_on_processes_over_tcp() {
    let cases = cases();
    let counts: Vec<_> = cases.iter().map(|(ranks, cases)| (*ranks, cases.len())).collect();
    assert_eq!(counts, [(2, 6), (4, 4)], "ranks and how many cases they are for");
    for (size, encrypt, device) in
        [(2, false, "host"), (2, true, "cpu"), (4, false, "cpu"), (4, true, "host")]
    {
        let start = |launch: Launch| {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.args(["--exact", "processes::a_rank_of_the_other_test", "--nocapture"]);
            command.envs(Launch { encrypt, tcp: true, ..launch }.variables()).env(DEVICE, device);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a process")
        };
        let ranks: Vec<_> = Launch::local(size).expect("a free port").into_iter().map(start).collect();
        for (rank, process) in ranks.into_iter().enumerate() {
            let end = process.wait_with_output().expect("a process");
            let said = String::from_utf8_lossy(&end.stderr);
            assert!(end.status.success(), "rank {rank} of {size} on {device}: {said}");
        }
    }
}

/// All cases of a world's size, one after the other, as one of its ranks.
struct Rank<'a> {
    world: &'a World,
    cases: &'a [Case],
}

impl DeviceTask for Rank<'_> {
    type Output = ();

    fn run<D: AnyDevice>(self, device: D) {
        for case in self.cases {
            let outcome = verify_rank(&device, case, self.world);
            assert!(matches!(outcome, Outcome::Passed(_)), "{}: {outcome:?}", case.name);
        }
    }
}

/// A rank, where the test above has started this program; nothing otherwise.
#[test]
fn a_rank_of_the_other_test() {
    let Ok(device) = std::env::var(DEVICE) else { return };
    let device: DeviceName = device.parse().expect("a device");
    let launch = Launch::from_env().expect("good variables").expect("a launch");
    let world = World::connect(&launch, Duration::from_secs(60)).expect("the other ranks");
    let cases = cases().remove(&world.size()).expect("cases for a world of this size");
    device.open_with(1, Rank { world: &world, cases: &cases }).expect("the device is there");
}
