//! Steps and layers on ranks that are processes and meet over TCP: this program again, once per rank.

use crate::alone::Step;
use crate::cases::{Case, cases};
use crate::equality::{compare_rank, each_way};
use crate::layout::Layout;
use crate::part::{Part, part};
use crate::ranks::placed;
use crate::steps::{Kept, alone, config, expect_part, rank};
use moe_core::{Collective, Host, View, ViewMut};
use moe_dist::mesh::{Degrees, Mesh};
use moe_dist::{Launch, World};
use std::hash::{DefaultHasher, Hash, Hasher};
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

/// Starts four ranks that run the test `rank` with this number, and waits for their good end.
fn expect_good(rank: &str, number: usize, encrypt: bool) {
    let program = std::env::current_exe().expect("this program");
    let start = |launch: Launch| {
        let mut command = Command::new(&program);
        command.args(["--exact", rank, "--nocapture"]);
        command.envs(Launch { encrypt, tcp: true, ..launch }.variables()).env(CASE, number.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
    };
    let ranks: Vec<_> = Launch::local(4).expect("a free port").into_iter().map(start).collect();
    for (rank, process) in ranks.into_iter().enumerate() {
        let end = process.wait_with_output().expect("a process");
        let said = String::from_utf8_lossy(&end.stderr);
        assert!(end.status.success(), "rank {rank} of case {number}: {said}");
    }
}

/// What [`expect_good`] has started this program as: its number, and the other ranks. Nothing otherwise.
fn started() -> Option<(usize, World)> {
    let number = std::env::var(CASE).ok()?.parse().expect("a number");
    let launch = Launch::from_env().expect("good variables").expect("a launch");
    Some((number, World::connect(&launch, Duration::from_secs(60)).expect("the other ranks")))
}

#[test]
fn processes_over_tcp_step_as_one_process_does() {
    for number in (0..).take_while(|number| case(*number).is_some()) {
        expect_good("processes::a_rank_that_steps", number, number % 2 == 1);
    }
}

/// A rank of the test above.
#[test]
fn a_rank_that_steps() {
    let Some((number, world)) = started() else { return };
    let (mesh, kept) = case(number).expect("a case");
    let config = config();
    let end = rank::<f64>(&world, &mesh, &config, kept);
    let what = format!("rank {} of {mesh:?}, {kept:?}", world.rank());
    expect_part(&what, &placed(&config, &mesh, world.rank()), &alone::<f64>(&config), &end);
}

#[test]
fn layers_over_processes_equal_one_process_on_every_mesh_of_four() {
    for (number, encrypt) in [false, true].into_iter().enumerate() {
        expect_good("processes::a_rank_of_layers", number, encrypt);
    }
}

/// A rank of the test above: every second mesh with every case, each in one of its ways.
#[test]
fn a_rank_of_layers() {
    let Some((number, world)) = started() else { return };
    for (at, mesh) in Mesh::all(4).into_iter().enumerate().skip(number).step_by(2) {
        for (turn, case) in cases().into_iter().enumerate() {
            let case = each_way(case).nth((at + turn) % 4).expect("one of four ways");
            let layout = Layout::new(mesh, case.shape, case.sequence_parallel);
            let step = Step::new(&Host, &case, &layout);
            let want = step.alone(&Host, &case, &layout);
            let own = part(&Host, &world, &case, &layout, &step, None);
            let what = format!("{}, {:?}", case.name, mesh.degrees());
            compare_rank(&case, &layout, &want, world.rank(), &own)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            expect_replicas(&what, &world, &case, &layout, &own);
        }
    }
}

/// Gradients that several ranks have are equal bit for bit, by their digests.
fn expect_replicas(what: &str, world: &World, case: &Case, layout: &Layout, own: &Part<f64>) {
    let digest = |values: &Option<Vec<f64>>| {
        let mut hasher = DefaultHasher::new();
        values.iter().flatten().for_each(|value| value.to_bits().hash(&mut hasher));
        hasher.finish() as u32
    };
    let digests: Vec<u32> = own.out.grads.iter().map(digest).collect();
    let ranks: Vec<_> = (0..world.size()).collect();
    let mut all = vec![0; ranks.len() * digests.len()];
    let mut group = world.group(&Host, "digests", &ranks).expect("a group");
    let counts = vec![digests.len(); ranks.len()];
    group.all_gather(&(), View::of(&digests), ViewMut::of(&mut all), &counts).expect("digests");
    let tensors = |rank| crate::part::placed(case, layout, rank).tensors();
    let mine = tensors(world.rank());
    for peer in ranks {
        for (tensor, (ours, theirs)) in mine.iter().zip(tensors(peer)).enumerate() {
            if let (Some(ours), Some(theirs)) = (ours, theirs)
                && ours.runs().eq(theirs.runs())
            {
                let digest = all[peer * digests.len() + tensor];
                assert_eq!(digest, digests[tensor], "{what}: rank {peer} has other bits in {}", ours.name);
            }
        }
    }
}
