//! The innermost product: rows of the left operand times one packed panel, over one block of k.
//!
//! A tile of up to `ROWS` rows and `COLS` columns is summed in registers, each element by its own chain of fused
//! products in the order of k. A chain that was begun in an earlier block of k is loaded and goes on. So the bits of
//! an element depend neither on the tile's height nor on its place in it.

use super::float::Float;
use super::isa::{Job, Unit};
use super::matrix::{Held, in_tiles};
use super::shared::Rectangle;
use super::simd::{Ahead, LINE, Simd};

/// Most k's in a block.
pub(crate) const BLOCK: usize = 256;
/// Bytes of a panel's block: it stays in a first-level cache together with the rows of two tiles.
const PANEL: usize = 16 << 10;

/// k's in a block of packed or plain weights.
pub(crate) fn depth<T>(unit: Unit) -> usize {
    (PANEL / (unit.cols() * size_of::<T>())).min(BLOCK)
}

/// How a block of the left operand lies in scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// row after row, [`BLOCK`] apart
    Rows,
    /// groups of `ROWS` rows, in each group k after k, group after group
    Columns,
}

/// How finished sums leave for a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// overwrite
    Store,
    /// add to what is there
    Add,
}

/// How a tile's sums leave.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Store,
    /// past the caches: a vector is a whole line, which then need not be read before
    Stream,
    Add,
}

/// A rectangle of memory that finished sums of [`Layout::Columns`] go to, straight from the registers.
pub(crate) struct Target<'a> {
    pub(crate) place: Rectangle<'a>,
    pub(crate) leave: Leave,
}

impl Target<'_> {
    /// Where row `row` begins, the way from one to the next, and how sums go there.
    pub(super) fn row<S: Simd>(&self, row: usize) -> (*mut f32, usize, Way) {
        let (start, pitch) = (self.place.row(row), self.place.pitch());
        let whole = S::LANES == FLOATS && start.addr().is_multiple_of(LINE) && pitch.is_multiple_of(FLOATS);
        let way = match self.leave {
            Leave::Add => Way::Add,
            Leave::Store if whole => Way::Stream,
            Leave::Store => Way::Store,
        };
        (start, pitch, way)
    }
}

/// A block of the left operand times a panel.
pub(crate) struct Tiles<'a, T> {
    /// The left block in f32, or in pairs where [`slots`](super::float::Lanes::slots) says so.
    pub(crate) left: &'a [f32],
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    /// `steps` times `STEP * COLS` elements, and `BEHIND` more.
    pub(crate) panel: &'a [T],
    pub(crate) steps: usize,
    /// `rows` rows, `pitch` apart; the panel's columns come first.
    pub(crate) sums: &'a mut [f32],
    pub(crate) pitch: usize,
    /// The sums start at 0 instead of what is there.
    pub(crate) first: bool,
    /// Where the sums go, if not back to `sums`: as many rows, and a panel's columns.
    pub(crate) target: Option<Target<'a>>,
    /// Memory to bring near while this runs.
    pub(crate) ahead: &'a [T],
    pub(crate) held: &'a Held,
}

/// The pointers of one tile.
struct Tile<T> {
    left: *const f32,
    panel: *const T,
    steps: usize,
    sums: *mut f32,
    pitch: usize,
    first: bool,
    /// and from one row of it to the next
    target: Option<(*mut f32, usize, Way)>,
    /// a share for each part of a period
    ahead: Ahead,
}

/// f32 in a cache line.
const FLOATS: usize = LINE / size_of::<f32>();

/// Steps that take a cache line of the left block for each row.
fn period<S: Simd, T: Float>() -> usize {
    FLOATS / T::slots::<S>()
}

impl<T: Float> Job for Tiles<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.rows == 0 {
            return;
        }
        let rest = if in_tiles::<S, T>() { self.matrix(s) } else { Some(self) };
        let Some(tiles) = rest else { return };
        let Self { left, layout, rows, panel, steps, sums, pitch, first, target, ahead, held: _ } = tiles;
        let count = rows.div_ceil(S::ROWS);
        assert!(steps * T::slots::<S>() <= BLOCK && panel.len() >= steps * T::STEP * S::COLS + T::BEHIND);
        assert!(pitch >= S::COLS && sums.len() >= (rows - 1) * pitch + S::COLS);
        match layout {
            Layout::Rows => assert!(left.len() >= (rows - 1) * BLOCK + steps * T::slots::<S>()),
            Layout::Columns => assert!(left.len() >= count * S::ROWS * steps * T::slots::<S>()),
        }
        if let Some(Target { place, .. }) = &target {
            assert!(layout == Layout::Columns && place.rows() >= rows && place.columns() >= S::COLS);
        }
        let parts = steps.div_ceil(period::<S, T>() / S::PARTS);
        let ahead = Ahead::new(ahead, count * parts);
        for at in 0..count {
            // Tiles of equal height leave none too low to keep the multipliers busy.
            let (start, end) = match layout {
                Layout::Rows => (rows * at / count, rows * (at + 1) / count),
                Layout::Columns => (at * S::ROWS, rows.min((at + 1) * S::ROWS)),
            };
            // SAFETY: `start` is less than `rows`, so these lie in the slices, by the assertions.
            let (left, sums) = unsafe {
                let each = if layout == Layout::Rows { BLOCK } else { steps * T::slots::<S>() };
                (left.as_ptr().add(start * each), sums.as_mut_ptr().add(start * pitch))
            };
            let target = target.as_ref().map(|target| target.row::<S>(start));
            let ahead = ahead.after(at * parts);
            let tile = Tile { left, panel: panel.as_ptr(), steps, sums, pitch, first, target, ahead };
            // SAFETY: by the assertions, `end - start` rows of the left block, of the sums and of the target, and
            // `steps` steps of the panel and `BEHIND` elements, lie in their places. Only whole vectors are streamed.
            unsafe { of_height(s, end - start, layout, tile) };
        }
    }
}

/// Chooses the code for a tile's height and layout, so that both are constants in it.
///
/// # Safety
/// As [`multiply`], with `height` for `M`; `height` is at most `ROWS`.
#[inline(always)]
unsafe fn of_height<S: Simd, T: Float>(s: S, height: usize, layout: Layout, tile: Tile<T>) {
    macro_rules! heights {
        ($($height:literal)*) => {
            match (height, layout) {
                $(
                    // SAFETY: the caller's promise, and the height matches.
                    ($height, Layout::Rows) if $height <= S::ROWS => unsafe {
                        multiply::<S, T, $height, false>(s, tile)
                    },
                    // SAFETY: as above.
                    ($height, Layout::Columns) if $height <= S::ROWS => unsafe {
                        multiply::<S, T, $height, true>(s, tile)
                    },
                )*
                _ => {}
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// Sums one tile of `M` rows.
///
/// # Safety
/// `steps` steps of `M` rows on the left and of the panel can be read, and `M` rows of `COLS` sums, `pitch` apart,
/// read and written; as many rows of `COLS` of the target can be read and written, and are aligned if they are streamed.
#[inline(always)]
unsafe fn multiply<S: Simd, T: Float, const M: usize, const COLUMNS: bool>(s: S, tile: Tile<T>) {
    let (stride, across) = if COLUMNS { (1, S::ROWS) } else { (BLOCK, 1) };
    let mut sums = [[s.splat(0.0); 2]; M];
    if !tile.first {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let at = tile.sums.add(row * tile.pitch);
                *sums = [s.load(at), s.load(at.add(S::LANES))];
            }
        }
    }
    if COLUMNS && let Some((start, pitch, Way::Store | Way::Add)) = tile.target {
        // The sums find their places in the cache when they are complete.
        for row in 0..M {
            for at in (0..S::COLS).step_by(FLOATS) {
                s.near(start.wrapping_add(row * pitch + at).cast());
            }
        }
    }
    let (mut left, mut panel, mut ahead) = (tile.left, tile.panel, tile.ahead);
    let (whole, period) =
        (if COLUMNS { tile.steps * T::slots::<S>() * S::ROWS } else { M * BLOCK }, period::<S, T>());
    let mut steps = tile.steps;
    while steps > 0 {
        let mut run = steps.min(period);
        steps -= run;
        for row in 0..M {
            // The next tile's rows.
            s.near(left.wrapping_add(whole + row * if COLUMNS { FLOATS } else { BLOCK }).cast());
        }
        while run > 0 {
            let part = run.min(period / S::PARTS);
            run -= part;
            ahead.ask(s);
            for _ in 0..part {
                // SAFETY: the caller's promise.
                unsafe { T::step::<S, M>(s, left, stride, across, panel, &mut sums) };
                left = left.wrapping_add(T::slots::<S>() * across);
                panel = panel.wrapping_add(T::STEP * S::COLS);
            }
        }
    }
    if COLUMNS && let Some((start, pitch, way)) = tile.target {
        // SAFETY: the caller's promise.
        unsafe {
            match way {
                Way::Store => each(&sums, start, pitch, |at, sum| s.store(sum, at)),
                Way::Stream => each(&sums, start, pitch, |at, sum| s.stream(sum, at)),
                Way::Add => each(&sums, start, pitch, |at, sum| s.store(s.add(s.load(at), sum), at)),
            }
        }
        return;
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let at = tile.sums.add(row * tile.pitch);
            s.store(sums[0], at);
            s.store(sums[1], at.add(S::LANES));
        }
    }
}

/// Gives each vector of a tile to `put` with its place. The loops must vanish, or the sums would live in memory all the while.
#[inline(always)]
fn each<V: Copy, const M: usize>(
    sums: &[[V; 2]; M],
    start: *mut f32,
    pitch: usize,
    put: impl Fn(*mut f32, V),
) {
    for (row, sums) in sums.iter().enumerate() {
        let at = start.wrapping_add(row * pitch);
        put(at, sums[0]);
        put(at.wrapping_add(size_of::<V>() / size_of::<f32>()), sums[1]);
    }
}
