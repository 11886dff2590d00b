//! Rows: where the slots of some tokens go, without asking the op that sorts them.

use crate::random::Random;
use crate::values::Values;
use moe_core::ops::NO_ROW;

/// How slots are spread over experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// each token to different experts, at random
    Random,
    /// as `Random`, with every fifth slot dropped
    Dropping,
    /// all slots to one of these experts, the first one mostly
    Only(&'static [u32]),
    /// all slots dropped
    Nowhere,
}

/// Slots sorted by expert, and what the products know of them.
#[derive(Clone, Debug)]
pub struct Rows {
    /// (slots): the experts' numbers; a number that is no expert's for a dropped slot
    pub ids: Vec<u32>,
    /// (experts + 1)
    pub offsets: Vec<u32>,
    /// (slots): a slot's row
    pub row_of_slot: Vec<u32>,
    /// (bound): a row's slot; poison beyond the rows in use
    pub index: Vec<u32>,
    /// length of row buffers: some more than the rows in use
    pub bound: usize,
}

/// Rows of a buffer that are never in use.
const SLACK: usize = 3;

impl Rows {
    /// Rows of `tokens` tokens with `fan` slots each.
    pub fn new(random: &mut Random, tokens: usize, fan: usize, experts: usize, spread: Spread) -> Self {
        let slots = tokens * fan;
        let mut ids = match spread {
            Spread::Random | Spread::Dropping => random.ids(tokens, fan, experts),
            Spread::Nowhere => vec![experts as u32; slots],
            Spread::Only(some) => {
                (0..slots).map(|slot| some[if slot % 7 == 3 { slot % some.len() } else { 0 }]).collect()
            }
        };
        if spread == Spread::Dropping {
            let lost = ids.iter_mut().skip(2).step_by(5);
            lost.for_each(|id| *id = experts as u32);
        }
        Self::of(ids, experts, slots + SLACK)
    }

    /// Rows of slots with these experts, in buffers of `bound` rows.
    pub fn of(ids: Vec<u32>, experts: usize, bound: usize) -> Self {
        let mut index = Values::poisoned::<u32>(bound);
        let (mut row_of_slot, mut offsets) = (vec![NO_ROW; ids.len()], vec![0]);
        let mut row = 0;
        for expert in 0..experts as u32 {
            for slot in (0..ids.len()).filter(|slot| ids[*slot] == expert) {
                (index[row], row_of_slot[slot]) = (slot as u32, row as u32);
                row += 1;
            }
            offsets.push(row as u32);
        }
        Self { ids, offsets, row_of_slot, index, bound }
    }

    /// Rows in use.
    pub fn used(&self) -> usize {
        self.offsets.last().map_or(0, |last| *last as usize)
    }

    /// A row buffer of `width` columns: random where it is in use, poison beyond.
    pub fn values<T: moe_core::Scalar>(&self, random: &mut Random, width: usize) -> Vec<T> {
        let mut values = random.values::<T>(self.used() * width);
        values.extend(Values::poisoned::<T>((self.bound - self.used()) * width));
        values
    }
}
