//! The samples of a batch that a residual branch is computed for: those that stochastic depth drops
//! pass as they are, and cost nothing.

use std::ops::Range;

/// Samples of equally many rows, those that are dropped left out.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Rows of a sample.
    tokens: usize,
    batch: usize,
    /// Numbers of the samples, ascending.
    samples: Vec<usize>,
    /// One for each row of the batch, 0 in all rows of a sample that is dropped; none = 1.
    factors: Option<Vec<f32>>,
}

/// Neighbours in the batch.
pub(super) struct Run {
    /// Their rows among those of the samples that are kept.
    pub(super) kept: Range<usize>,
    /// Their rows in the batch.
    pub(super) all: Range<usize>,
}

impl Kept {
    pub(super) fn new([batch, tokens]: [usize; 2], factors: Option<Vec<f32>>) -> Self {
        let is_kept = |sample: &usize| {
            let rows = sample * tokens..(sample + 1) * tokens;
            factors.as_ref().is_none_or(|factors| factors[rows].iter().any(|&f| f != 0.0))
        };
        let samples = (0..batch).filter(is_kept).collect();
        Self { tokens, batch, samples, factors }
    }

    /// Samples that are kept.
    pub(super) fn count(&self) -> usize {
        self.samples.len()
    }

    /// The factors of some rows of the batch.
    pub(super) fn factors(&self, all: &Range<usize>) -> Option<&[f32]> {
        Some(&self.factors.as_ref()?[all.clone()])
    }

    /// The samples that are kept in parts of nearly equal size, at most `most` in each.
    pub(super) fn parts(&self, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = self.samples.len();
        let count = len.div_ceil(most.max(1));
        (0..count).map(move |i| len * i / count..len * (i + 1) / count)
    }

    /// The rows of a part among those of the samples that are kept.
    pub(super) fn rows(&self, part: &Range<usize>) -> Range<usize> {
        part.start * self.tokens..part.end * self.tokens
    }

    /// A part in runs.
    pub(super) fn runs<'a>(&'a self, part: &Range<usize>) -> impl Iterator<Item = Run> + use<'a> {
        let neighbours = self.samples[part.clone()].chunk_by(|a, b| a + 1 == *b);
        neighbours.scan(part.start, |first, run| {
            let kept = self.rows(&(*first..*first + run.len()));
            *first += run.len();
            Some(Run { kept, all: self.rows(&(run[0]..run[0] + run.len())) })
        })
    }

    /// Copies the rows of the samples that are dropped, `columns` values each.
    pub(super) fn pass_dropped(&self, columns: usize, from: &[f32], to: &mut [f32]) {
        let mut kept = self.samples.iter().peekable();
        for sample in 0..self.batch {
            if kept.next_if_eq(&&sample).is_none() {
                let values = sample * self.tokens * columns..(sample + 1) * self.tokens * columns;
                to[values.clone()].copy_from_slice(&from[values]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_what_is_kept_and_the_rest_is_copied() {
        let factors = [2.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0, 0.0, 0.0].to_vec();
        let kept = Kept::new([5, 2], Some(factors));
        let parts: Vec<_> = kept.parts(2).collect();
        assert_eq!(parts, [0..1, 1..3]);
        assert_eq!(parts.iter().map(|part| kept.rows(part)).collect::<Vec<_>>(), [0..2, 2..6]);
        let runs = |most| -> Vec<_> {
            let runs = kept.parts(most).flat_map(|part| kept.runs(&part).collect::<Vec<_>>());
            runs.map(|run| (run.kept, run.all)).collect()
        };
        assert_eq!(runs(2), [(0..2, 0..2), (2..6, 4..8)]);
        assert_eq!(runs(9), [(0..2, 0..2), (2..6, 4..8)]);
        assert_eq!(runs(1), [(0..2, 0..2), (2..4, 4..6), (4..6, 6..8)]);
        assert_eq!(kept.factors(&(1..3)), Some(&[2.0, 0.0][..]));
        let (from, mut to) = ((0..10).map(|i| i as f32).collect::<Vec<_>>(), vec![9.5; 10]);
        kept.pass_dropped(1, &from, &mut to);
        assert_eq!(to, [9.5, 9.5, 2.0, 3.0, 9.5, 9.5, 9.5, 9.5, 8.0, 9.0]);
    }

    #[test]
    fn without_factors_all_are_kept() {
        let kept = Kept::new([3, 4], None);
        let runs: Vec<_> =
            kept.parts(100).flat_map(|part| kept.runs(&part).collect::<Vec<_>>()).collect();
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].kept.clone(), runs[0].all.clone()), (0..12, 0..12));
        assert_eq!(kept.factors(&(0..12)), None);
        assert_eq!(Kept::new([2, 1], Some(vec![0.0; 2])).parts(4).count(), 0);
    }
}
