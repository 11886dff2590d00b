//! Who does what: the processes of a layout, in the order of their ranks.

use crate::fixture::Keys;
use crate::verify::layer_spec::LayerSpec;
use anyhow::{Result, ensure};
use std::ops::Range;

/// One process.
#[derive(Clone, Debug)]
pub(super) struct Process {
    /// what the names of its tensors start with
    pub(super) prefix: String,
    /// data-parallel rank: whose tokens it sees
    pub(super) data: usize,
    /// rank among the processes that see the same tokens
    pub(super) tp: usize,
    /// rank among the copies of its experts
    pub(super) edp: usize,
    /// rank among the owners of different experts
    pub(super) ep: usize,
    /// rank among the owners of parts of the same experts
    pub(super) etp: usize,
    /// tokens of its data rank
    pub(super) tokens: Range<usize>,
    /// those that it routes
    pub(super) routed: Range<usize>,
    /// those whose losses it adds
    pub(super) own: Range<usize>,
    /// its experts
    pub(super) experts: Range<usize>,
}

/// Processes of the largest layout.
const LARGEST: usize = 256;

/// All processes.
pub(super) struct Layout {
    /// in the order of their ranks
    pub(super) processes: Vec<Process>,
    /// owners of different experts
    pub(super) ep: usize,
    /// parts that an expert's hidden width is split into, for `procQ.*`
    pub(super) etp: usize,
    /// parts that the shared expert's hidden width is split into, for `procQ.*`
    pub(super) tp: usize,
    /// parts of the hidden width in the tensors `tpJ.*` of a case by rank
    pub(super) hidden_parts: usize,
}

impl Layout {
    /// The layout of a case. Without the key `layout` it is one by rank: `rankR` is a data rank with whole experts, and `tpJ` are
    /// the parts of the hidden width.
    ///
    /// # Errors
    /// Fixture errors; if the numbers do not fit together.
    pub(super) fn of<T>(keys: &Keys<'_>, spec: &LayerSpec<T>, tokens: usize) -> Result<Self> {
        let by_process = keys.choice("layout", &[("rank", false), ("process", true)])?;
        let lengths = keys.sizes("tokens_per_rank")?;
        ensure!(lengths.iter().sum::<usize>() == tokens, "tokens_per_rank do not add up to {tokens}");
        let stated_tp = keys.count("tp")?;
        let ep = keys.count("ep")?;
        let (tp, etp) = if by_process { (stated_tp, keys.count("etp")?) } else { (1, 1) };
        ensure!(etp == 1 || etp == tp, "etp is {etp}, but must be 1 or tp = {tp}");
        let world = lengths.len() * tp;
        ensure!((1..=LARGEST).contains(&world), "the layout has {world} processes, not 1 to {LARGEST}");
        let experts = spec.experts.experts;
        let shared = spec.shared.as_ref().map_or(0, |shared| shared.hidden);
        let fits = world.is_multiple_of(ep * etp)
            && experts.is_multiple_of(ep)
            && spec.experts.hidden.is_multiple_of(if by_process { etp } else { stated_tp })
            && shared.is_multiple_of(stated_tp);
        ensure!(fits, "ep = {ep}, etp = {etp} and tp = {tp} do not divide what they split");
        keys.agrees("dp", lengths.len())?;
        keys.agrees("world", world)?;
        keys.agrees("edp", world / (ep * etp))?;
        let mut processes = Vec::new();
        let mut start = 0;
        for (data, length) in lengths.into_iter().enumerate() {
            for rank in 0..tp {
                let number = processes.len();
                let tokens = start..start + length;
                let own = start + rank * length / tp..start + (rank + 1) * length / tp;
                let owner = number / etp % ep;
                processes.push(Process {
                    prefix: if by_process { format!("proc{number}.") } else { format!("rank{number}.") },
                    data,
                    tp: rank,
                    edp: number / (ep * etp),
                    ep: owner,
                    etp: number % etp,
                    routed: if etp == tp { tokens.clone() } else { own.clone() },
                    tokens,
                    own,
                    experts: owner * experts / ep..(owner + 1) * experts / ep,
                });
            }
            start += length;
        }
        let hidden_parts = if by_process || stated_tp == 1 { 0 } else { stated_tp };
        Ok(Self { processes, ep, etp, tp, hidden_parts })
    }

    /// The layout with a process for each part `tpJ` of the hidden width, too, where it is one by rank.
    pub(super) fn spread(&self) -> Self {
        let parts = self.hidden_parts.max(1);
        if parts == 1 {
            return Self { processes: self.processes.clone(), ..*self };
        }
        let of = |whole: &Process| {
            let (start, length) = (whole.tokens.start, whole.tokens.len());
            let part = |rank| Process {
                tp: rank,
                etp: rank,
                own: start + rank * length / parts..start + (rank + 1) * length / parts,
                ..whole.clone()
            };
            (0..parts).map(part).collect::<Vec<_>>()
        };
        let processes = self.processes.iter().flat_map(of).collect();
        Self { processes, etp: parts, tp: parts, ..*self }
    }
}
