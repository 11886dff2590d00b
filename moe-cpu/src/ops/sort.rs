//! Sort: each thread counts a block of slots, sums over the blocks give every slot its row, each thread places its block.
//!
//! Dropping by score places keys instead, of which each crowded expert selects its heaviest.

use super::{Launch, ready};
use crate::choose::key;
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Float, SLACK, Scratch, Shared, bytes, share};
use moe_core::ops::{NO_ROW, Sort, SortArgs, SortDims};
use moe_core::{Device, Out, Path, View};
use std::ops::Range;

/// Fewest slots that are worth a thread.
const SLOTS: usize = 4096;
/// Counts of one block take whole cache lines, so that threads do not share any.
const LINE: usize = 16;

/// What is sorted, and how it is cut into blocks.
struct Blocks<'a> {
    ids: &'a [u32],
    experts: usize,
    blocks: usize,
}

impl Blocks<'_> {
    fn slots(&self, block: usize) -> Range<usize> {
        let len = self.ids.len().div_ceil(self.blocks);
        self.ids.len().min(block * len)..self.ids.len().min((block + 1) * len)
    }

    /// From one block's counts to the next block's.
    fn pitch(&self) -> usize {
        self.experts.next_multiple_of(LINE)
    }

    /// Counts each block's slots per expert.
    fn count(&self, threads: usize, counts: &Shared<'_, u32>) {
        share(threads, self.blocks, &mut [], 0, |queue, _| {
            for block in queue {
                // SAFETY: each block has its own counts.
                let counts =
                    unsafe { counts.part(block * self.pitch()..block * self.pitch() + self.experts) };
                counts.fill(0);
                for id in &self.ids[self.slots(block)] {
                    if let Some(count) = counts.get_mut(*id as usize) {
                        *count += 1;
                    }
                }
            }
        });
    }

    /// Calls `place(slot, expert, nth)` for every slot that has an expert, `nth` counting the expert's slots in order; and
    /// `drop(slot)` for the others. `starts` holds each block's first number for each expert.
    fn place(
        &self,
        threads: usize,
        starts: &Shared<'_, u32>,
        place: impl Fn(usize, usize, u32) + Sync,
        drop: impl Fn(usize) + Sync,
    ) {
        share(threads, self.blocks, &mut [], 0, |queue, _| {
            for block in queue {
                // SAFETY: each block has its own counts.
                let starts =
                    unsafe { starts.part(block * self.pitch()..block * self.pitch() + self.experts) };
                for slot in self.slots(block) {
                    let expert = self.ids[slot] as usize;
                    match starts.get_mut(expert) {
                        Some(next) => {
                            place(slot, expert, *next);
                            *next += 1;
                        }
                        None => drop(slot),
                    }
                }
            }
        });
    }
}

/// Where a slot's row and a row's slot are written. Every slot and every row is written by one task.
struct Rows<'a> {
    row_of_slot: Shared<'a, u32>,
    slot_of_row: Shared<'a, u32>,
}

impl Rows<'_> {
    fn set(&self, slot: usize, row: u32) {
        // SAFETY: no other task has this slot, and so none has its row.
        unsafe {
            self.row_of_slot.part(slot..slot + 1)[0] = row;
            self.slot_of_row.part(row as usize..row as usize + 1)[0] = slot as u32;
        }
    }

    fn drop(&self, slot: usize) {
        // SAFETY: as above.
        unsafe { self.row_of_slot.part(slot..slot + 1)[0] = NO_ROW };
    }
}

/// Ascending: heavier first, then the lower slot; NaN last.
fn heaviest_first(weight: f32, slot: usize) -> u64 {
    let descending = !(key(weight) ^ i32::MIN) as u32;
    u64::from(descending) << 32 | slot as u64
}

impl<T: Float> Launch<Sort<T>> for Cpu {
    fn scratch(&self, dims: &SortDims) -> usize {
        let counts = self.threads() * bytes::<u32>(dims.experts.next_multiple_of(LINE));
        let keys = if dims.capacity.is_some() { bytes::<f64>(dims.slots) } else { 0 };
        SLACK + bytes::<u32>(dims.experts + 1) + counts + keys
    }

    fn launch(
        &self,
        (): &(),
        dims: &SortDims,
        args: SortArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<Sort<T>>(self, dims, &args, scratch.len())?;
        let SortDims { slots, experts, capacity } = *dims;
        let (offsets, counts) = (args.offsets.host(), args.counts.host());
        let threads = self.threads();
        let work =
            Blocks { ids: args.ids.host(), experts, blocks: threads.min(slots.div_ceil(SLOTS)).max(1) };
        let mut scratch = Scratch::new(scratch.host());
        let firsts = scratch.take::<u32>(experts + 1);
        let starts = scratch.take::<u32>(threads * work.pitch());
        let capacity = capacity.and_then(|capacity| u32::try_from(capacity).ok()).unwrap_or(u32::MAX);
        let rows = Rows {
            row_of_slot: Shared::new(args.row_of_slot.host()),
            slot_of_row: Shared::new(args.slot_of_row.host()),
        };
        let path = self.enter(|| {
            work.count(threads, &Shared::new(starts));
            (offsets[0], firsts[0]) = (0, 0);
            for expert in 0..experts {
                let mut count = 0;
                for start in starts.iter_mut().skip(expert).step_by(work.pitch()).take(work.blocks) {
                    (*start, count) = (count, count + *start);
                }
                counts[expert] = count;
                firsts[expert + 1] = firsts[expert] + count;
                offsets[expert + 1] = offsets[expert] + count.min(capacity);
            }
            let crowded = firsts[experts] > offsets[experts];
            let starts = Shared::new(starts);
            match args.weights.map(View::host) {
                Some(weights) if crowded => {
                    let keys = Shared::new(bytemuck::cast_slice_mut(scratch.take::<f64>(slots)));
                    let place = |slot: usize, expert: usize, nth: u32| {
                        let at = (firsts[expert] + nth) as usize;
                        rows.drop(slot);
                        // SAFETY: each slot has its own key.
                        unsafe { keys.part(at..at + 1)[0] = heaviest_first(weights[slot], slot) };
                    };
                    work.place(threads, &starts, place, |slot| rows.drop(slot));
                    share(threads, experts, &mut [], 0, |queue, _| {
                        for expert in queue {
                            // SAFETY: each expert has its own keys.
                            let keys =
                                unsafe { keys.part(firsts[expert] as usize..firsts[expert + 1] as usize) };
                            keep_heaviest(keys, offsets[expert]..offsets[expert + 1], &rows);
                        }
                    });
                    "by score"
                }
                _ => {
                    let place = |slot: usize, expert: usize, nth: u32| match nth < capacity {
                        true => rows.set(slot, offsets[expert] + nth),
                        false => rows.drop(slot),
                    };
                    work.place(threads, &starts, place, |slot| rows.drop(slot));
                    if crowded { "by position" } else { "all" }
                }
            }
        });
        args.dropped.host()[0] = slots as u32 - offsets[experts];
        Ok(Path(path))
    }
}

/// Gives the expert's rows to the heaviest of its slots, in slot order.
fn keep_heaviest(keys: &mut [u64], places: Range<u32>, rows: &Rows<'_>) {
    if places.len() < keys.len() {
        keys.select_nth_unstable(places.len());
    }
    let kept = &mut keys[..places.len()];
    kept.sort_unstable_by_key(|key| *key as u32);
    for (key, row) in kept.iter().zip(places) {
        rows.set(*key as u32 as usize, row);
    }
}
