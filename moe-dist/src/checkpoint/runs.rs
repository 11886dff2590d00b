//! Runs of elements, and how a file says them: `[start, length, step, count]` stands for `count` runs of the same length whose
//! starts are `step` apart. A slice along any one dimension is one such line.

use std::ops::Range;

/// One line of a file's description.
pub(super) type Line = [usize; 4];

/// Runs, in their order, in few lines.
pub(super) fn lines(runs: &[Range<usize>]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for run in runs {
        if let Some([start, len, step, count]) = lines.last_mut() {
            let last = *start + *step * (*count - 1);
            if *len == run.len() && run.start > last && (*count == 1 || run.start - last == *step) {
                (*step, *count) = (run.start - last, *count + 1);
                continue;
            }
        }
        lines.push([run.start, run.len(), 0, 1]);
    }
    lines
}

/// The runs of some lines; `None` if one is outside a tensor of `len` elements, or there are more than elements.
pub(super) fn expand(lines: &[Line], len: usize) -> Option<Vec<Range<usize>>> {
    let mut runs = Vec::new();
    for &[start, length, step, count] in lines {
        let reach = step.checked_mul(count.checked_sub(1)?)?.checked_add(start)?.checked_add(length)?;
        if length == 0 || reach > len || runs.len() + count > len {
            return None;
        }
        runs.extend((0..count).map(|at| start + at * step..start + at * step + length));
    }
    Some(runs)
}

/// Joins neighbours, and leaves empty ones out.
pub(super) fn joined(runs: impl IntoIterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    for run in runs.into_iter().filter(|run| !run.is_empty()) {
        match all.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => all.push(run),
        }
    }
    all
}

/// Elements of all runs.
pub(super) fn total(runs: &[Range<usize>]) -> usize {
    runs.iter().map(ExactSizeIterator::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter::once;

    #[test]
    fn a_slice_along_any_dimension_is_one_line() {
        let rows: Vec<_> = (0..6).map(|row| row * 10 + 3..row * 10 + 7).collect();
        assert_eq!(lines(&rows), [[3, 4, 10, 6]]);
        assert_eq!(lines(&joined(once(0..5).chain(once(5..9)))), [[0, 9, 0, 1]]);
    }

    #[test]
    fn lines_lead_back_to_any_runs() {
        for runs in [vec![], vec![4..5, 3..4], vec![0..2, 4..6, 8..10, 11..12, 20..22], vec![8..10, 0..2]] {
            assert_eq!(expand(&lines(&runs), 22), Some(runs));
        }
    }

    #[test]
    fn lines_outside_the_tensor_are_refused() {
        for line in [
            [0, 5, 0, 1],
            [0, 1, 4, 2],
            [1, usize::MAX, 0, 1],
            [0, 1, usize::MAX, 3],
            [0, 0, 0, 1],
            [0, 1, 0, 0],
        ] {
            assert_eq!(expand(&[line], 4), None, "{line:?}");
        }
    }
}
