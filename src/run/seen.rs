//! Which images of a data set a run has seen, and in which of its splits.
//!
//! An image is recognised by its content, whatever its name is now. Where most images under known
//! names have the known content, the data is that of the run, and one of other content counts as that
//! image edited; otherwise equal names mean nothing.

use std::collections::{HashMap, HashSet};

use toml::{Table, Value};

use super::folder::Folder;
use super::provenance;
use crate::data::digest::Digest;
use crate::data::split::{self, Listed};
use crate::data::{Sample, Split};
use crate::error::Result;
use crate::method::{self, Kind};
use crate::report::facts::Provenance;
use crate::words::counted;

/// An image that this run did not train on, but an earlier one did whose weights it started from.
const TRAINED_BEFORE: Known = Known { split: Split::Train, labelled: true, trained: true };

/// The images of a run.
pub struct Seen {
    by_digest: HashMap<Digest, Known>,
    by_id: HashMap<String, Listed>,
    /// Whether the run pre-trained without labels, and so on training images that have none, too.
    pretrained: bool,
    /// Digests of the images that earlier runs trained on, whose weights this run started from.
    earlier: HashSet<Digest>,
    /// Folder of such a run that is not there any more, so that its images are not known.
    lost: Option<String>,
}

/// What a run lists of an image.
#[derive(Clone, Copy)]
struct Known {
    split: Split,
    labelled: bool,
    /// Whether the run trained on it.
    trained: bool,
}

impl Known {
    /// The image in a run that looked at training images without a label, too, if it `pretrained`.
    fn of(listed: &Listed, pretrained: bool) -> Self {
        let (split, labelled) = (listed.split, listed.class.is_some());
        Self { split, labelled, trained: split == Split::Train && (labelled || pretrained) }
    }

    fn is_unlabelled(self) -> bool {
        self.split == Split::Train && !self.labelled
    }

    /// Order of preference among images with the same content: trained on with its label, trained on without one,
    /// held out, not used.
    fn rank(self) -> impl Ord {
        (self.trained, self.trained && self.labelled, self.split != Split::Train)
    }
}

/// What a run knows of the images of a data set.
#[derive(Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The run's split of each image; `None` for images that the run does not list.
    pub splits: Vec<Option<Split>>,
    /// Whether the image is a training image of the run that had no label there.
    pub unlabelled: Vec<bool>,
    /// Whether the run pre-trained without labels, and so on those, too.
    pub pretrained: bool,
    /// Whether a run that the weights come from trained on the image.
    pub earlier: Vec<bool>,
    /// Whether this run or one of those trained on the image, with its label or without.
    pub trained: Vec<bool>,
    /// Images that have the name of one that the run saw, but other content.
    pub edited: usize,
    /// Whether those count as the run's images.
    pub as_edited: bool,
    /// Folder of an earlier run whose images are not known, since it is not there any more.
    pub lost: Option<String>,
}

impl Seen {
    /// Those that the run in `folder` lists, and what was trained on in the runs that its weights
    /// come from.
    ///
    /// # Errors
    /// `splits.csv` or `run.json` cannot be read.
    pub fn read(folder: &Folder) -> Result<Self> {
        let request = folder.request()?;
        let pretrained = request.pretrain && learns_without_labels(&folder.read_settings()?);
        let mut seen = Self::of(split::read_csv(&folder.join("splits.csv"))?, pretrained);
        match request.init.as_ref().and_then(|init| Folder::around(init)) {
            Some(earlier) if earlier.root() != folder.root() => {
                let earlier = Self::read(&earlier)?;
                let images = earlier.by_digest.into_iter();
                let trained = images.filter(|(_, image)| image.trained);
                seen.earlier.extend(trained.map(|(digest, _)| digest).chain(earlier.earlier));
                seen.lost = earlier.lost;
            }
            Some(_) => {}
            None => {
                if let Provenance::Run(weights, _) = provenance::read(folder, &request)? {
                    seen.lost = Some(weights.path);
                }
            }
        }
        Ok(seen)
    }

    fn of(listed: Vec<Listed>, pretrained: bool) -> Self {
        let mut by_digest: HashMap<Digest, Known> = HashMap::new();
        for image in &listed {
            let Some(digest) = &image.digest else { continue };
            let image = Known::of(image, pretrained);
            let known = by_digest.entry(digest.clone()).or_insert(image);
            if image.rank() > known.rank() {
                *known = image;
            }
        }
        let by_id = listed.into_iter().map(|listed| (listed.id.clone(), listed)).collect();
        Self { by_digest, by_id, pretrained, earlier: HashSet::new(), lost: None }
    }

    /// What the run knows of the samples, whose content is `digests`.
    pub fn recognise(&self, samples: &[&Sample], digests: &[Option<Digest>]) -> Recognised {
        let mut known: Vec<Option<Known>> = Vec::with_capacity(samples.len());
        let (mut edited, mut kept) = (Vec::new(), 0);
        let earlier =
            digests.iter().map(|digest| digest.as_ref().is_some_and(|d| self.earlier.contains(d)));
        let earlier: Vec<bool> = earlier.collect();
        for (i, (sample, digest)) in samples.iter().zip(digests).enumerate() {
            let same = digest.as_ref().and_then(|digest| self.by_digest.get(digest).copied());
            let named = self.by_id.get(&sample.id);
            let unchanged = named.filter(|named| digest.is_some() && named.digest == *digest);
            kept += usize::from(unchanged.is_some());
            // Of images with the same content that were not trained on, each is the one of its own name.
            let same = match unchanged {
                Some(named) if same.is_some_and(|same| !same.trained) => {
                    Some(Known::of(named, self.pretrained))
                }
                _ => same.or(earlier[i].then_some(TRAINED_BEFORE)),
            };
            known.push(same.or_else(|| {
                let named = named?;
                match named.digest {
                    // A run of an earlier version, or a file that cannot be read: names are all
                    // there is.
                    None => Some(Known::of(named, self.pretrained)),
                    Some(_) if digest.is_none() => Some(Known::of(named, self.pretrained)),
                    Some(_) => {
                        edited.push((i, Known::of(named, self.pretrained)));
                        None
                    }
                }
            }));
        }
        let count = edited.len();
        let as_edited = kept >= count;
        if as_edited {
            edited.into_iter().for_each(|(i, image)| known[i] = Some(image));
        }
        let trained = |(known, &earlier): (&Option<Known>, &bool)| {
            earlier || known.is_some_and(|known| known.trained)
        };
        Recognised {
            trained: known.iter().zip(&earlier).map(trained).collect(),
            splits: known.iter().map(|known| known.map(|known| known.split)).collect(),
            unlabelled: known.iter().map(|known| known.is_some_and(Known::is_unlabelled)).collect(),
            pretrained: self.pretrained,
            earlier,
            edited: count,
            as_edited,
            lost: self.lost.clone(),
        }
    }
}

/// Whether the method of pre-training in a run's `settings` learns from images without a label.
fn learns_without_labels(settings: &Table) -> bool {
    let method = settings.get("pretrain").and_then(|stage| stage.get("method"));
    let entry = method.and_then(Value::as_str).map(method::entry);
    !matches!(entry, Some(Ok(entry)) if entry.kind != Kind::SelfSupervised)
}

impl Recognised {
    /// Whether the run saw any of the images.
    pub fn any(&self) -> bool {
        self.splits.iter().any(Option::is_some)
    }

    /// Images that the run had in `split`; `None` counts those it does not list.
    pub fn count(&self, split: Option<Split>) -> usize {
        self.splits.iter().filter(|&&of| of == split).count()
    }

    /// What there is to say of names that misled and of runs that are not there any more.
    pub fn notes(&self) -> Vec<String> {
        let images = counted(self.edited, "image");
        let edited = match (self.edited, self.as_edited) {
            (0, _) => None,
            (_, true) => Some(format!(
                "{images} of other content than in the run under the same name: counted as edited \
                 copies, in the split that the run had them in"
            )),
            (_, false) => Some(format!(
                "{images} under the name of one that the run saw, but of other content, as most are: \
                 counted as new. If these are the run's images saved anew, the figures are too good"
            )),
        };
        let lost = self.lost.as_ref().map(|run| {
            format!(
                "the weights come from the run {run}, which is not there any more, so it is not known which of these                  images that run trained on: the figures may be too good"
            )
        });
        edited.into_iter().chain(lost).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;

    fn listed(id: &str, content: Option<&str>, split: Split) -> Listed {
        let digest = content.map(|content| Digest::of(content.as_bytes()));
        Listed { id: id.to_owned(), class: Some((0, "a".to_owned())), split, digest }
    }

    fn recognised(run: Vec<Listed>, pretrained: bool, data: &[(&str, &str)]) -> Recognised {
        let sample = |id: &str| Sample {
            id: id.to_owned(),
            origin: Origin::File(id.into()),
            label: None,
            split: Split::Train,
            treatment: Default::default(),
        };
        let samples: Vec<_> = data.iter().map(|(id, _)| sample(id)).collect();
        let digests: Vec<_> =
            data.iter().map(|(_, content)| Some(Digest::of(content.as_bytes()))).collect();
        Seen::of(run, pretrained).recognise(&samples.iter().collect::<Vec<_>>(), &digests)
    }

    #[test]
    fn content_counts_before_names() {
        use Split::{Test, Train};
        let run = || {
            vec![
                listed("a/1", Some("one"), Train),
                listed("a/2", Some("two"), Test),
                listed("a/3", Some("three"), Train),
                listed("b/3", Some("three"), Test),
            ]
        };
        let renamed = recognised(run(), false, &[("x", "one"), ("y", "two"), ("b/3", "three")]);
        assert_eq!(renamed.splits, [Some(Train), Some(Test), Some(Train)], "a leak was trained on");
        assert_eq!(renamed.notes(), Vec::<String>::new());

        let edited =
            recognised(run(), false, &[("a/1", "one, cropped"), ("a/2", "two"), ("c", "new")]);
        assert_eq!(edited.splits, [Some(Train), Some(Test), None]);
        assert!(edited.notes()[0].contains("1 image of other content"));

        let chance =
            recognised(run(), false, &[("a/1", "a dog"), ("a/2", "a cat"), ("a/3", "three")]);
        assert_eq!(chance.splits, [None, None, Some(Train)], "one in common is no reason");

        let other = recognised(run(), false, &[("a/1", "a dog"), ("a/2", "a cat")]);
        assert_eq!((other.splits.clone(), other.any()), (vec![None, None], false));
        assert!(other.notes()[0].contains("too good"));
        assert_eq!(other.count(None), 2);
    }

    #[test]
    fn an_image_without_a_label_was_trained_on_where_the_run_pretrained() {
        let unlabelled =
            |id, content| Listed { class: None, ..listed(id, Some(content), Split::Train) };
        let run = || {
            vec![
                listed("a/1", Some("one"), Split::Train),
                unlabelled("a/2", "two"),
                unlabelled("a/3", "one"),
                unlabelled("a/4", "four"),
                listed("a/5", Some("four"), Split::Test),
            ]
        };
        let data =
            [("a/1", "one"), ("a/2", "two"), ("a/5", "four"), ("new", "new"), ("a/4", "four")];
        let found = recognised(run(), true, &data);
        assert_eq!(found.trained, [true, true, true, false, true]);
        assert_eq!(found.unlabelled, [false, true, true, false, true]);

        let found = recognised(run(), false, &data);
        assert_eq!(found.trained, [true, false, false, false, false]);
        assert_eq!(found.unlabelled, [false, true, false, false, true]);
        assert_eq!(found.splits[2], Some(Split::Test), "its twin in training was not used");
    }

    #[test]
    fn a_method_that_learns_from_labels_leaves_images_without_one_alone() {
        let learns = |method: &str| {
            let settings = format!("pretrain.method = '{method}'");
            learns_without_labels(&settings.parse().expect("TOML"))
        };
        assert_eq!(
            ["idmm", "dino", "supcon", "supervised"].map(learns),
            [true, true, false, false]
        );
    }

    #[test]
    fn what_earlier_runs_trained_on_was_trained_on() {
        let digests = ["one", "two", "four"].map(|content| Some(Digest::of(content.as_bytes())));
        let mut seen = Seen::of(vec![listed("a/1", Some("one"), Split::Test)], false);
        seen.earlier = digests[..2].iter().flatten().cloned().collect();
        let sample = |id: &str| Sample {
            id: id.to_owned(),
            origin: Origin::File(id.into()),
            label: None,
            split: Split::Test,
            treatment: Default::default(),
        };
        let samples = ["a/1", "b/2", "b/3"].map(sample);
        let found = seen.recognise(&samples.iter().collect::<Vec<_>>(), &digests);
        assert!(found.notes().is_empty());
        seen.lost = Some("runs/first".to_owned());
        let without = seen.recognise(&samples.iter().collect::<Vec<_>>(), &digests);
        assert!(without.notes()[0].contains("the run runs/first, which is not there any more"));
        assert_eq!(found.splits, [Some(Split::Test), Some(Split::Train), None]);
        assert_eq!(found.earlier, [true, true, false]);
        assert_eq!(found.trained, [true, true, false]);
    }

    #[test]
    fn runs_without_digests_are_recognised_by_name() {
        let run = vec![listed("a/1", None, Split::Train), listed("a/2", None, Split::Val)];
        let found = recognised(run, false, &[("a/2", "two"), ("a/3", "three")]);
        assert_eq!((found.splits, found.edited), (vec![Some(Split::Val), None], 0));
    }
}
