//! Runner: a stream, a workspace sized once, and the steps of the layer. One per thread, used by all layers of a size.

mod alike;
mod arrived;
mod backward;
mod backward_ops;
mod batch;
mod decode_op;
mod edge;
mod exchange;
mod figures;
mod forward;
mod forward_ops;
mod groups;
mod plan;
mod rows;
mod saved;
mod settings;
mod share;
mod shared_ops;
mod table;

pub use batch::Batch;
pub use exchange::{ALL_TO_ALL, COUNTS};
pub use figures::Figures;
pub use groups::Groups;
pub use rows::Rows;
pub use saved::{Routing, Saved};

pub(crate) use plan::Plan;

use crate::collective::{Collective, Solo};
use crate::config::{MemoryPolicy, MoeConfig};
use crate::device::Device;
use crate::error::{Error, OpId};
use crate::ops::MoeDevice;
use crate::scalar::{Accum, Scalar};
use crate::session::Session;
use crate::trace::Trace;
use crate::view::whole_mut;
use batch::{BatchState, Spread};
use edge::{Edge, Gathered};
use exchange::Exchange;
use share::Room;

/// What a runner is sized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// most tokens of a call, over the ranks of a tensor-parallel group together; with expert parallelism the same on every rank
    pub tokens: usize,
    /// most sequences of a call; matters to the sequence-wise loss alone
    pub sequences: usize,
    /// with the workspace of backward
    pub training: bool,
    /// with expert parallelism, most rows that may arrive on this rank in a call; `None`: as many as could, which is all
    /// tokens of all ranks
    pub received: Option<usize>,
    /// with expert parallelism, pad the rows between each two ranks to equal numbers where there is room; the same on every rank
    pub padded: bool,
}

impl Limits {
    /// Training with calls of at most `tokens` tokens in at most `min(tokens, 256)` sequences.
    pub fn training(tokens: usize) -> Self {
        Self { tokens, sequences: tokens.clamp(1, 256), training: true, received: None, padded: false }
    }

    /// Inference alone with calls of at most `tokens` tokens.
    pub fn inference(tokens: usize) -> Self {
        Self { sequences: 1, training: false, ..Self::training(tokens) }
    }
}

/// A device value that is uploaded only when it changes.
pub(crate) struct Cached<B, V> {
    pub(crate) buffer: B,
    value: Option<V>,
}

/// Workspace of backward.
struct Backward<D: Device, T: Scalar> {
    h: Option<D::Owned<T>>,
    ds: D::Owned<T::Acc>,
    dlogits: D::Owned<T::Acc>,
    /// the gate's part of dx, where the runner's `a`, which nobody reads any more by then, is too short for it
    gate_dx: Option<D::Owned<T>>,
    shared: Option<SharedBackward<D, T>>,
    norm: D::Owned<T::Acc>,
}

struct SharedBackward<D: Device, T: Scalar> {
    h: Option<D::Owned<T>>,
    gate: Option<SharedGateBackward<D, T>>,
}

struct SharedGateBackward<D: Device, T: Scalar> {
    ds: D::Owned<T::Acc>,
    dlogits: D::Owned<T::Acc>,
    dx: D::Owned<T>,
}

/// Workspace of the shared experts.
struct Shared<D: Device, T: Scalar> {
    a: D::Owned<T>,
    y: D::Owned<T>,
}

/// Runs layers on one stream of a device. Allocates when it is made and in the methods that return something new, nowhere
/// else. `C` is how ranks reach each other; alone, a runner has nobody to reach.
pub struct Runner<D: Device, T: Scalar, C = Solo<D>> {
    pub(crate) session: Session<D>,
    groups: Groups<C>,
    config: MoeConfig,
    limits: Limits,
    batch: BatchState,
    /// first and last token, as the bounds of one group
    whole: Cached<D::Owned<u32>, usize>,
    pub(crate) bias_rate: Cached<D::Owned<T::Acc>, f32>,
    a: D::Owned<T>,
    y: D::Owned<T>,
    shared: Option<Shared<D, T>>,
    exchange: Option<Exchange<D, T>>,
    edge: Option<Edge<D, T>>,
    gathered: Option<Gathered<D, T>>,
    backward: Option<Backward<D, T>>,
    inference: Option<Saved<D, T>>,
}

impl<T: Scalar, D: MoeDevice<T>> Runner<D, T> {
    /// A runner for training and inference with layers of this size or smaller, and calls of at most `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Config`]; [`Error::Device`] if memory runs out.
    pub fn new(device: &D, config: &MoeConfig, tokens: usize) -> Result<Self, Error<D::Error>> {
        Self::with_limits(device, config, Limits::training(tokens))
    }

    /// A runner with limits of its own.
    ///
    /// # Errors
    /// [`Error::Config`]; [`Error::Device`] if memory runs out.
    pub fn with_limits(device: &D, config: &MoeConfig, limits: Limits) -> Result<Self, Error<D::Error>> {
        Self::with_groups(device, config, limits, Groups::solo(device))
    }
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// A runner for the part of a layer that is at `config.place`, with the groups of that place. The ranks of the groups
    /// make theirs together.
    ///
    /// # Errors
    /// [`Error::Config`], also if the groups are not those of the place, or another rank has another layer or limits that do not go together;
    /// [`Error::Device`] if memory runs out, which the other ranks are told; [`Error::Collective`].
    pub fn with_groups(
        device: &D,
        config: &MoeConfig,
        limits: Limits,
        mut groups: Groups<C>,
    ) -> Result<Self, Error<D::Error>> {
        let made = config.validate().and_then(|()| groups.check::<D>(&config.place));
        match made.map_err(Error::Config).and_then(|()| Self::parts(device, config, limits)) {
            Ok(parts) => {
                let mut runner = parts(groups);
                let agreed = runner.groups.agree(&runner.session, alike::word(config, &limits));
                if agreed.is_err() {
                    // Ranks that no group of this one is shared with may wait for those that have heard.
                    runner.groups.abort();
                }
                agreed.map(|()| runner)
            }
            Err(error) => {
                groups.abort();
                Err(error)
            }
        }
    }

    /// All of a runner but its groups.
    fn parts(
        device: &D,
        config: &MoeConfig,
        limits: Limits,
    ) -> Result<impl FnOnce(Groups<C>) -> Self + use<T, D, C>, Error<D::Error>> {
        let Limits { tokens, sequences, training, padded, .. } = limits;
        crate::within(OpId("runner"), "sequences", 1, tokens.max(1), sequences)?;
        let (part, room) = (config.part(), Room::of(config, &limits)?);
        let plan = Plan::of_room(config, &room, sequences);
        let up = config.activation.up_width(part.hidden.len().max(part.shared_hidden.len()));
        let widest = config.width.max(up).max(config.experts);
        crate::product(OpId("runner"), "rows", &[tokens, config.top_k, widest])?;
        crate::product(OpId("runner"), "rows", &[room.rows, widest])?;
        let scratch =
            if training { plan.scratch_train::<T, D>(device) } else { plan.scratch_forward::<T, D>(device) };
        let session = Session::new(device, scratch)?;
        let shared = match config.shared {
            Some(_) => Some(Shared {
                a: session.alloc(tokens * part.shared_hidden.len())?,
                y: session.alloc(tokens * config.width)?,
            }),
            None => None,
        };
        let exchange = if plan.travels() {
            Some(Exchange::new(&session, config, &room, training, padded)?)
        } else {
            None
        };
        let backward = if training { Some(Backward::new(&session, config, &room)?) } else { None };
        let (config, batch) = (*config, BatchState::with_room(sequences, config));
        let whole = Cached { buffer: session.alloc(2)?, value: None };
        let bias_rate = Cached { buffer: session.alloc(1)?, value: None };
        let a = session.alloc(room.rows * part.hidden.len())?;
        let y = session.alloc(room.rows.max(room.slots) * config.width)?;
        let edge = Edge::new(&session, &config, &room)?;
        let gathered = Gathered::new(&session, &config, &room, training)?;
        let inference = Some(Saved::new(&session, &config, &limits, false)?);
        session.sync()?;
        Ok(move |groups| Self {
            session,
            groups,
            config,
            limits,
            batch,
            whole,
            bias_rate,
            a,
            y,
            shared,
            exchange,
            edge,
            gathered,
            backward,
            inference,
        })
    }

    /// What backward will need of a forward pass of this layer; one per layer and micro-batch in flight.
    ///
    /// # Errors
    /// [`Error::Limit`] if the layer is larger than the runner; [`Error::State`] for a runner made for inference;
    /// [`Error::Device`].
    pub fn saved(&self, config: &MoeConfig) -> Result<Saved<D, T>, Error<D::Error>> {
        config.validate()?;
        self.accepts(config)?;
        if !self.limits.training {
            return Err(Error::State(INFERENCE_ONLY));
        }
        Saved::new(&self.session, config, &self.limits, true)
    }

    /// Says what the tokens of the next calls are part of.
    ///
    /// # Errors
    /// [`Error::Limit`] for more sequences than the runner was made for.
    pub fn set_batch(&mut self, batch: &Batch<'_>) -> Result<(), Error<D::Error>> {
        limit("sequences", batch.sequences.len(), self.limits.sequences)?;
        limit("step_counts", batch.step_counts.map_or(0, <[u32]>::len), self.config.experts)?;
        self.batch.set(batch);
        Ok(())
    }

    /// The device.
    pub fn device(&self) -> &D {
        self.session.device()
    }

    /// Stream, trace, and copies between host and device.
    pub fn session(&self) -> &Session<D> {
        &self.session
    }

    /// Stream and scratch, to run ops of one's own between the layer's stages.
    pub fn session_mut(&mut self) -> &mut Session<D> {
        &mut self.session
    }

    /// The groups, and the session on whose stream they work: to reduce gradients, or whatever else belongs to the step.
    pub fn groups_mut(&mut self) -> (&mut Groups<C>, &Session<D>) {
        (&mut self.groups, &self.session)
    }

    /// Which path each op took, and how often.
    pub fn trace(&self) -> &Trace {
        self.session.trace()
    }

    /// What it was sized for.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A layer must not be larger than what the runner was made for.
    pub(crate) fn accepts(&self, config: &MoeConfig) -> Result<(), Error<D::Error>> {
        let own = &self.config;
        if config.place != own.place {
            return Err(Error::State("the layer is another part than the runner was made for"));
        }
        limit("width", config.width, own.width)?;
        limit("hidden", config.hidden, own.hidden)?;
        limit("up width", config.up_width(), own.up_width())?;
        limit("experts", config.experts, own.experts)?;
        limit("top_k", config.top_k, own.top_k)?;
        let hidden = |config: &MoeConfig| config.shared.map_or(0, |shared| shared.hidden);
        limit("shared hidden", hidden(config), hidden(own))?;
        let gated = |config: &MoeConfig| usize::from(config.shared.is_some_and(|shared| shared.gated));
        limit("gates of shared experts", gated(config), gated(own))?;
        let recomputes = |config: &MoeConfig| usize::from(config.memory == MemoryPolicy::Recompute);
        limit("recomputation", recomputes(config), recomputes(own))
    }

    /// Runs a step where launches are cheapest. A step that waits for other ranks must not hold a place in a thread pool
    /// that they may share, so its launches go there one by one; and if this rank's device fails in it, they are told, since
    /// they wait for what will not come.
    fn enter<R: Send>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<R, Error<D::Error>> + Send,
    ) -> Result<R, Error<D::Error>> {
        let Groups { ep, tp, cp, dp } = &self.groups;
        if [ep, tp, cp, dp].iter().all(|group| group.size() == 1) {
            let device = self.session.device().clone();
            return device.enter(|| work(self));
        }
        let done = work(self);
        if let Err(Error::Device(_) | Error::Injected(_)) = &done {
            self.groups.abort();
        }
        done
    }

    /// Whether other ranks have tokens of the same step.
    fn spread(&self) -> Spread {
        Spread { dp: self.groups.dp.size() > 1, cp: self.groups.cp.size() > 1 }
    }

    /// Makes the buffer `whole` hold the bounds of `tokens` tokens.
    fn set_whole(&mut self, tokens: usize) -> Result<(), Error<D::Error>> {
        if self.whole.value != Some(tokens) {
            self.whole.value = None;
            self.session.upload(&[0, tokens as u32], whole_mut::<D, u32>(&mut self.whole.buffer))?;
            self.whole.value = Some(tokens);
        }
        Ok(())
    }

    /// Makes the buffer `bias_rate` hold `rate`.
    pub(crate) fn set_bias_rate(&mut self, rate: f32) -> Result<(), Error<D::Error>> {
        if self.bias_rate.value != Some(rate) {
            self.bias_rate.value = None;
            let value = [T::Acc::of(rate.into())];
            self.session.upload(&value, whole_mut::<D, T::Acc>(&mut self.bias_rate.buffer))?;
            self.bias_rate.value = Some(rate);
        }
        Ok(())
    }
}

const INFERENCE_ONLY: &str = "this runner was made for inference: use Runner::new for training";

fn limit<B: crate::BackendError>(what: &'static str, got: usize, limit: usize) -> Result<(), Error<B>> {
    if got > limit { Err(Error::Limit { what, got, limit }) } else { Ok(()) }
}

impl<D: Device, T: Scalar> Backward<D, T> {
    fn new(session: &Session<D>, config: &MoeConfig, room: &Room) -> Result<Self, Error<D::Error>> {
        let recomputes = config.memory == MemoryPolicy::Recompute;
        let Room { total, routed, slots, rows } = *room;
        let (part, width) = (config.part(), config.width);
        let up = config.activation.up_width(part.hidden.len());
        let h = if recomputes { Some(session.alloc(rows * up)?) } else { None };
        let fits = rows * part.hidden.len() >= routed * width;
        let gate_dx = if fits { None } else { Some(session.alloc(routed * width)?) };
        let shared = match config.shared {
            Some(shared) => {
                let up = config.activation.up_width(part.shared_hidden.len());
                let h = if recomputes { Some(session.alloc(total * up)?) } else { None };
                let gate = if shared.gated {
                    Some(SharedGateBackward {
                        ds: session.alloc(total)?,
                        dlogits: session.alloc(total)?,
                        dx: session.alloc(total * width)?,
                    })
                } else {
                    None
                };
                Some(SharedBackward { h, gate })
            }
            None => None,
        };
        Ok(Self {
            h,
            ds: session.alloc(slots)?,
            dlogits: session.alloc(routed * config.experts)?,
            gate_dx,
            shared,
            norm: session.alloc(1)?,
        })
    }
}
