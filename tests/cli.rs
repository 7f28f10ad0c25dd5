//! The command line on bad input: a clear message, the right exit code, nothing lost.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{fewvit, flowers, run, stderr, tiny_run};

/// Trains on `data` into `folder/run`.
fn train(folder: &Path, data: &Path, more: &[&str]) -> Output {
    let (settings, out) = (tiny_run(folder), folder.join("run"));
    let mut args: Vec<String> = ["train", &data.display().to_string()].map(String::from).to_vec();
    args.extend(["-c", &settings.display().to_string()].map(String::from));
    args.extend(["--output", &out.display().to_string()].map(String::from));
    args.extend(more.iter().map(|s| s.to_string()));
    run(args)
}

fn fails(output: &Output, code: i32, text: &str) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(text), "{text:?} is not in: {stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{stderr}");
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The first training image of the rendered set.
fn first_image(data: &Path) -> PathBuf {
    let class = fs::read_dir(data.join("train")).expect("there").next().expect("a class");
    let class = class.expect("an entry").path();
    fs::read_dir(class).expect("there").next().expect("an image").expect("an entry").path()
}

#[test]
fn a_path_that_does_not_exist() {
    let folder = temporary();
    let output = train(folder.path(), &folder.path().join("nowhere"), &[]);
    fails(&output, 3, "check the spelling");
}

#[test]
fn the_papers_data_sets_are_listed() {
    let output = run(["data", "list", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let sets: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let images = |set: &serde_json::Value| set["train"].as_u64().zip(set["test"].as_u64());
    assert_eq!(sets.len(), 8);
    assert_eq!(images(&sets[0]), Some((2040, 6149)));
    let files = sets[1]["archives"].as_array().expect("a list");
    assert_eq!(files[1]["checksum"]["md5"], "95a8c909bbe2e81eed6a22bccdf3f68f");
    assert_eq!(files[1]["bytes"]["exact"], 19_173_078);
}

/// Serves one file to everybody who asks for anything.
#[cfg(feature = "fetch")]
fn serve(body: Vec<u8>) -> String {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let _ = lines.take_while(|line| !line.is_empty()).count();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    format!("http://{address}")
}

#[cfg(feature = "fetch")]
#[test]
fn a_data_set_is_fetched_once_its_terms_are_agreed_to() {
    let folder = temporary();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(8);
    let name = "fgvc-aircraft-2013b/data/variants.txt";
    builder.append_data(&mut header, name, &b"707-320\n"[..]).expect("appended");
    let mirror = serve(builder.into_inner().expect("an archive"));
    let fetch = |args: &[&str]| {
        let mut command = common::fewvit(["data", "fetch"].iter().chain(args));
        let command = command.current_dir(folder.path()).stdin(std::process::Stdio::null());
        let command = command.env_remove("http_proxy").env_remove("HTTP_PROXY");
        command.env_remove("all_proxy").env_remove("ALL_PROXY").output().expect("it starts")
    };
    let there = || fs::read_dir(folder.path()).expect("there").count();
    let aircraft = ["aircraft", "--mirror", &mirror, "--to", "planes"];
    let refused = fetch(&aircraft);
    fails(&refused, 2, "add --yes");
    fails(&refused, 2, "the photographers keep their copyright");
    fails(&fetch(&["airplanes", "--yes"]), 2, "no data set is called `airplanes`");
    fails(&fetch(&["aircraft", "--yes", "--mirror", "ftp://x"]), 2, "must begin with https://");
    assert_eq!(there(), 0);

    let output = fetch(&[&aircraft[..], &["--yes"]].concat());
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "planes\n");
    for part in [
        "the photographers keep their copyright",
        "downloading fgvc-aircraft-2013b.tar.gz: 100% of 0.0 MB",
        "no checksum is published for fgvc-aircraft-2013b.tar.gz",
        "1 file; planes-archives is no longer needed",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let variants = fs::read(folder.path().join("planes").join(name)).expect("unpacked");
    assert_eq!(variants, b"707-320\n");
    fails(&fetch(&[&aircraft[..], &["--yes"]].concat()), 2, "left as it is");

    let by_hand = fetch(&["imagenet", "--yes"]);
    fails(&by_hand, 1, "imagenet-archives");
    fails(&by_hand, 1, "ILSVRC2012_img_val.tar  6744924160 bytes  md5 29b22e2961454d5413dd");
}

#[test]
fn an_empty_folder() {
    let folder = temporary();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("made");
    fails(&train(folder.path(), &empty, &[]), 3, "is empty");
}

#[test]
fn one_class_alone() {
    let folder = temporary();
    let data = flowers(folder.path(), 2);
    let only = folder.path().join("only");
    let class = fs::read_dir(data.join("train")).expect("there").next().expect("a class");
    let class = class.expect("an entry");
    fs::create_dir(&only).expect("made");
    fs::rename(class.path(), only.join("alone")).expect("moved");
    fs::create_dir(only.join("train")).expect("made");
    fs::rename(only.join("alone"), only.join("train/alone")).expect("moved");
    fails(&train(folder.path(), &only, &[]), 3, "only class");
}

#[test]
fn unreadable_images_stop_a_run_or_are_skipped_and_counted() {
    let folder = temporary();
    let data = flowers(folder.path(), 2);
    let image = first_image(&data);
    let class = image.parent().expect("a folder").to_path_buf();
    fs::write(class.join("text.jpg"), "not a picture").expect("written");
    fs::write(class.join("empty.png"), "").expect("written");
    let bytes = fs::read(&image).expect("there");
    fs::write(class.join("cut.png"), &bytes[..bytes.len() / 2]).expect("written");
    let output = train(folder.path(), &data, &[]);
    fails(&output, 3, "text.jpg is a text file, not an image");
    let text = stderr(&output);
    assert!(text.contains("cut.png") && text.contains("empty.png"), "{text}");
    assert!(text.contains("on_bad_image=skip"), "{text}");
    assert!(!folder.path().join("run").exists(), "no run folder before the data is good");
    let output = train(folder.path(), &data, &["--on-bad-image", "skip", "--from-scratch"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = fs::read_to_string(folder.path().join("run/report.html")).expect("a report");
    assert!(report.contains("3 image files could not be read"), "counted in the report");
}

#[test]
fn a_one_pixel_image_is_no_reason_to_stop() {
    let folder = temporary();
    let data = flowers(folder.path(), 2);
    let class = first_image(&data).parent().expect("a folder").to_path_buf();
    image::RgbImage::from_pixel(1, 1, image::Rgb([200, 30, 90]))
        .save(class.join("dot.png"))
        .expect("written");
    let output = train(folder.path(), &data, &["--from-scratch"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_class_that_the_test_folder_lacks() {
    let folder = temporary();
    let data = flowers(folder.path(), 2);
    let class = first_image(&data).parent().expect("a folder").to_path_buf();
    let name = class.file_name().expect("a name").to_owned();
    fs::remove_dir_all(data.join("test").join(&name)).expect("removed");
    let output = train(folder.path(), &data, &["--from-scratch"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains(&*name.to_string_lossy()), "{}", stderr(&output));
}

#[test]
fn settings_that_make_no_sense() {
    let folder = temporary();
    let data = flowers(folder.path(), 1);
    fails(&train(folder.path(), &data, &["--lr", "nan"]), 2, "lr");
    fails(&train(folder.path(), &data, &["--img-size", "100"]), 2, "multiple of 16");
    fails(&train(folder.path(), &data, &["--model", "deit_tiny"]), 2, "did you mean");
    fails(&train(folder.path(), &data, &["--set", "finetune.optim.lrr=1"]), 2, "finetune.optim.lr");
    fails(&train(folder.path(), &data, &["--device", "cuda"]), 4, "cuda");
    fails(&train(folder.path(), &data, &["--frobnicate"]), 2, "--frobnicate");
}

#[test]
fn epochs_that_were_asked_for_are_not_scaled_to_the_budget() {
    let folder = temporary();
    let data = flowers(folder.path(), 1).display().to_string();
    let mut args = vec!["train", &data, "--recipe", "quick", "--model", "deit_micro_patch8_96"];
    args.extend(["--pretrain-epochs", "3", "--time-budget", "60", "--dry-run", "--json"]);
    args.extend(["--set", "few_images=70"]);
    let output = run(args);
    let forecast: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(forecast["alone"].is_null(), "nothing was turned down: {forecast}");
    let epochs = |stage: usize| forecast["stages"][stage]["epochs"].as_u64();
    // An hour is enough for as many steps of the small model as 800 epochs of 70 images have, three each.
    assert_eq!([epochs(0), epochs(1)], [Some(3), Some(2400)], "{}", stderr(&output));
}

#[test]
fn a_short_budget_trains_the_smaller_model_unless_one_was_named() {
    let folder = temporary();
    let data = flowers(folder.path(), 8).display().to_string();
    let smaller = |more: &[&str]| {
        let args =
            ["train", &data, "--recipe", "quick", "--time-budget", "1m", "--dry-run", "--json"];
        let output = run(args.iter().chain(more));
        let forecast: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let said = stderr(&output).contains("pvt_v2_b0_small: the budget has room for");
        assert_eq!(said, !forecast["smaller"].is_null(), "{}", stderr(&output));
        forecast["smaller"]["name"].as_str().map(str::to_owned)
    };
    assert_eq!(smaller(&[]).as_deref(), Some("pvt_v2_b0_small"));
    assert_eq!(smaller(&["--model", "pvt_v2_b0"]), None, "it was named");
    assert_eq!(smaller(&["--set", "model.small_below=1"]), None, "there is time for a step");
}

#[test]
fn a_budget_that_nothing_can_follow_is_refused() {
    let folder = temporary();
    let data = flowers(folder.path(), 1);
    let fixed = ["--from-scratch", "--epochs", "2", "--time-budget", "1m"];
    fails(&train(folder.path(), &data, &fixed), 2, "the epochs of every stage are given");
    let output = run(["pretrain", data.to_str().expect("UTF-8"), "--epochs", "0", "--dry-run"]);
    fails(&output, 2, "nothing is to be trained");
}

#[test]
fn a_variable_that_is_no_number_is_blamed_itself() {
    let said = |more: &[&str], variable: &str| {
        let words = ["predict", "model.onnx", "a.jpg"].iter().chain(more);
        let output = fewvit(words).env("FEWVIT_THREADS", variable).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        stderr(&output)
    };
    let blame = "note: the value is that of FEWVIT_THREADS";
    assert!(said(&[], "abc").contains(blame), "{}", said(&[], "abc"));
    assert!(!said(&["--threads", "abc"], "2").contains(blame));
    assert!(!said(&["--threads=abc"], "2").contains(blame));
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    let folder = temporary();
    let data = flowers(folder.path(), 1);
    let output = train(folder.path(), &data, &["--from-scratch"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // The run's own weights, each as large as a number can be.
    let exported = folder.path().join("run/export/model.safetensors");
    let (mut specs, mut values) = (Vec::new(), Vec::new());
    for (key, (shape, tensor)) in fewvit::weights::read(&exported).expect("weights") {
        let range = values.len()..values.len() + tensor.len();
        specs.push(fewvit::nn::ParamSpec { key, shape, range, frozen: false });
        values.extend(tensor.iter().map(|_| f32::MAX));
    }
    let spoiled = folder.path().join("spoiled.safetensors");
    fewvit::weights::write(&spoiled, &specs, &values).expect("written");
    let settings = tiny_run(folder.path());
    let out = folder.path().join("second");
    let [data, spoiled, settings, out] = [&data, &spoiled, &settings, &out].map(|p| p.display());
    let line = format!("finetune {data} --init {spoiled} -c {settings} --output {out}");
    fails(&run(line.split(' ')), 5, "try a lower --lr");
}

#[test]
fn an_unwritable_output() {
    let folder = temporary();
    let data = flowers(folder.path(), 1);
    let file = folder.path().join("a-file");
    fs::write(&file, "x").expect("written");
    let (settings, out) = (tiny_run(folder.path()), file.join("run"));
    let args = ["train", data.to_str().expect("UTF-8"), "--from-scratch", "-c"];
    let paths = [settings.to_str().expect("UTF-8"), "--output", out.to_str().expect("UTF-8")];
    let output = run(args.iter().chain(&paths));
    fails(&output, 1, "cannot create");
    assert_eq!(fs::read_to_string(&file).expect("still there"), "x");
}

#[test]
fn what_a_run_leaves_can_be_evaluated_and_used() {
    let folder = temporary();
    let data = flowers(folder.path(), 2);
    let output = train(folder.path(), &data, &["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    let out = folder.path().join("run");
    for file in [
        "config.toml",
        "env.json",
        "classes.txt",
        "splits.csv",
        "data_report.json",
        "results.csv",
        "metrics.jsonl",
        "predictions.csv",
        "report.html",
        "train_batch0.jpg",
        "checkpoints/last.safetensors",
        "checkpoints/pretrained.safetensors",
        "export/model.safetensors",
        "export/config.json",
        "export/model.onnx",
        "export/classes.txt",
        "export/README.md",
        "plots/confusion.png",
    ] {
        assert!(out.join(file).is_file(), "{file} is missing");
    }
    let [run_dir, data_dir] = [&out, &data].map(|p| p.to_str().expect("UTF-8").to_owned());
    let output = run(["eval", &run_dir, &data_dir, "--json"]);
    let again: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(again["top1"], summary["top1"], "eval repeats the run's own measurement");
    let table = folder.path().join("mine.csv");
    let predictions =
        ["eval", &run_dir, &data_dir, "--predictions", table.to_str().expect("UTF-8")];
    for _ in 0..2 {
        assert!(run(predictions).status.success(), "a table of its own may be replaced");
        let written = fs::read(out.join("predictions.csv")).expect("the run's own");
        assert_eq!(fs::read(&table).expect("written"), written);
    }
    fs::write(&table, "years of work").expect("written");
    fails(&run(predictions), 2, "left as it is");
    let picture = first_image(&data);
    let output = run(["predict", &run_dir, picture.to_str().expect("UTF-8"), "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(line["logits"].as_array().expect("logits").len(), 12);
}
