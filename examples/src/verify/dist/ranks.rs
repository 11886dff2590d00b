//! The layer over ranks: every process of a layout has a runner, in groups of their own. Ranks are threads here, or this process is one.

use super::layout::{Layout, Process};
use super::process::{Tokens, part_of};
use crate::verify::check::Check;
use crate::verify::layer_run::{flat, read, read_all};
use crate::verify::layer_spec::{LayerSpec, TensorList, named};
use crate::verify::rig::Rig;
use anyhow::{Result, anyhow, ensure};
use bytemuck::pod_collect_to_vec;
use moe_core::ndarray::ArrayView2;
use moe_core::{Batch, Limits, MemoryPolicy, MoeConfig, MoeDevice, Runner, Scalar};
use moe_dist::gradients::Replicated;
use moe_dist::mesh::{Degrees, Mesh};
use moe_dist::{World, channel};

/// What ranks run, and what is wanted of them.
pub(super) struct Spread<'a, T> {
    /// the layer
    pub(super) spec: &'a LayerSpec<T>,
    /// the gradients of all its parameters, in the place of these
    pub(super) gradients: &'a LayerSpec<f32>,
    /// the ranks
    pub(super) layout: &'a Layout,
    /// what the layer gets
    pub(super) all: &'a Tokens<T>,
}

/// What a rank has of a step.
struct RankRun<T> {
    config: MoeConfig,
    ids: Vec<u32>,
    weights: Vec<f32>,
    logits: Vec<f32>,
    counts: Vec<u32>,
    y: Vec<T>,
    inference: Vec<T>,
    dx: Vec<T>,
    dweights: Vec<f32>,
    losses: [f32; 2],
    /// before any reduction
    partial: TensorList,
    /// after them
    reduced: TensorList,
}

/// The memory policies, each of which is a run.
const POLICIES: [MemoryPolicy; 2] = [MemoryPolicy::Keep, MemoryPolicy::Recompute];

impl<T: Scalar<Acc = f32>> Spread<'_, T> {
    /// Runs all ranks as threads, and compares what they have with the file.
    ///
    /// # Errors
    /// Fixture errors and the library's.
    pub(super) fn compare<D: MoeDevice<T>>(&self, rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
        let processes = &self.layout.processes;
        for memory in POLICIES {
            let runs = std::thread::scope(|scope| {
                let start =
                    |(world, process)| scope.spawn(move || self.run(rig.device(), &world, memory, process));
                let ranks: Vec<_> =
                    channel::world(processes.len()).into_iter().zip(processes).map(start).collect();
                let joined = |rank: std::thread::ScopedJoinHandle<'_, Result<RankRun<T>>>| {
                    rank.join().map_err(|_| anyhow!("a rank panicked"))?
                };
                ranks.into_iter().map(joined).collect::<Result<Vec<_>>>()
            })?;
            for (process, run) in processes.iter().zip(&runs) {
                self.compare_rank(check, process, run)?;
            }
        }
        Ok(())
    }

    /// Runs the rank that this one is in `world`, and compares what it has with the file.
    ///
    /// # Errors
    /// Fixture errors, the library's, and other ranks'.
    pub(super) fn compare_one<D: MoeDevice<T>>(
        &self,
        rig: &Rig<D>,
        check: &mut Check<'_>,
        world: &World,
    ) -> Result<()> {
        let processes = &self.layout.processes;
        ensure!(
            world.size() == processes.len(),
            "the layout has {} ranks, not {}",
            processes.len(),
            world.size()
        );
        let process = &processes[world.rank()];
        for memory in POLICIES {
            let run = self.run(rig.device(), world, memory, process)?;
            self.compare_rank(check, process, &run)?;
        }
        Ok(())
    }

    fn compare_rank(&self, check: &mut Check<'_>, process: &Process, run: &RankRun<T>) -> Result<()> {
        let name = |name: &str| format!("{}{name}", process.prefix);
        check.same(&name("out.topk_ids"), &run.ids)?;
        check.same(&name("out.counts"), &run.counts)?;
        check.close_if_any(&name("out.topk_scores"), &run.weights)?;
        check.close_if_any(&name("out.logits"), &run.logits)?;
        check.close(&name("out.y"), &run.y)?;
        check.close(&name("out.y"), &run.inference)?;
        check.close(&name("grad.x"), &run.dx)?;
        check.close_if_any(&name("grad_partial.topk_scores"), &run.dweights)?;
        for (loss, value) in ["out.aux_loss", "out.z_loss"].into_iter().zip(run.losses) {
            check.close_if_any(&name(loss), &[value])?;
        }
        // A rank's part of the sum over all ranks.
        for (wanted, got) in self.gradients.state(&run.config).iter().zip(run.reduced.iter().flatten()) {
            check.close_to_part(
                &name(&format!("grad.{}", wanted.name)),
                got,
                &pod_collect_to_vec::<u8, f32>(&wanted.bytes),
            )?;
        }
        if self.layout.hidden_parts > 0 {
            // The file's ranks have the whole hidden width.
            return Ok(());
        }
        let part = part_of(self.spec, self.layout, process);
        for (kind, tensors) in [("grad_partial", &run.partial), ("grad", &run.reduced)] {
            for (tensor, values) in named(&part, tensors)? {
                check.close_if_any(&name(&format!("{kind}.{tensor}")), &values)?;
            }
        }
        Ok(())
    }

    /// The step of one rank.
    fn run<D: MoeDevice<T>>(
        &self,
        device: &D,
        world: &World,
        memory: MemoryPolicy,
        process: &Process,
    ) -> Result<RankRun<T>> {
        let Self { spec, all, layout: Layout { ep, etp, tp, processes, .. }, .. } = *self;
        let degrees =
            Degrees { dp_shard: processes.len() / tp, tp: *tp, ep: *ep, etp: *etp, ..Degrees::default() };
        let mesh = Mesh::new(processes.len(), degrees)?;
        let mut config = spec.config(memory)?;
        let width = config.width;
        let (step_tokens, tokens) = (all.x.len() / width, process.tokens.len());
        config.place = mesh.place(&mesh.seat(world.rank())?, false);
        let layer = spec.load(device, &config)?;
        let mut make = |name, ranks: &[usize]| world.group(device, name, ranks);
        let groups = mesh.groups_of(world.rank(), &mut make)?;
        let sequences = spec.sequences(tokens)?;
        let limits = Limits { sequences: sequences.len().max(1), ..Limits::training(step_tokens) };
        let mut runner = Runner::with_groups(device, &config, limits, groups)?;
        let mut reduction = Replicated::new(runner.session(), &mesh, world.rank(), &[config], &mut make)?;
        let mut batch = Batch {
            sequences: &sequences,
            batch_tokens: Some(step_tokens),
            step_tokens: Some(step_tokens),
            step_sequences: Some(spec.sequences(step_tokens)?.len().max(1)),
            ..Batch::default()
        };
        batch.stamp.first_token = process.tokens.start as u64;
        runner.set_batch(&batch)?;
        let own = process.tokens.start * width..process.tokens.end * width;
        let x = runner.upload(ArrayView2::from_shape((tokens, width), &all.x[own.clone()])?)?;
        let dout = runner.upload(ArrayView2::from_shape((tokens, width), &all.dout[own])?)?;
        let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
        let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
        runner.forward_train(&layer, &x, &mut saved, &mut y)?;
        let figures = runner.figures(&saved)?;
        let routing = saved.routing();
        let (ids, weights) = (read(&runner, routing.ids()?)?, read(&runner, routing.weights()?)?);
        let logits = read(&runner, routing.logits()?)?;
        let outputs = flat(&runner, &y)?;
        runner.backward(&layer, &x, &mut saved, &dout, &mut dx, &mut grads)?;
        let dweights = read(&runner, runner.dweights(&saved)?)?;
        let partial = read_all(&runner, &grads.weights)?;
        reduction.reduce(runner.session(), &mut [&mut grads])?;
        let reduced = read_all(&runner, &grads.weights)?;
        let dx = flat(&runner, &dx)?;
        runner.forward(&layer, &x, &mut y)?;
        Ok(RankRun {
            config,
            ids,
            weights,
            logits,
            counts: figures.tokens_per_expert,
            y: outputs,
            inference: flat(&runner, &y)?,
            dx,
            dweights,
            losses: [figures.balance_loss as f32, figures.z_loss as f32],
            partial,
            reduced,
        })
    }
}
