//! Steps on ranks that are processes and meet over TCP: this program again, once per rank.

use crate::ranks::placed;
use crate::steps::{Kept, alone, config, expect_part, rank};
use moe_dist::mesh::{Degrees, Mesh};
use moe_dist::{Launch, World};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Tells a process which of the cases it is a rank of.
const CASE: &str = "MOE_TEST_CASE";

/// Layouts of four ranks.
fn case(number: usize) -> Option<(Mesh, Kept)> {
    let one = Degrees::default();
    let (degrees, kept) = [
        (Degrees { dp_shard: 2, tp: 2, ep: 4, ..one }, Kept::Whole),
        (Degrees { dp_shard: 2, tp: 2, ep: 2, etp: 2, ..one }, Kept::Sharded),
        (Degrees { dp_replicate: 2, dp_shard: 2, ep: 2, ..one }, Kept::Sharded),
    ]
    .get(number)
    .copied()?;
    Some((Mesh::new(4, degrees).expect("a mesh"), kept))
}

#[test]
fn processes_over_tcp_step_as_one_process_does() {
    let program = std::env::current_exe().expect("this program");
    for number in (0..).take_while(|number| case(*number).is_some()) {
        let start = |launch: Launch| {
            let mut command = Command::new(&program);
            command.args(["--exact", "processes::a_rank_of_the_other_test", "--nocapture"]);
            command.envs(launch.variables()).env(CASE, number.to_string());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
        };
        let ranks: Vec<_> = Launch::local(4).expect("a free port").into_iter().map(start).collect();
        for (rank, process) in ranks.into_iter().enumerate() {
            let end = process.wait_with_output().expect("a process");
            let said = String::from_utf8_lossy(&end.stderr);
            assert!(end.status.success(), "rank {rank} of case {number}: {said}");
        }
    }
}

/// A rank, where the test above has started this program; nothing otherwise.
#[test]
fn a_rank_of_the_other_test() {
    let Ok(number) = std::env::var(CASE) else { return };
    let (mesh, kept) = case(number.parse().expect("a number")).expect("a case");
    let launch = Launch::from_env().expect("good variables").expect("a launch");
    let world = World::connect(&launch, Duration::from_secs(60)).expect("the other ranks");
    let config = config();
    let end = rank::<f64>(&world, &mesh, &config, kept);
    let what = format!("rank {} of {mesh:?}, {kept:?}", launch.rank);
    expect_part(&what, &placed(&config, &mesh, launch.rank), &alone::<f64>(&config), &end);
}
