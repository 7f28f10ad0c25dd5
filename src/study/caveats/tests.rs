use std::path::Path;

use super::super::results::tests::entry;
use super::*;
use crate::config::{Layers, Source};
use crate::data::digest::Digest;
use crate::report::facts::WeightsFile;
use crate::study::Choices;

fn study() -> Study {
    let text = "name = 'x'\n[[data]]\nname = 'flowers'\npath = 'f'\ntrain = 2040\ntest = 60\nclasses = 5\n\
                [[rows]]\nname = 'idmm'\nfrom = 'random'\n";
    Study::parse(text, Path::new("x.toml")).expect("a study")
}

fn finished() -> Finished {
    Finished {
        row: 0,
        column: 0,
        before: None,
        data: crate::report::tests::sample(5, 12),
        images: Images { all: Digest::of(b"all"), held_out: Digest::of(b"some") },
    }
}

#[test]
fn a_shortened_schedule_is_said() {
    assert_eq!(shortened(1.0, &[entry(&[1.0], Some(2.0))]), None);
    let text = shortened(0.07, &[entry(&[1.0], Some(2.0))]).expect("a note");
    assert!(text.contains("has 7% of its epochs, rounded up"), "{text}");
    assert!(text.contains("--scale 0.07") && text.contains("says nothing"), "{text}");
    let text = shortened(0.5, &[entry(&[1.0], None)]).expect("a note");
    assert!(!text.contains("paper"), "{text}");
}

#[test]
fn settings_from_the_command_line_are_said() {
    let grid = |set: &str| {
        let base = |recipe: &str| {
            let mut layers = Layers::new(recipe)?;
            layers.set(set, Source::Flag("--set"))?;
            Ok(layers)
        };
        Grid::new(&study(), &Choices::default(), &base).expect("a grid")
    };
    let rows = [entry(&[1.0], Some(2.0))];
    let text = beside(&grid("finetune.optim.lr=0.002"), &rows).expect("a note");
    assert!(
        text.starts_with("Not as the study says: finetune.optim.lr = 0.002 (--set)."),
        "{text}"
    );
    assert!(text.contains("says nothing of the method"), "{text}");
    assert_eq!(beside(&grid("threads=1"), &rows), None);
}

#[test]
fn other_numbers_of_images_than_the_papers_are_said() {
    let mut run = finished();
    assert_eq!(other_numbers(&study(), &run), None);
    run.data.data.train_images = 1020;
    let note = other_numbers(&study(), &run).expect("a note");
    assert!(note.contains("1020 training images, 60 test images, 5 classes here"), "{note}");
    let past =
        Past { data: Some(("jpg".to_owned(), 7)), stages: Vec::new(), from: Provenance::Random };
    let file = WeightsFile { path: String::new(), sha256: None, taken: None, head: None };
    run.data.provenance = Provenance::Run(file, Box::new(past));
    assert_eq!(other_pretraining(&study(), &run), None, "no run of the study");
    run.before = Some("flowers".to_owned());
    assert_eq!(
        other_pretraining(&study(), &run).as_deref(),
        Some("Pre-trained on 7 images of flowers, the paper on 2040.")
    );
}

#[test]
fn what_a_report_says_against_its_number_the_table_says() {
    let mut run = finished();
    let data = &mut run.data.data;
    (data.leaks, data.bad_images, data.seen_before, data.split_made) = (0, 0, 0, false);
    data.test_split = "test".to_owned();
    run.data.test_use = TestUse::Once;
    let all = |run: &Finished| [of_images(&study(), run), of_measurement(&study(), run)].concat();
    assert_eq!(all(&run), Vec::<String>::new());

    let data = &mut run.data.data;
    (data.leaks, data.bad_images, data.seen_before, data.split_made) = (1, 2, 3, true);
    data.test_split = "val".to_owned();
    let by = ("val".to_owned(), 60);
    run.data.test_use = TestUse::Chosen(Choice { epoch: 1, measured: 2, by, same: true });
    let text = all(&run).join("\n");
    for said in [
        "flowers: the numbers are of the val images",
        "flowers came without a split",
        "flowers: 1 val image is a copy of a training image",
        "flowers: 2 image files that could not be read were left out",
        "idmm on flowers: 3 images of the val split served to train",
        "idmm on flowers: the epoch was chosen by the very images",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
}

#[test]
fn an_interval_is_given_the_test_images_only_where_they_are_the_same() {
    let rows = [entry(&[78.0, 80.0], None)];
    let (one, mut two) = (finished(), finished());
    let notes = intervals(&study(), &rows, &[finished(), finished()]);
    assert!(notes[0].ends_with("given the images that they are measured on."), "{notes:?}");
    two.images.held_out = Digest::of(b"others");
    let notes = intervals(&study(), &rows, &[one, two]);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].starts_with("On flowers each seed also drew"), "{notes:?}");
    let notes = intervals(&study(), &[entry(&[78.0], None)], &[finished()]);
    assert!(notes[0].contains("of a single run is Wilson's"), "{notes:?}");
}
