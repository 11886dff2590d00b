//! The parameters of all MoE layers on the ranks: whole on each, or in shards; and their optimizer.

use crate::ranks::Ranks;
use anyhow::Result;
use moe_core::{AdamW, AdamWOptions, Grads, MoeConfig, MoeDevice, MoeLayer, Runner, Scalar, Session};
use moe_dist::Group;
use moe_dist::checkpoint::{Checkpoint, LayerParts, Piece, load_layer, load_shards, save_layer, save_shards};
use moe_dist::fsdp::{Fsdp, Shards};
use moe_dist::gradients::Replicated;

/// A runner over ranks.
pub type RankRunner<D, T> = Runner<D, T, Group<D>>;

/// How parameters lie on the ranks.
pub enum Parameters<D: MoeDevice<T>, T: Scalar> {
    /// every rank has the whole of its parts
    Whole {
        /// sums gradients
        sums: Box<Replicated<D, T, Group<D>>>,
        /// by layer
        adam: Vec<AdamW<D, T>>,
    },
    /// every rank has shards of its parts (FSDP)
    Sharded {
        /// sums gradients and gathers weights
        fsdp: Box<Fsdp<D, T, Group<D>>>,
        /// by layer
        shards: Vec<Shards<D, T>>,
    },
}

/// What does not change in a run.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// the ranks
    pub ranks: &'a Ranks,
    /// what stays the same in every step of the optimizer
    pub options: AdamWOptions,
}

impl<D: MoeDevice<T>, T: Scalar> Parameters<D, T> {
    /// Optimizers for these layers, before the first step.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new<'l>(
        session: &Session<D>,
        rules: Rules<'_>,
        layers: impl Iterator<Item = &'l MoeLayer<D, T>>,
        sharded: bool,
    ) -> Result<Self> {
        let layers: Vec<_> = layers.collect();
        let configs: Vec<MoeConfig> = layers.iter().map(|layer| *layer.config()).collect();
        let (mesh, rank) = (rules.ranks.mesh(), rules.ranks.rank());
        let mut make = rules.ranks.maker(session.device());
        if let (true, Some(config)) = (sharded, configs.first()) {
            let fsdp = Box::new(Fsdp::new(session, mesh, rank, config, configs.len(), &mut make)?);
            let shard = |layer: &&MoeLayer<D, T>| Ok(fsdp.shard(session, layer, rules.options)?);
            let shards = layers.iter().map(shard).collect::<Result<_>>()?;
            return Ok(Self::Sharded { fsdp, shards });
        }
        let sums = Box::new(Replicated::new(session, mesh, rank, &configs, &mut make)?);
        let adam = |layer: &&MoeLayer<D, T>| Ok(AdamW::with_options(layer, rules.options)?);
        Ok(Self::Whole { sums, adam: layers.iter().map(adam).collect::<Result<_>>()? })
    }

    /// Sums the gradients of all layers over the ranks.
    ///
    /// # Errors
    /// What the device or another rank says.
    pub fn reduce(&mut self, session: &Session<D>, grads: &mut [&mut Grads<D, T>]) -> Result<()> {
        match self {
            Self::Whole { sums, .. } => Ok(sums.reduce(session, grads)?),
            Self::Sharded { fsdp, shards } => {
                let mut shards: Vec<_> = shards.iter_mut().collect();
                Ok(fsdp.reduce(session, &mut shards, grads)?)
            }
        }
    }

    /// The norm of the summed gradients and of what has the squares `own` elsewhere.
    ///
    /// # Errors
    /// What the device or another rank says.
    pub fn norm(&mut self, session: &mut Session<D>, grads: &[&Grads<D, T>], own: f64) -> Result<f64> {
        match self {
            Self::Whole { sums, .. } => Ok(sums.norm(session, grads, own)?),
            Self::Sharded { fsdp, shards } => {
                Ok(fsdp.norm(session, &shards.iter().collect::<Vec<_>>(), own)?)
            }
        }
    }

    /// The optimizer step of a layer.
    ///
    /// # Errors
    /// What the device or another rank says.
    pub fn step(
        &mut self,
        runner: &mut RankRunner<D, T>,
        index: usize,
        layer: &mut MoeLayer<D, T>,
        grads: &mut Grads<D, T>,
        [lr, scale]: [f64; 2],
    ) -> Result<()> {
        match self {
            Self::Whole { adam, .. } => Ok(adam[index].step_scaled(runner, layer, grads, lr, scale)?),
            Self::Sharded { fsdp, shards } => {
                Ok(fsdp.step(runner, layer, &mut shards[index], grads, lr, scale)?)
            }
        }
    }

    /// What this rank keeps of a layer.
    ///
    /// # Errors
    /// What the device says.
    pub fn pieces(
        &self,
        session: &Session<D>,
        rules: Rules<'_>,
        index: usize,
        layer: &MoeLayer<D, T>,
    ) -> Result<Vec<Piece>> {
        let prefix = prefix(index);
        let parts = parts(&prefix, rules, layer.config());
        match self {
            Self::Whole { adam, .. } => Ok(save_layer(&parts, layer, &adam[index])?),
            Self::Sharded { fsdp, shards } => Ok(save_shards(&parts, session, fsdp, layer, &shards[index])?),
        }
    }

    /// A layer from a checkpoint; its optimizer's state takes the place of what was here.
    ///
    /// # Errors
    /// If a tensor is missing, or has another shape or type.
    pub fn load(
        &mut self,
        session: &Session<D>,
        rules: Rules<'_>,
        index: usize,
        config: &MoeConfig,
        checkpoint: &mut Checkpoint,
    ) -> Result<MoeLayer<D, T>> {
        let prefix = prefix(index);
        let parts = parts(&prefix, rules, config);
        match self {
            Self::Whole { adam, .. } => {
                let (layer, state) = load_layer(&parts, checkpoint, session.device(), rules.options)?;
                adam[index] = state;
                Ok(layer)
            }
            Self::Sharded { fsdp, shards } => {
                let (layer, state) = load_shards(&parts, checkpoint, session, fsdp, rules.options)?;
                shards[index] = state;
                Ok(layer)
            }
        }
    }
}

fn prefix(index: usize) -> String {
    format!("layers.{index}.")
}

fn parts<'a>(prefix: &'a str, rules: Rules<'a>, config: &'a MoeConfig) -> LayerParts<'a> {
    LayerParts { prefix, mesh: rules.ranks.mesh(), at: rules.ranks.at(), config }
}
