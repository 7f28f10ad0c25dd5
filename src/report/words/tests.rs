//! Each sentence with the case in which it must differ.

use super::super::tests::{finetuning, pretraining, sample};
use super::super::{card, html};
use super::*;
use crate::loss::Chance;

fn file(path: &str) -> WeightsFile {
    let sha256 = Some("0f".repeat(32));
    WeightsFile { path: path.to_owned(), sha256, taken: Some((150, 152)), head: Some(false) }
}

/// What card and page say, the page without its mark-up of quotes.
fn texts(data: &ReportData) -> [String; 2] {
    let page = html::render(data).unwrap().replace("&#39;", "'").replace("&#34;", "\"");
    [card::render(data, "export"), page]
}

#[track_caller]
fn say(data: &ReportData, yes: &[&str], no: &[&str]) {
    for text in texts(data) {
        yes.iter().for_each(|y| assert!(text.contains(y), "{y:?} is missing:\n{text}"));
        no.iter().for_each(|n| assert!(!text.contains(n), "{n:?} is said:\n{text}"));
    }
}

const ONLY: &str = "No pre-trained weights and no other images were used.";

#[test]
fn says_the_number_in_plain_words() {
    let mut data = sample(5, 12);
    let m = data.metrics.as_mut().unwrap();
    (m.n, m.top1, m.top1_interval) = (6149, 0.6730, (0.6611, 0.6846));
    let text = "67.3% of 6,149 test images right (95% interval 66.1\u{2013}68.5% over images like these, given \
                these weights)";
    assert_eq!(data.headline().as_deref(), Some(text));
    assert!(!data.notes().iter().any(|note| note.starts_with("Small")));
    say(&data, &[text, "another seed gives another number"], &[]);
}

#[test]
fn validation_images_are_counted_where_others_are_measured() {
    let mut data = sample(5, 12);
    assert!(data.done()[0].starts_with("flowers: 2,040 training images and 60 test images of 5"));
    data.data.val_images = 341;
    let text = "flowers: 2,040 training images, 341 validation images and 60 test images of 5";
    assert!(data.done()[0].starts_with(text), "{}", data.done()[0]);
}

#[test]
fn random_weights_are_called_that_and_nothing_else_is() {
    let mut data = sample(5, 12);
    say(&data, &[ONLY, "The weights started at random."], &["does not know", "licences of those"]);
    data.provenance = Provenance::File(file("/w/imagenet.pth"));
    let unknown = "The weights started from /w/imagenet.pth (sha256 0f0f";
    let yes = [unknown, "150 of its 152 tensors", "does not know what those were trained on"];
    say(&data, &yes, &[ONLY, "started at random", "no other images"]);
    assert!(card::render(&data, "export").contains("licences of those weights"));
    data.provenance = Provenance::Export(file("/w/export"));
    say(&data, &["exported by fewvit but away from its run"], &[ONLY, "started at random"]);
    data.provenance =
        Provenance::File(WeightsFile { sha256: None, taken: None, ..file("/w/x.pth") });
    say(&data, &["The weights started from /w/x.pth. fewvit does not know"], &[ONLY, "sha256"]);
}

#[test]
fn images_that_chose_the_epoch_were_used() {
    let mut data = sample(5, 12);
    let by = ("validation".to_owned(), 341);
    data.test_use = TestUse::Chosen(Choice { epoch: 7, measured: 12, by, same: false });
    let opening = "trained from random weights on 2,040 images. No pre-trained weights were used, and no other \
                   images except the 341 images of the validation split, by which the epoch was chosen.";
    say(&data, &[opening], &[ONLY]);
    data.test_use = TestUse::Other("validation".to_owned(), 341);
    say(&data, &[ONLY], &["the epoch was chosen"]);
}

#[test]
fn an_epoch_that_an_earlier_run_kept_is_told() {
    let mut data = sample(5, 12);
    let told = |data: &mut ReportData, kept| {
        let stages = vec![StageFacts { kept, ..finetuning(3) }];
        let (moths, from) = (Some(("moths".to_owned(), 9000)), Provenance::Random);
        let past = Past { data: moths, stages, from };
        data.provenance = Provenance::Run(file("/runs/moths-1"), Box::new(past));
    };
    told(&mut data, None);
    say(
        &data,
        &["with labels (1 h 06 min). It started from random weights."],
        &["are those of epoch"],
    );
    told(&mut data, Some(Kept { epoch: 6, measured: 9 }));
    let kept = "with labels (1 h 06 min). Its weights are those of epoch 6, the best of 9 measured epochs on the \
                validation images. It started from random weights.";
    say(&data, &[kept], &[]);
    told(&mut data, Some(Kept { epoch: 1, measured: 1 }));
    say(&data, &["of epoch 1, the best of 1 measured epoch on"], &[]);
}

#[test]
fn a_chain_of_runs_is_told_to_its_start() {
    let mut data = sample(5, 12);
    data.stages.remove(0);
    let first = Past {
        data: Some(("moths".to_owned(), 9000)),
        stages: vec![pretraining()],
        from: Provenance::Random,
    };
    data.provenance = Provenance::Run(file("/runs/moths-1"), Box::new(first.clone()));
    let story = [
        "The weights started from the run /runs/moths-1 (sha256 0f0f",
        "That run trained on 9,000 images of moths: 800 epochs of IDMM pre-training at 112 px, \
         self-supervised without labels",
        "It started from random weights.",
        "200 epochs of fine-tuning at 224 px, with labels",
    ];
    say(&data, &story, &[ONLY, "does not know"]);
    // That run, fine-tuned on a third set, and then going on from an unknown file.
    let from = Provenance::Run(file("/runs/moths-1"), Box::new(first.clone()));
    let second = Past { data: Some(("bees".to_owned(), 1)), stages: vec![finetuning(3)], from };
    data.provenance = Provenance::Run(file("/runs/bees-1"), Box::new(second));
    let chain = ["run /runs/bees-1", "1 image of bees", "Before that: ", "9,000 images of moths"];
    say(&data, &chain, &[ONLY]);
    let unknown = Past { from: Provenance::File(file("/w/x.pth")), ..first.clone() };
    data.provenance = Provenance::Run(file("/runs/moths-1"), Box::new(unknown));
    say(&data, &["Before that: ", "does not know"], &[ONLY, "started from random weights"]);
    let silent = Past { data: None, stages: Vec::new(), ..first };
    data.provenance = Provenance::Run(file("/runs/moths-1"), Box::new(silent));
    say(&data, &["does not say what that was trained on"], &[ONLY, "random weights"]);
}

#[test]
fn labels_in_pre_training_are_said() {
    let mut data = sample(5, 12);
    say(&data, &["IDMM pre-training at 112 px, self-supervised without labels"], &[]);
    let stage = &mut data.stages[0];
    (stage.method, stage.kind) =
        ("SupCon".to_owned(), "supervised contrastive with labels".to_owned());
    (stage.epochs, stage.sizes) = (1, vec![224, 96]);
    let said =
        "1 epoch of SupCon pre-training at 224 and 96 px, supervised contrastive with labels";
    say(&data, &[said], &["without labels", "IDMM"]);
}

#[test]
fn a_head_made_of_features_is_said() {
    let mut data = sample(5, 12);
    say(&data, &["without labels ("], &["from a head"]);
    data.stages[0].first_head = true;
    say(&data, &["without labels, from a head made of the images' features ("], &["with labels, "]);
    (data.stages[0].first_head, data.stages[1].first_head) = (false, true);
    say(&data, &["with labels, from a head made of the images' features ("], &["without labels, "]);
}

#[test]
fn images_without_a_label_are_only_said_to_be_learned_from_where_they_were() {
    let mut data = sample(5, 12);
    say(&data, &["on 2,040 images. No"], &["labels for", "not used"]);
    data.data.labelled_images = 12;
    data.stages[1].images = 12;
    let few = "on 2,040 images (labels for 12 of the training images). No";
    say(&data, &[few, "classes (labels for 12 of the training images)."], &["not used"]);
    data.stages.remove(0);
    let unused = [
        "trained from random weights on 12 images; 2,028 without a label were not used. No",
        "(labels for 12 of the training images; 2,028 without a label were not used).",
    ];
    say(&data, &unused, &["on 2,040 images"]);
    data.data.train_images = 13;
    say(&data, &["on 12 images; 1 without a label was not used."], &["were not used."]);
    // The run before may have learned from it.
    data.provenance = Provenance::File(file("/w/x.pth"));
    say(&data, &["on 12 images; 1 without a label was not used by this run."], &["not used."]);
    // A report of an earlier version does not say which images a stage had.
    data.stages[0].images = 0;
    say(&data, &["on 13 images (labels for 12 of"], &["not used"]);
}

#[test]
fn how_fine_tuning_was_done_is_said() {
    let mut data = sample(5, 12);
    say(&data, &["with labels (1 h 06 min)."], &["planned", "class in an epoch"]);
    data.stages[1].balance = vec!["as many images of each class in an epoch".to_owned()];
    data.stages[1].stopped = Some(Stopped { after: 200, planned: 1000, fruitless: 3 });
    let said = "with labels, as many images of each class in an epoch (1 h 06 min): stopped after epoch 200 of \
                the 1,000 planned, since 3 evaluations in a row were no better.";
    say(&data, &[said], &[]);
    data.stages[1].stopped = Some(Stopped { after: 200, planned: 1000, fruitless: 1 });
    say(&data, &["since 1 evaluation was no better."], &["in a row"]);
}

#[test]
fn what_was_decided_by_the_time_is_said() {
    let mut data = sample(5, 12);
    say(&data, &[], &["no pre-training", "taken instead"]);
    data.decided.without_pretraining = Some(ManyLabels { labelled: 2000, images: 2040, most: 204 });
    let alone = "There was no pre-training: 2,000 of 2,040 training images have a label, and it is done where 204 or \
                 fewer have.";
    say(&data, &[alone], &["taken instead"]);
    let (name, instead_of) = ("pvt_v2_b0_small".to_owned(), "pvt_v2_b0".to_owned());
    data.decided.smaller = Some(Smaller { name, instead_of, steps: 1, least: 2000 });
    let smaller = "pvt_v2_b0_small was taken instead of pvt_v2_b0, which had time for 1 optimiser step: it is trained \
                   from 2,000 on";
    say(&data, &[alone, smaller], &["have crops of"]);
    let crops = SmallCrops { img_size: 64, instead_of: 112, steps: 1, least: 2000 };
    data.decided.small_crops = Some(crops);
    let few = "All epochs of fine-tuning have crops of 64 px: those with 112 px would have had 1 optimiser step, and pay \
               from 2,000 on.";
    say(&data, &[alone, smaller, few], &["instead of 112"]);
    let crops = LargeCrops { img_size: 160, instead_of: 112, epochs: 75, least: 60 };
    (data.decided.small_crops, data.decided.large_crops) = (None, Some(crops));
    let large = "The last 75 epochs of fine-tuning have crops of 160 px instead of 112, which pay from 60 on.";
    say(&data, &[alone, smaller, large], &["All epochs"]);
    data.decided.paced = Some(Paced { planned: 1000, epochs: 700 });
    let slower = "Fine-tuning has 700 epochs instead of the 1,000 planned, since the machine was slower than when it was \
                  timed.";
    say(&data, &[alone, smaller, large, slower], &["faster"]);
    data.decided.paced = Some(Paced { planned: 1000, epochs: 1200 });
    say(
        &data,
        &["has 1,200 epochs instead of the 1,000 planned, since the machine was faster"],
        &[],
    );
}

#[test]
fn guessing_is_what_the_method_says_it_is() {
    let mut data = sample(5, 12);
    let page = html::render(&data).unwrap();
    assert!(
        page.contains("loss of 7.62 (ln 2040): every training image is equally likely"),
        "{page}"
    );
    data.stages[0].chance = Some(Chance::of(2.0, 12, "every class is equally likely"));
    let page = html::render(&data).unwrap();
    assert!(
        page.contains("loss of 4.97 (2 ln 12): every class") && page.contains("nothing: 2 ln 12")
    );
    data.stages.iter_mut().for_each(|stage| stage.chance = None);
    assert!(!html::render(&data).unwrap().contains("knows nothing"));
}

#[test]
fn how_the_images_were_measured_follows_from_what_was_measured() {
    let mut data = sample(5, 12);
    say(&data, &["also measured during training"], &["chose nothing"]);
    data.test_use = TestUse::Once;
    say(&data, &["test images were measured once"], &["during training"]);
    data.test_use = TestUse::Other("validation".to_owned(), 341);
    let both = ["341 images of the validation split were measured, and the test images once"];
    say(&data, &both, &["also measured during training"]);
    let choice = |same| Choice { epoch: 7, measured: 12, by: ("validation".to_owned(), 341), same };
    data.test_use = TestUse::Chosen(choice(false));
    let chosen = "those of epoch 7, the best of 12 measured epochs on the 341 images of the validation split";
    say(&data, &[chosen, "test images were measured once"], &["last epoch", "optimistic"]);
    data.data.test_split = "validation".to_owned();
    data.test_use = TestUse::Chosen(choice(true));
    say(&data, &[chosen, "so it is optimistic"], &["last epoch", "measured once"]);
    data.test_use = TestUse::Watched;
    say(&data, &["validation images were also measured"], &["test images were"]);
}

#[test]
fn a_split_and_bad_files_are_told_as_they_are() {
    let mut data = sample(5, 12);
    say(
        &data,
        &["2 image files could not be read", "drawn at random", "give a group column"],
        &["very content"],
    );
    (data.data.leaks, data.data.split_grouped) = (6, true);
    let grouped =
        ["6 images of the test split have the very content", "images of a group together"];
    say(&data, &grouped, &["give a group column"]);
    let counts = |data: &mut ReportData, of: [usize; 3]| {
        let facts = &mut data.data;
        [facts.leaks, facts.leaks_of_other_label, facts.leaks_without_label] = of;
    };
    let [same, other, unlabelled] = [
        "the very content of training images, so the number is too good.",
        "the very content of training images that have another label, so the number may be too low.",
        "the very content of images that were pre-trained on without a label, so the number may be too good.",
    ];
    counts(&mut data, [1, 1, 0]);
    say(&data, &[&format!("1 image of the test split has {other}")], &[same, unlabelled]);
    counts(&mut data, [2, 0, 2]);
    say(&data, &[&format!("2 images of the test split have {unlabelled}")], &[same, other]);
    counts(&mut data, [6, 2, 1]);
    let three = format!("3 images of the test split have {same}");
    say(&data, &[&three, other, unlabelled], &[]);
    (data.data.leaks, data.data.split_grouped) = (0, false);
    counts(&mut data, [0; 3]);
    (data.data.bad_images, data.data.split_made) = (1, false);
    say(&data, &["1 image file could not be read"], &["drawn at random", "2 image"]);
    say(&data, &[], &["too good"]);
    data.data.seen_before = 51;
    say(&data, &["51 images held out here served to train the weights", "too good"], &[]);
    data.data.bad_images = 0;
    say(&data, &["Every image file could be read."], &["could not be read"]);
}

#[test]
fn only_what_timm_loads_is_loaded_with_timm() {
    let mut data = sample(5, 12);
    let timm = card::render(&data, "export");
    assert!(timm.starts_with("---\nlibrary_name: timm\n") && timm.contains("- timm\n"));
    assert!(timm.contains("timm.create_model"));
    (data.model.name, data.model.timm) = ("t2t_vit_7".to_owned(), false);
    let card = card::render(&data, "export");
    for word in ["library_name", "- timm\n", "import timm", "create_model"] {
        assert!(!card.contains(word), "{word}:\n{card}");
    }
    for word in ["timm has no t2t_vit_7", "fewvit predict export", "onnxruntime", "authors' own"] {
        assert!(card.contains(word), "{word}:\n{card}");
    }
}

#[test]
fn the_repeating_command_is_not_the_original() {
    let data = sample(5, 12);
    for text in texts(&data) {
        let (repeat, original) =
            (text.find(&data.repeat).unwrap(), text.find(&data.command).unwrap());
        assert!(repeat < original && text[repeat..original].contains("begun with"), "{text}");
    }
}

#[test]
fn arguments_come_through_a_shell() {
    let arguments =
        ["fewvit", "train", "my photos", "it's", "", "--set", "a.b=c"].map(str::to_owned);
    assert_eq!(shell(&arguments), r"fewvit train 'my photos' 'it'\''s' '' --set a.b=c");
}
