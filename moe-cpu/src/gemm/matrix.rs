//! The innermost product on a matrix unit: whole tiles of depth, 32 rows times a panel at a time.
//!
//! A sum is one chain over the tiles of depth. Rows that a tile has beyond the last one hold what was there before: no row's
//! sums depend on another's, and theirs go nowhere.

use super::float::Float;
use super::isa::{Job, Unit};
use super::simd::{Ahead, Block, Simd, TILE};
use super::tile::{BLOCK, Layout, Target, Tiles, Way};
use core::marker::PhantomData;

/// The matrix unit of this thread, if it has one, in use as long as this lives.
pub(crate) struct Held {
    unit: Unit,
    /// not to be sent to another thread
    here: PhantomData<*const ()>,
}

struct Hold;
struct Release;

impl Job for Hold {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.hold();
    }
}

impl Job for Release {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.release();
    }
}

impl Held {
    pub(crate) fn new(unit: Unit) -> Self {
        unit.run(Hold);
        Self { unit, here: PhantomData }
    }

    /// Multiplies a block of `height` rows, at most [`ROWS`].
    ///
    /// # Safety
    /// As [`Simd::matrix`], of whose promises this keeps the one about the unit.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, s: S, height: usize, block: Block, ahead: Ahead) {
        // SAFETY: the caller's promise, and `self` holds the unit of this thread.
        unsafe {
            if height > TILE {
                s.matrix::<2>(block, ahead);
            } else {
                s.matrix::<1>(block, ahead);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.unit.run(Release);
    }
}

/// Whether the unit multiplies pairs of `T` in tiles.
pub(crate) const fn in_tiles<S: Simd, T: Float>() -> bool {
    S::MATRIX && T::STEP == 2
}

/// As [`in_tiles`].
pub(crate) fn tiled<T: Float>(unit: Unit) -> bool {
    struct Tiled<T>(PhantomData<T>);
    impl<T: Float> Job for Tiled<T> {
        type Output = bool;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> bool {
            in_tiles::<S, T>()
        }
    }
    unit.run(Tiled::<T>(PhantomData))
}

/// Rows of a pass.
const ROWS: usize = 2 * TILE;
/// Most columns of a panel.
const COLS: usize = 32;

/// Sums of a pass whose rows are not whole, or that leave elsewhere.
#[repr(C, align(64))]
struct Room([f32; ROWS * COLS]);

impl<'a, T: Float> Tiles<'a, T> {
    /// Multiplies whole tiles of depth, and gives back what remains to be done, if anything does.
    #[inline(always)]
    pub(crate) fn matrix<S: Simd>(mut self, s: S) -> Option<Tiles<'a, T>> {
        let depth = self.steps / TILE;
        if self.layout != Layout::Rows || depth == 0 {
            return Some(self);
        }
        let rest = self.steps % TILE;
        assert!(rest == 0 || self.target.is_none());
        assert!(self.steps <= BLOCK && self.left.len() >= self.rows.next_multiple_of(TILE) * BLOCK);
        assert!(S::COLS <= COLS && self.panel.len() >= self.steps * T::STEP * S::COLS);
        assert!(self.pitch >= S::COLS && self.sums.len() >= (self.rows - 1) * self.pitch + S::COLS);
        if let Some(Target { place, .. }) = &self.target {
            assert!(place.rows() >= self.rows && place.columns() >= S::COLS);
        }
        let ahead = Ahead::new(self.ahead, self.rows.div_ceil(ROWS) * depth);
        for (pass, start) in (0..self.rows).step_by(ROWS).enumerate() {
            let height = ROWS.min(self.rows - start);
            let direct = height.is_multiple_of(TILE) && self.target.is_none();
            let mut room = Room([0.0; ROWS * COLS]);
            let sums = self.sums[start * self.pitch..].as_mut_ptr();
            if !direct && !self.first {
                // SAFETY: `height` rows of sums lie behind `sums`, by the assertions, and in the room.
                unsafe { copy(s, height, (sums, self.pitch), (room.0.as_mut_ptr(), COLS), Way::Store) };
            }
            let (place, pitch) = if direct { (sums, self.pitch) } else { (room.0.as_mut_ptr(), COLS) };
            let block = Block {
                left: self.left[start * BLOCK..].as_ptr(),
                left_pitch: BLOCK,
                panel: self.panel.as_ptr().cast(),
                depth,
                sums: place,
                pitch,
                first: self.first,
            };
            // SAFETY: whole tiles of rows lie in the left block, their sums in their place or in the room, and the panel holds
            // its steps, by the assertions.
            unsafe { self.held.multiply(s, height, block, ahead.after(pass * depth)) };
            if !direct {
                let (to, pitch, way) = match &self.target {
                    Some(target) => target.row::<S>(start),
                    None => (sums, self.pitch, Way::Store),
                };
                // SAFETY: as above; the target has these rows, and they are aligned if they are streamed.
                unsafe { copy(s, height, (room.0.as_mut_ptr(), COLS), (to, pitch), way) };
            }
        }
        let done = depth * TILE;
        self.left = &self.left[done..];
        self.panel = &self.panel[done * T::STEP * S::COLS..];
        (self.steps, self.first, self.ahead) = (rest, false, &[]);
        (rest > 0).then_some(self)
    }
}

/// Copies `height` rows of a panel's columns.
///
/// # Safety
/// They can be read and written, and are aligned if they are streamed.
#[inline(always)]
unsafe fn copy<S: Simd>(
    s: S,
    height: usize,
    (from, from_pitch): (*mut f32, usize),
    (to, to_pitch): (*mut f32, usize),
    way: Way,
) {
    for (row, at) in (0..height).flat_map(|row| [(row, 0), (row, S::LANES)]) {
        let to = to.wrapping_add(row * to_pitch + at);
        // SAFETY: the caller's promise.
        unsafe {
            let sum = s.load(from.wrapping_add(row * from_pitch + at));
            match way {
                Way::Store => s.store(sum, to),
                Way::Stream => s.stream(sum, to),
                Way::Add => s.store(s.add(s.load(to), sum), to),
            }
        }
    }
}
