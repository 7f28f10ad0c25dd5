//! Images to measure a model on: those that its run held out, not those it was trained on.

use std::path::Path;

use serde::Serialize;
use toml::Table;

use super::folder::Folder;
use super::seen::{Recognised, Seen};
use crate::config::{DataConfig, Keep, Layers, OnBadImage};
use crate::data::digest::digests;
use crate::data::source;
use crate::data::{Manifest, Sample, Split, SplitOrigin};
use crate::error::{Error, Result};
use crate::words::counted;

/// Which images are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those that the model's run did not train on.
    HeldOut,
    /// A split: the run's where it saw the images, else the data's own.
    Split(Split),
    /// Training images of the run that had no label there.
    Unlabelled,
    /// All of them.
    All,
}

/// A data set beside what the model's run knows of it.
pub struct Measured {
    /// The images, with the data's own splits.
    pub manifest: Manifest,
    /// What the run knows of them; `None` for a model without its run.
    recognised: Option<Recognised>,
    /// Which epoch's weights the run exported.
    keep: Keep,
}

/// Where the images of a measurement stand in the run of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Measured images that the run trained on with their labels.
    pub in_training: usize,
    /// Measured training images of the run that had no label there.
    pub unlabelled: usize,
    /// Whether the run pre-trained on those.
    pub pretrained: bool,
    /// Measured images that the run held out.
    pub held_out: usize,
    /// Measured images that were trained on before, in a run that the weights come from.
    pub in_earlier_training: usize,
    /// Measured images that the run never saw; `None` for a model without its run.
    pub new: Option<usize>,
    /// Measured images by whose accuracy the run chose the epoch of the weights that it exported.
    pub chosen_by: usize,
    /// Images of the data that were not measured.
    pub left_out: usize,
    /// Images that the data itself holds out and the run trained on, since they have the content of a
    /// training image; measured or not.
    pub twins: usize,
}

/// The data at `data`, as the run around `model` sees it, and what there is to say of it.
///
/// # Errors
/// The data or the run cannot be read.
pub fn open(
    model: &Path,
    data: &Path,
    on_bad_image: OnBadImage,
    threads: usize,
) -> Result<(Measured, Vec<String>)> {
    let run = Folder::around(model);
    let (mut config, seed, keep) = settings(run.as_ref())?;
    // The classes are the model's: an empty folder takes none of them away.
    config.allow_empty_class = true;
    config.on_bad_image = on_bad_image;
    let opened = source::open_noting(data, &config, seed)?;
    let (manifest, mut notes) = (opened.manifest, opened.warnings);
    let recognised = match &run {
        Some(folder) => {
            let samples: Vec<&Sample> = manifest.samples.iter().collect();
            let recognised = Seen::read(folder)?.recognise(&samples, &digests(&samples, threads));
            notes.extend(recognised.notes());
            Some(recognised)
        }
        None => None,
    };
    Ok((Measured { manifest, recognised, keep }, notes))
}

/// How the run, or else the default recipe, reads images and splits them with a seed, and which epoch's weights
/// the run exported.
fn settings(run: Option<&Folder>) -> Result<(DataConfig, u64, Keep)> {
    let default = Layers::new("paper")?.build()?.config;
    let Some(folder) = run else { return Ok((default.data, default.seed, Keep::default())) };
    let misfit = |e: &dyn std::fmt::Display| {
        Error::Failed(format!("{} cannot be used: {e}", folder.join("config.toml").display()))
    };
    let pinned = folder.read_settings()?;
    // Key by key, so that runs of other versions can be measured too.
    let mut data = Table::try_from(&default.data).map_err(|e| misfit(&e))?;
    for (key, value) in pinned.get("data").and_then(|data| data.as_table()).into_iter().flatten() {
        if let Some(default) = data.get_mut(key) {
            *default = value.clone();
        }
    }
    let seed = pinned.get("seed").and_then(|seed| seed.as_integer());
    let seed = seed.map_or(default.seed, |seed| seed as u64);
    // Runs of earlier versions do not say: those kept the last epoch.
    let keep = pinned.get("finetune").and_then(|finetune| finetune.get("keep"));
    let keep = keep.map_or(Ok(Keep::default()), |keep| keep.clone().try_into());
    Ok((data.try_into().map_err(|e| misfit(&e))?, seed, keep.map_err(|e| misfit(&e))?))
}

impl Measured {
    /// Positions of the wanted images in the manifest.
    ///
    /// # Errors
    /// There are none.
    pub fn positions(&self, wanted: Wanted) -> Result<Vec<usize>> {
        let positions = self.select(|i| match wanted {
            Wanted::All => true,
            Wanted::Split(split) => self.split(i) == split,
            Wanted::Unlabelled => self.recognised.as_ref().is_some_and(|run| run.unlabelled[i]),
            Wanted::HeldOut => self.is_held_out(i),
        });
        match (positions.is_empty(), wanted) {
            (false, _) => Ok(positions),
            (true, Wanted::HeldOut) if self.known() => Err(Error::Data(format!(
                "{}: the model was trained on every image there, which says nothing about new ones\n  \
                 give other images, or measure on these all the same with --split train",
                self.manifest.name
            ))),
            (true, _) => Err(Error::Data(format!(
                "{} has no images in that split; --split all takes every image",
                self.manifest.name
            ))),
        }
    }

    /// Positions of the images that features are learned from, and of those they are measured on:
    /// the run's training and held-out images, or the data's own where the run has not both.
    pub fn halves(&self) -> (Vec<usize>, Vec<usize>) {
        let held_out = self.select(|i| self.known() && self.is_held_out(i));
        let train = self.select(|i| self.known() && self.split(i) == Split::Train);
        if !held_out.is_empty() && !train.is_empty() {
            return (train, held_out);
        }
        let own = |i: usize| self.manifest.samples[i].split;
        (self.select(|i| own(i) == Split::Train), self.select(|i| self.is_own_held_out(own(i))))
    }

    fn select(&self, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.manifest.samples.len()).filter(|&i| wanted(i)).collect()
    }

    /// Whether the run saw any of the images.
    fn known(&self) -> bool {
        self.recognised.as_ref().is_some_and(Recognised::any)
    }

    /// The run's split of an image, or the data's own where the run saw none of them.
    fn split(&self, i: usize) -> Split {
        match &self.recognised {
            // An image that the run never saw is as good as held out.
            Some(run) if run.any() => run.splits[i].unwrap_or(Split::Test),
            _ => self.manifest.samples[i].split,
        }
    }

    fn is_held_out(&self, i: usize) -> bool {
        match &self.recognised {
            Some(run) if run.any() => match run.splits[i] {
                Some(Split::Train) => false,
                Some(Split::Val) => run.count(Some(Split::Test)) == 0,
                Some(Split::Test) | None => true,
            },
            // A split that nothing was trained with has no meaning.
            Some(_) => true,
            None if self.manifest.split_origin != SplitOrigin::Given => true,
            None => self.is_own_held_out(self.manifest.samples[i].split),
        }
    }

    /// The test split, or the validation split where there is no other.
    fn is_own_held_out(&self, own: Split) -> bool {
        let has_test = self.manifest.samples.iter().any(|s| s.split == Split::Test);
        own == if has_test { Split::Test } else { Split::Val }
    }

    /// Images that `run` itself trained on and the data holds out.
    fn twins(&self, run: &Recognised) -> usize {
        let samples = self.manifest.samples.iter().enumerate();
        let twins = samples.filter(|(i, own)| {
            let of_run = run.splits[*i] == Some(Split::Train) && run.trained[*i];
            own.split != Split::Train && of_run
        });
        match self.manifest.split_origin {
            SplitOrigin::Given => twins.count(),
            // A split that was drawn for this measurement has no meaning.
            _ => 0,
        }
    }

    /// Where the images at `positions` stand in the run of the model.
    pub fn standing(&self, positions: &[usize]) -> Standing {
        let left_out = self.manifest.samples.len() - positions.len();
        let Some(run) = &self.recognised else {
            return Standing { left_out, ..Standing::default() };
        };
        let count = |is: &dyn Fn(Option<Split>) -> bool| {
            positions.iter().filter(|&&i| is(run.splits[i])).count()
        };
        let unlabelled = positions.iter().filter(|&&i| run.unlabelled[i]).count();
        Standing {
            in_training: count(&|split| split == Some(Split::Train)) - unlabelled,
            unlabelled,
            pretrained: run.pretrained,
            held_out: count(&|split| matches!(split, Some(Split::Val | Split::Test))),
            in_earlier_training: positions.iter().filter(|&&i| run.earlier[i]).count(),
            new: Some(count(&|split| split.is_none())),
            chosen_by: match self.keep {
                Keep::Best => count(&|split| split == Some(Split::Val)),
                Keep::Last => 0,
            },
            left_out,
            twins: self.twins(run),
        }
    }
}

impl Standing {
    /// The same in a sentence.
    pub fn describe(&self) -> String {
        let images = |n| counted(n, "image");
        let mut left_out = match self.left_out {
            0 => String::new(),
            n => format!("; {} not measured", images(n)),
        };
        if self.in_earlier_training > 0 {
            left_out += &format!(
                "; {} in the training of a run that the weights come from",
                images(self.in_earlier_training)
            );
        }
        if self.twins > 0 {
            let (lie, have, count) = match self.twins {
                1 => ("is held out", "has", "counts"),
                _ => ("are held out", "have", "count"),
            };
            left_out += &format!(
                "; {} that {lie} here {have} the content of training images and {count} as such",
                images(self.twins)
            );
        }
        if self.chosen_by > 0 {
            left_out += &format!(
                "; the run chose the epoch of its weights by {} of these images (--keep best), so the number \
                 is optimistic",
                self.chosen_by
            );
        }
        let Some(new) = self.new else {
            return format!(
                "the model comes without its run, so whether it was trained on these images is not \
                 known{left_out}"
            );
        };
        let without_label = match self.pretrained {
            true => "whose labels the run did not have (it pre-trained on them)",
            false => "whose labels the run did not have (it did not train on them)",
        };
        let parts = [
            (self.in_training, "that the run trained on"),
            (self.unlabelled, without_label),
            (self.held_out, "that the run held out"),
            (new, "that the run never saw"),
        ];
        let parts = parts.iter().filter(|(n, _)| *n > 0);
        let parts: Vec<String> = parts.map(|(n, what)| format!("{} {what}", images(*n))).collect();
        format!("measured on {}{left_out}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;
    use Split::{Test, Train, Val};

    /// Images with their own split and, for a model with its run, the run's.
    fn measured(origin: SplitOrigin, splits: &[(Split, Option<Split>)], run: bool) -> Measured {
        let sample = |(i, &(split, _)): (usize, &(Split, Option<Split>))| Sample {
            id: i.to_string(),
            origin: Origin::File("x".into()),
            label: Some(0),
            split,
            treatment: Default::default(),
        };
        let manifest = Manifest {
            name: "data".to_owned(),
            classes: vec!["a".to_owned()],
            samples: splits.iter().enumerate().map(sample).collect(),
            split_origin: origin,
        };
        let splits: Vec<_> = splits.iter().map(|(_, of_run)| *of_run).collect();
        Measured {
            manifest,
            recognised: run.then_some(Recognised {
                earlier: vec![false; splits.len()],
                trained: splits.iter().map(|of_run| *of_run == Some(Train)).collect(),
                unlabelled: vec![false; splits.len()],
                pretrained: false,
                splits,
                edited: 0,
                lost: None,
                as_edited: true,
            }),
            keep: Keep::Last,
        }
    }

    #[test]
    fn images_that_the_epoch_was_chosen_by_are_told() {
        let own = [(Train, Some(Train)), (Val, Some(Val)), (Val, Some(Val)), (Test, Some(Test))];
        let said = |keep, wanted| {
            let data = Measured { keep, ..measured(SplitOrigin::Given, &own, true) };
            let standing = data.standing(&data.positions(wanted).expect("some"));
            (standing.chosen_by, standing.describe())
        };
        let held_out = "measured on 2 images that the run held out; 2 images not measured";
        let chosen = "; the run chose the epoch of its weights by 2 of these images (--keep best), so the number \
                      is optimistic";
        let val = Wanted::Split(Val);
        assert_eq!(said(Keep::Best, val), (2, format!("{held_out}{chosen}")));
        assert_eq!(said(Keep::Last, val), (0, held_out.to_owned()));
        let (all, text) = said(Keep::Best, Wanted::All);
        assert!(all == 2 && text.ends_with(chosen), "{text}");
        assert_eq!(said(Keep::Best, Wanted::HeldOut).0, 0, "of the test images alone");
    }

    #[test]
    fn training_images_are_left_out_and_new_ones_are_not() {
        let own = [(Test, Some(Train)), (Train, Some(Test)), (Train, None), (Test, Some(Val))];
        let data = measured(SplitOrigin::Made, &own, true);
        let held_out = data.positions(Wanted::HeldOut).expect("some");
        assert_eq!(held_out, [1, 2]);
        assert_eq!(data.positions(Wanted::Split(Train)).expect("one"), [0]);
        assert_eq!(data.positions(Wanted::Split(Val)).expect("one"), [3]);
        assert_eq!(data.positions(Wanted::All).expect("all"), [0, 1, 2, 3]);
        assert_eq!(data.halves(), (vec![0], vec![1, 2]));
        let standing = data.standing(&held_out);
        let expected = Standing { held_out: 1, new: Some(1), left_out: 2, ..Standing::default() };
        assert_eq!(standing, expected);
        let text = "measured on 1 image that the run held out, 1 image that the run never saw; \
                    2 images not measured";
        assert_eq!(standing.describe(), text);
        let earlier = Standing { in_earlier_training: 1, ..standing };
        assert!(
            earlier
                .describe()
                .ends_with("; 1 image in the training of a run that the weights come from")
        );

        let given = measured(SplitOrigin::Given, &own, true);
        let text = given.standing(&held_out).describe();
        let twin =
            "; 1 image that is held out here has the content of training images and counts as such";
        assert!(text.ends_with(twin), "{text}");

        let own = [(Test, Some(Train)), (Train, Some(Val))];
        let data = measured(SplitOrigin::Made, &own, true);
        assert_eq!(data.positions(Wanted::HeldOut).expect("some"), [1], "no test split: val");

        let data = measured(SplitOrigin::Made, &[(Test, Some(Train)), (Train, Some(Train))], true);
        let error = data.positions(Wanted::HeldOut).expect_err("nothing is held out");
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("trained on every image there"), "{error}");
        assert_eq!(data.halves(), (vec![1], vec![0]), "the data's own split");
    }

    #[test]
    fn data_that_the_run_never_saw_is_measured_whole() {
        let data = measured(SplitOrigin::Given, &[(Train, None), (Test, None)], true);
        let all = data.positions(Wanted::HeldOut).expect("all");
        assert_eq!(all, [0, 1]);
        assert_eq!(data.standing(&all).describe(), "measured on 2 images that the run never saw");
        assert_eq!(data.positions(Wanted::Split(Test)).expect("one"), [1]);
        assert_eq!(data.halves(), (vec![0], vec![1]));
    }

    #[test]
    fn a_model_without_its_run_has_only_the_datas_own_split() {
        let given =
            measured(SplitOrigin::Given, &[(Train, None), (Test, None), (Val, None)], false);
        let test = given.positions(Wanted::HeldOut).expect("one");
        assert_eq!(test, [1]);
        assert!(given.standing(&test).describe().contains("not known; 2 images not measured"));
        let drawn = measured(SplitOrigin::Made, &[(Train, None), (Test, None)], false);
        assert_eq!(drawn.positions(Wanted::HeldOut).expect("all"), [0, 1]);
    }
}
