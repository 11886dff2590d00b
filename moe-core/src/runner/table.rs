//! Table: the offsets that all ranks have gathered, and what follows from them.

/// Words that a rank adds to its offsets: its room for rows, and what must be [`alike`](super::alike).
pub(super) const EXTRA: usize = 2;

/// Every rank's offsets and what follows them, (ranks, experts + 1 + EXTRA).
pub(super) struct Table<'a> {
    pub(super) words: &'a [u32],
    pub(super) experts: usize,
    pub(super) ranks: usize,
}

impl Table<'_> {
    fn row(&self, rank: usize) -> &[u32] {
        let words = self.experts + 1 + EXTRA;
        &self.words[rank * words..][..words]
    }

    pub(super) fn offsets(&self, rank: usize) -> &[u32] {
        &self.row(rank)[..self.experts + 1]
    }

    pub(super) fn room(&self, rank: usize) -> usize {
        self.row(rank)[self.experts + 1] as usize
    }

    /// What must be alike, rank by rank.
    pub(super) fn alike(&self) -> impl Iterator<Item = u32> {
        (0..self.ranks).map(|rank| self.row(rank)[self.experts + 2])
    }

    /// Rows of one rank for one expert.
    pub(super) fn count(&self, from: usize, expert: usize) -> u32 {
        let offsets = self.offsets(from);
        offsets[expert + 1].saturating_sub(offsets[expert])
    }

    /// Rows of one rank for the experts of another.
    pub(super) fn rows(&self, from: usize, to: usize) -> usize {
        let (offsets, here) = (self.offsets(from), self.experts / self.ranks);
        offsets[(to + 1) * here].saturating_sub(offsets[to * here]) as usize
    }

    /// The shortest and the longest segment.
    pub(super) fn extremes(&self) -> (usize, usize) {
        let pairs = (0..self.ranks).flat_map(|from| (0..self.ranks).map(move |to| (from, to)));
        pairs.fold((usize::MAX, 0), |(shortest, longest), (from, to)| {
            let rows = self.rows(from, to);
            (shortest.min(rows), longest.max(rows))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ranks with two experts each: offsets of four experts, then the rank's room and what must be alike.
    const WORDS: [u32; 14] = [0, 1, 3, 3, 7, 9, 5, 0, 0, 2, 4, 4, 8, 6];

    #[test]
    fn segments_are_the_rows_of_a_ranks_experts() {
        let table = Table { words: &WORDS, experts: 4, ranks: 2 };
        let rows = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(from, to)| table.rows(from, to));
        assert_eq!(rows, [3, 4, 2, 2]);
        assert_eq!((table.count(0, 1), table.count(1, 3)), (2, 0));
        assert_eq!((table.extremes(), [table.room(0), table.room(1)]), ((2, 4), [9, 8]));
        assert!(table.alike().eq([5, 6]));
    }
}
