//! Every op of a layer on arguments as a runner has them, to be launched again and again.

mod other;

use moe_core::ops::*;
use moe_core::{Accum, DType, Device, Error, Kernel, Op, OpId, Scalar, View, ViewMut, run};
use moe_cpu::{Buffer, Cpu, CpuError, Float};

/// What a launch gives.
pub(crate) type Outcome<T> = Result<T, Error<CpuError>>;

/// Sizes of a layer and its tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) tokens: usize,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
}

impl Shape {
    /// From T, D, F, E, K.
    pub(crate) const fn new([tokens, width, hidden, experts, top_k]: [usize; 5]) -> Self {
        Self { tokens, width, hidden, experts, top_k }
    }

    /// Slots.
    pub(crate) fn slots(&self) -> usize {
        self.tokens * self.top_k
    }
}

/// Names of all ops that [`Case::launch`] knows: those of a step in its order, then the others.
pub(crate) const OPS: [&str; 20] = [
    "route",
    "route_stats",
    "sort",
    "expert_up",
    "expert_down",
    "combine",
    "expert_down_bwd",
    "wgrad_down",
    "wgrad_up",
    "expert_up_bwd",
    "route_bwd",
    "gate_bwd",
    "combine_bwd",
    "sum_squares",
    "adamw",
    "pack_weights",
    "gather",
    "merge",
    "bias_update",
    "decode",
];

fn go<O: Op>(cpu: &Cpu, dims: &O::Dims, args: O::Args<'_, Cpu>, scratch: &mut [u8]) -> Outcome<OpId>
where
    Cpu: Kernel<O>,
{
    run::<O, Cpu>(cpu, &(), dims, args, ViewMut::of(scratch)).map(|_| O::ID)
}

/// Values in -1 to 1 without a pattern.
pub(crate) fn noise<T: Scalar>(seed: u64, scale: f64, into: &mut [T]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for value in into {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *value = T::narrow(T::Acc::of(scale * ((state >> 40) as f64 / f64::from(1 << 23) - 1.0)));
    }
}

struct Packed {
    gate: Buffer<u8>,
    up: Buffer<u8>,
    down: Buffer<u8>,
    up_bwd: Buffer<u8>,
    down_bwd: Buffer<u8>,
}

/// A layer's buffers.
pub(crate) struct Case<T> {
    pub(crate) cpu: Cpu,
    pub(crate) shape: Shape,
    packed: Packed,
    x: Buffer<T>,
    dy: Buffer<T>,
    h: Buffer<T>,
    /// What `h` holds before backward, which overwrites it.
    h_forward: Buffer<T>,
    a: Buffer<T>,
    y: Buffer<T>,
    out: Buffer<T>,
    logits: Buffer<f32>,
    dlogits: Buffer<f32>,
    scores: Buffer<f32>,
    ds: Buffer<f32>,
    ids: Buffer<u32>,
    row_of_slot: Buffer<u32>,
    slot_of_row: Buffer<u32>,
    pub(crate) offsets: Buffer<u32>,
    counts: Buffer<u32>,
    merged: [Buffer<u32>; 2],
    bias: Buffer<f32>,
    sums: Buffer<f32>,
    dgate: Buffer<f32>,
    dw: Buffer<f32>,
    master: Buffer<f32>,
    moments: [Buffer<f32>; 2],
    weights: Buffer<T>,
    scratch: Buffer<u8>,
}

impl<T: Float> Case<T> {
    /// Fills everything with noise and routes it once.
    pub(crate) fn new(cpu: &Cpu, shape: Shape) -> Outcome<Self> {
        let Shape { tokens, width, hidden, experts, .. } = shape;
        let slots = shape.slots();
        let words = |len| cpu.alloc::<f32>(&(), len).map_err(Error::Device);
        let ids = |len| cpu.alloc::<u32>(&(), len).map_err(Error::Device);
        let random = |seed, scale: f64, len| -> Outcome<Buffer<T>> {
            let mut buffer = cpu.alloc::<T>(&(), len).map_err(Error::Device)?;
            noise(seed, scale, &mut buffer);
            Ok(buffer)
        };
        let pack = |seed, dims: PackDims| -> Outcome<Buffer<u8>> {
            let plain = random(seed, 1.0 / (dims.cols as f64).sqrt(), dims.groups * dims.rows * dims.cols)?;
            let mut packed = cpu.alloc::<u8>(&(), cpu.packed_len::<T>(&dims)).map_err(Error::Device)?;
            let args = PackWeightsArgs { plain: View::of(&plain), packed: ViewMut::of(&mut packed) };
            run::<PackWeights<T>, Cpu>(cpu, &(), &dims, args, ViewMut::of(&mut []))?;
            Ok(packed)
        };
        let (product, route) = (Self::product(shape), Self::route(shape));
        let packed = Packed {
            gate: pack(3, route.pack())?,
            up: pack(4, product.pack(PackUse::Up))?,
            down: pack(5, product.pack(PackUse::Down))?,
            up_bwd: pack(4, product.pack(PackUse::UpBwd))?,
            down_bwd: pack(5, product.pack(PackUse::DownBwd))?,
        };
        let up = 2 * hidden * width * experts;
        let mut case = Self {
            cpu: cpu.clone(),
            shape,
            packed,
            x: random(1, 1.0, tokens * width)?,
            dy: random(2, 1.0, tokens * width)?,
            h: random(6, 1.0, slots * 2 * hidden)?,
            h_forward: random(6, 1.0, slots * 2 * hidden)?,
            a: random(7, 1.0, slots * hidden)?,
            y: random(8, 1.0, (slots * width).max(tokens * width))?,
            out: random(9, 1.0, tokens * width)?,
            logits: words(tokens * experts)?,
            dlogits: words(tokens * experts)?,
            scores: words(slots)?,
            ds: words(slots)?,
            ids: ids(slots)?,
            row_of_slot: ids(slots)?,
            slot_of_row: ids(slots)?,
            offsets: ids(experts + 1)?,
            counts: ids(experts)?,
            merged: [ids(experts + 1)?, ids(slots)?],
            bias: words(experts)?,
            sums: words(experts)?,
            dgate: words(experts * width)?,
            dw: words(up)?,
            master: words(if T::DTYPE != DType::F32 { up } else { 0 })?,
            moments: [words(up)?, words(up)?],
            weights: random(4, 1.0 / (width as f64).sqrt(), up)?,
            scratch: cpu.alloc::<u8>(&(), Self::scratch(cpu, shape)).map_err(Error::Device)?,
        };
        noise(10, 1.0, &mut case.ds);
        case.launch("route")?;
        case.launch("sort")?;
        noise(11, 1.0, &mut case.dlogits);
        Ok(case)
    }

    fn product(shape: Shape) -> ExpertDims {
        let Shape { tokens, width, hidden, experts, top_k } = shape;
        let (activation, rows) = (Activation::SwiGlu, shape.slots());
        ExpertDims { tokens, fan: top_k, rows, experts, width, hidden, activation, bias_shares: 1 }
    }

    fn route(shape: Shape) -> RouteDims {
        let Shape { tokens, width, experts, top_k, .. } = shape;
        RouteDims { tokens, width, experts, top_k, rule: RouteRule::default() }
    }

    fn wgrad(shape: Shape, down: bool) -> WgradDims {
        let Shape { tokens, width, hidden, experts, top_k } = shape;
        let (left, right) = if down { (width, hidden) } else { (2 * hidden, width) };
        let (gather_left, gather_right, rows) = (down, !down, shape.slots());
        WgradDims {
            tokens,
            fan: top_k,
            rows,
            experts,
            left,
            right,
            gather_left,
            gather_right,
            accumulate: false,
        }
    }

    fn scratch(cpu: &Cpu, shape: Shape) -> usize {
        let (product, route) = (Self::product(shape), Self::route(shape));
        let Shape { tokens, width, experts, top_k, hidden } = shape;
        let rule = RouteRule::default();
        let len = 2 * hidden * width * experts;
        [
            Kernel::<Route<T>>::scratch(cpu, &route),
            Kernel::<RouteStats<T>>::scratch(cpu, &Self::stats(shape)),
            Kernel::<Sort<T>>::scratch(cpu, &SortDims { slots: shape.slots(), experts, capacity: None }),
            Kernel::<ExpertUp<T>>::scratch(cpu, &product),
            Kernel::<ExpertDown<T>>::scratch(cpu, &product),
            Kernel::<ExpertDownBwd<T>>::scratch(cpu, &product),
            Kernel::<ExpertUpBwd<T>>::scratch(cpu, &product),
            Kernel::<ExpertWgrad<T>>::scratch(cpu, &Self::wgrad(shape, true)),
            Kernel::<ExpertWgrad<T>>::scratch(cpu, &Self::wgrad(shape, false)),
            Kernel::<RouteBwd<T>>::scratch(
                cpu,
                &RouteBwdDims { tokens, experts, top_k, sequences: 1, rule, accumulate: false },
            ),
            Kernel::<GateBwd<T>>::scratch(
                cpu,
                &GateBwdDims { tokens, width, experts, jitter: None, accumulate: false },
            ),
            Kernel::<SumSquares<T>>::scratch(cpu, &SumSquaresDims { len, accumulate: false }),
            Kernel::<Merge>::scratch(cpu, &Self::merge(shape)),
            Kernel::<Decode<T>>::scratch(cpu, &Self::decode(shape)),
        ]
        .into_iter()
        .max()
        .unwrap_or(0)
    }

    fn stats(shape: Shape) -> RouteStatsDims {
        let Shape { tokens, experts, top_k, .. } = shape;
        RouteStatsDims { tokens, experts, top_k, sequences: 1, score: RouteRule::default().score }
    }

    /// Puts back what the op of this name overwrites and reads. Launched on its own results again and again, an op works on numbers that
    /// no layer has, and denormal ones cost some processors a hundred times as much.
    pub(crate) fn prepare(&mut self, op: &str) {
        if op == "expert_down_bwd" {
            self.h.copy_from_slice(&self.h_forward);
        }
    }

    /// Launches the op of this name, and says which it is.
    pub(crate) fn launch(&mut self, op: &str) -> Outcome<OpId> {
        let Shape { tokens, width, hidden, experts, top_k } = self.shape;
        let (product, shape, slots) = (Self::product(self.shape), self.shape, self.shape.slots());
        let rule = RouteRule::default();
        let Self { cpu, packed, scratch, .. } = self;
        let (mut count, mut sum) = ([0_u32], [0.0_f32]);
        match op {
            "route" => {
                let args = RouteArgs {
                    x: View::of(&self.x),
                    gate: Weight::Packed(View::of(&packed.gate)),
                    gate_bias: None,
                    selection_bias: None,
                    forced_ids: None,
                    stamp: None,
                    logits: ViewMut::of(&mut self.logits),
                    ids: ViewMut::of(&mut self.ids),
                    weights: ViewMut::of(&mut self.scores),
                    non_finite: ViewMut::of(&mut count),
                };
                go::<Route<T>>(cpu, &Self::route(shape), args, scratch)
            }
            "route_stats" => {
                let bounds = [0, tokens as u32];
                let args = RouteStatsArgs {
                    logits: View::of(&self.logits),
                    ids: View::of(&self.ids),
                    sequences: View::of(&bounds),
                    counts: ViewMut::of(&mut self.counts),
                    prob_sums: ViewMut::of(&mut self.sums),
                    z_sum: ViewMut::of(&mut sum),
                };
                go::<RouteStats<T>>(cpu, &Self::stats(shape), args, scratch)
            }
            "sort" => {
                let args = SortArgs {
                    ids: View::of(&self.ids),
                    weights: None,
                    offsets: ViewMut::of(&mut self.offsets),
                    row_of_slot: ViewMut::of(&mut self.row_of_slot),
                    slot_of_row: ViewMut::of(&mut self.slot_of_row),
                    counts: ViewMut::of(&mut self.counts),
                    dropped: ViewMut::of(&mut count),
                };
                go::<Sort<T>>(cpu, &SortDims { slots, experts, capacity: None }, args, scratch)
            }
            "expert_up" => {
                let args = ExpertUpArgs {
                    x: View::of(&self.x),
                    index: Some(View::of(&self.slot_of_row)),
                    offsets: View::of(&self.offsets),
                    w13: Weight::Packed(View::of(&packed.up)),
                    b13: None,
                    weights: None,
                    h: Some(ViewMut::of(&mut self.h)),
                    a: ViewMut::of(&mut self.a),
                };
                go::<ExpertUp<T>>(cpu, &product, args, scratch)
            }
            "expert_down" => {
                let args = ExpertDownArgs {
                    a: View::of(&self.a),
                    offsets: View::of(&self.offsets),
                    w2: Weight::Packed(View::of(&packed.down)),
                    b2: None,
                    out_index: None,
                    y: ViewMut::of(&mut self.y[..slots * width]),
                };
                go::<ExpertDown<T>>(cpu, &product, args, scratch)
            }
            "combine" | "combine_bwd" => {
                let base = |rows| Base { rows, scale: None };
                let back = op == "combine_bwd";
                let args = CombineArgs {
                    y: View::of(&self.y[..slots * width]),
                    row_of_slot: View::of(&self.row_of_slot),
                    weights: (!back).then(|| View::of(&self.scores[..])),
                    base: [back.then(|| base(View::of(&self.dy))), None, None],
                    out: ViewMut::of(&mut self.out),
                };
                go::<Combine<T>>(cpu, &CombineDims { tokens, top_k, width, rows: slots }, args, scratch)
            }
            "expert_down_bwd" => {
                let args = ExpertDownBwdArgs {
                    dout: View::of(&self.dy),
                    index: Some(View::of(&self.slot_of_row)),
                    offsets: View::of(&self.offsets),
                    w2: Weight::Packed(View::of(&packed.down_bwd)),
                    b2: None,
                    b13: None,
                    weights: Some(View::of(&self.scores)),
                    scores_first: false,
                    h: ViewMut::of(&mut self.h),
                    a: ViewMut::of(&mut self.a),
                    ds: Some(ViewMut::of(&mut self.ds)),
                };
                go::<ExpertDownBwd<T>>(cpu, &product, args, scratch)
            }
            "wgrad_down" | "wgrad_up" => {
                let down = op == "wgrad_down";
                let (left, right) = if down { (&self.dy, &self.a) } else { (&self.h, &self.x) };
                let len = experts * width * hidden * if down { 1 } else { 2 };
                let args = ExpertWgradArgs {
                    left: View::of(left),
                    right: View::of(right),
                    index: Some(View::of(&self.slot_of_row)),
                    offsets: View::of(&self.offsets),
                    right_weights: None,
                    bias_weights: None,
                    dw: ViewMut::of(&mut self.dw[..len]),
                    dbias: None,
                };
                go::<ExpertWgrad<T>>(cpu, &Self::wgrad(shape, down), args, scratch)
            }
            "expert_up_bwd" => {
                let args = ExpertUpBwdArgs {
                    dz: View::of(&self.h),
                    offsets: View::of(&self.offsets),
                    w13: Weight::Packed(View::of(&packed.up_bwd)),
                    weights: None,
                    index: Some(View::of(&self.slot_of_row)),
                    out_index: None,
                    dx: ViewMut::of(&mut self.y[..slots * width]),
                };
                go::<ExpertUpBwd<T>>(cpu, &product, args, scratch)
            }
            "route_bwd" => {
                let dims = RouteBwdDims { tokens, experts, top_k, sequences: 1, rule, accumulate: false };
                let args = RouteBwdArgs {
                    logits: View::of(&self.logits),
                    ids: View::of(&self.ids),
                    dweights: View::of(&self.ds),
                    row_of_slot: Some(View::of(&self.row_of_slot)),
                    aux: None,
                    z_factor: None,
                    load: Some(ViewMut::of(&mut self.counts)),
                    dlogits: ViewMut::of(&mut self.dlogits),
                };
                go::<RouteBwd<T>>(cpu, &dims, args, scratch)
            }
            "gate_bwd" => {
                let dims = GateBwdDims { tokens, width, experts, jitter: None, accumulate: false };
                let args = GateBwdArgs {
                    dlogits: View::of(&self.dlogits),
                    x: View::of(&self.x),
                    gate: Weight::Packed(View::of(&packed.gate)),
                    stamp: None,
                    dx: ViewMut::of(&mut self.out),
                    dgate: ViewMut::of(&mut self.dgate),
                    dbias: None,
                };
                go::<GateBwd<T>>(cpu, &dims, args, scratch)
            }
            "sum_squares" => {
                let args = SumSquaresArgs { values: View::of(&self.dw), sum: ViewMut::of(&mut sum) };
                go::<SumSquares<T>>(
                    cpu,
                    &SumSquaresDims { len: self.dw.len(), accumulate: false },
                    args,
                    scratch,
                )
            }
            "adamw" => {
                let settings = AdamWSettings {
                    lr: 1e-6,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step: 1,
                    scale: 1.0,
                };
                let words = settings.words::<f32>();
                let [m, v] = &mut self.moments;
                let narrow = T::DTYPE != DType::F32;
                let args = AdamWArgs {
                    settings: View::of(&words),
                    grad: View::of(&self.dw),
                    w: ViewMut::of(&mut self.weights),
                    master: narrow.then(|| ViewMut::of(&mut self.master[..])),
                    m: ViewMut::of(m),
                    v: ViewMut::of(v),
                };
                go::<AdamW<T>>(cpu, &AdamWDims { len: self.dw.len() }, args, scratch)
            }
            other => self.launch_other(other),
        }
    }
}
