//! Samples of Sort.

use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{Sort, SortArgs, SortDims};
use moe_core::{Accum, Device, Scalar};

impl<T: Scalar> Case for Sort<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let most = u32::MAX as usize;
        // label, slots, experts, ids below, capacities
        let shapes: [(_, _, _, _, &[usize]); 9] = [
            ("odd sizes", 37, 5, 5, &[0, 1, 4, 1000]),
            ("ids that are no experts", 40, 6, 9, &[2, 5]),
            ("ids far outside", 30, 6, most, &[3]),
            ("one expert has all slots", 70, 4, 1, &[7, 69, 70]),
            ("one expert", 21, 1, 1, &[20]),
            ("no slots", 0, 3, 3, &[2]),
            ("one slot", 1, 8, 8, &[1]),
            ("more experts than slots", 50, 300, 300, &[1]),
            ("many slots", 5000, 64, 65, &[60]),
        ];
        let mut all = Vec::new();
        for (label, slots, experts, below, capacities) in shapes {
            let capacities = capacities.iter().map(|capacity| Some(*capacity)).chain([None]);
            for (nth, capacity) in capacities.enumerate() {
                for weighted in [false, true] {
                    let dims = SortDims { slots, experts, capacity };
                    let ids: Vec<u32> = (0..slots).map(|_| random.below(below) as u32).collect();
                    let order = if weighted { "by score" } else { "by position" };
                    let sample = Sample::new(format!("{label}, {order}"), dims)
                        .input("ids", ids)
                        .maybe("weights", weighted.then(|| weights::<T::Acc>(random, slots, nth)))
                        .output::<u32>("offsets", experts + 1, Tolerance::EXACT)
                        .output::<u32>("row_of_slot", slots, Tolerance::EXACT)
                        .output::<u32>("slot_of_row", slots, Tolerance::EXACT)
                        .output::<u32>("counts", experts, Tolerance::EXACT)
                        .output::<u32>("dropped", 1, Tolerance::EXACT);
                    all.push(sample);
                }
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> SortArgs<'a, D, T> {
        SortArgs {
            ids: views.read("ids"),
            weights: views.read_if("weights"),
            offsets: views.write("offsets"),
            row_of_slot: views.write("row_of_slot"),
            slot_of_row: views.write("slot_of_row"),
            counts: views.write("counts"),
            dropped: views.write("dropped"),
        }
    }
}

/// Scores with many ties; every second sample has NaN, infinities and zeros of both signs among them.
fn weights<A: Accum>(random: &mut Random, slots: usize, nth: usize) -> Vec<A> {
    let odd = [f64::NAN, 0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY];
    (0..slots)
        .map(|_| match random.below(12) {
            pick @ 0..5 if nth.is_multiple_of(2) => A::of(odd[pick]),
            _ => A::of(random.below(6) as f64 / 8.0),
        })
        .collect()
}
