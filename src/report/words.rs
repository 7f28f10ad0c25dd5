//! The report in words: every sentence of card, page, JSON and terminal, from recorded facts.

use super::facts::{
    Choice, Kept, LargeCrops, ManyLabels, Paced, Past, Provenance, SmallCrops, Smaller, StageFacts,
    Stopped, TestUse, WeightsFile, learned_from,
};
use super::{DataFacts, ReportData};
use crate::words::{counted, duration, thousands};

/// What an interval of this program covers, and what it does not.
pub const INTERVAL: &str = "The 95% interval covers the choice of the images measured, given these \
     weights: training again with another seed gives another number.";

/// `95% interval 66.1-68.5% over images like these, given these weights`.
pub fn interval((low, high): (f64, f64)) -> String {
    format!(
        "95% interval {:.1}\u{2013}{:.1}% over images like these, given these weights",
        100.0 * low,
        100.0 * high
    )
}

impl ReportData {
    /// The measurement in one sentence: "67.3% of 6,149 test images right (95% interval ...)".
    pub fn headline(&self) -> Option<String> {
        let m = self.metrics.as_ref()?;
        Some(format!(
            "{:.1}% of {} {} images right ({})",
            100.0 * m.top1,
            thousands(m.n),
            self.data.test_split,
            interval(m.top1_interval)
        ))
    }

    /// What the model is and what it learned from, to stand at the beginning.
    pub fn opening(&self) -> String {
        let images = &self.data;
        let what = match self.has_classifier() {
            true => {
                let classes = counted(images.classes.len(), "class");
                format!("An image classifier for {classes}")
            }
            false => "A backbone without a classifier".to_owned(),
        };
        let on = self.learned_from();
        match &self.provenance {
            Provenance::Random => {
                format!("{what}, trained from random weights on {on}. {}", self.nothing_else())
            }
            started => format!("{what}, trained on {on}. {}", started.sentence()),
        }
    }

    /// Says that no other weights and images made the weights, or which images chose their epoch.
    fn nothing_else(&self) -> String {
        match &self.test_use {
            TestUse::Chosen(Choice { by: (split, images), .. }) => format!(
                "No pre-trained weights were used, and no other images except the {} of the {split} split, by which \
                 the epoch was chosen.",
                counted(*images, "image")
            ),
            _ => "No pre-trained weights and no other images were used.".to_owned(),
        }
    }

    /// Pre-training alone makes none.
    fn has_classifier(&self) -> bool {
        self.stages.iter().any(|stage| stage.key == "finetune")
    }

    /// What was done, one sentence an entry.
    pub fn done(&self) -> Vec<String> {
        let (model, images) = (&self.model, &self.data);
        let held_out = match images.test_images {
            0 => String::new(),
            n => format!(" and {} {} images", thousands(n), images.test_split),
        };
        let val = match images.val_images {
            0 => String::new(),
            n => format!(", {} validation images", thousands(n)),
        };
        let classes = match images.classes.len() {
            0 => "without labels".to_string(),
            n => format!("of {}{}", counted(n, "class"), self.few_labels()),
        };
        let mut sentences = vec![
            format!(
                "{}: {} training images{val}{held_out} {classes}.",
                images.name,
                thousands(images.train_images)
            ),
            format!(
                "{}, {:.1} million parameters, input {} px.",
                model.name,
                model.parameters as f64 / 1e6,
                model.img_size
            ),
        ];
        sentences.extend(self.decided.smaller.as_ref().map(Smaller::sentence));
        sentences.extend(self.decided.small_crops.as_ref().map(SmallCrops::sentence));
        sentences.extend(self.decided.large_crops.as_ref().map(LargeCrops::sentence));
        sentences.extend(self.decided.paced.map(Paced::sentence));
        sentences.push(self.provenance.sentence());
        sentences.extend(self.decided.without_pretraining.as_ref().map(ManyLabels::sentence));
        sentences.extend(self.stages.iter().map(StageFacts::sentence));
        sentences
    }

    /// The images behind the weights: `2,040 images`, `12 images; 36 without a label were not used`.
    fn learned_from(&self) -> String {
        match self.unused() {
            Some(unused) => format!("{}; {unused}", counted(self.images_used(), "image")),
            None => counted(self.data.train_images, "image") + &self.few_labels(),
        }
    }

    /// What to say where not all training images have a label.
    fn few_labels(&self) -> String {
        let images = &self.data;
        let unused = self.unused().map_or(String::new(), |unused| format!("; {unused}"));
        match images.labelled_images {
            n if n == 0 || n == images.train_images => String::new(),
            n => format!(" (labels for {} of the training images{unused})", thousands(n)),
        }
    }

    fn images_used(&self) -> usize {
        learned_from(&self.stages, self.data.train_images)
    }

    /// The training images that no stage learned from, if there are any. Earlier runs may have.
    fn unused(&self) -> Option<String> {
        let unused = self.data.train_images.saturating_sub(self.images_used());
        let by = if self.provenance.is_random() { "" } else { " by this run" };
        let were = if unused == 1 { "was" } else { "were" };
        (unused > 0).then(|| format!("{} without a label {were} not used{by}", thousands(unused)))
    }

    /// What a reader must know before using the number.
    pub fn notes(&self) -> Vec<String> {
        let split = &self.data.test_split;
        let mut notes = Vec::new();
        if let Some(m) = &self.metrics {
            notes.push(INTERVAL.to_owned());
            notes.push(self.test_use.sentence(split));
            let (low, high) = m.top1_interval;
            if high - low > 0.10 {
                notes.push(format!(
                    "Small {split} set: with {} the interval is {:.0} points wide. \
                     Differences smaller than that say little; label more {split} images or use cross-validation.",
                    counted(m.n, "image"),
                    100.0 * (high - low)
                ));
            }
            notes.push(format!(
                "Always answering the most frequent class would be right for {:.1}% of these images.",
                100.0 * m.chance()
            ));
            if self.data.seen_before > 0 {
                notes.push(format!(
                    "{} held out here served to train the weights that this run started from, so the number may be \
                     too good.",
                    counted(self.data.seen_before, "image")
                ));
            }
            notes.extend(self.leaks());
            if self.data.split_grouped {
                notes.push(format!(
                    "The data came without a split; the {split} images were drawn at random from each class, the \
                     images of a group together."
                ));
            } else if self.data.split_made {
                notes.push(format!(
                    "The data came without a split; the {split} images were drawn at random from each class. \
                     If several images show the same object or patient, give a group column, or the number is too good."
                ));
            }
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

    /// What measured images that are copies of training images do to the number.
    fn leaks(&self) -> impl Iterator<Item = String> {
        let DataFacts { leaks, leaks_of_other_label, leaks_without_label, .. } = self.data;
        let others = leaks_of_other_label + leaks_without_label;
        [
            (leaks.saturating_sub(others), "training images, so the number is too good"),
            (
                leaks_of_other_label,
                "training images that have another label, so the number may be too low",
            ),
            (
                leaks_without_label,
                "images that were pre-trained on without a label, so the number may be too good",
            ),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(move |(n, of)| {
            let have = if n == 1 { "has" } else { "have" };
            let split = &self.data.test_split;
            format!("{} of the {split} split {have} the very content of {of}.", counted(n, "image"))
        })
    }

    /// Why there is no measurement.
    pub fn unmeasured(&self) -> &'static str {
        match self.has_classifier() {
            true => {
                "No accuracy was measured: there were no labelled images outside the training set."
            }
            false => "No accuracy was measured: this run pre-trained only and has no classifier.",
        }
    }

    /// The loss of guessing in each stage that has such a number.
    pub fn guesses(&self) -> Vec<String> {
        self.stages.iter().filter_map(StageFacts::guess).collect()
    }

    /// What a licence must consider: where everything in the weights was learned.
    pub fn ownership(&self) -> String {
        match &self.provenance {
            Provenance::Random => {
                "These weights contain nothing but what was learned from the images above. They belong to whoever \
                 trained them, who should state a licence here that the licence of the images allows."
            }
            _ => {
                "These weights go on from others, see above, so the licences of those weights and of the images behind \
                 them count as well as that of the images above. Whoever trained them should state a licence here that \
                 all of them allow."
            }
        }
        .to_owned()
    }
}

impl Smaller {
    fn sentence(&self) -> String {
        let Self { name, instead_of, steps, least } = self;
        format!(
            "{name} was taken instead of {instead_of}, which had time for {}: it is trained from {} on.",
            counted(*steps, "optimiser step"),
            thousands(*least)
        )
    }
}

impl SmallCrops {
    fn sentence(&self) -> String {
        let Self { img_size, instead_of, steps, least } = self;
        format!(
            "All epochs of fine-tuning have crops of {img_size} px: those with {instead_of} px would have had {}, and pay \
             from {} on.",
            counted(*steps, "optimiser step"),
            thousands(*least)
        )
    }
}

impl LargeCrops {
    fn sentence(&self) -> String {
        let Self { img_size, instead_of, epochs, least } = self;
        format!(
            "The last {} of fine-tuning have crops of {img_size} px instead of {instead_of}, which pay from {} on.",
            counted(*epochs, "epoch"),
            thousands(*least)
        )
    }
}

impl Paced {
    /// What was changed, and why.
    pub fn sentence(self) -> String {
        let Self { planned, epochs } = self;
        let how = if epochs < planned { "slower" } else { "faster" };
        format!(
            "Fine-tuning has {} instead of the {} planned, since the machine was {how} than when it was timed.",
            counted(epochs, "epoch"),
            thousands(planned)
        )
    }
}

impl ManyLabels {
    fn sentence(&self) -> String {
        format!("There was no pre-training: {}.", self.why())
    }

    /// `40 of 40 training images have a label, and it is done where 4 or fewer have`.
    pub fn why(&self) -> String {
        let [labelled, images, most] = [self.labelled, self.images, self.most].map(thousands);
        let when = match self.most {
            0 => "this recipe pre-trains such data only where --method names one".to_owned(),
            _ => format!("it is done where {most} or fewer have"),
        };
        format!("{labelled} of {images} training images have a label, and {when}")
    }
}

impl Stopped {
    /// `stopped after epoch 6 of the 60 planned, since 2 evaluations in a row were no better`.
    pub fn words(&self) -> String {
        let evaluations = match self.fruitless {
            1 => "1 evaluation was".to_owned(),
            n => format!("{} evaluations in a row were", thousands(n)),
        };
        let (after, planned) = (thousands(self.after), thousands(self.planned));
        format!(
            "stopped after epoch {after} of the {planned} planned, since {evaluations} no better"
        )
    }
}

impl Kept {
    /// `Its weights are those of epoch 6, the best of 9 measured epochs on the validation images.`
    fn sentence(&self) -> String {
        format!(
            "Its weights are those of epoch {}, the best of {} on the validation images.",
            thousands(self.epoch),
            counted(self.measured, "measured epoch")
        )
    }
}

impl StageFacts {
    /// `800 epochs of IDMM pre-training at 112 px, self-supervised without labels (5 h 45 min).`
    pub fn sentence(&self) -> String {
        let what = match &*self.key {
            "finetune" => "fine-tuning".to_owned(),
            _ => format!("{} pre-training", self.method),
        };
        let sizes: Vec<_> = self.sizes.iter().map(usize::to_string).collect();
        let head = self.first_head.then_some("from a head made of the images' features");
        let how = [&*self.kind].into_iter().chain(head).chain(self.balance.iter().map(|b| &**b));
        let stopped =
            self.stopped.map_or(String::new(), |stopped| format!(": {}", stopped.words()));
        format!(
            "{} of {what} at {} px, {} ({}){stopped}.",
            counted(self.epochs, "epoch"),
            sizes.join(" and "),
            how.collect::<Vec<_>>().join(", "),
            duration(self.seconds)
        )
    }

    /// `In pre-training a model that knows nothing has a loss of 7.62 (ln 2040): ...`
    fn guess(&self) -> Option<String> {
        let chance = self.chance.as_ref()?;
        Some(format!(
            "In {} a model that knows nothing has a loss of {:.2} ({}): {}.",
            if self.key == "finetune" { "fine-tuning" } else { "pre-training" },
            chance.loss,
            chance.formula,
            chance.meaning
        ))
    }
}

impl Provenance {
    /// Where the weights come from, as far as that is known.
    pub fn sentence(&self) -> String {
        match self {
            Self::Random => "The weights started at random.".to_owned(),
            Self::File(file) => format!(
                "The weights started from {}. fewvit does not know what those were trained on.",
                file.words()
            ),
            Self::Export(file) => format!(
                "The weights started from {}, exported by fewvit but away from its run: what those were trained on \
                 is not recorded there.",
                file.words()
            ),
            Self::Run(file, past) => {
                format!("The weights started from the run {}. {}", file.words(), past.sentence())
            }
        }
    }
}

impl WeightsFile {
    /// `weights.pth (sha256 0123..., 150 of its 152 tensors)`.
    fn words(&self) -> String {
        let digest = self.sha256.as_ref().map(|digits| format!("sha256 {digits}"));
        let taken = self.taken.map(|(taken, all)| format!("{taken} of its {all} tensors"));
        let known: Vec<_> = digest.into_iter().chain(taken).collect();
        match known.is_empty() {
            true => self.path.clone(),
            false => format!("{} ({})", self.path, known.join(", ")),
        }
    }
}

impl Past {
    /// The whole story of a run's weights, up to the first run's start.
    fn sentence(&self) -> String {
        let images = match &self.data {
            Some((name, images)) => format!("{} of {name}", counted(*images, "image")),
            None => return "Its folder does not say what that was trained on.".to_owned(),
        };
        let sentences = |stage: &StageFacts| {
            let kept = stage.kept.map(|kept| format!(" {}", kept.sentence()));
            stage.sentence() + &kept.unwrap_or_default()
        };
        let stages: Vec<_> = self.stages.iter().map(sentences).collect();
        format!(
            "That run trained on {images}: {} {}",
            stages.join(" "),
            match &self.from {
                Provenance::Random => "It started from random weights.".to_owned(),
                earlier => format!("Before that: {}", earlier.sentence()),
            }
        )
    }
}

impl TestUse {
    fn sentence(&self, split: &str) -> String {
        match self {
            Self::Once => format!(
                "The {split} images were measured once, after the last epoch. fewvit chose nothing by their result."
            ),
            Self::Watched => format!(
                "The {split} images were also measured during training, but the weights are those of the last epoch \
                 whatever came out. Settings changed after looking at those results make the number optimistic."
            ),
            Self::Other(other, images) => format!(
                "During training the {} of the {other} split were measured, and the {split} images once, after the \
                 last epoch. fewvit chose nothing by either: the weights are those of the last epoch.",
                counted(*images, "image")
            ),
            Self::Chosen(Choice { epoch, measured, by: (by, images), same }) => {
                let of = counted(*measured, "measured epoch");
                let chosen = format!(
                    "The weights are those of epoch {epoch}, the best of {of} on the {} of the {by} split.",
                    counted(*images, "image")
                );
                match same {
                    true => format!(
                        "{chosen} The number is of these very images, so it is optimistic: measure on images that \
                         nothing was chosen by."
                    ),
                    false => {
                        format!(
                            "{chosen} The {split} images were measured once, at the end, and nothing was chosen by them."
                        )
                    }
                }
            }
        }
    }
}

/// What the command that repeats a run relies on.
pub const REPEAT: &str = "config.toml holds the settings that the run used, its epochs already fitted to any time \
     budget. On the same kind of processor with as many threads they give the same weights.";

/// Arguments as they are typed into a shell.
pub fn shell(arguments: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./,:=@%+~".contains(c);
    let quoted = |argument: &String| match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.clone(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    };
    arguments.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
