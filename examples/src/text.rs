//! The text that is learned: a training part, a held-out part, and batches drawn from the first.

use crate::rng::Rng;
use anyhow::{Context, Result, ensure};
use ndarray::Array2;
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

/// Jane Austen, Pride and Prejudice; see `data/README.md`.
const EMBEDDED: &[u8] = include_bytes!("../data/pride_and_prejudice.txt");

/// The last tenth of a text is held out.
const HELD_OUT_SHARE: usize = 10;

/// A text, cut in two.
pub struct Text {
    bytes: Cow<'static, [u8]>,
    cut: usize,
}

/// Rows of bytes, and the byte that follows each.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// (sequences, length)
    pub inputs: Array2<u8>,
    /// (sequences, length)
    pub targets: Array2<u8>,
    /// sequences of the whole step, over all ranks
    pub step_sequences: usize,
}

impl Batch {
    /// From rows that have one byte more than the inputs.
    pub fn new(rows: &Array2<u8>) -> Self {
        let length = rows.ncols().saturating_sub(1);
        let part = |from: usize| rows.slice(ndarray::s![.., from..from + length]).to_owned();
        let targets_start = rows.ncols() - length;
        Self { inputs: part(0), targets: part(targets_start), step_sequences: rows.nrows() }
    }

    /// Bytes to predict in the whole step, over all ranks.
    pub fn step_tokens(&self) -> usize {
        self.step_sequences * self.inputs.ncols()
    }

    /// Some of the sequences, as part of the same step.
    #[must_use]
    pub fn share(&self, sequences: Range<usize>) -> Self {
        let part = |rows: &Array2<u8>| rows.slice(ndarray::s![sequences.clone(), ..]).to_owned();
        Self { inputs: part(&self.inputs), targets: part(&self.targets), ..*self }
    }
}

impl Text {
    /// The built-in text.
    pub fn embedded() -> Self {
        Self::new(Cow::Borrowed(EMBEDDED))
    }

    /// The text in a file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read the text {}", path.display()))?;
        Ok(Self::new(Cow::Owned(bytes)))
    }

    fn new(bytes: Cow<'static, [u8]>) -> Self {
        let cut = bytes.len() - bytes.len() / HELD_OUT_SHARE;
        Self { bytes, cut }
    }

    /// The part that batches are drawn from.
    pub fn training(&self) -> &[u8] {
        &self.bytes[..self.cut]
    }

    /// The part that the model never learns from.
    pub fn held_out(&self) -> &[u8] {
        &self.bytes[self.cut..]
    }

    /// Whether both parts have a sequence of `length` bytes and the byte after it.
    ///
    /// # Errors
    /// If the text is too short, with the length that it would need.
    pub fn check_length(&self, length: usize) -> Result<()> {
        let wanted = (length + 1) * HELD_OUT_SHARE;
        ensure!(
            self.bytes.len() >= wanted,
            "the text has {} bytes, but sequences of {length} need at least {wanted}: a tenth is held out",
            self.bytes.len()
        );
        Ok(())
    }

    /// The batch of a step: `sequences` windows of the training part, anywhere in it. The same seed and
    /// step give the same batch.
    pub fn batch(&self, seed: u64, step: u64, sequences: usize, length: usize) -> Batch {
        let training = self.training();
        let mut rng = Rng::new(seed, step);
        let mut rows = Array2::zeros((sequences, length + 1));
        for mut row in rows.rows_mut() {
            let start = rng.below(training.len() - length);
            row.iter_mut().zip(&training[start..]).for_each(|(to, &byte)| *to = byte);
        }
        Batch::new(&rows)
    }

    /// The held-out part as windows of `length`, one after the other, `sequences` in a batch; the rest that
    /// fills no window is left out. The first bytes of a window are predicted from little, so a model's
    /// figure is a little worse than with all the text before them.
    pub fn held_out_batches(&self, sequences: usize, length: usize) -> impl Iterator<Item = Batch> {
        let held_out = self.held_out();
        let windows: Vec<usize> = (0..held_out.len().saturating_sub(1) / length).collect();
        let batches: Vec<Vec<usize>> = windows.chunks(sequences).map(<[usize]>::to_vec).collect();
        batches.into_iter().map(move |windows| {
            Batch::new(&Array2::from_shape_fn((windows.len(), length + 1), |(row, at)| {
                held_out[windows[row] * length + at]
            }))
        })
    }

    /// A number that differs between texts, so that a run is not resumed on another text (FNV-1a).
    pub fn fingerprint(&self) -> u64 {
        self.bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Text {
        Text::new(Cow::Owned((0..=199).collect()))
    }

    #[test]
    fn batches_come_from_the_training_part_and_targets_follow_inputs() {
        let text = numbers();
        for step in 0..50 {
            let batch = text.batch(1, step, 3, 16);
            assert_eq!(batch.inputs.dim(), (3, 16));
            for (input, target) in batch.inputs.iter().zip(&batch.targets) {
                assert_eq!(input + 1, *target);
                assert!(*target < 180);
            }
        }
    }

    #[test]
    fn a_step_names_its_batch() {
        let text = numbers();
        assert_eq!(text.batch(1, 5, 4, 8), text.batch(1, 5, 4, 8));
        assert_ne!(text.batch(1, 5, 4, 8), text.batch(1, 6, 4, 8));
        assert_ne!(text.batch(1, 5, 4, 8), text.batch(2, 5, 4, 8));
    }

    #[test]
    fn shares_of_a_batch_are_parts_of_the_same_step() {
        let batch = numbers().batch(1, 5, 4, 8);
        let share = batch.share(1..3);
        assert_eq!((share.inputs.dim(), share.step_tokens()), ((2, 8), 32));
        assert_eq!(share.targets.row(0), batch.targets.row(1));
    }

    #[test]
    fn the_held_out_windows_follow_each_other() {
        let text = numbers();
        let targets: Vec<u8> = text.held_out_batches(2, 6).flat_map(|batch| batch.targets).collect();
        assert_eq!(targets, (181..199).collect::<Vec<u8>>());
    }

    #[test]
    fn a_text_that_is_too_short_is_refused() {
        let text = numbers();
        assert!(text.check_length(19).is_ok());
        let error = text.check_length(20).unwrap_err().to_string();
        assert!(error.contains("at least 210"), "{error}");
    }

    #[test]
    fn the_built_in_text_is_english_ascii() {
        let text = Text::embedded();
        assert!(text.training().starts_with(b"PRIDE AND PREJUDICE"));
        assert!(text.bytes.iter().all(|byte| matches!(byte, b'\n' | b' '..=b'~')));
        assert!((200_000..700_000).contains(&text.bytes.len()));
    }
}
