//! A head whose first rows follow from the features of its images, so that it tells them apart before the
//! first step: weight imprinting (Qi, Brown and Lowe, CVPR 2018) with the directions of a linear
//! discriminant.
//!
//! Where every image is a class of its own, a head of random rows is right about an image only by chance, sees
//! it once an epoch, and leaves the backbone without a gradient that means anything for tens of epochs. The
//! features of random weights differ from image to image; a head made of them passes that on.

use super::Context;
use crate::config::{HeadFrom, HeadInit};
use crate::data::Rgb8;
use crate::data::parallel::map_in_order;
use crate::engine::TrainState;
use crate::error::Result;
use crate::eval::infer::{EvalView, Inference};
use crate::eval::spectrum::dot;
use crate::train::stage::Stage;

/// Writes the instance classifier that pre-training begins with, if its rows follow from features.
///
/// # Errors
/// As [`imprint`].
pub fn pretraining(context: &Context, stage: &Stage, state: &mut TrainState) -> Result<()> {
    let targets: Vec<usize> = (0..stage.source.images.len()).collect();
    imprint(context, stage, state, &context.config.pretrain.first_head, &targets)
}

/// Writes the classifier that fine-tuning begins with, likewise.
///
/// # Errors
/// As [`imprint`].
pub fn finetuning(context: &Context, stage: &Stage, state: &mut TrainState) -> Result<()> {
    let targets = context.data.labels(&context.data.train);
    imprint(context, stage, state, &context.config.finetune.first_head, &targets)
}

/// Sets the head's rows from the features of the training images of `stage`: image `i` belongs to row
/// `targets[i]`. Leaves them as they are if `init` wants random rows.
///
/// # Errors
/// An image cannot be read, the device failed.
fn imprint(
    context: &Context,
    stage: &Stage,
    state: &mut TrainState,
    init: &HeadInit,
    targets: &[usize],
) -> Result<()> {
    if init.from == HeadFrom::Random {
        return Ok(());
    }
    let net = stage.net_at(0).without_heads();
    let model = context.machine.model(&net, &state.values[..net.outline()?.num_params()])?;
    let view = EvalView { crop_pct: 1.0, ..EvalView::of(context.config) };
    let images = &stage.source.images;
    let image = |i: usize| -> Result<Rgb8> { Ok(images.get(i)?.into_owned()) };
    let inference = Inference { model: &*model, view, machine: &context.machine };
    let outputs = inference.run(images.len(), &image)?;
    let threads = context.machine.threads;
    let rows = rows(&outputs.features, targets, stage.net.heads.num_classes, init, threads)?;
    for (key, values) in [("head.weight", rows.weight), ("head.bias", rows.bias)] {
        let spec = state.specs.iter().find(|spec| spec.key == key);
        if let Some(range) = spec.map(|spec| spec.range.clone()) {
            state.values[range].copy_from_slice(&values);
        }
    }
    // The average starts from the weights, wherever they come from.
    if let Some(ema) = &mut state.ema {
        ema.copy_from_slice(&state.values);
    }
    Ok(())
}

/// A linear classifier.
struct Rows {
    /// `[classes, dim]`.
    weight: Vec<f32>,
    /// `[classes]`.
    bias: Vec<f32>,
}

/// The row of a class is `c (S + r t I)^-1 m` with its mean feature `m` less that of all, their covariance `S`
/// with the mean variance `t`, the ridge `r`, and `c` so that the root mean square of all logits is the
/// spread; `features` are `[targets, dim]`. A class without features has zeros.
fn rows(
    features: &[f32],
    targets: &[usize],
    classes: usize,
    init: &HeadInit,
    threads: usize,
) -> Result<Rows> {
    let count = targets.len().max(1);
    let dim = features.len() / count;
    let mut mean = vec![0.0; dim];
    add(&mut mean, features, 1.0 / count as f64);
    let centred: Vec<f64> = features
        .chunks_exact(dim)
        .flat_map(|row| row.iter().zip(&mean).map(|(v, m)| f64::from(*v) - m))
        .collect();
    let axes: Vec<usize> = (0..dim).collect();
    let covariance = map_in_order(&axes, threads, |&a| {
        let mut sums = vec![0.0; a + 1];
        for row in centred.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += v * row[a]);
        }
        sums.iter_mut().for_each(|sum| *sum /= count as f64);
        Ok(sums)
    })?;
    let ridge = init.ridge * (0..dim).map(|a| covariance[a][a]).sum::<f64>() / dim as f64;
    let factor = cholesky(covariance, ridge);
    let means = means(&centred, targets, classes, dim);
    let solved = map_in_order(&means, threads, |mean| Ok(solve(&factor, mean)))?;
    // S w = m - r w, so the mean square of a row's logits over all features is w m - r w w.
    let square = |(w, m): (&Vec<f64>, &Vec<f64>)| dot(w, m) - ridge * dot(w, w);
    let squares = solved.iter().zip(&means).map(square).sum::<f64>() / classes as f64;
    let scale = if squares > 0.0 { init.spread / squares.sqrt() } else { 0.0 };
    let weight = solved.iter().flatten().map(|w| (scale * w) as f32).collect();
    let bias = solved.iter().map(|w| (-scale * dot(w, &mean)) as f32).collect();
    Ok(Rows { weight, bias })
}

/// Adds the `rows` to `sum`, each times `factor`.
fn add(sum: &mut [f64], rows: &[f32], factor: f64) {
    for row in rows.chunks_exact(sum.len().max(1)) {
        sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += factor * f64::from(*v));
    }
}

/// Mean of each class's rows of `features`, `[targets, dim]`.
fn means(features: &[f64], targets: &[usize], classes: usize, dim: usize) -> Vec<Vec<f64>> {
    let mut means = vec![vec![0.0; dim]; classes];
    let mut counts = vec![0.0; classes];
    for (row, &target) in features.chunks_exact(dim).zip(targets) {
        means[target].iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        counts[target] += 1.0;
    }
    for (mean, count) in means.iter_mut().zip(counts).filter(|(_, count)| *count > 0.0) {
        mean.iter_mut().for_each(|sum| *sum /= count);
    }
    means
}

/// Cholesky factor of `S + ridge I`, `S` and the factor both as the rows of their lower triangles. A pivot that
/// is not positive becomes 0, with a column of zeros below it.
fn cholesky(mut s: Vec<Vec<f64>>, ridge: f64) -> Vec<Vec<f64>> {
    for i in 0..s.len() {
        let (above, rest) = s.split_at_mut(i);
        let row = &mut rest[0];
        for j in 0..i {
            let known = dot(&row[..j], &above[j][..j]);
            row[j] = if above[j][j] > 0.0 { (row[j] - known) / above[j][j] } else { 0.0 };
        }
        row[i] = (row[i] + ridge - dot(&row[..i], &row[..i])).max(0.0).sqrt();
    }
    s
}

/// The solution of `L L^T x = y`.
fn solve(l: &[Vec<f64>], y: &[f64]) -> Vec<f64> {
    let over = |value: f64, pivot: f64| if pivot > 0.0 { value / pivot } else { 0.0 };
    let mut x = y.to_vec();
    for i in 0..x.len() {
        x[i] = over(x[i] - dot(&l[i][..i], &x[..i]), l[i][i]);
    }
    for i in (0..x.len()).rev() {
        x[i] = over(x[i], l[i][i]);
        let (before, at) = x.split_at_mut(i);
        before.iter_mut().zip(&l[i]).for_each(|(v, l)| *v -= l * at[0]);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(count: usize, dim: usize) -> Vec<f32> {
        // Of very different spread along the axes, none of them centred.
        let value = |i: usize| (i * 7919 % 1013) as f32 / 1013.0 - 0.4;
        (0..count * dim).map(|i| value(i) * (1 + i % dim * i % dim) as f32 + 3.0).collect()
    }

    #[test]
    fn rows_solve_their_equation_and_logits_have_the_spread() {
        let (count, dim, classes) = (40, 5, 7);
        let features = features(count, dim);
        let targets: Vec<usize> = (0..count).map(|i| i * i % 6).collect();
        let init = HeadInit { from: HeadFrom::Features, spread: 0.7, ridge: 0.3 };
        let Rows { weight, bias } = rows(&features, &targets, classes, &init, 2).expect("rows");
        let f = |i: usize, a: usize| f64::from(features[i * dim + a]);
        let mean = |a: usize| (0..count).map(|i| f(i, a)).sum::<f64>() / count as f64;
        let mean: Vec<f64> = (0..dim).map(mean).collect();
        let s = |a: usize, b: usize| {
            (0..count).map(|i| (f(i, a) - mean[a]) * (f(i, b) - mean[b])).sum::<f64>()
                / count as f64
        };
        let ridge = 0.3 * (0..dim).map(|a| s(a, a)).sum::<f64>() / dim as f64;
        let w = |class: usize, a: usize| f64::from(weight[class * dim + a]);
        let mut ratios = Vec::new();
        for class in 0..6 {
            let own: Vec<usize> = (0..count).filter(|&i| targets[i] == class).collect();
            for (a, mean) in mean.iter().enumerate() {
                let left =
                    (0..dim).map(|b| s(a, b) * w(class, b)).sum::<f64>() + ridge * w(class, a);
                let of_class = own.iter().map(|&i| f(i, a)).sum::<f64>() / own.len().max(1) as f64;
                match own.is_empty() {
                    true => assert_eq!(left, 0.0),
                    false => ratios.push(left / (of_class - mean)),
                }
            }
        }
        // All the same multiple of the class's mean.
        assert!(ratios.iter().all(|ratio| (ratio / ratios[0] - 1.0).abs() < 1e-4), "{ratios:?}");
        let logit = |class: usize, i: usize| {
            (0..dim).map(|a| w(class, a) * f(i, a)).sum::<f64>() + f64::from(bias[class])
        };
        let all = || (0..classes).flat_map(|class| (0..count).map(move |i| (class, i)));
        let square = all().map(|(class, i)| logit(class, i).powi(2)).sum::<f64>();
        let spread = (square / (classes * count) as f64).sqrt();
        assert!((spread - 0.7).abs() < 1e-4, "{spread}");
        let means = (0..classes).map(|class| (0..count).map(|i| logit(class, i)).sum::<f64>());
        assert!(means.into_iter().all(|sum| sum.abs() < 1e-3));
        assert!((0..dim).all(|a| w(6, a) == 0.0), "nothing is known of the last class");
    }

    #[test]
    fn features_that_are_all_equal_leave_a_head_of_zeros() {
        let init = HeadInit { from: HeadFrom::Features, spread: 1.0, ridge: 1.0 };
        let Rows { weight, bias } = rows(&[2.0; 12], &[0, 1, 2, 3], 4, &init, 1).expect("rows");
        assert!(weight.iter().chain(&bias).all(|v| *v == 0.0));
    }
}
