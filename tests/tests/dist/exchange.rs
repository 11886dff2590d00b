//! How rows travel: which path they take, how much room there is, and what is refused.

use crate::cases::{Case, case};
use crate::equality::run;
use crate::layout::Shape;
use crate::ranks::on_ranks;
use moe_core::ndarray::Array2;
use moe_core::ops::{RouteRule, Selection, Sort};
use moe_core::{
    Axis, BalanceLoss, Batch, Error, Groups, Host, HostError, Limits, MoeConfig, MoeLayer, Op, Place, Runner,
    Sizes, Solo,
};
use moe_dist::mesh::{Degrees, Mesh};
use moe_dist::{Group, World};

fn mesh(degrees: Degrees) -> Mesh {
    Mesh::new(degrees.dp_replicate * degrees.dp_shard * degrees.cp * degrees.tp, degrees).expect("a mesh")
}

/// The one path that all rows of all ranks took, and the counts exchanged for each all-to-all of rows: one forward in training
/// and one in inference.
fn path_of(case: &Case, degrees: Degrees) -> &'static str {
    let parts = run(case, mesh(degrees), None).expect("an equal layer");
    for part in &parts {
        assert_eq!(part.exchanges, parts[0].exchanges, "all ranks take the same path");
        assert_eq!(part.exchanges.len(), 1);
        assert_eq!(part.counts, 2, "counts travel once per forward");
    }
    parts[0].exchanges[0].0
}

const FOUR: Degrees = Degrees { dp_replicate: 1, dp_shard: 4, cp: 1, tp: 1, ep: 4, etp: 1 };

#[test]
fn rows_travel_equal_padded_or_as_they_are() {
    let forced = |case: &mut Case| {
        case.config.rule = RouteRule { selection: Selection::RoundRobin, ..case.config.rule };
        case.shape = Shape::Even;
    };
    assert_eq!(path_of(&case("forced balance", forced), FOUR), "equal");
    assert_eq!(path_of(&case("ragged", |_| {}), FOUR), "variable");
    assert_eq!(path_of(&case("ragged, padded", |case| case.padded = true), FOUR), "padded");
    let both = |case: &mut Case| {
        forced(case);
        case.padded = true;
    };
    assert_eq!(path_of(&case("nothing to pad", both), FOUR), "equal");
}

#[test]
fn a_rank_with_all_experts_exchanges_nothing() {
    let degrees = Degrees { dp_shard: 2, tp: 2, ..Degrees::default() };
    for part in run(&case("ragged", |_| {}), mesh(degrees), None).expect("an equal layer") {
        assert_eq!((part.exchanges, part.counts), (Vec::new(), 0));
    }
}

fn config() -> MoeConfig {
    MoeConfig::new(Sizes { width: 4, hidden: 3, experts: 4, top_k: 2 }).expect("a layer")
}

/// A rank of two that share the experts, with room for `received` rows.
fn runner(world: &World, config: &mut MoeConfig, received: Option<usize>) -> Runner<Host, f64, Group<Host>> {
    let groups = groups(world, config);
    let limits = Limits { received, ..Limits::training(8) };
    Runner::with_groups(&Host, config, limits, groups).expect("a runner")
}

#[test]
fn more_rows_than_a_rank_has_room_for_are_the_same_error_on_every_rank_and_the_step_can_be_tried_again() {
    let ends = on_ranks(2, |world| {
        let mut config = config();
        let mut runner = runner(&world, &mut config, (world.rank() == 1).then_some(4));
        let layer = MoeLayer::init(&Host, &config, 3).expect("a layer");
        let mut saved = runner.saved(&config).expect("room");
        let mut forward = |tokens: usize| {
            let x = runner.upload(Array2::ones((tokens, 4)).view()).expect("x");
            let mut y = runner.like(&x).expect("y");
            runner.forward_train(&layer, &x, &mut saved, &mut y)
        };
        let error = forward(8).expect_err("more than four rows arrive on rank 1 or all on rank 0");
        forward(1).expect("two tokens have four rows");
        error.to_string()
    });
    assert_eq!(ends[0], ends[1]);
    assert!(ends[0].contains("rows that arrive on a rank"), "{}", ends[0]);
}

/// A rank of two that share the experts with groups, to make a runner with.
fn groups(world: &World, config: &mut MoeConfig) -> Groups<Group<Host>> {
    let mesh = mesh(Degrees { dp_shard: 2, ep: 2, ..Degrees::default() });
    config.place = mesh.place(&mesh.seat(world.rank()).expect("a rank"), false);
    let mut make = |name, ranks: &[usize]| world.group(&Host, name, ranks);
    mesh.groups_of(world.rank(), &mut make).expect("groups")
}

#[test]
fn ranks_that_were_given_different_layers_or_limits_say_so() {
    let mistakes: [fn(&mut MoeConfig, &mut Limits); 4] = [
        |_, limits| limits.tokens = 9,
        |_, limits| limits.padded = true,
        |config, _| config.rule.scale = 2.0,
        |config, _| config.hidden = 5,
    ];
    for mistake in mistakes {
        let refusals = on_ranks(2, |world| {
            let (mut config, mut limits) = (config(), Limits::training(8));
            if world.rank() == 1 {
                mistake(&mut config, &mut limits);
            }
            let groups = groups(&world, &mut config);
            let made = Runner::<Host, f64, _>::with_groups(&Host, &config, limits, groups);
            made.err().expect("a refusal").to_string()
        });
        assert!(
            refusals.iter().all(|refusal| refusal.contains("another on rank 1 than on rank 0 of ep")),
            "{refusals:?}"
        );
    }
}

#[test]
fn a_layer_that_is_another_on_one_rank_is_refused_before_rows_travel_and_the_next_is_not() {
    let refusals = on_ranks(2, |world| {
        let mut config = config();
        let mut runner = runner(&world, &mut config, None);
        let mut forward = |config: &MoeConfig| {
            let layer = MoeLayer::init(&Host, config, 3).expect("a layer");
            let mut saved = runner.saved(config).expect("room");
            let x = runner.upload(Array2::ones((3, 4)).view()).expect("x");
            let mut y = runner.like(&x).expect("y");
            runner.forward_train(&layer, &x, &mut saved, &mut y)
        };
        let mut other = config;
        other.hidden -= world.rank();
        let error = forward(&other).expect_err("a refusal");
        forward(&config).expect("the same layer");
        error.to_string()
    });
    assert!(
        refusals.iter().all(|refusal| refusal.contains("another on rank 1 than on rank 0 of ep")),
        "{refusals:?}"
    );
}

#[test]
fn a_rank_whose_device_fails_tells_the_others_at_once() {
    let ends = on_ranks(2, |world| {
        let mut config = config();
        let mut runner = runner(&world, &mut config, None);
        let layer = MoeLayer::init(&Host, &config, 3).expect("a layer");
        let mut saved = runner.saved(&config).expect("room");
        let x = runner.upload(Array2::ones((3, 4)).view()).expect("x");
        let mut y = runner.like(&x).expect("y");
        if world.rank() == 1 {
            runner.session_mut().trace_mut().fail(Sort::<f64>::ID, 0);
        }
        let begin = std::time::Instant::now();
        let error = runner.forward_train(&layer, &x, &mut saved, &mut y).expect_err("a failure");
        assert!(begin.elapsed() < std::time::Duration::from_secs(60), "at once, not at the deadline");
        error.to_string()
    });
    assert_eq!(ends[1], "sort: injected fault");
    assert!(ends[0].starts_with("rank 1 aborted the group"), "{}", ends[0]);
}

#[test]
fn what_other_ranks_have_must_be_said_where_a_loss_depends_on_it() {
    let refusals = on_ranks(2, |world| {
        let mut config = config();
        config.balance.z_loss = 0.1;
        let refused = |config: &mut MoeConfig, batch: Batch<'_>| {
            let mut runner = runner(&world, config, None);
            let layer = MoeLayer::init(&Host, config, 3).expect("a layer");
            let mut saved = runner.saved(config).expect("room");
            let x = runner.upload(Array2::ones((3, 4)).view()).expect("x");
            let mut y = runner.like(&x).expect("y");
            runner.set_batch(&batch).expect("within the limits");
            let error = runner.forward_train(&layer, &x, &mut saved, &mut y).expect_err("a refusal");
            assert!(matches!(error, Error::State(_)));
            error.to_string()
        };
        let step = Batch { step_tokens: Some(6), ..Batch::default() };
        let z = refused(&mut config, Batch::default());
        config.balance.loss = Some(BalanceLoss::Batch(0.1));
        let batch = refused(&mut config, step);
        config.balance.loss = Some(BalanceLoss::Sequence(0.1));
        let sequence = refused(&mut config, step);
        [z, batch, sequence]
    });
    for ([z, batch, sequence], _) in refusals.into_iter().zip(0..) {
        assert!(z.contains("Batch::step_tokens"), "{z}");
        assert!(batch.contains("Batch::batch_tokens"), "{batch}");
        assert!(sequence.contains("Batch::step_sequences"), "{sequence}");
    }
}

#[test]
fn a_runner_and_its_layer_must_be_at_the_place_of_their_groups() {
    let mut part = config();
    part.place = Place { ep: Axis { rank: 1, size: 2 }, ..Place::ALONE };
    let alone: Result<Runner<Host, f64>, _> = Runner::new(&Host, &part, 8);
    let error = alone.err().expect("one rank is not rank 1 of 2").to_string();
    assert_eq!(error, "place.ep is rank 1 of 2, but the runner's group has rank 0 of 1");
    let groups: Groups<Solo<Host>> = Groups::solo(&Host);
    let mut runner = Runner::<Host, f64, _>::with_groups(&Host, &config(), Limits::training(8), groups)
        .expect("one rank with the whole layer");
    let layer = MoeLayer::<Host, f64>::init(&Host, &part, 3).expect("a part");
    let x = runner.upload(Array2::ones((1, 4)).view()).expect("x");
    let mut y = runner.like(&x).expect("y");
    let refused: Result<(), Error<HostError>> = runner.forward(&layer, &x, &mut y);
    assert!(refused.expect_err("the layer is a part").to_string().contains("another part"));
}

#[test]
fn a_split_must_be_that_of_the_tokens() {
    let mut runner: Runner<Host, f64> = Runner::new(&Host, &config(), 8).expect("a runner");
    let layer = MoeLayer::<Host, f64>::init(&Host, &config(), 3).expect("a layer");
    let x = runner.upload(Array2::ones((3, 4)).view()).expect("x");
    let mut y = runner.like(&x).expect("y");
    runner.set_batch(&Batch { split: &[3], ..Batch::default() }).expect("within the limits");
    let error = runner.forward(&layer, &x, &mut y).expect_err("nothing is split here");
    assert!(error.to_string().contains("sequence parallelism"), "{error}");
}
