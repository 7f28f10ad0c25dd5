//! Whether features still tell images apart. A self-supervised loss can fall while its features
//! collapse to a point or to a few directions; these figures show it, and [`Health::warning`] says
//! it in words.
//!
//! All figures are of features on the unit sphere, where the methods and the k-NN probe compare
//! them.

use burn::tensor::{DType, Tensor, TensorData};

use super::knn::normalised;
use super::spectrum::eigenvalues;

/// Scale of distances in [`uniformity`], the `t` that Wang & Isola use throughout.
const UNIFORMITY_SCALE: f64 = 2.0;

/// Collapse figures of a set of features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Health {
    /// See [`feature_std`]: 0 for equal features, at most 1.
    pub std: f64,
    /// See [`effective_rank`]: 1 to `full_rank`.
    pub effective_rank: f64,
    /// The largest rank that as many features of this width can have.
    pub full_rank: usize,
    /// See [`uniformity`]: 0 for equal features, the lower the more even.
    pub uniformity: f64,
    /// See [`alignment`]: 0 for equal views, 2 for those at right angles. `None` without views.
    pub alignment: Option<f64>,
}

/// Where a figure becomes a warning. They are wide of what healthy runs show on purpose: a false
/// alarm costs trust, and collapse overshoots any of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Smallest [`feature_std`]. Its square is at most 1 minus the mean cosine of two images, and
    /// equals it when all directions vary alike: below 0.1 such features agree to a cosine of 0.99.
    pub min_std: f64,
    /// Smallest share of the full rank that [`effective_rank`] may be. Separating C classes takes
    /// C - 1 directions; a twentieth of DeiT-Tiny's 192 is hardly enough for ten.
    pub min_rank_share: f64,
    /// Smallest effective rank whatever the width: features along a line separate nothing more.
    pub min_rank: f64,
    /// Share of the chance loss above which nothing has been learned: the mean over an epoch
    /// wobbles by less than a hundredth, and learning moves it by more.
    pub chance_share: f64,
    /// Multiple of the chance loss above which training runs away: guessing would be better.
    pub runaway: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { min_std: 0.1, min_rank_share: 0.05, min_rank: 1.5, chance_share: 0.99, runaway: 1.1 }
    }
}

impl Health {
    /// Figures of `features`, `[n, dim]` of any length, and of `views`: two views of each of some
    /// images, both `[m, dim]`.
    ///
    /// # Panics
    /// If the shapes do not fit or there are fewer than two features.
    pub fn of(features: &[f32], views: Option<(&[f32], &[f32])>, dim: usize) -> Self {
        let unit = normalised(features, dim);
        Self {
            std: feature_std(&unit, dim),
            effective_rank: effective_rank(&unit, dim),
            full_rank: dim.min(unit.len() / dim),
            uniformity: uniformity(&unit, dim),
            alignment: views.map(|(a, b)| alignment(&normalised(a, dim), &normalised(b, dim), dim)),
        }
    }

    /// What is wrong and what to do about it, or `None` if nothing is.
    ///
    /// Ask after the warm-up: an untrained network looks collapsed.
    pub fn warning(&self, training: &Training, limits: &Limits) -> Option<String> {
        let Training { loss, chance, labels, .. } = *training;
        if ![self.std, self.effective_rank, loss].iter().all(|figure| figure.is_finite()) {
            return Some(
                "The features or the loss are not numbers: training has diverged. Lower --lr or \
                 raise --warmup-epochs."
                    .to_owned(),
            );
        }
        if self.std < limits.min_std {
            return Some(self.collapsed(training, limits));
        }
        let min_rank = limits.min_rank.max(limits.min_rank_share * self.full_rank as f64);
        // Labels ask for no more directions than there are classes.
        if self.effective_rank < min_rank && !labels {
            return Some(format!(
                "Partial collapse: the features use about {:.1} of {} directions (healthy above \
                 {min_rank:.1}), too few to tell many classes apart. {}, which spreads features; if \
                 that does not help, crop less hard (a larger smallest scale in --crops).",
                self.effective_rank,
                self.full_rank,
                training.spreading()
            ));
        }
        let chance = chance?;
        if loss > limits.runaway * chance {
            let keys = ["temperature", "student_temperature"];
            let cold = match keys.iter().find(|key| training.options.contains_key(**key)) {
                Some(key) => {
                    format!("; a pretrain.options.{key} far below the recipe's does it, too")
                }
                None => String::new(),
            };
            return Some(format!(
                "The loss, {loss:.3}, is above that of guessing ({chance:.3}): training runs away. \
                 Start again with a lower --lr or a longer --warmup-epochs{cold}."
            ));
        }
        training.at_chance(limits).map(|chance| {
            format!(
                "The loss, {loss:.3}, is that of guessing ({chance:.3}): the model has not learned \
                 anything yet. Raise --lr (SGD needs far more than AdamW) or --epochs, or lower \
                 --lr if the loss was lower before, and look at `fewvit data preview`: a crop must \
                 still show what its image shows."
            )
        })
    }

    fn collapsed(&self, training: &Training, limits: &Limits) -> String {
        let loss = training.loss;
        let spread = format!(
            "Collapse: all images get nearly the same features (spread {:.3}, healthy above {:.2})",
            self.std, limits.min_std
        );
        if let Some(chance) = training.at_chance(limits) {
            return format!(
                "{spread}, and the loss, {loss:.3}, is no better than guessing ({chance:.3}). Start \
                 again with a lower --lr or a longer --warmup-epochs{}.",
                training.also("teacher_temperature", "lower", "sharpens the teacher's targets")
            );
        }
        let guessing = training.chance.map(|chance| format!(" (guessing: {chance:.3})"));
        format!(
            "{spread}, although the loss is {loss:.3}{}: one answer for every image satisfies it. \
             Start again with a lower --lr{}{}.",
            guessing.unwrap_or_default(),
            training.also("momentum", "raise", "slows the teacher down"),
            training.also("teacher_temperature", "raise", "keeps one output from dominating")
        )
    }
}

/// The training whose features are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a> {
    /// Its loss.
    pub loss: f64,
    /// The loss of features that say nothing; each method names its own, if it has one.
    pub chance: Option<f64>,
    /// Whether the method learns from labels.
    pub labels: bool,
    /// The method's own settings, `pretrain.options`: nothing else of it can be turned.
    pub options: &'a toml::Table,
}

impl Training<'_> {
    /// The loss of guessing, if this one is no better.
    fn at_chance(&self, limits: &Limits) -> Option<f64> {
        self.chance.filter(|chance| self.loss > limits.chance_share * chance)
    }

    /// Advice to `turn` an option and what that does, if the method has that option.
    fn also(&self, option: &str, turn: &str, effect: &str) -> String {
        match self.options.contains_key(option) {
            true => format!("; also {turn} pretrain.options.{option}, which {effect}"),
            false => String::new(),
        }
    }

    /// What makes features spread: contrast, where the method has any.
    fn spreading(&self) -> &'static str {
        let has = |option| self.options.contains_key(option);
        match (has("temperature"), has("queue")) {
            (true, true) => "Lower pretrain.options.temperature or raise pretrain.options.queue",
            (true, false) => "Lower pretrain.options.temperature or raise --batch-size",
            (false, _) => "Train for more --epochs",
        }
    }
}

/// Standard deviation of each dimension over the images, averaged and times `sqrt(dim)`: 0 when all
/// features are equal, 1 when they spread alike in all directions (Chen & He 2021, *SimSiam*,
/// fig. 2).
///
/// `unit`: `[n, dim]`, rows of length 1.
pub fn feature_std(unit: &[f32], dim: usize) -> f64 {
    let n = rows(unit, dim) as f64;
    let mut means = vec![0.0; dim];
    for row in unit.chunks_exact(dim) {
        means.iter_mut().zip(row).for_each(|(mean, &v)| *mean += f64::from(v) / n);
    }
    let mut variances = vec![0.0; dim];
    for row in unit.chunks_exact(dim) {
        for ((variance, &v), mean) in variances.iter_mut().zip(row).zip(&means) {
            *variance += (f64::from(v) - mean).powi(2) / n;
        }
    }
    variances.iter().map(|v| v.sqrt()).sum::<f64>() / (dim as f64).sqrt()
}

/// How many directions the features use: `exp(-sum_k p_k log p_k)` of their singular values over
/// the values' sum (Roy & Vetterli 2007; Garrido et al. 2023, *RankMe*). Not a number when a
/// feature is not.
///
/// `unit`: `[n, dim]`, rows of length 1.
pub fn effective_rank(unit: &[f32], dim: usize) -> f64 {
    if !unit.iter().all(|v| v.is_finite()) {
        return f64::NAN;
    }
    let values = singular_values(unit, dim);
    let sum: f64 = values.iter().sum();
    let share = values.iter().map(|v| v / sum).filter(|&p| p > 0.0);
    share.map(|p| -p * p.ln()).sum::<f64>().exp()
}

/// Roots of the eigenvalues of the smaller of the two Gram matrices.
fn singular_values(features: &[f32], dim: usize) -> Vec<f64> {
    let device = crate::ops::cpu();
    let wide: Vec<f64> = features.iter().map(|&v| f64::from(v)).collect();
    let data = TensorData::new(wide, [rows(features, dim), dim]);
    let x = Tensor::<2>::from_data(data, (&device, DType::F64));
    let gram = match rows(features, dim) < dim {
        true => x.clone().matmul(x.transpose()),
        false => x.clone().transpose().matmul(x),
    };
    let [side, _] = gram.dims();
    let eigenvalues = eigenvalues(gram.into_data().iter::<f64>().collect(), side);
    eigenvalues.into_iter().map(|v| v.max(0.0).sqrt()).collect()
}

/// Mean squared distance of two views of an image, `mean_i |a_i - b_i|^2` (Wang & Isola 2020, eq. 1
/// with exponent 2): 0 when views do not matter, 2
/// when they are at right angles.
///
/// `a`, `b`: `[n, dim]`, rows of length 1.
pub fn alignment(a: &[f32], b: &[f32], dim: usize) -> f64 {
    assert_eq!(a.len(), b.len(), "a second view of each image");
    let pairs = a.chunks_exact(dim).zip(b.chunks_exact(dim));
    pairs.map(|(a, b)| squared_distance(a, b)).sum::<f64>() / rows(a, dim) as f64
}

/// How evenly features cover the sphere, `log mean_{i < j} exp(-2 |z_i - z_j|^2)` (Wang & Isola
/// 2020, eq. 2): 0 when all are equal, towards -4 when they are spread over many directions.
///
/// `unit`: `[n, dim]`, rows of length 1.
pub fn uniformity(unit: &[f32], dim: usize) -> f64 {
    let n = rows(unit, dim);
    let potential = |a, b| (-UNIFORMITY_SCALE * squared_distance(a, b)).exp();
    let of_row = |(i, a)| unit.chunks_exact(dim).skip(i + 1).map(|b| potential(a, b)).sum::<f64>();
    let sum: f64 = unit.chunks_exact(dim).enumerate().map(of_row).sum();
    (sum / (n * (n - 1) / 2) as f64).ln()
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum()
}

fn rows(features: &[f32], dim: usize) -> usize {
    let n = features.len() / dim;
    assert!(n * dim == features.len() && n > 1, "at least two features of width {dim}");
    n
}

#[cfg(test)]
mod tests;
