//! Every wrong configuration is an error that names the field and its range, wherever the configuration is used.

use crate::devices::HOST;
use crate::variants::plain;
use moe_core::ops::{Activation, Jitter};
use moe_core::{
    Balance, BalanceLoss, Capacity, ConfigError, DropPolicy, Error, HostError, MoeConfig, MoeLayer, Runner,
    SharedExperts,
};

type Change = fn(&mut MoeConfig);

fn capacity(config: &mut MoeConfig, factor: f32) {
    config.capacity = Some(Capacity { factor, drop: DropPolicy::ByPosition });
}

fn clamp(config: &mut MoeConfig, alpha: f32, limit: f32) {
    config.activation = Activation::ClampedSwiGlu { alpha, limit };
}

fn balance(config: &mut MoeConfig, loss: BalanceLoss) {
    config.balance = Balance { loss: Some(loss), ..Balance::default() };
}

/// The field that is wrong, a part of the rule that the message must state, and what makes it wrong.
const MISTAKES: [(&str, &str, Change); 38] = [
    ("width", "1 to", |c| c.width = 0),
    ("width", "1 to", |c| c.width = usize::MAX),
    ("hidden", "1 to", |c| c.hidden = 0),
    ("hidden", "1 to", |c| c.hidden = usize::MAX),
    ("experts", "1 to", |c| c.experts = 0),
    ("experts", "1 to", |c| c.experts = usize::MAX),
    ("experts", "more than", |c| (c.experts, c.width, c.hidden) = (1 << 20, 1 << 20, 1 << 20)),
    ("top_k", "1 to 6", |c| c.top_k = 0),
    ("top_k", "1 to 6", |c| c.top_k = 7),
    ("top_k", "1 to 6", |c| c.top_k = usize::MAX),
    ("rule.groups", "1 to 6", |c| c.rule.groups = 0),
    ("rule.groups", "1 to 6", |c| c.rule.groups = 7),
    ("rule.groups", "divide experts = 6", |c| c.rule.groups = 4),
    ("rule.groups_kept", "1 to 1", |c| c.rule.groups_kept = 0),
    ("rule.groups_kept", "1 to 3", |c| (c.rule.groups, c.rule.groups_kept) = (3, 4)),
    ("rule.groups_kept", "top_k = 2", |c| (c.rule.groups, c.rule.groups_kept) = (6, 1)),
    ("rule.scale", "finite", |c| c.rule.scale = f32::NAN),
    ("rule.scale", "finite", |c| c.rule.scale = f32::INFINITY),
    ("rule.jitter.amplitude", "below 1", |c| c.rule.jitter = Some(Jitter { amplitude: 1.0 })),
    ("rule.jitter.amplitude", "at least 0", |c| c.rule.jitter = Some(Jitter { amplitude: -0.1 })),
    ("rule.jitter.amplitude", "at least 0", |c| c.rule.jitter = Some(Jitter { amplitude: f32::NAN })),
    ("activation.alpha", "finite", |c| clamp(c, f32::NAN, 7.0)),
    ("activation.limit", "above 0", |c| clamp(c, 1.7, 0.0)),
    ("activation.limit", "above 0", |c| clamp(c, 1.7, f32::INFINITY)),
    ("activation.limit", "above 0", |c| clamp(c, 1.7, f32::NAN)),
    ("shared.hidden", "1 to", |c| c.shared = Some(SharedExperts { hidden: 0, gated: false })),
    ("shared.hidden", "1 to", |c| c.shared = Some(SharedExperts { hidden: usize::MAX, gated: true })),
    ("capacity.factor", "above 0", |c| capacity(c, 0.0)),
    ("capacity.factor", "above 0", |c| capacity(c, f32::NAN)),
    ("capacity.factor", "above 0", |c| capacity(c, f32::INFINITY)),
    ("balance.loss", "at least 0", |c| balance(c, BalanceLoss::Sequence(-1.0))),
    ("balance.loss", "at least 0", |c| balance(c, BalanceLoss::Batch(f32::NAN))),
    ("balance.loss", "finite", |c| balance(c, BalanceLoss::Batch(f32::INFINITY))),
    ("balance.z_loss", "at least 0", |c| c.balance.z_loss = -0.5),
    ("balance.z_loss", "finite", |c| c.balance.z_loss = f32::INFINITY),
    ("balance.bias_rate", "at least 0", |c| c.balance.bias_rate = -0.5),
    ("balance.bias_rate", "finite", |c| c.balance.bias_rate = f32::NAN),
    ("balance.bias_rate", "selection_bias", |c| c.balance.bias_rate = 0.5),
];

fn config_error<R>(result: Result<R, Error<HostError>>) -> ConfigError {
    match result {
        Err(Error::Config(error)) => error,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it was taken"),
    }
}

#[test]
fn every_wrong_field_is_named_with_its_range() {
    for (field, rule, change) in MISTAKES {
        let mut config = plain();
        change(&mut config);
        let error = config.validate().expect_err(field);
        assert_eq!(error.field, field, "{error}");
        assert!(error.wanted.contains(rule), "{error}");
        assert!(error.to_string().contains(&error.got), "{error}");
    }
}

#[test]
fn a_wrong_configuration_is_refused_wherever_it_is_used() {
    let runner = Runner::<_, f32>::new(&HOST, &plain(), 4).expect("a runner");
    let state =
        MoeLayer::<_, f32>::init(&HOST, &plain(), 0).and_then(|layer| layer.state()).expect("a state");
    for (field, _, change) in MISTAKES {
        let mut config = plain();
        change(&mut config);
        assert_eq!(config_error(MoeLayer::<_, f32>::init(&HOST, &config, 0)).field, field);
        assert_eq!(config_error(MoeLayer::<_, f32>::from_state(&HOST, &config, state.clone())).field, field);
        assert_eq!(config_error(Runner::<_, f32>::new(&HOST, &config, 4)).field, field);
        assert_eq!(config_error(runner.saved(&config)).field, field);
    }
}
