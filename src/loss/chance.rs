//! The loss of guessing, which a loss curve starts at.

use serde::{Deserialize, Serialize};

/// The loss of a model that knows nothing, and why it is that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chance {
    /// In nats.
    pub loss: f64,
    /// How it is computed: `2 ln 2040`.
    pub formula: String,
    /// What it assumes: `every training image is equally likely`.
    pub meaning: String,
}

impl Chance {
    /// `factor * ln(choices)`, the cross-entropy of an even guess among `choices`; `factor` is 1 for a
    /// plain mean.
    pub fn of(factor: f64, choices: usize, meaning: &str) -> Self {
        let times = match factor {
            1.0 => String::new(),
            // Temperatures have a few digits; their products have rounding errors.
            _ => format!("{} ", (factor * 1e6).round() / 1e6),
        };
        let (loss, formula) = (factor * (choices as f64).ln(), format!("{times}ln {choices}"));
        Self { loss, formula, meaning: meaning.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_guess_costs_the_logarithm() {
        let chance = Chance::of(1.0, 2040, "every image is equally likely");
        assert_eq!((chance.loss, &*chance.formula), (7.620_705_086_838_262, "ln 2040"));
        let two = Chance::of(2.0, 12, "every class is equally likely");
        assert_eq!((two.loss, &*two.formula), (2.0 * 2.484_906_649_788_000_3, "2 ln 12"));
        assert_eq!(Chance::of(4.0 * 0.2, 64, "").formula, "0.8 ln 64");
    }
}
