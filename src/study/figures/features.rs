//! Figure 2: features of test images before and after fine-tuning, in the plane.

use std::path::Path;

use super::chart::{Cloud, Clouds};
use super::pca::pca;
use super::tsne::{self, tsne};
use super::{first_cells, shortened, write_csv};
use crate::config::OnBadImage;
use crate::engine::Machine;
use crate::error::{Error, Result};
use crate::eval::infer::Inference;
use crate::report::plots;
use crate::run::frozen::{self, Hints};
use crate::run::measured::{self, Wanted};
use crate::run::prepare::decode_sample;
use crate::study::{Grid, Place, Study};
use crate::words::counted;

/// Classes that are shown, the first ones.
const CLASSES: usize = 10;

/// Images of the first ten classes that a run held out.
struct Shown {
    samples: Vec<crate::data::Sample>,
    labels: Vec<usize>,
}

/// Draws the features of every finished row that was pre-trained here: `fig2-tsne` and `fig2-pca` as PNG
/// and SVG, `fig2.csv`. `note` hears of each row.
///
/// # Errors
/// No row is finished, a run or its data cannot be read, or the folder cannot be written.
pub fn features(
    study: &Study,
    grid: &Grid,
    place: &Place,
    machine: &Machine,
    note: &dyn Fn(&str),
) -> Result<()> {
    let (mut rows, mut clouds) = (Vec::new(), [Vec::new(), Vec::new()]);
    let cells = first_cells(grid, place)?;
    for cell in &cells {
        let (row, job) = (&study.rows[cell.row], &grid.jobs[cell.job]);
        let (Some(parent), Some(data)) = (grid.parent(cell.job), grid.data.get(&job.data)) else {
            note(&format!("{} starts from no run of the study, so it is not drawn", row.title()));
            continue;
        };
        let runs = [("before", place.run(&grid.jobs[parent])), ("after", place.run(job))];
        let shown = shown(&runs[1].1, data, machine.threads)?;
        for (when, run) in runs {
            note(&format!("{}, {when} fine-tuning: {} images", row.title(), shown.labels.len()));
            let points = of(&run, &shown, machine)?;
            let places = [tsne(&points), pca(&points)];
            for (i, sample) in shown.samples.iter().enumerate() {
                let [t, p] = [places[0][i], places[1][i]];
                let mut line = vec![row.name.clone(), when.to_owned(), sample.id.clone()];
                line.push(shown.labels[i].to_string());
                line.extend([t[0], t[1], p[0], p[1]].map(|value| format!("{value:.6}")));
                line.push(grid.scale.to_string());
                rows.push(line);
            }
            for (clouds, places) in clouds.iter_mut().zip(places) {
                let points = places.into_iter().zip(shown.labels.iter().copied()).collect();
                clouds
                    .push(Cloud { title: format!("{}, {when} fine-tuning", row.title()), points });
            }
        }
    }
    if rows.is_empty() {
        return Err(Error::Failed("no row that was pre-trained here is done yet".to_owned()));
    }
    let data = cells.first().map_or("", |cell| study.data[cell.column].title());
    let drawn = [("fig2-tsne", "t-SNE"), ("fig2-pca", "principal components")];
    for ((file, how), clouds) in drawn.into_iter().zip(clouds) {
        let images = clouds.first().map_or(0, |cloud: &Cloud| cloud.points.len());
        let mut classes: Vec<usize> =
            clouds.iter().flat_map(|cloud| cloud.points.iter().map(|point| point.1)).collect();
        classes.sort_unstable();
        classes.dedup();
        let what = format!(
            "{data}: {how} of {} of {}",
            counted(images, "held-out image"),
            counted(classes.len(), "class")
        );
        let caption = [Some(what), shortened(grid.scale)].into_iter().flatten().collect();
        plots::save(&place.root().join(file), &Clouds { clouds, columns: 2, caption })?;
    }
    let header = ["row", "when", "file", "class", "tsne_x", "tsne_y", "pca_x", "pca_y", "scale"];
    write_csv(&place.root().join("fig2.csv"), &header, &rows)
}

/// The images of the data at `data` that `run` held out, of the first classes.
fn shown(run: &Path, data: &Path, threads: usize) -> Result<Shown> {
    let (measured, _) = measured::open(run, data, OnBadImage::Skip, threads)?;
    let samples = &measured.manifest.samples;
    let positions = measured.positions(Wanted::HeldOut)?;
    let of_first = |i: &usize| samples[*i].label.is_some_and(|label| label < CLASSES);
    let positions: Vec<usize> = positions.into_iter().filter(of_first).collect();
    // Evenly over the list, which is sorted by class.
    let kept = positions.len().min(tsne::MOST);
    let some: Vec<_> =
        (0..kept).map(|i| samples[positions[i * positions.len() / kept]].clone()).collect();
    let labels = some.iter().filter_map(|sample| sample.label).collect();
    Ok(Shown { samples: some, labels })
}

/// Features of the images by the model of a run, at the size that it was trained at.
fn of(run: &Path, shown: &Shown, machine: &Machine) -> Result<Vec<Vec<f64>>> {
    let frozen = frozen::open(run, &Hints { model: None, img_size: None }, machine)?;
    let inference = Inference { model: &*frozen.model, view: frozen.view, machine };
    let image = |i: usize| decode_sample(&shown.samples[i], frozen.view.depth);
    let outputs = inference.run(shown.samples.len(), &image)?;
    let dim = outputs.features.len() / shown.samples.len().max(1);
    let row = |row: &[f32]| row.iter().map(|&value| f64::from(value)).collect();
    Ok(outputs.features.chunks_exact(dim.max(1)).map(row).collect())
}
