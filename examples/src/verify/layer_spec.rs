//! The layer of a case: its configuration and parameters, on the host, in the library's terms.

use super::report::SHARED_ACTIVATION;
use super::routing::Router;
use super::weights::{Experts, Named, Names};
use crate::fixture::{Case, Keys};
use anyhow::{Result, bail, ensure};
use moe_core::{
    Balance, BalanceLoss, MemoryPolicy, MoeConfig, MoeDevice, MoeLayer, Scalar, ScoreOrder, SharedExperts,
    Sizes, StateTensor,
};

/// A layer as a file describes it.
#[derive(Clone)]
pub(crate) struct LayerSpec<T> {
    /// the router with its parameters
    pub(crate) router: Router<T>,
    /// the routed experts
    pub(crate) experts: Experts<T>,
    /// the shared expert
    pub(crate) shared: Option<Experts<T>>,
    /// (1, width): the gate of the shared expert
    pub(crate) shared_gate: Option<Vec<T>>,
    /// scores multiply the experts' inputs
    pub(crate) scores_first: bool,
    /// auxiliary losses
    pub(crate) balance: Balance,
    /// tokens of a sequence, for the sequence-wise loss
    pub(crate) sequence_length: Option<usize>,
}

impl<T: Scalar<Acc = f32>> LayerSpec<T> {
    /// The layer of a case with `tokens` tokens. The names of its parameters start with `prefix`.
    ///
    /// # Errors
    /// Fixture errors, and [`Skip`](super::report::Skip) for what the library does not have.
    pub(crate) fn of(case: &Case, keys: &Keys<'_>, prefix: &str, tokens: usize) -> Result<Self> {
        let router = Router::<T>::of(case, keys, prefix, tokens)?;
        let experts = Experts::<T>::of(case, keys, prefix, "expert")?;
        keys.agrees("dim", router.dims.width)?;
        keys.agrees("hidden_dim", experts.hidden)?;
        let name = |name: &str| format!("{prefix}{name}");
        case.tensor(&name("gate.weight"))?.shaped(&[experts.experts, experts.width])?;
        let hidden = keys.size_if_any("shared_hidden_dim")?.unwrap_or(0);
        let gated = keys.flag("shared_gate")?;
        let (mut shared, mut shared_gate) = (None, None);
        if hidden > 0 {
            if experts.names != Names::Separate {
                return Err(SHARED_ACTIVATION.into());
            }
            shared = Some(Experts::shared(case, prefix, hidden, experts.width)?);
        } else {
            case.absent(&name("shared.w1"))?;
        }
        if gated && hidden > 0 {
            shared_gate = Some(case.scalars(&name("shared_gate.weight"), &[1, experts.width])?);
        } else {
            case.absent(&name("shared_gate.weight"))?;
        }
        let coefficient = keys.number("aux_coeff", 0.0)? as f32;
        let loss = |kind: fn(f32) -> BalanceLoss| (coefficient != 0.0).then(|| kind(coefficient));
        let losses =
            [("none", None), ("sequence", loss(BalanceLoss::Sequence)), ("batch", loss(BalanceLoss::Batch))];
        let balance = Balance {
            loss: keys.choice("aux", &losses)?,
            z_loss: keys.number("z_coeff", 0.0)? as f32,
            bias_rate: 0.0,
        };
        Ok(Self {
            scores_first: keys.flag("score_before_experts")?,
            sequence_length: keys.size_if_any("seq_len")?.or(keys.size_if_any("L")?),
            router,
            experts,
            shared,
            shared_gate,
            balance,
        })
    }

    /// The configuration.
    ///
    /// # Errors
    /// If the library does not allow it.
    pub(crate) fn config(&self, memory: MemoryPolicy) -> Result<MoeConfig> {
        let mut config = MoeConfig::new(Sizes {
            width: self.experts.width,
            hidden: self.experts.hidden,
            experts: self.experts.experts,
            top_k: self.router.dims.top_k,
        })?;
        config.activation = self.experts.activation;
        config.expert_bias = self.experts.b13.is_some();
        config.rule = self.router.dims.rule;
        config.gate_bias = self.router.gate_bias.is_some();
        config.selection_bias = self.router.expert_bias.is_some();
        if self.scores_first {
            config.score_order = ScoreOrder::BeforeExperts;
        }
        config.shared = self
            .shared
            .as_ref()
            .map(|shared| SharedExperts { hidden: shared.hidden, gated: self.shared_gate.is_some() });
        config.balance = self.balance;
        config.memory = memory;
        config.validate()?;
        Ok(config)
    }

    /// The layer on a device.
    ///
    /// # Errors
    /// The library's.
    pub(crate) fn load<D: MoeDevice<T>>(&self, device: &D, config: &MoeConfig) -> Result<MoeLayer<D, T>> {
        Ok(MoeLayer::from_state(device, config, self.state(config))?)
    }

    /// The weights and the selection bias as the library names them, or the part of them at the place of `config`.
    pub(crate) fn state(&self, config: &MoeConfig) -> Vec<StateTensor> {
        let shared = self.shared.as_ref();
        let weights: [Option<&[T]>; moe_core::TENSORS] = [
            Some(&self.router.gate),
            self.router.gate_bias.as_deref(),
            Some(&self.experts.w13),
            self.experts.b13.as_deref(),
            Some(&self.experts.w2),
            self.experts.b2.as_deref(),
            shared.map(|shared| &shared.w13[..]),
            shared.map(|shared| &shared.w2[..]),
            self.shared_gate.as_deref(),
        ];
        let mut state = Vec::new();
        for (spec, values) in config.tensors().iter().zip(weights) {
            if let (Some(spec), Some(values)) = (spec, values) {
                let part: Vec<T> = spec.runs().flat_map(|run| values[run].to_vec()).collect();
                state.push(tensor(spec.name, spec.shape(), &part));
            }
        }
        if let Some(bias) = &self.router.expert_bias {
            state.push(tensor("selection_bias", &[bias.len()], bias));
        }
        state
    }

    /// Lengths of the sequences of `tokens` tokens, if a loss asks for them.
    ///
    /// # Errors
    /// If they do not divide the tokens.
    pub(crate) fn sequences(&self, tokens: usize) -> Result<Vec<usize>> {
        let Some(BalanceLoss::Sequence(_)) = self.balance.loss else {
            return Ok(Vec::new());
        };
        let length = self.sequence_length.unwrap_or(tokens);
        ensure!(length > 0 && tokens.is_multiple_of(length), "{tokens} tokens are no sequences of {length}");
        Ok(vec![length; tokens / length])
    }
}

fn tensor<E: moe_core::Elem>(name: &str, shape: &[usize], values: &[E]) -> StateTensor {
    StateTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype: E::DTYPE,
        bytes: bytemuck::cast_slice(values).to_vec(),
    }
}

/// A layer's tensors in the order of `MoeConfig::tensors`: weights or gradients.
pub(crate) type TensorList = [Option<Vec<f32>>; moe_core::TENSORS];

/// Weights or gradients of a layer, by the names and in the layouts that files have for them.
///
/// # Errors
/// If one that every layer has is missing.
pub(crate) fn named<T>(spec: &LayerSpec<T>, tensors: &TensorList) -> Result<Named> {
    let [gate, gate_bias, w13, b13, w2, b2, shared_w13, shared_w2, shared_gate] = tensors;
    let (Some(gate), Some(w13), Some(w2)) = (gate, w13, w2) else {
        bail!("the layer has no gate, w13 or w2");
    };
    let names = spec.experts.names;
    let mut all = names.tensors(&spec.experts, w13, b13.as_deref(), w2, b2.as_deref());
    all.push(("gate.weight".to_owned(), gate.clone()));
    all.extend(gate_bias.clone().map(|values| ("gate.bias".to_owned(), values)));
    if let (Some(shared), Some(w13), Some(w2)) = (&spec.shared, shared_w13, shared_w2) {
        let tensors = shared.names.tensors(shared, w13, None, w2, None);
        all.extend(tensors.into_iter().map(|(name, values)| (format!("shared.{name}"), values)));
    }
    all.extend(shared_gate.clone().map(|values| ("shared_gate.weight".to_owned(), values)));
    Ok(all)
}
