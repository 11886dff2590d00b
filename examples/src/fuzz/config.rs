//! A configuration from any bytes: it is refused with an error, or it makes a layer that runs.

use moe_core::ndarray::Array2;
use moe_core::ops::{Activation, GateMath, Jitter, ScoreFunction, Selection};
use moe_core::{
    BalanceLoss, Capacity, DropPolicy, Error, Host, HostError, Limits, MemoryPolicy, MoeConfig, MoeLayer,
    Runner, ScoreOrder, SharedExperts, Sizes,
};

/// Bytes as a source of choices; zeros at the end.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn one_of<V: Copy>(&mut self, choices: &[V]) -> V {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// Mostly small, sometimes out of every range.
    fn size(&mut self) -> usize {
        match self.byte() {
            255 => usize::MAX,
            254 => usize::MAX / 2 + 1,
            253 => 1 << 20,
            252 => (1 << 20) + 1,
            small => usize::from(small % 24),
        }
    }

    /// Mostly harmless, sometimes no number at all.
    fn float(&mut self) -> f32 {
        match self.byte() {
            255 => f32::NAN,
            254 => f32::INFINITY,
            253 => f32::NEG_INFINITY,
            252 => f32::MAX,
            251 => -1.0,
            250 => f32::MIN_POSITIVE / 8.0,
            other => f32::from(other) / 64.0,
        }
    }

    fn config(&mut self) -> MoeConfig {
        let smallest = Sizes { width: 1, hidden: 1, experts: 1, top_k: 1 };
        let mut config = MoeConfig::new(smallest).expect("the smallest layer is valid");
        config.width = self.size();
        config.hidden = self.size();
        config.experts = self.size();
        config.top_k = self.size();
        config.activation = match self.byte() % 8 {
            0 => Activation::ClampedSwiGlu { alpha: self.float(), limit: self.float() },
            1 => Activation::GeGlu,
            2 => Activation::GeGluTanh,
            3 => Activation::Gelu,
            4 => Activation::GeluTanh,
            5 => Activation::SquaredRelu,
            6 => Activation::Linear,
            _ => Activation::SwiGlu,
        };
        config.expert_bias = self.flag();
        config.rule.score =
            self.one_of(&[ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid]);
        config.rule.selection = self.one_of(&[Selection::TopK, Selection::RoundRobin]);
        config.rule.groups = self.size().max(usize::from(self.flag()));
        config.rule.groups_kept = self.size().max(usize::from(self.flag()));
        config.rule.normalize = self.flag();
        config.rule.scale = self.float();
        config.rule.jitter = self.flag().then(|| Jitter { amplitude: self.float() });
        config.rule.gate = self.one_of(&[GateMath::Exact, GateMath::Native]);
        config.gate_bias = self.flag();
        config.selection_bias = self.flag();
        config.score_order = self.one_of(&[ScoreOrder::AfterExperts, ScoreOrder::BeforeExperts]);
        config.shared = self.flag().then(|| SharedExperts { hidden: self.size(), gated: self.flag() });
        let drops = [DropPolicy::ByPosition, DropPolicy::ByScore];
        config.capacity = self.flag().then(|| Capacity { factor: self.float(), drop: self.one_of(&drops) });
        config.balance.loss = match self.byte() % 3 {
            0 => None,
            1 => Some(BalanceLoss::Sequence(self.float())),
            _ => Some(BalanceLoss::Batch(self.float())),
        };
        config.balance.z_loss = self.float();
        config.balance.bias_rate = self.float();
        config.memory = self.one_of(&[MemoryPolicy::Keep, MemoryPolicy::Recompute]);
        config
    }
}

/// Elements of the largest layer that is run: more would test the memory, not the code.
const LARGEST: usize = 1 << 16;

/// A configuration that the bytes describe: whether it is valid. A small valid one makes a layer and takes a step.
///
/// # Panics
/// If a valid configuration cannot be run.
pub fn config(bytes: &[u8]) -> bool {
    let mut source = Source(bytes);
    let config = source.config();
    let (tokens, sequences) = (source.size(), source.size());
    if config.validate().is_err() {
        assert!(
            MoeLayer::<Host, f32>::init(&Host, &config, 0).is_err(),
            "init accepts what validate refuses"
        );
        return false;
    }
    let widest = config.width.max(config.up_width()).max(config.experts);
    let rows = tokens.checked_mul(config.top_k).and_then(|rows| rows.checked_mul(widest));
    if config.parameters() > LARGEST || rows.is_some_and(|elements| elements > LARGEST) {
        return true;
    }
    match step(&config, Limits { sequences, ..Limits::training(tokens) }) {
        Ok(()) | Err(Error::Shape(_)) => true,
        Err(error) => panic!("{config:?} is valid, but: {error}"),
    }
}

/// One training step on tokens of one value.
fn step(config: &MoeConfig, limits: Limits) -> Result<(), Error<HostError>> {
    let mut runner = Runner::<_, f32>::with_limits(&Host, config, limits)?;
    let layer = MoeLayer::init(&Host, config, 1)?;
    let (mut saved, mut grads) = (runner.saved(config)?, layer.grads()?);
    let x = runner.upload(Array2::from_elem((limits.tokens, config.width), 0.5).view())?;
    let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
    runner.forward_train(&layer, &x, &mut saved, &mut y)?;
    let figures = runner.figures(&saved)?;
    assert_eq!(figures.routed + figures.dropped, (limits.tokens * config.top_k) as u64);
    runner.backward(&layer, &x, &mut saved, &y, &mut dx, &mut grads)?;
    runner.forward(&layer, &x, &mut y)
}
