//! Runs over ranks that are threads of this process.

use moe_dist::channel;
use moe_dist::checkpoint::{Checkpoint, Piece};
use moe_dist::mesh::Degrees;
use moe_examples::device::DeviceName;
use moe_examples::ranks::Ranks;
use moe_examples::text::Text;
use moe_examples::train::options::Settings;
use moe_examples::train::run::{Place, Run};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a run is spread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) ranks: usize,
    pub(crate) degrees: Degrees,
    pub(crate) sequence_parallel: bool,
    pub(crate) sharded: bool,
}

impl Spread {
    pub(crate) const ALONE: Self = Self {
        ranks: 1,
        degrees: Degrees { dp_replicate: 1, dp_shard: 1, cp: 1, tp: 1, ep: 1, etp: 1 },
        sequence_parallel: false,
        sharded: false,
    };
}

/// What a rank has in the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) losses: Vec<f64>,
    /// by step and layer
    pub(crate) loads: Vec<Vec<u32>>,
    pub(crate) norms: Vec<f64>,
    pub(crate) pieces: Vec<Piece>,
}

/// `steps` steps of a run of `planned`, from a checkpoint on if there is one, on every rank.
pub(crate) fn train(line: &str, [steps, planned]: [u64; 2], spread: Spread, from: Option<&Path>) -> Vec<End> {
    train_and(line, [steps, planned], spread, from, |_| ())
}

/// As [`train`], with something that every rank does at the end.
pub(crate) fn train_and(
    line: &str,
    [steps, planned]: [u64; 2],
    spread: Spread,
    from: Option<&Path>,
    then: impl Fn(&mut Run) + Sync,
) -> Vec<End> {
    let settings = Settings::from_line(line).expect("good settings");
    let rank = |world| {
        let Spread { degrees, sequence_parallel, sharded, .. } = spread;
        let ranks = Arc::new(Ranks::new(world, degrees, sequence_parallel).expect("a mesh"));
        let place = Place { device: DeviceName::Host, threads: 0, ranks, sharded };
        let mut run = match from {
            None => Run::start(settings.clone(), planned, Text::embedded(), &place).expect("a run"),
            Some(path) => {
                let mut checkpoint = Checkpoint::open(path).expect("a checkpoint");
                Run::resume(&mut checkpoint, None, Text::embedded(), &place).expect("a run")
            }
        };
        let mut end = End { losses: vec![], loads: vec![], norms: vec![], pieces: vec![] };
        for _ in 0..steps {
            let report = run.step().expect("a step");
            end.losses.push(report.loss);
            end.norms.push(report.grad_norm);
            end.loads.extend(report.figures.into_iter().map(|figures| figures.tokens_per_expert));
        }
        end.pieces = run.pieces().expect("what the rank keeps");
        then(&mut run);
        end
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            channel::world(spread.ranks).into_iter().map(|world| scope.spawn(|| rank(world))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("the rank's own panic is above")).collect()
    })
}

/// A folder that is gone afterwards.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("moe-ranks-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
