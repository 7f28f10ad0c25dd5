//! The report in words: the number, what to know before using it, and how numbers are written.

use super::{ReportData, TestUse};

impl ReportData {
    /// The measurement in one sentence: "67.3% of 6,149 test images right (95% interval 66.1-68.5%)".
    pub fn headline(&self) -> Option<String> {
        let m = self.metrics.as_ref()?;
        let (low, high) = m.top1_interval;
        Some(format!(
            "{:.1}% of {} {} images right (95% interval {:.1}\u{2013}{:.1}%)",
            100.0 * m.top1,
            thousands(m.n),
            self.data.test_split,
            100.0 * low,
            100.0 * high
        ))
    }

    /// What a reader must know before using the number.
    pub fn notes(&self) -> Vec<String> {
        let split = &self.data.test_split;
        let mut notes = Vec::new();
        if let Some(m) = &self.metrics {
            notes.push(match self.test_use {
                TestUse::Once => format!(
                    "The {split} images were used once, after the last epoch. Nothing was chosen by their result."
                ),
                TestUse::Watched => format!(
                    "The {split} images were also evaluated during training, but the weights are those of the last epoch \
                     whatever came out. Settings changed after looking at those results make the number optimistic."
                ),
                TestUse::Selected => format!(
                    "The weights were chosen by their accuracy on these same {split} images, so the number is optimistic. \
                     Measure on images that played no part before you rely on it."
                ),
            });
            let (low, high) = m.top1_interval;
            if high - low > 0.10 {
                notes.push(format!(
                    "Small {split} set: with {} images the interval is {:.0} points wide. \
                     Differences smaller than that say little; label more {split} images or use cross-validation.",
                    thousands(m.n),
                    100.0 * (high - low)
                ));
            }
            notes.push(format!(
                "Always answering the most frequent class would be right for {:.1}% of these images.",
                100.0 * m.chance()
            ));
        }
        if self.data.split_made {
            notes.push(format!(
                "The data came without a split; the {split} images were drawn at random from each class. \
                 If several images show the same object or patient, give a group column, or the number is too good."
            ));
        }
        notes.push(match self.data.bad_images {
            0 => "Every image file could be read.".to_string(),
            1 => "1 image file could not be read and was left out; the data report names it."
                .to_string(),
            n => format!(
                "{} image files could not be read and were left out; the data report lists them.",
                thousands(n)
            ),
        });
        notes
    }
}

/// `6149` as `6,149`.
pub(super) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as people say them: `42 s`, `4 min 10 s`, `3 h 05 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn says_the_number_in_plain_words() {
        let mut data = sample(5, 12);
        let m = data.metrics.as_mut().unwrap();
        (m.n, m.top1, m.top1_interval) = (6149, 0.6730, (0.6611, 0.6846));
        let text = "67.3% of 6,149 test images right (95% interval 66.1\u{2013}68.5%)";
        assert_eq!(data.headline().as_deref(), Some(text));
        assert!(!data.notes().iter().any(|note| note.starts_with("Small")));
        data.test_use = TestUse::Selected;
        assert!(data.notes()[0].contains("optimistic"));
    }

    #[test]
    fn durations_and_thousands_read_well() {
        assert_eq!([42.0, 754.0, 11_100.0].map(duration), ["42 s", "12 min 34 s", "3 h 05 min"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
