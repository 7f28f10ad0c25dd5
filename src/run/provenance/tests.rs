//! A run folder's own files against what is told of it.

use super::*;
use crate::config::{Keep, Layers};
use crate::report::facts::{Decided, Stopped};

fn config(recipe: &str) -> RunConfig {
    Layers::new(recipe).expect(recipe).build().expect(recipe).config
}

fn request(pretrain: bool, finetune: bool) -> Request {
    let (data, command) = ("/photos".into(), vec!["fewvit".to_owned()]);
    Request { data, pretrain, finetune, init: None, command, sources: Default::default() }
}

fn row(stage: &str, epoch: usize) -> EpochRow {
    EpochRow {
        stage: stage.to_owned(),
        epoch,
        step: epoch as u64,
        seconds: 10.0 * epoch as f64,
        images_per_second: Some(1.0),
        loss: Some(1.0),
        lr: Some(1e-3),
        grad_norm: None,
        knn_top1: None,
        top1: None,
        top5: None,
        top1_low: None,
        top1_high: None,
        alignment: None,
        warning: None,
    }
}

/// Stages of a run on 48 images, of which 12 have a label.
fn stages(
    request: &Request,
    config: &RunConfig,
    history: &[EpochRow],
    from: &Provenance,
) -> Vec<StageFacts> {
    let images = Images { train: 48, labelled: 12 };
    Known { request, config, history, images, from }.stages().expect("known methods")
}

/// A run folder on two training images, one of them with a label, and one other.
fn run(root: &Path, request: &Request) -> Folder {
    let folder = Folder::create(Some(root), "x").expect("a new folder");
    let found = crate::run::folder::Found {
        data_name: "moths".to_owned(),
        split_origin: crate::data::SplitOrigin::Given,
        seen_before: 0,
        decided: Decided::default(),
    };
    folder.write_request(request, &found, &config("simclr")).expect("written");
    let splits = "file,label,class,split\na.png,0,x,train\nb.png,,,train\nc.png,0,x,test\n";
    std::fs::write(folder.join("splits.csv"), splits).expect("written");
    let manifest = crate::data::Manifest {
        name: "moths".to_owned(),
        classes: Vec::new(),
        samples: Vec::new(),
        split_origin: crate::data::SplitOrigin::Given,
    };
    let report = crate::data::check::check(&manifest, &[]).report;
    folder.write_json("data_report.json", &report).expect("written");
    let mut log = tables::MetricsLog::open(&folder.join("metrics.jsonl"), 0).expect("a log");
    for (stage, epochs) in [("pretrain", 3), ("finetune", 2)] {
        (1..=epochs).for_each(|epoch| log.append(row(stage, epoch)).expect("written"));
    }
    std::fs::create_dir_all(folder.export()).expect("made");
    for file in [folder.pretrained(), folder.export().join("model.safetensors")] {
        std::fs::write(file, "abc").expect("written");
    }
    folder
}

/// A backbone without its head.
const TAKEN: Taken = Taken { tensors: (7, 9), head: false };

/// Of the three bytes `abc`, from FIPS 180-2.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn told(provenance: Provenance) -> (WeightsFile, Past) {
    match provenance {
        Provenance::Run(file, past) => (file, *past),
        other => panic!("{other:?} is no run"),
    }
}

#[test]
fn weights_of_a_run_tell_the_stages_that_made_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("first");
    let first = run(&root, &request(true, true));
    let (file, past) = told(of(&first.pretrained(), TAKEN).expect("known"));
    assert_eq!((&*file.path, file.sha256.as_deref()), (&*root.display().to_string(), Some(ABC)));
    assert_eq!((file.taken, past.data), (Some((7, 9)), Some(("moths".to_owned(), 2))));
    let [stage] = &past.stages[..] else { panic!("{:?}", past.stages) };
    assert_eq!((&*stage.method, stage.epochs, stage.seconds), ("SimCLR", 3, 30.0));
    // The folder means what the run ended with; the export has been through both stages.
    assert_eq!(told(of(&root, TAKEN).expect("known")).1.stages.len(), 2);
    let exported = first.export().join("model.safetensors");
    let (_, past) = told(of(&exported, TAKEN).expect("known"));
    let epochs: Vec<_> = past.stages.iter().map(|s| (&*s.key, s.epochs)).collect();
    assert_eq!(epochs, [("pretrain", 3), ("finetune", 2)]);
    assert_eq!(past.from, Provenance::Random);
}

#[test]
fn a_second_run_carries_the_first_ones_story() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = run(&folder.path().join("first"), &request(true, false));
    let init = Some(first.pretrained());
    let asked = Request { init, ..request(false, true) };
    let second = run(&folder.path().join("second"), &asked);
    record(&second, &first.pretrained(), TAKEN).expect("recorded");
    // What was recorded stays, whatever becomes of the first run.
    std::fs::remove_dir_all(first.root()).expect("removed");
    let (_, past) = told(of(&second.export().join("model.safetensors"), TAKEN).expect("known"));
    assert_eq!(past.data, Some(("moths".to_owned(), 1)), "nothing is learned from the other");
    let (_, before) = told(past.from);
    assert_eq!((&*past.stages[0].key, &*before.stages[0].method), ("finetune", "SimCLR"));
}

#[test]
fn weights_that_were_changed_after_the_run_began_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let asked = run(&folder.path().join("run"), &request(false, true));
    let weights = folder.path().join("in.pth");
    std::fs::write(&weights, "abc").expect("written");
    check_unchanged(&asked, &weights).expect("nothing is recorded yet");
    record(&asked, &weights, TAKEN).expect("recorded");
    check_unchanged(&asked, &weights).expect("the same");
    std::fs::write(&weights, "abd").expect("written");
    let error = check_unchanged(&asked, &weights).expect_err("others");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("in.pth was changed after the run began"), "{error}");
}

#[test]
fn a_file_from_elsewhere_is_only_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = run(&folder.path().join("first"), &request(true, true));
    for path in [folder.path().join("x.pth"), first.root().join("checkpoints/downloaded.pth")] {
        std::fs::write(&path, "abc").expect("written");
        let Provenance::File(file) = of(&path, TAKEN).expect("known") else { panic!("a file") };
        assert_eq!((file.path, file.sha256), (path.display().to_string(), Some(ABC.to_owned())));
    }
}

#[test]
fn a_folder_that_recorded_nothing_claims_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let init = Some("/w/imagenet.pth".into());
    let asked = Request { init, ..request(false, true) };
    let old = run(&folder.path().join("old"), &asked);
    let path = "/w/imagenet.pth".into();
    let unknown = Provenance::File(WeightsFile { path, sha256: None, taken: None, head: None });
    assert!(!unknown.lacks_head(), "who knows?");
    assert_eq!(read(&old, &asked).expect("readable"), unknown);
    std::fs::write(old.join("config.toml"), "of = 'another version'").expect("written");
    let (_, past) = told(of(&old.export().join("model.safetensors"), TAKEN).expect("known"));
    assert_eq!((past.data, past.stages), (None, Vec::new()));
}

#[test]
fn a_stage_is_what_its_method_says() {
    let said = |recipe| {
        let stages = stages(&request(true, true), &config(recipe), &[], &Provenance::Random);
        let [first, second] = &stages[..] else { panic!("{stages:?}") };
        assert_eq!((&*second.kind, second.epochs), ("with labels", 0));
        first.sentence()
    };
    for (recipe, words) in [
        ("paper", "IDMM pre-training at 112 px, self-supervised without labels"),
        ("simclr", "SimCLR pre-training at 112 px, self-supervised without labels"),
        ("moco-v2", "MoCo v2 pre-training at 112 px, self-supervised without labels"),
        ("moco-v3", "MoCo v3 pre-training at 112 px, self-supervised without labels"),
        ("dino", "DINO pre-training at 112 px, self-supervised without labels"),
        ("supcon", "SupCon pre-training at 112 px, supervised contrastive with labels"),
        ("supervised", "supervised pre-training at 112 px, with labels"),
    ] {
        assert!(said(recipe).contains(words), "{recipe}: {}", said(recipe));
    }
}

#[test]
fn a_stage_learned_from_images_that_its_method_can_use() {
    let images = |recipe, pretrain| {
        let told = stages(&request(pretrain, true), &config(recipe), &[], &Provenance::Random);
        told.iter().map(|stage| stage.images).collect::<Vec<_>>()
    };
    assert_eq!(images("paper", true), [48, 12]);
    assert_eq!(images("supcon", true), [12, 12]);
    assert_eq!(images("paper", false), [12]);
}

#[test]
fn a_head_is_made_of_features_only_where_none_was_given() {
    let mut config = config("paper");
    config.pretrain.first_head.from = HeadFrom::Random;
    let made = |config: &RunConfig, pretrain: bool, from: &Provenance| {
        let told = stages(&request(pretrain, true), config, &[], from);
        told.last().expect("fine-tuning").first_head
    };
    let file = |head| {
        let (path, sha256, taken) = ("/w/x.pth".to_owned(), None, None);
        Provenance::File(WeightsFile { path, sha256, taken, head })
    };
    assert!(!made(&config, true, &Provenance::Random));
    config.finetune.first_head.from = HeadFrom::Features;
    assert!(made(&config, true, &Provenance::Random) && made(&config, false, &Provenance::Random));
    assert!(made(&config, false, &file(Some(false))), "of a backbone alone");
    assert!(!made(&config, false, &file(Some(true))) && !made(&config, false, &file(None)));
}

#[test]
fn what_helps_rare_classes_and_what_ended_training_is_told() {
    let mut config = config("paper");
    let told = |config: &RunConfig, history: &[EpochRow]| {
        stages(&request(false, true), config, history, &Provenance::Random).remove(0)
    };
    assert!(told(&config, &[]).balance.is_empty());
    config.finetune.sampling = Sampling::Balanced;
    assert_eq!(told(&config, &[]).balance, ["as many images of each class in an epoch"]);
    for (weights, words) in
        [(ClassWeights::Balanced, "their numbers"), (ClassWeights::Effective, "effective numbers")]
    {
        config.finetune.class_weights = weights;
        let balance = told(&config, &[]).balance;
        assert!(balance.len() == 2 && balance[1].contains(words), "{balance:?}");
    }

    let measured = |epoch, top1| EpochRow { top1: Some(top1), ..row("finetune", epoch) };
    let history = [measured(3, 0.5), row("finetune", 4), measured(6, 0.4)];
    config.finetune.optim.epochs = 60;
    assert_eq!(told(&config, &history).stopped, None, "it had no patience to lose");
    (config.finetune.keep, config.finetune.patience) = (Keep::Best, 1);
    let stopped = Stopped { after: 6, planned: 60, fruitless: 1 };
    assert_eq!(told(&config, &history).stopped, Some(stopped));
    assert_eq!(told(&config, &history[..2]).stopped, None);
    config.finetune.optim.epochs = 6;
    assert_eq!(told(&config, &history).stopped, None, "that was the last epoch");
}

#[test]
fn weights_of_the_best_epoch_are_told_from_those_of_the_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let asked = request(false, true);
    let kept = |name: &str, keep: Keep, file: &str| {
        let first = run(&folder.path().join(name), &asked);
        let mut config = config("simclr");
        config.finetune.keep = keep;
        let found = first.read_found().expect("readable").expect("there");
        first.write_request(&asked, &found, &config).expect("written");
        let measured = EpochRow { top1: Some(0.5), ..row("finetune", 1) };
        let last = EpochRow { top1: Some(0.4), ..row("finetune", 2) };
        std::fs::remove_file(first.join("metrics.jsonl")).expect("there");
        let mut log = tables::MetricsLog::open(&first.join("metrics.jsonl"), 0).expect("a log");
        [measured, last].into_iter().for_each(|row| log.append(row).expect("written"));
        std::fs::write(first.join(file), "abc").expect("written");
        let (_, past) = told(of(&first.join(file), TAKEN).expect("known"));
        past.stages[0].kept
    };
    let exported = "export/model.safetensors";
    assert_eq!(kept("best", Keep::Best, exported), Some(Kept { epoch: 1, measured: 2 }));
    assert_eq!(kept("last", Keep::Last, exported), None);
    let checkpoint = "checkpoints/last.safetensors";
    assert_eq!(kept("on", Keep::Best, checkpoint), None, "training went on from its last epoch");
}
