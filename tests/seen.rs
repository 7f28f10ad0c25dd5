//! What a run knows of its images decides what is measured, and whether the run can go on.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{fewvit, flowers, run, stderr, tiny_run};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Class folders without a split: 12 classes of 5 images.
fn class_folders(folder: &Path) -> PathBuf {
    let photos = folder.join("photos");
    fs::rename(flowers(folder, 5).join("train"), &photos).expect("renamed");
    photos
}

/// Arguments that train on `data` into `folder/run`.
fn training(folder: &Path, data: &Path) -> Vec<String> {
    let (settings, out) = (tiny_run(folder), folder.join("run"));
    let args = ["train", text(data), "-c", text(&settings), "--output", text(&out)];
    let more = ["--model", "deit_micro_patch8_96", "--seed", "1"];
    args.iter().chain(&more).map(|arg| (*arg).to_owned()).collect()
}

fn trained(folder: &Path, data: &Path) -> PathBuf {
    let output = run([training(folder, data), vec!["--from-scratch".to_owned()]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    folder.join("run")
}

/// A run that was stopped after its first checkpoint.
fn stopped(folder: &Path, data: &Path) -> PathBuf {
    let long = ["--epochs", "100000", "--from-scratch", "--yes"].map(str::to_owned);
    let args = [training(folder, data), long.to_vec()].concat();
    let mut child = fewvit(args).stderr(Stdio::null()).spawn().expect("started");
    let run = folder.join("run");
    while !run.join("checkpoints/last.safetensors").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("ended");
    run
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).expect("one object")
}

/// Rows of the run's `splits.csv` in a split.
fn listed(run: &Path, split: &str) -> Vec<String> {
    let table = fs::read_to_string(run.join("splits.csv")).expect("there");
    let rows = table.lines().filter(|row| row.split(',').nth(3) == Some(split));
    rows.map(|row| row.split(',').next().expect("a file").to_owned()).collect()
}

#[test]
fn eval_measures_what_the_run_held_out_wherever_it_lies() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    let run_folder = trained(folder.path(), &data);
    let own: Value =
        serde_json::from_slice(&fs::read(run_folder.join("report.json")).expect("there"))
            .expect("JSON");
    let held_out = listed(&run_folder, "test").len();
    assert_eq!((held_out, listed(&run_folder, "train").len()), (12, 48));
    let eval = |model: &str, data: &Path, more: &[&str]| {
        json(&run(["eval", text(&run_folder.join(model)), text(data), "--json"].iter().chain(more)))
    };
    for model in ["", "export", "export/model.onnx"] {
        let again = eval(model, &data, &[]);
        assert_eq!(again["n"], held_out, "{model}: {again}");
        assert_eq!(again["top1"], own["metrics"]["top1"], "{model}");
        assert_eq!(again["images"]["in_training"], 0, "{model}");
        assert_eq!(again["images"]["left_out"], 48, "{model}");
    }
    assert_eq!(eval("", &data, &["--split", "train"])["images"]["in_training"], 48);
    assert_eq!(eval("", &data, &["--split", "all"])["n"], 60);

    // The same images under other names and with new ones beside them.
    let class = fs::read_dir(&data).expect("there").next().expect("a class").expect("one").path();
    for (i, image) in fs::read_dir(&class).expect("there").enumerate() {
        let image = image.expect("an image").path();
        fs::rename(&image, class.join(format!("renamed-{i}.png"))).expect("renamed");
    }
    let new = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([x as u8 * 7, y as u8 * 3, 9]));
    new.save(class.join("new.png")).expect("written");
    let moved = folder.path().join("elsewhere");
    fs::rename(&data, &moved).expect("moved");
    let again = eval("", &moved, &[]);
    assert_eq!((again["n"].as_u64(), again["images"]["new"].as_u64()), (Some(13), Some(1)));

    // Data that the run never saw is measured whole, even where it has the same names.
    let noise = folder.path().join("noise");
    for (i, file) in
        listed(&run_folder, "train").iter().chain(&listed(&run_folder, "test")).enumerate()
    {
        let path = noise.join(file);
        fs::create_dir_all(path.parent().expect("a class")).expect("made");
        image::RgbImage::from_pixel(8, 8, image::Rgb([i as u8, 0, 200]))
            .save(path)
            .expect("written");
    }
    let output = run(["eval", text(&run_folder), text(&noise)]);
    assert!(stderr(&output).contains("60 images that the run never saw"), "{}", stderr(&output));
    assert!(stderr(&output).contains("as most are: counted as new"), "{}", stderr(&output));
}

/// Writes the table of `photos`: of each class one test image, two training images with a label and two more,
/// whose labels are there if `all_labels`.
fn write_table(photos: &Path, all_labels: bool) {
    let mut table = "file,label,split\n".to_owned();
    for class in fs::read_dir(photos).expect("there").map(|entry| entry.expect("one").path()) {
        let Ok(images) = fs::read_dir(&class) else { continue };
        let mut images: Vec<_> = images.map(|image| image.expect("one").path()).collect();
        images.sort();
        let name = class.file_name().expect("a name").to_string_lossy();
        for (i, image) in images.iter().enumerate() {
            let file = image.strip_prefix(photos).expect("below").display();
            let label = if i < 3 || all_labels { &name } else { "" };
            let split = if i == 0 { "test" } else { "train" };
            table += &format!("{file},{label},{split}\n");
        }
    }
    fs::write(photos.join("index.csv"), table).expect("written");
}

#[test]
fn images_that_had_no_label_were_trained_on_only_where_there_was_pretraining() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    write_table(&data, false);
    let run_folder = trained(folder.path(), &data);
    let predict = || stderr(&run(["predict", text(&run_folder), text(&data)]));
    assert!(predict().contains("trained on 24 of 60 images"), "{}", predict());
    let eval = |more: &[&str]| {
        json(&run(["eval", text(&run_folder), text(&data), "--json"].iter().chain(more)))
    };
    let own = eval(&[]);
    assert_eq!((own["n"].as_u64(), own["images"]["left_out"].as_u64()), (Some(12), Some(48)));

    // Labelled since, they are as good as test images, and counted apart from those.
    write_table(&data, true);
    assert_eq!(eval(&[]), own);
    let later = eval(&["--split", "unlabelled"]);
    assert_eq!((later["n"].as_u64(), later["images"]["unlabelled"].as_u64()), (Some(24), Some(24)));
    assert_eq!(eval(&["--split", "train"])["images"]["in_training"], 24);
    let knn = json(&run(["knn", text(&run_folder), text(&data), "--k", "3", "--json"]));
    assert_eq!(knn["n"], 12);

    fs::remove_dir_all(&run_folder).expect("removed");
    write_table(&data, false);
    let output =
        run([training(folder.path(), &data), vec!["--method".to_owned(), "idmm".to_owned()]]
            .concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let note = predict();
    assert!(note.contains("trained on 48 of 60 images, on 24 of them without a label"), "{note}");
}

#[test]
fn features_are_learned_and_measured_on_the_runs_own_halves() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    let run_folder = trained(folder.path(), &data);
    let knn = run(["knn", text(&run_folder), text(&data), "--k", "3", "--json"]);
    assert_eq!(json(&knn)["n"], 12);
    assert!(stderr(&knn).contains("12 images that the run held out"), "{}", stderr(&knn));
    let out = folder.path().join("features.csv");
    let embed = ["embed", text(&run_folder), text(&data), "--split", "test", "--out", text(&out)];
    assert!(run(embed).status.success());
    let table = fs::read_to_string(&out).expect("written");
    let mut files: Vec<&str> =
        table.lines().skip(1).filter_map(|row| row.split(',').next()).collect();
    files.sort_unstable();
    let mut expected = listed(&run_folder, "test");
    expected.sort_unstable();
    assert_eq!(files, expected);
    let predict = run(["predict", text(&run_folder), text(&data)]);
    assert!(stderr(&predict).contains("trained on 48 of 60 images"), "{}", stderr(&predict));
}

#[test]
fn a_run_that_goes_on_has_the_same_images_or_says_what_is_missing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    let run_folder = stopped(folder.path(), &data);
    let settings = fs::read_to_string(run_folder.join("config.toml")).expect("there");
    assert!(
        settings.contains("threads = 2") && !settings.contains("micro_batch = 0"),
        "{settings}"
    );

    let moved = folder.path().join("elsewhere");
    fs::rename(&data, &moved).expect("moved");
    let output = run(["resume", text(&run_folder)]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("--data NEW_PLACE"), "{}", stderr(&output));

    let gone = listed(&run_folder, "train").swap_remove(0);
    let kept = fs::read(moved.join(&gone)).expect("an image");
    fs::write(moved.join(&gone), &kept[..kept.len() - 1]).expect("changed");
    let resume = ["resume", text(&run_folder), "--data", text(&moved)];
    let output = run(resume);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains(&gone), "{}", stderr(&output));
    fs::remove_file(moved.join(&gone)).expect("removed");
    let output = run(resume);
    assert!(stderr(&output).contains("1 image of the run"), "{}", stderr(&output));
    fs::write(moved.join(&gone), kept).expect("back");

    // A run is not gone on with as another one.
    fs::write(run_folder.join("config.toml"), settings.replace("epochs = 100000", "epochs = 2"))
        .expect("edited");
    let output = run(resume);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("config.toml was changed after the run began"),
        "{}",
        stderr(&output)
    );
    fs::write(run_folder.join("config.toml"), &settings).expect("put back");

    // A class that is added meanwhile does not matter.
    fs::create_dir(moved.join("a new class")).expect("made");
    fs::copy(moved.join(&gone), moved.join("a new class/1.png")).expect("copied");
    let mut child = fewvit(resume).stderr(Stdio::piped()).spawn().expect("started");
    let metrics = run_folder.join("metrics.jsonl");
    let epochs = || fs::read_to_string(&metrics).unwrap_or_default().lines().count();
    let before = epochs();
    while epochs() <= before && child.try_wait().expect("asked").is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    // While it runs, nobody else gets the folder.
    let second = run(resume);
    assert_eq!(second.status.code(), Some(2), "{}", stderr(&second));
    assert!(stderr(&second).contains(&format!("process {}", child.id())), "{}", stderr(&second));
    Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().expect("kill");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
}

#[test]
fn of_two_runs_at_once_only_one_gets_the_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    let args = [training(folder.path(), &data), vec!["--from-scratch".to_owned()]].concat();
    let start =
        || fewvit(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
    let ended = [start(), start()].map(|child| child.wait_with_output().expect("ended"));
    let mut codes = ended.each_ref().map(|output| output.status.code());
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(2)], "{}{}", stderr(&ended[0]), stderr(&ended[1]));
    assert!(ended.iter().any(|output| stderr(output).contains("left as it is")));
}

#[test]
fn fine_tuning_keeps_the_splits_of_the_run_it_starts_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    let first = trained(folder.path(), &data);
    let settings = tiny_run(folder.path());
    let second = folder.path().join("second");
    let args = ["finetune", text(&data), "--init", text(&first), "-c", text(&settings)];
    // Another seed would draw another split, and measure on what was trained on. The model is the run's.
    let more = ["--seed", "2", "--output", text(&second)];
    let output = run(args.iter().chain(&more));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(listed(&second, "test"), listed(&first, "test"));
    assert!(stderr(&output).contains("stay in the splits they had there"), "{}", stderr(&output));
    // What the first run trained on counts for the second, which is given other images.
    let other = folder.path().join("other");
    for class in fs::read_dir(&data).expect("there") {
        let class = class.expect("a class").path();
        let copy = other.join(class.file_name().expect("a name"));
        fs::create_dir_all(&copy).expect("made");
        for (i, value) in [10, 200].into_iter().enumerate() {
            let image = image::RgbImage::from_pixel(9, 9, image::Rgb([value, 0, i as u8]));
            image.save(copy.join(format!("{value}-{i}.png"))).expect("written");
        }
    }
    let third = folder.path().join("third");
    let args = ["finetune", text(&other), "--init", text(&first), "-c", text(&settings)];
    let output = run(args.iter().chain(&["--output", text(&third)]));
    assert!(output.status.success(), "{}", stderr(&output));
    let again = json(&run(["eval", text(&third), text(&data), "--json"]));
    assert_eq!((again["n"].as_u64(), again["images"]["left_out"].as_u64()), (Some(12), Some(48)));

    let missing = folder.path().join("none.pth");
    let args = ["finetune", text(&data), "--init", text(&missing), "--dry-run"];
    let output = run(args);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));

    let settings = fs::read_to_string(second.join("config.toml")).expect("there");
    assert!(settings.contains("deit_micro_patch8_96"), "{settings}");
    let sources = fs::read_to_string(second.join("run.json")).expect("there");
    assert!(sources.contains(&format!("--init {}", text(&first))), "{sources}");
}

#[test]
fn one_bad_image_costs_no_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    let run_folder = trained(folder.path(), &data);
    let new = folder.path().join("new");
    let class = fs::read_dir(&data).expect("there").next().expect("a class").expect("one").path();
    fs::create_dir(&new).expect("made");
    for image in fs::read_dir(&class).expect("there") {
        let image = image.expect("an image").path();
        fs::copy(&image, new.join(image.file_name().expect("a name"))).expect("copied");
    }
    fs::write(new.join("0-text.png"), "text").expect("written");
    let output = run(["predict", text(&run_folder), text(&new)]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 5);
    let named =
        stderr(&output).lines().filter(|line| line.contains("0-text.png is a text")).count();
    assert_eq!(named, 1, "{}", stderr(&output));
    let strict = run(["predict", text(&run_folder), text(&new), "--on-bad-image", "error"]);
    assert_eq!((strict.status.code(), strict.stdout.len()), (Some(3), 0));
    let missing = run(["predict", text(&run_folder), text(&new.join("none.png"))]);
    assert_eq!(missing.status.code(), Some(3), "{}", stderr(&missing));
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("made");
    let output = run(["predict", text(&run_folder), text(&empty)]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("holds no images"), "{}", stderr(&output));

    let between = run([
        "predict",
        text(&run_folder),
        text(&empty),
        text(&new.join("none.png")),
        text(&class),
    ]);
    assert_eq!(between.status.code(), Some(3), "{}", stderr(&between));
    assert_eq!(String::from_utf8_lossy(&between.stdout).lines().count(), 5);

    fs::write(class.join("text.png"), "text").expect("written");
    for command in ["eval", "knn", "probe"] {
        let output = run([command, text(&run_folder), text(&data)]);
        assert!(output.status.success(), "{command}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("text.png is a text file"),
            "{command}: {}",
            stderr(&output)
        );
        let strict = run([command, text(&run_folder), text(&data), "--on-bad-image", "error"]);
        assert_eq!(strict.status.code(), Some(3), "{command}: {}", stderr(&strict));
    }
    let picture = folder.path().join("preview.jpg");
    let preview = ["data", "preview", text(&data), "--count", "80", "--output", text(&picture)];
    let strict = run(preview.iter().chain(&["--on-bad-image", "error"]));
    assert_eq!(strict.status.code(), Some(3), "{}", stderr(&strict));
    let output = run(preview);
    assert!(output.status.success() && picture.is_file(), "{}", stderr(&output));
}

#[test]
fn results_stream_and_end_with_their_reader() {
    use std::io::{BufRead as _, BufReader};
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = class_folders(folder.path());
    let run_folder = trained(folder.path(), &data);
    // Far more than there is time for.
    let many = folder.path().join("many");
    fs::create_dir(&many).expect("made");
    let image = fs::read_dir(&data).expect("there").next().expect("a class").expect("one").path();
    let image = fs::read_dir(image).expect("there").next().expect("an image").expect("one").path();
    for i in 0..20_000 {
        fs::hard_link(&image, many.join(format!("{i:05}.png"))).expect("linked");
    }
    let mut child = fewvit(["predict", text(&run_folder), text(&many)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("a line");
    assert!(first.contains("00000.png: "), "{first}");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}
