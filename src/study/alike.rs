//! Whether runs can stand in one table: on the same images, from the same given weights.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{From, Study};
use super::grid::{Cell, Grid};
use crate::data::Split;
use crate::data::digest::Digest;
use crate::data::split::{Listed, read_csv};
use crate::error::Result;
use crate::report::ReportData;

/// The images of a run, each known by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Digest over all of them, whatever their splits.
    pub all: Digest,
    /// Digest over those that were held out.
    pub held_out: Digest,
}

impl Images {
    /// Those of the run in `folder`.
    ///
    /// # Errors
    /// `splits.csv` cannot be read.
    pub fn of(folder: &Path) -> Result<Self> {
        Ok(Self::listed(&read_csv(&folder.join("splits.csv"))?))
    }

    fn listed(images: &[Listed]) -> Self {
        let over = |is: &dyn Fn(&Listed) -> bool| {
            let content = |image: &Listed| match &image.digest {
                Some(digest) => digest.as_str().to_owned(),
                None => image.id.clone(),
            };
            let mut lines: Vec<String> =
                images.iter().filter(|image| is(image)).map(content).collect();
            lines.sort_unstable();
            Digest::of(lines.join("\n").as_bytes())
        };
        Self { all: over(&|_| true), held_out: over(&|image| image.split != Split::Train) }
    }
}

/// What the first run of each kind had: another run is of the kind only if it had the same.
#[derive(Default)]
pub struct Kinds(BTreeMap<String, (String, String)>);

impl Kinds {
    /// What a finished run of `cell` has that is not as in the first run of its kind, in words; `None` if
    /// nothing is.
    pub fn other(
        &mut self,
        (study, grid, cell): (&Study, &Grid, &Cell),
        data: &ReportData,
        images: &Images,
    ) -> Option<String> {
        let job = &grid.jobs[cell.job];
        // Settings may take other images out of the same folder.
        let set = format!("data {} {:?}", cell.column, job.config.data);
        let mut had = vec![(set, images.all.as_str().to_owned(), "images")];
        let digest = data.provenance.file().and_then(|file| file.sha256.clone());
        if let (From::Weights(name), Some(digest)) = (&study.rows[cell.row].from, digest) {
            had.push((format!("weights {name}"), digest, "weights"));
        }
        let mut differs = None;
        for (kind, digest, what) in had {
            let first = self.0.entry(kind).or_insert((digest.clone(), job.name.clone()));
            if first.0 != digest {
                differs = Some(format!(
                    "seed {} is not counted: {} had other {what} than {}",
                    cell.seed, job.name, first.1
                ));
            }
        }
        differs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;
    use crate::report::facts::{Provenance, WeightsFile};
    use crate::study::Choices;

    fn images(of: &[(&str, Split)]) -> Images {
        let listed = |(content, split): &(&str, Split)| Listed {
            id: format!("{content}.jpg"),
            class: None,
            split: *split,
            digest: Some(Digest::of(content.as_bytes())),
        };
        Images::listed(&of.iter().map(listed).collect::<Vec<_>>())
    }

    #[test]
    fn other_images_and_other_weights_are_no_seeds_of_one_cell() {
        use Split::{Test, Train};
        let text = "name = 'x'\nseeds = [0, 1]\n[[data]]\nname = 'a'\npath = 'a'\n\
                    [[rows]]\nname = 'r'\nfrom.weights = 'w'\n";
        let study = Study::parse(text, Path::new("x.toml")).expect("a study");
        let grid = Grid::new(&study, &Choices::default(), &Layers::new).expect("a grid");
        let mut data = crate::report::tests::sample(5, 12);
        let file = |sha256: &str| {
            let sha256 = Some(sha256.to_owned());
            Provenance::File(WeightsFile { path: String::new(), sha256, taken: None, head: None })
        };
        data.provenance = file("aa");
        let mut kinds = Kinds::default();
        let mut other = |cell: usize, data: &ReportData, images: &Images| {
            kinds.other((&study, &grid, &grid.cells[cell]), data, images)
        };
        let first = images(&[("one", Train), ("two", Test)]);
        assert_eq!(other(0, &data, &first), None);
        let split = images(&[("two", Train), ("one", Test)]);
        assert!(split.held_out != first.held_out);
        assert_eq!(other(1, &data, &split), None, "another split of the same images");
        let new = images(&[("one", Train), ("three", Test)]);
        assert_eq!(
            other(1, &data, &new).as_deref(),
            Some("seed 1 is not counted: cells/r.a.seed-1 had other images than cells/r.a.seed-0")
        );
        data.provenance = file("bb");
        assert!(other(1, &data, &first).is_some_and(|why| why.contains("other weights than")));
    }
}
