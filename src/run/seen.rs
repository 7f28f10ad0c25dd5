//! Which images of a data set a run has seen, and in which of its splits.
//!
//! An image is recognised by its content, whatever its name is now. Where most images under known
//! names have the known content, the data is that of the run, and one of other content counts as that
//! image edited; otherwise equal names mean nothing.

use std::collections::{HashMap, HashSet};

use super::folder::Folder;
use crate::data::digest::Digest;
use crate::data::split::{self, Listed};
use crate::data::words::counted;
use crate::data::{Sample, Split};
use crate::error::Result;

/// The images of a run.
pub struct Seen {
    by_digest: HashMap<Digest, Split>,
    by_id: HashMap<String, Listed>,
    /// Content that the runs trained on which the run's weights come from.
    earlier: HashSet<Digest>,
}

/// What a run knows of the images of a data set.
#[derive(Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The run's split of each image; `None` for images that the run never saw.
    pub splits: Vec<Option<Split>>,
    /// Whether a run that the weights come from trained on the image.
    pub earlier: Vec<bool>,
    /// Images that have the name of one that the run saw, but other content.
    pub edited: usize,
    /// Whether those count as the run's images.
    pub as_edited: bool,
}

impl Seen {
    /// Those that the run in `folder` lists, and what was trained on in the runs that its weights
    /// come from. Only pre-training looks at training images without a label: where there was none,
    /// the run never saw them.
    ///
    /// # Errors
    /// `splits.csv` or `run.json` cannot be read.
    pub fn read(folder: &Folder) -> Result<Self> {
        let request = folder.request()?;
        let mut listed = split::read_csv(&folder.join("splits.csv"))?;
        if !request.pretrain {
            listed.retain(|image| image.split != Split::Train || image.class.is_some());
        }
        let mut seen = Self::of(listed);
        let earlier = request.init.and_then(|init| Folder::around(&init));
        if let Some(earlier) = earlier.filter(|earlier| earlier.root() != folder.root()) {
            let earlier = Self::read(&earlier)?;
            let trained = earlier.by_digest.into_iter().filter(|(_, split)| *split == Split::Train);
            seen.earlier.extend(trained.map(|(digest, _)| digest).chain(earlier.earlier));
        }
        Ok(seen)
    }

    fn of(listed: Vec<Listed>) -> Self {
        let mut by_digest = HashMap::new();
        for Listed { digest, split, .. } in &listed {
            let Some(digest) = digest else { continue };
            let known = by_digest.entry(digest.clone()).or_insert(*split);
            // One picture in two splits was trained on.
            if *split == Split::Train {
                *known = Split::Train;
            }
        }
        let by_id = listed.into_iter().map(|listed| (listed.id.clone(), listed)).collect();
        Self { by_digest, by_id, earlier: HashSet::new() }
    }

    /// What the run knows of the samples, whose content is `digests`.
    pub fn recognise(&self, samples: &[&Sample], digests: &[Option<Digest>]) -> Recognised {
        let mut splits: Vec<Option<Split>> = Vec::with_capacity(samples.len());
        let (mut edited, mut kept) = (Vec::new(), 0);
        let earlier =
            digests.iter().map(|digest| digest.as_ref().is_some_and(|d| self.earlier.contains(d)));
        let earlier: Vec<bool> = earlier.collect();
        for (i, (sample, digest)) in samples.iter().zip(digests).enumerate() {
            let same = digest.as_ref().and_then(|digest| self.by_digest.get(digest).copied());
            let same = same.or(earlier[i].then_some(Split::Train));
            let named = self.by_id.get(&sample.id);
            kept += usize::from(digest.is_some() && named.is_some_and(|n| n.digest == *digest));
            splits.push(same.or_else(|| {
                let named = named?;
                match named.digest {
                    // A run of an earlier version, or a file that cannot be read: names are all
                    // there is.
                    None => Some(named.split),
                    Some(_) if digest.is_none() => Some(named.split),
                    Some(_) => {
                        edited.push((i, named.split));
                        None
                    }
                }
            }));
        }
        let count = edited.len();
        let as_edited = kept >= count;
        if as_edited {
            edited.into_iter().for_each(|(i, split)| splits[i] = Some(split));
        }
        Recognised { splits, earlier, edited: count, as_edited }
    }
}

impl Recognised {
    /// Whether the run saw any of the images.
    pub fn any(&self) -> bool {
        self.splits.iter().any(Option::is_some)
    }

    /// Images that the run had in `split`; `None` counts those it never saw.
    pub fn count(&self, split: Option<Split>) -> usize {
        self.splits.iter().filter(|&&of| of == split).count()
    }

    /// What there is to say of names that misled; `None` if there were none.
    pub fn note(&self) -> Option<String> {
        let images = counted(self.edited, "image");
        match (self.edited, self.as_edited) {
            (0, _) => None,
            (_, true) => Some(format!(
                "{images} of other content than in the run under the same name: counted as edited \
                 copies, in the split that the run had them in"
            )),
            (_, false) => Some(format!(
                "{images} under the name of one that the run saw, but of other content, as most are: \
                 counted as new. If these are the run's images saved anew, the figures are too good"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;

    fn listed(id: &str, content: Option<&str>, split: Split) -> Listed {
        let digest = content.map(|content| Digest::of(content.as_bytes()));
        Listed { id: id.to_owned(), class: None, split, digest }
    }

    fn recognised(run: Vec<Listed>, data: &[(&str, &str)]) -> Recognised {
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
        Seen::of(run).recognise(&samples.iter().collect::<Vec<_>>(), &digests)
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
        let renamed = recognised(run(), &[("x", "one"), ("y", "two"), ("b/3", "three")]);
        assert_eq!(renamed.splits, [Some(Train), Some(Test), Some(Train)], "a leak was trained on");
        assert_eq!(renamed.note(), None);

        let edited = recognised(run(), &[("a/1", "one, cropped"), ("a/2", "two"), ("c", "new")]);
        assert_eq!(edited.splits, [Some(Train), Some(Test), None]);
        assert!(edited.note().is_some_and(|note| note.contains("1 image of other content")));

        let chance = recognised(run(), &[("a/1", "a dog"), ("a/2", "a cat"), ("a/3", "three")]);
        assert_eq!(chance.splits, [None, None, Some(Train)], "one in common is no reason");

        let other = recognised(run(), &[("a/1", "a dog"), ("a/2", "a cat")]);
        assert_eq!((other.splits.clone(), other.any()), (vec![None, None], false));
        assert!(other.note().is_some_and(|note| note.contains("too good")));
        assert_eq!(other.count(None), 2);
    }

    #[test]
    fn what_earlier_runs_trained_on_was_trained_on() {
        let digests = ["one", "two", "four"].map(|content| Some(Digest::of(content.as_bytes())));
        let mut seen = Seen::of(vec![listed("a/1", Some("one"), Split::Test)]);
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
        assert_eq!(found.splits, [Some(Split::Test), Some(Split::Train), None]);
        assert_eq!(found.earlier, [true, true, false]);
    }

    #[test]
    fn runs_without_digests_are_recognised_by_name() {
        let run = vec![listed("a/1", None, Split::Train), listed("a/2", None, Split::Val)];
        let found = recognised(run, &[("a/2", "two"), ("a/3", "three")]);
        assert_eq!((found.splits, found.edited), (vec![Some(Split::Val), None], 0));
    }
}
