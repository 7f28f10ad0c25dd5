//! The images of an earlier run: the same files with the same content, wherever they lie now.

use std::path::Path;

use super::folder::{Folder, Found};
use super::forecast::Forecast;
use super::prepare::{self, Prepared};
use super::{Request, Ui};
use crate::config::RunConfig;
use crate::data::data_report::DataReport;
use crate::data::locate::locate;
use crate::data::look;
use crate::data::split::{self, Listed};
use crate::data::{Manifest, Sample, Treatment};
use crate::error::{Error, Result};
use crate::files::{DAMAGED, read_json};
use crate::words::{counted, shortened};

/// The data of an earlier run, with the very same images and splits. How the data lies is not
/// looked at again: files that were added since do not matter.
///
/// # Errors
/// An image is gone or has another content than when the run began.
pub fn reopen(
    request: &Request,
    config: &RunConfig,
    folder: &Folder,
    ui: &dyn Ui,
) -> Result<Prepared> {
    let listed = split::read_csv(&folder.join("splits.csv"))?;
    let Found { data_name, split_origin, seen_before, .. } = found(folder)?;
    let report: DataReport = read_json(&folder.join("data_report.json"), DAMAGED)?;
    let samples = samples(&request.data, &listed, folder, report.treatment)?;
    let manifest = Manifest { name: data_name, classes: classes(folder)?, samples, split_origin };
    let keeping = prepare::keeping(config);
    let pass = prepare::pass(&manifest, config, &keeping, ui)?;
    let digest = |found: &look::Found| found.as_ref().ok().map(|look| look.digest.clone());
    let digests: Vec<_> = pass.found.iter().map(digest).collect();
    let changed =
        listed.iter().zip(&digests).filter(|(l, now)| l.digest.is_some() && l.digest != **now);
    let changed: Vec<String> = changed.map(|(listed, _)| listed.id.clone()).collect();
    if !changed.is_empty() {
        return Err(Error::Data(format!(
            "{} changed since the run {} began: {}\n  put the originals back (--data NEW_PLACE \
             takes them from elsewhere), or start a new run",
            counted(changed.len(), "image"),
            folder.root().display(),
            shortened(&changed)
        )));
    }
    let images = {
        let manifest = manifest.clone();
        move |train: &[usize]| pass.store(&manifest, train, &keeping)
    };
    let data = prepare::prepared(request, config, (manifest, digests, report), images)?;
    Ok(Prepared { seen_before, ..data })
}

/// What the run found when it began.
fn found(folder: &Folder) -> Result<Found> {
    folder.read_found()?.ok_or_else(|| {
        Error::Failed(format!(
            "{} was begun by an earlier version of fewvit, which did not write down all that this \
             one needs to go on with it\n  finish it with that version (env.json names it), or \
             start it again",
            folder.root().display()
        ))
    })
}

fn samples(
    data: &Path,
    listed: &[Listed],
    folder: &Folder,
    treatment: Treatment,
) -> Result<Vec<Sample>> {
    let hint = format!(
        "if the images lie elsewhere now: fewvit resume {} --data NEW_PLACE",
        folder.root().display()
    );
    if !data.exists() {
        return Err(Error::Data(format!("{} is no longer there\n  {hint}", data.display())));
    }
    let ids: Vec<&str> = listed.iter().map(|listed| listed.id.as_str()).collect();
    let (mut samples, mut gone) = (Vec::new(), Vec::new());
    for (listed, origin) in listed.iter().zip(locate(data, &ids)?) {
        let Some(origin) = origin else {
            gone.push(listed.id.clone());
            continue;
        };
        let label = listed.class.as_ref().map(|(label, _)| *label);
        samples.push(Sample {
            id: listed.id.clone(),
            origin,
            label,
            split: listed.split,
            treatment,
        });
    }
    if gone.is_empty() {
        return Ok(samples);
    }
    let [are, them] = if gone.len() == 1 { ["is", "it"] } else { ["are", "them"] };
    Err(Error::Data(format!(
        "{}: {} of the run {are} no longer there: {}\n  put {them} back; {hint}",
        data.display(),
        counted(gone.len(), "image"),
        shortened(&gone)
    )))
}

/// The run's classes, index = label.
///
/// # Errors
/// `classes.txt` cannot be read.
pub fn classes(folder: &Folder) -> Result<Vec<String>> {
    let path = folder.join("classes.txt");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    Ok(text.lines().map(str::to_owned).collect())
}

impl Found {
    /// What a run finds in its images, and what its time allows.
    pub fn of(data: &Prepared, forecast: &Forecast) -> Self {
        Self {
            data_name: data.manifest.name.clone(),
            split_origin: data.manifest.split_origin,
            seen_before: data.seen_before,
            decided: forecast.decided.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, SplitOrigin};
    use crate::report::facts::{Decided, ManyLabels, Smaller};

    #[test]
    fn images_that_are_gone_are_counted_in_plain_words() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::create(Some(&place.path().join("run")), "x").expect("a new folder");
        let data = place.path().join("photos");
        std::fs::create_dir(&data).expect("made");
        std::fs::write(data.join("here.jpg"), "x").expect("written");
        let entry =
            |id: &str| Listed { id: id.to_owned(), class: None, split: Split::Train, digest: None };
        let said = |ids: &[&str]| {
            let listed: Vec<Listed> = ids.iter().copied().map(entry).collect();
            let found = samples(&data, &listed, &folder, Treatment::default());
            found.expect_err("images are gone").to_string()
        };
        let one = said(&["here.jpg", "1.jpg"]);
        let part = "1 image of the run is no longer there: 1.jpg\n  put it back";
        assert!(one.contains(part), "{one}");
        let two = said(&["here.jpg", "1.jpg", "2.jpg"]);
        let part = "2 images of the run are no longer there: 1.jpg, 2.jpg\n  put them back";
        assert!(two.contains(part), "{two}");
    }

    #[test]
    fn what_was_decided_stays_in_the_run() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::create(Some(&place.path().join("run")), "x").expect("a new folder");
        let request = Request {
            data: "/photos".into(),
            pretrain: false,
            finetune: true,
            init: None,
            command: Vec::new(),
            sources: Default::default(),
        };
        let smaller = Smaller {
            name: "small".to_owned(),
            instead_of: "large".to_owned(),
            steps: 100,
            least: 2000,
        };
        let alone = ManyLabels { labelled: 30, images: 40, most: 4 };
        let without_pretraining = Some(alone);
        let decided = Decided { smaller: Some(smaller), without_pretraining, ..Decided::default() };
        let found = Found {
            data_name: "photos".to_owned(),
            split_origin: SplitOrigin::Given,
            seen_before: 0,
            decided,
        };
        folder.write_run(&request, &found).expect("written");
        assert_eq!(folder.read_found().expect("readable"), Some(found.clone()));
        // A run of an earlier version says nothing of it.
        let path = folder.join(crate::files::RUN);
        let text = std::fs::read_to_string(&path).expect("there");
        let mut old: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        old["found"].as_object_mut().expect("an object").remove("decided").expect("there");
        std::fs::write(&path, old.to_string()).expect("written");
        let silent = Found { decided: Decided::default(), ..found };
        assert_eq!(folder.read_found().expect("readable"), Some(silent));
    }
}
