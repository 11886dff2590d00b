//! Route: a kernel for the logits, in tiles that fit tokens and experts; then scores, the best groups and experts, and weights.

use super::Float;
use super::scores::{self, by_team};
use crate::call::{Call, Grid, Params, Place};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{FLOATS, NO_STORAGE, Source, source};
use crate::stream::Stream;
use moe_core::ops::{GateMath, Jitter, Route, RouteArgs, RouteDims, ScoreFunction, Selection};
use moe_core::{DType, Kernel, Op, Out, Path, within};

pub(super) static SOURCE: Source = source!("route", ["jitter", "chains"], FLOATS);
/// What follows from the scores, for all storage types.
pub(super) static CHOOSE: Source = source!("choose", ["exact", "jitter", "team"], NO_STORAGE);

/// `RouteParams` of `kernels/route.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouteParams {
    jitter: JitterParams,
    tokens: u32,
    width: u32,
    experts: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for RouteParams {}

/// `ChooseParams` of `kernels/choose.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ChooseParams {
    tokens: u32,
    experts: u32,
    top_k: u32,
    groups: u32,
    groups_kept: u32,
    over_chosen: u32,
    normalize: u32,
    forced: u32,
    round_robin: u32,
    scale: f32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ChooseParams {}

/// `Jitter` of `kernels/jitter.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct JitterParams {
    amplitude: f32,
    on: u32,
}

impl JitterParams {
    pub(super) fn new(jitter: Option<Jitter>) -> Self {
        Self { amplitude: jitter.map_or(0.0, |jitter| jitter.amplitude), on: jitter.is_some().into() }
    }
}

/// A kernel's tile of logits.
struct Tile {
    kernel: &'static str,
    path: Path,
    tokens: usize,
    experts: usize,
}

/// Work items of a tile.
pub(super) const CHAIN_ITEMS: usize = 64;

const TILES: [Tile; 3] = [
    Tile { kernel: "route_gate_32x32", path: Path("tile 32x32"), tokens: 32, experts: 32 },
    Tile { kernel: "route_gate_64x8", path: Path("tile 64x8"), tokens: 64, experts: 8 },
    Tile { kernel: "route_gate_8x128", path: Path("tile 8x128"), tokens: 8, experts: 128 },
];

impl Tile {
    fn grid(&self, dims: &RouteDims) -> [usize; 2] {
        [dims.tokens.div_ceil(self.tokens).max(1), dims.experts.div_ceil(self.experts)]
    }

    /// The tile that computes the fewest logits that nobody wants; the bits are equal.
    fn of(dims: &RouteDims) -> &'static Self {
        let computed = |tile: &&Self| {
            let [down, across] = tile.grid(dims);
            down.saturating_mul(across).saturating_mul(tile.tokens * tile.experts)
        };
        TILES.iter().min_by_key(computed).unwrap_or(&TILES[0])
    }
}

/// Work items of a group where each has a token, or a group of experts.
const ITEMS: usize = 64;

/// Elements of scratch memory: scores, and the strengths of expert groups.
fn layout(dims: &RouteDims) -> [usize; 2] {
    let limited = dims.rule.groups_kept < dims.rule.groups;
    let groups = if limited { dims.rule.groups } else { 0 };
    [dims.experts, groups].map(|count| dims.tokens.saturating_mul(count))
}

impl<T: Float> Kernel<Route<T>> for OpenCl {
    fn scratch(&self, dims: &RouteDims) -> usize {
        let [scores, strengths] = layout(dims);
        scores.saturating_add(strengths).saturating_mul(size_of::<f32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &RouteDims,
        args: RouteArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        // Kernels count in 32 bits.
        within(Route::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(Route::<T>::ID, "width", 0, i32::MAX as usize, dims.width)?;
        let RouteDims { tokens, width, experts, top_k, rule } = *dims;
        if rule.gate == GateMath::Exact {
            self.gives_exact_bits()?;
        }
        let mut call = Call::<Route<T>>::new(self, stream, (&SOURCE, T::DTYPE), dims, &args)?;
        let [scores_len, strengths_len] = layout(dims);
        let scores = call.scratch(scratch, Kernel::<Route<T>>::scratch(self, dims))?.of::<f32>();
        let strengths = scores.after(scores_len);
        let forced = args.forced_ids.is_some();
        let round_robin = !forced && rule.selection == Selection::RoundRobin;
        let (x, gate) = (call.read("x", args.x)?, call.weight("gate", args.gate)?);
        let gate_bias = call.read_some("gate_bias", args.gate_bias)?;
        let stamp = call.read_some("stamp", args.stamp)?;
        let selection_bias = call.read_some("selection_bias", args.selection_bias)?;
        let forced_ids = call.read_some("forced_ids", args.forced_ids)?;
        let (logits, ids) = (call.write("logits", args.logits)?, call.write("ids", args.ids)?);
        let weights = call.write("weights", args.weights)?;
        let non_finite = call.write("non_finite", args.non_finite)?;

        let jitter = JitterParams::new(rule.jitter);
        let params =
            RouteParams { jitter, tokens: tokens as u32, width: width as u32, experts: experts as u32 };
        let tile = Tile::of(dims);
        let grid = Grid::of(tile.grid(dims), [CHAIN_ITEMS, 1]);
        call.launch(tile.kernel, grid, &[x, gate, gate_bias, stamp, logits, non_finite], &params)?;

        call.turn_to(self, (&scores::SOURCE, DType::U32))?;
        let places = [logits, scores, Place::NONE, non_finite];
        scores::launch(&call, (tokens, experts), rule.score, places)?;

        call.turn_to(self, (&CHOOSE, DType::U32))?;
        let params = ChooseParams {
            tokens: tokens as u32,
            experts: experts as u32,
            top_k: top_k as u32,
            groups: rule.groups as u32,
            groups_kept: rule.groups_kept as u32,
            over_chosen: (rule.score == ScoreFunction::SoftmaxTopK).into(),
            normalize: rule.normalize.into(),
            forced: forced.into(),
            round_robin: round_robin.into(),
            scale: rule.scale,
        };
        if !forced && !round_robin {
            let grid = Grid::new(strengths_len.div_ceil(ITEMS), ITEMS);
            call.launch("choose_strengths", grid, &[scores, selection_bias, strengths], &params)?;
            let places = [scores, selection_bias, strengths, ids];
            call.launch("choose_draw", by_team(tokens), &places, &params)?;
        }
        let grid = Grid::new(tokens.div_ceil(ITEMS), ITEMS);
        call.launch("choose_weigh", grid, &[scores, forced_ids, stamp, ids, weights], &params)?;
        Ok(tile.path)
    }
}
