//! Weighted k-nearest-neighbour accuracy of frozen features, the protocol of instance
//! discrimination (Wu et al. 2018) and DINO: features on the unit sphere, each of the `k` nearest
//! training images votes for its class with weight `exp(cosine similarity / temperature)`.

/// Training features a panel holds side by side, one per vector lane.
const LANES: usize = 8;
/// Queries multiplied with a panel at a time; `ROWS * LANES` sums stay in registers.
const ROWS: usize = 4;
/// Queries that share one pass over the training features, so that a panel is read from memory once
/// for all of them.
const BLOCK: usize = 64;

/// Share of the training images whose class the *other* training images vote for, of those whose class has
/// other images. None if no class has two.
///
/// `features` is `[n, dim]`, `k` at most `n - 1` (larger values count as that).
///
/// # Panics
/// If the shapes do not fit or a label is not below `classes`.
pub fn knn_leave_one_out(
    features: &[f32],
    labels: &[usize],
    classes: usize,
    k: usize,
    temperature: f64,
) -> Option<f64> {
    let mut images = vec![0; classes];
    labels.iter().for_each(|&label| images[label] += 1);
    // The only image of its class is never right, whatever the features are.
    let judged: usize = images.iter().filter(|&&n| n > 1).sum();
    let bank = Bank { features, labels, classes, k, temperature };
    (judged > 0).then(|| bank.correct(features, labels, true) as f64 / judged as f64)
}

/// Share of the test images whose class their `k` nearest training images vote for.
///
/// `train` is `[n, dim]`, `test` is `[m, dim]`. 0 without images.
///
/// # Panics
/// If the shapes do not fit or a label is not below `classes`.
pub fn knn(
    (train, train_labels): (&[f32], &[usize]),
    (test, test_labels): (&[f32], &[usize]),
    classes: usize,
    k: usize,
    temperature: f64,
) -> f64 {
    let bank = Bank { features: train, labels: train_labels, classes, k, temperature };
    bank.correct(test, test_labels, false) as f64 / test_labels.len().max(1) as f64
}

/// Training features and how they vote.
struct Bank<'a> {
    features: &'a [f32],
    labels: &'a [usize],
    classes: usize,
    k: usize,
    temperature: f64,
}

impl Bank<'_> {
    /// How many of `queries` are predicted right; with `exclude_self` query `i` is training image `i`.
    fn correct(&self, queries: &[f32], labels: &[usize], exclude_self: bool) -> usize {
        let n = self.labels.len();
        if labels.is_empty() || n <= usize::from(exclude_self) || self.k == 0 {
            return 0;
        }
        let dim = self.features.len() / n;
        assert_eq!(self.features.len(), n * dim, "features must be [{n}, dim]");
        assert_eq!(queries.len(), labels.len() * dim, "queries must be [{}, {dim}]", labels.len());
        let panels = pack(&normalised(self.features, dim), dim, LANES);
        let queries = pack(&normalised(queries, dim), dim, ROWS);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let blocks: Vec<usize> = (0..labels.len()).step_by(BLOCK).collect();
        // Every query is judged alone, so the split over threads cannot change the result.
        std::thread::scope(|scope| {
            let workers: Vec<_> = blocks
                .chunks(blocks.len().div_ceil(threads))
                .map(|own| {
                    let (panels, queries) = (&panels, &queries);
                    let judge = move |&first: &usize| {
                        let similarity = self.similarities(panels, queries, dim, first);
                        self.judge(similarity, &labels[first..], first, exclude_self)
                    };
                    scope.spawn(move || own.iter().map(judge).sum::<usize>())
                })
                .collect();
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
                .sum()
        })
    }

    /// Similarities `[BLOCK, n]` of the block of packed queries from `first` on to the bank.
    fn similarities(&self, panels: &[f32], queries: &[f32], dim: usize, first: usize) -> Vec<f32> {
        let n = self.labels.len();
        let end = (first + BLOCK).min(queries.len() / dim);
        let mut similarity = vec![0.0; BLOCK * n];
        for (p, panel) in panels.chunks_exact(dim * LANES).enumerate() {
            let lanes = LANES.min(n - p * LANES);
            let groups = queries[first * dim..end * dim].chunks_exact(dim * ROWS);
            for (g, group) in groups.enumerate() {
                for (r, sums) in tile(group, panel).iter().enumerate() {
                    let at = (g * ROWS + r) * n + p * LANES;
                    similarity[at..at + lanes].copy_from_slice(&sums[..lanes]);
                }
            }
        }
        similarity
    }

    /// How many of the block's queries get their own label.
    fn judge(
        &self,
        mut similarity: Vec<f32>,
        labels: &[usize],
        first: usize,
        exclude_self: bool,
    ) -> usize {
        let n = self.labels.len();
        let k = self.k.min(n - usize::from(exclude_self));
        let mut order = Vec::with_capacity(n);
        let rows = similarity.chunks_exact_mut(n).zip(labels).take(BLOCK);
        rows.enumerate()
            .filter(|&(row, (ref similarity, &label))| {
                order.clear();
                order.extend((0..n).filter(|&i| !(exclude_self && i == first + row)));
                let nearest_first =
                    |a: &usize, b: &usize| similarity[*b].total_cmp(&similarity[*a]).then(a.cmp(b));
                if k < order.len() {
                    order.select_nth_unstable_by(k - 1, nearest_first);
                }
                // In the order of similarity, so that sums of equal sets are equal.
                order[..k].sort_unstable_by(nearest_first);
                self.vote(&order[..k], similarity) == label
            })
            .count()
    }

    /// The class with the heaviest votes of the `nearest`, nearest first; the first of equal ones.
    fn vote(&self, nearest: &[usize], similarity: &[f32]) -> usize {
        let mut votes = vec![0.0f64; self.classes];
        let most = nearest.first().map_or(1.0, |&i| f64::from(similarity[i]));
        for &i in nearest {
            // Relative to the largest one, whose vote is 1 however small the temperature is.
            votes[self.labels[i]] += ((f64::from(similarity[i]) - most) / self.temperature).exp();
        }
        let heavier = |best: usize, class: usize| {
            if votes[class] > votes[best] { class } else { best }
        };
        (0..self.classes).fold(0, heavier)
    }
}

/// Rows of `[n, dim]` scaled to length 1; a zero row stays zero.
pub(super) fn normalised(features: &[f32], dim: usize) -> Vec<f32> {
    let scaled = features.chunks_exact(dim.max(1)).flat_map(|row| {
        let norm = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        row.iter().map(move |&v| (f64::from(v) * scale) as f32)
    });
    scaled.collect()
}

/// `[n, dim]` as panels `[n / width, dim, width]`, the last one filled up with zeros.
fn pack(rows: &[f32], dim: usize, width: usize) -> Vec<f32> {
    let mut packed = vec![0.0; (rows.len() / dim.max(1)).next_multiple_of(width) * dim];
    for (i, row) in rows.chunks_exact(dim.max(1)).enumerate() {
        let panel = &mut packed[i / width * width * dim..];
        for (d, &value) in row.iter().enumerate() {
            panel[d * width + i % width] = value;
        }
    }
    packed
}

/// Products of `ROWS` packed queries with `LANES` packed training features.
fn tile(queries: &[f32], panel: &[f32]) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0.0; LANES]; ROWS];
    for (query, lane) in queries.as_chunks::<ROWS>().0.iter().zip(panel.as_chunks::<LANES>().0) {
        for (sum, &q) in sums.iter_mut().zip(query) {
            for (s, &l) in sum.iter_mut().zip(lane) {
                *s += q * l;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The made-up features of `tests/golden/report_metric.py`, `[120, 24]`.
    fn example() -> (Vec<f32>, Vec<usize>) {
        let labels: Vec<usize> = (0..120).map(|i| (i * i / 3) % 6).collect();
        let noise = |i: u64, d: u64| {
            let h = (i * 7919 + d * 104_729 + 1) * 2_654_435_761 % (1 << 32);
            let h = (h ^ (h >> 15)) * 2_246_822_519 % (1 << 32);
            (h ^ (h >> 13)) as f64 / (1u64 << 32) as f64 * 6.0 - 3.0
        };
        let feature = |i: usize, d: usize| {
            (noise(i as u64, d as u64) + if labels[i] == d { 2.5 } else { 0.0 }) as f32
        };
        let features =
            (0..120).flat_map(|i| (0..24).map(move |d| (i, d))).map(|(i, d)| feature(i, d));
        (features.collect(), labels)
    }

    #[test]
    fn agrees_with_numpy() {
        let (x, y) = example();
        for (k, t, leave_one_out, held_out) in
            [(1, 0.07, 47, 18), (10, 0.07, 49, 17), (20, 0.5, 56, 15), (500, 0.07, 50, 18)]
        {
            let all = knn_leave_one_out(&x, &y, 7, k, t).expect("classes of many images");
            assert_eq!((all * 120.0).round() as usize, leave_one_out, "k {k}, temperature {t}");
            let (train, test) = x.split_at(80 * 24);
            let accuracy = knn((train, &y[..80]), (test, &y[80..]), 7, k, t);
            assert_eq!((accuracy * 40.0).round() as usize, held_out, "k {k}, temperature {t}");
        }
    }

    #[test]
    fn leaves_out_only_the_image_itself() {
        // Two identical images of each class: the twin is the neighbour, alone it would be wrong.
        let x = [1.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 3.0];
        let of = |features: &[f32], labels: &[usize], k| {
            knn_leave_one_out(features, labels, 2, k, 0.001)
        };
        assert_eq!(of(&x, &[0, 0, 1, 1], 1), Some(1.0));
        assert_eq!(of(&x, &[0, 1, 1, 0], 1), Some(0.0));
        // The only image of a class does not count, and one a class says nothing.
        assert_eq!(of(&x[..6], &[0, 0, 1], 1), Some(1.0));
        assert_eq!(of(&x[2..6], &[0, 1], 1), None);
        assert_eq!(of(&x[..2], &[0], 5), None);
        assert_eq!(of(&[], &[], 5), None);
    }
}
