//! Forecasts against hand-made costs.

use super::*;

/// A second an epoch of ten steps, half a second a measurement, a quarter a checkpoint.
pub(super) fn costs(every: usize, at_end: bool) -> Costs {
    Costs {
        images: 40,
        epoch: 1.0,
        early_epoch: 1.0,
        early_share: 0.0,
        batch_size: 4,
        steps_per_epoch: 10,
        first_head: 0.0,
        measurement: 0.5,
        every,
        share: 0.0,
        at_end,
        checkpoint: 0.25,
        checkpoint_every: 60.0,
    }
}

pub(super) fn stage(name: StageName, costs: Costs, epochs: usize) -> StageForecast {
    let unsized_yet = StageForecast {
        stage: name,
        epochs: 0,
        steps: 0,
        crops_per_step: 8,
        img_size: 64,
        crops_per_second: 80.0,
        training: 0.0,
        measuring: 0.0,
        checkpoints: 0.0,
        memory: Memory::default(),
        costs,
    };
    unsized_yet.resized(epochs)
}

/// 100 epochs of pre-training and 50 of fine-tuning.
pub(super) fn forecast() -> Forecast {
    Forecast {
        preparing: 7.0,
        crowd: None,
        budgeted: true,
        longest: None,
        pace: None,
        decided: Decided::default(),
        stages: vec![
            stage(StageName::Pretrain, costs(10, true), 100),
            stage(StageName::Finetune, costs(20, false), 50),
        ],
        alone: None,
        from_random: true,
        unused: None,
        finishing: 3.0,
        disk: 0,
    }
}

pub(super) fn quick() -> RunConfig {
    Layers::new("quick").and_then(Layers::build).expect("a recipe").config
}

/// No schedule of more than `epochs`, of both stages, however few the images.
fn at_most(epochs: usize) -> Longest {
    Longest { epochs, few_images: 0, from_random: false }
}

#[test]
fn every_part_of_a_run_is_counted() {
    let made = forecast();
    // Ten probes; two evaluations. Checkpoints: at the end, and after each minute.
    assert_eq!(made.stages[0].seconds(), 100.0 + 10.0 * 0.5 + 2.0 * 0.25);
    assert_eq!(made.stages[1].seconds(), 50.0 + 2.0 * 0.5 + 0.25);
    assert_eq!(made.seconds(), 105.5 + 51.25 + 3.0);
    // Milliseconds.
    assert_eq!(made.units(), 105_500 + 51_250 + 3000);
    let looked_at = stage(StageName::Pretrain, Costs { first_head: 2.0, ..costs(10, true) }, 100);
    assert_eq!(looked_at.seconds(), made.stages[0].seconds() + 2.0);
    let text = made.describe();
    for words in [
        "1 min 46 s (80 crops of 64 px a second here; 6 s of it",
        "finish    3 s",
        "2 min 40 s",
        "took 7 s",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn measurements_are_those_that_the_run_makes() {
    let of = |every, at_end, epochs| costs(every, at_end).measurements(epochs);
    // A probe after epochs 10, 20 and 25; an evaluation not after the last.
    assert_eq!([of(10, true, 25), of(10, false, 25), of(10, false, 20)], [3, 2, 1]);
    assert_eq!(
        [of(0, true, 25), of(30, true, 25), of(30, false, 25), of(1, false, 1)],
        [0, 1, 0, 0]
    );
}

#[test]
fn measurements_stay_within_their_share_of_the_time() {
    // Half a second each: 5% of 100 s are ten of them, of 99 s nine, of 9 s none.
    let bounded = Costs { share: 0.05, ..costs(5, false) };
    let of = |epochs| (bounded.every(epochs), bounded.measurements(epochs));
    assert_eq!([of(100), of(99), of(9)], [(10, 9), (10, 9), (9, 0)]);
    assert_eq!(of(1000), (10, 99), "of a hundred at most");
    let rare = Costs { measurement: 0.01, ..bounded };
    assert_eq!((rare.every(100), rare.measurements(100)), (5, 19), "as asked for");
    let none = Costs { measurement: 0.0, ..bounded };
    assert_eq!(none.every(100), 5, "nothing to measure");
    assert_eq!(Costs { every: 0, ..bounded }.measurements(100), 0, "not asked for");
    let mut config = quick();
    config.time_budget = 1000.0 / 60.0;
    let mut made = forecast();
    made.stages = vec![stage(StageName::Finetune, bounded, 50)];
    made.stages.insert(0, stage(StageName::Pretrain, bounded, 50));
    config.pretrain.few_labels = 1.0;
    let fitted = made.fit(&config, &[]).expect("fits");
    let RunConfig { pretrain: before, finetune: after, .. } = &fitted;
    assert_eq!(before.probe_every, bounded.every(before.optim.epochs));
    assert_eq!(after.eval_every, bounded.every(after.optim.epochs));
    for stage in &made.stages {
        assert!(stage.measuring <= 0.05 * stage.training, "{}", stage.measuring);
    }
    // Epochs that somebody chose have no more.
    let both = [StageName::Pretrain, StageName::Finetune];
    let fitted = made.fit(&config, &both).expect("fits");
    assert_eq!(fitted.finetune.eval_every, bounded.every(made.stages[1].epochs));
}

#[test]
fn a_budget_holds_all_parts() {
    let mut made = forecast();
    assert!(made.scale(80.0, |_| true, &at_most(800)));
    // 49 + 24 epochs: 5 probes, 1 evaluation, 2 checkpoints, 3 seconds at the end. 50 + 25 take 81.5 s.
    assert_eq!(made.stages.iter().map(|s| s.epochs).collect::<Vec<_>>(), [49, 24]);
    assert_eq!(made.seconds(), 49.0 + 2.5 + 24.0 + 0.5 + 0.5 + 3.0);
    assert_eq!(made.stages[0].steps, 490);
    // What somebody chose stays as it is.
    let mut made = forecast();
    assert!(made.scale(120.0, |s| s.stage == StageName::Pretrain, &at_most(800)));
    assert_eq!(made.stages[1].epochs, 50);
    assert_eq!((made.stages[0].epochs, made.seconds()), (61, 65.0 + 51.25 + 3.0));
    // No more than the paper's, and no less than one.
    let mut made = forecast();
    assert!(made.scale(1e6, |_| true, &at_most(300)));
    assert_eq!([made.stages[0].epochs, made.stages[1].epochs], [300, 300]);
    let mut made = forecast();
    assert!(!made.scale(4.0, |_| true, &at_most(800)));
    assert_eq!([made.stages[0].epochs, made.stages[1].epochs], [1, 1]);
}

#[test]
fn pre_training_is_left_out_where_many_images_have_a_label() {
    let mut config = quick();
    config.time_budget = 87.0 / 0.95 / 60.0;
    config.pretrain.few_labels = 0.1;
    let fitted = |labelled: usize, chosen: &[StageName]| {
        let mut made = forecast();
        made.stages[1].costs.images = labelled;
        let epochs = made.fit(&config, chosen).expect("fits").pretrain.optim.epochs;
        (epochs, made)
    };
    let (epochs, made) = fitted(5, &[]);
    let many = ManyLabels { labelled: 5, images: 40, most: 4 };
    assert_eq!((epochs, made.decided.without_pretraining), (0, Some(many)));
    // All of the budget is fine-tuning's: 75 epochs, 3 evaluations, 2 checkpoints, 3 seconds at the end.
    assert_eq!(made.stages.len(), 1);
    assert_eq!((made.stages[0].epochs, made.seconds()), (75, 75.0 + 1.5 + 0.5 + 3.0));
    let text = made.describe();
    let said = "no pre-training: 5 of 40 training images have a label, and it is done where 4 or fewer have";
    assert!(text.contains(said), "{text}");
    let (epochs, mut made) = fitted(4, &[]);
    assert!(epochs > 0 && made.decided.without_pretraining.is_none(), "nine of ten have none");
    assert!(!made.describe().contains("training images have a label"));
    assert_eq!(fitted(40, &[]).0, 0, "all images have a label");
    let most = ManyLabels { most: 0, ..many };
    made.decided.without_pretraining = Some(most);
    let text = made.describe();
    assert!(
        text.contains(
            "5 of 40 training images have a label, and this recipe pre-trains such data only where --method names one"
        ),
        "{text}"
    );
    let mut short = forecast();
    config.time_budget = 0.0;
    let without_budget = short.fit(&config, &[]).expect("fits");
    assert_eq!(without_budget.pretrain.optim.epochs, 0, "nor without a budget");
    assert_eq!(without_budget.finetune.optim.epochs, config.finetune.optim.epochs);
    let mut short = forecast();
    config.time_budget = 160.0 / 60.0;
    let asked_for = short.fit(&config, &[StageName::Pretrain]).expect("fits");
    assert_eq!(asked_for.pretrain.optim.epochs, 100);
}

#[test]
fn few_labels_leave_fine_tuning_its_share_of_the_time() {
    let mut config = quick();
    (config.time_budget, config.few_images) = (200.0 / 0.95 / 60.0, 40);
    config.pretrain.few_labels = 1.0;
    let fitted = |labelled: usize, chosen: &[StageName]| {
        let mut made = forecast();
        let part = labelled as f64 / 40.0;
        let costs = Costs { images: labelled, epoch: part, early_epoch: part, ..costs(0, false) };
        made.stages[1] = stage(StageName::Finetune, costs, 50);
        made.fit(&config, chosen).expect("fits");
        [0, 1].map(|i| (made.stages[i].epochs, made.stages[i].training))
    };
    // In 193 seconds both stages have less than 1.22 times their epochs: 100 and 50, or 200 of a quarter.
    let [all, quarter] = [40, 10].map(|labelled| fitted(labelled, &[]));
    assert_eq!(all, [(121, 121.0), (60, 60.0)]);
    assert_eq!(quarter, [(121, 121.0), (243, 60.75)]);
    assert_eq!(fitted(10, &[StageName::Finetune])[1].0, 50, "as chosen");
}

#[test]
fn few_images_have_the_steps_of_many_in_their_longest_schedule() {
    let longest = Longest { few_images: 2040, ..at_most(800) };
    // Images, of which a step takes 32, epochs: 64 steps an epoch of 2,040 images are 51,200.
    for (images, epochs) in [(10_000, 800), (2040, 800), (2016, 812), (210, 7314), (20, 51_200)] {
        let steps_per_epoch = usize::div_ceil(images, 32);
        let costs = Costs { images, batch_size: 32, steps_per_epoch, ..costs(0, false) };
        let stage = stage(StageName::Finetune, costs, 1);
        assert_eq!(longest.of_stage(&stage, true), epochs, "{images}");
        let from_random = Longest { from_random: true, ..longest };
        assert_eq!(from_random.of_stage(&stage, true), 2 * epochs, "{images}");
        assert_eq!(from_random.of_stage(&stage, false), epochs, "{images}");
        assert_eq!(at_most(800).of_stage(&stage, true), 800, "{images}");
    }
}

#[test]
fn fine_tuning_alone_may_have_the_epochs_of_both_stages() {
    let mut config = quick();
    (config.time_budget, config.few_images) = (10_000.0 / 60.0, 0);
    let mut made = forecast();
    let fitted = made.fit(&config, &[]).expect("fits");
    assert_eq!(fitted.finetune.optim.epochs, 1600, "twice the longest");
    let alone = |from_random| {
        let mut made = Forecast { from_random, ..forecast() };
        made.stages.remove(0);
        let epochs = made.fit(&config, &[]).expect("fits").finetune.optim.epochs;
        (epochs, made.unused.is_some())
    };
    assert_eq!(alone(true), (1600, true), "asked for");
    assert_eq!(alone(false), (800, true), "weights that somebody has trained");
}

#[test]
fn epochs_of_fine_tuning_that_somebody_chose_keep_no_short_pre_training() {
    let mut config = quick();
    config.time_budget = 170.0 / 0.95 / 60.0;
    let fitted = |chosen: &[StageName]| {
        let fitted = forecast().fit(&config, chosen).expect("fits");
        (fitted.pretrain.optim.epochs, fitted.finetune.optim.epochs)
    };
    assert_eq!(fitted(&[StageName::Finetune]), (0, 50));
    assert_eq!(fitted(&[StageName::Pretrain]).0, 100, "asked for");
}

#[test]
fn a_budget_that_is_not_used_up_is_said() {
    let mut config = quick();
    config.few_images = 0;
    let mut said = |seconds: f64, chosen: &[StageName]| {
        config.time_budget = seconds / 60.0;
        config.pretrain.few_labels = if chosen.is_empty() { 1.0 } else { 0.1 };
        let mut made = forecast();
        made.fit(&config, chosen).expect("fits");
        made.describe()
    };
    // 800 epochs of both: 800 + 40 + 3.75 and 800 + 19.5 + 3.5 seconds, 3 at the end and 7 at the start.
    let words = "7 min 04 s of the time budget are left";
    assert!(said(2100.75, &[]).contains(words), "{}", said(2100.75, &[]));
    assert!(!said(1900.0, &[]).contains("are left"), "{}", said(1900.0, &[]));
    assert!(!said(90.0, &[]).contains("are left"));
    let chosen = said(179.0, &[StageName::Finetune]);
    assert!(chosen.contains("no pre-training"), "{chosen}");
    assert!(!chosen.contains("are left"), "epochs that somebody chose are no longest: {chosen}");
}

#[test]
fn a_budget_that_is_too_short_says_for_what_and_which_is_not() {
    let mut config = quick();
    let said = |minutes: f64, chosen: &[StageName], config: &mut RunConfig, stages: usize| {
        config.time_budget = minutes;
        let mut made = forecast();
        made.stages.drain(..2 - stages);
        made.fit(config, chosen).expect_err("too short").to_string()
    };
    // An epoch, its checkpoint, 3 seconds at the end and 7 at the start.
    let alone = said(0.1, &[], &mut config, 1);
    assert!(
        alone.contains("a run, one epoch takes 11 s here\n  give --time-budget 1m or more"),
        "{alone}"
    );
    let left_out = said(0.1, &[], &mut config, 2);
    assert!(left_out.contains("a run, one epoch takes 11 s here"), "{left_out}");
    let asked_for = said(0.5, &[StageName::Finetune], &mut config, 2);
    assert!(asked_for.contains("a run, the epochs asked for take 1 min 01 s"), "{asked_for}");
    assert!(!asked_for.contains("kept back"), "{asked_for}");
    // 58.9 of 62 seconds may be planned.
    let nearly = said(62.0 / 60.0, &[StageName::Finetune], &mut config, 2);
    assert!(
        nearly.contains("take 1 min 01 s here, and 5% of the budget are kept back"),
        "{nearly}"
    );
    let other = said(0.5, &[StageName::Pretrain], &mut config, 2);
    assert!(other.contains("asked for, with one of the other stage, take 1 min 57 s"), "{other}");
    assert!(other.contains("--time-budget 3m or more"), "{other}");
    config.pretrain.few_labels = 1.0;
    let both = said(0.1, &[], &mut config, 2);
    assert!(both.contains("one epoch of each stage takes 13 s"), "{both}");
}

#[test]
fn a_long_run_says_how_it_could_be_shorter() {
    let of = |budgeted, epochs| {
        let mut made = Forecast { budgeted, ..forecast() };
        made.stages[1] = stage(StageName::Finetune, costs(0, false), epochs);
        made.describe()
    };
    assert!(of(true, 2000).contains("shorter:  a shorter --time-budget, or"));
    assert!(of(false, 2000).contains("shorter:  --recipe quick --time-budget MINUTES"));
    assert!(!of(true, 20).contains("shorter:"));
}

#[test]
fn other_programs_that_slow_the_timing_down_are_said() {
    let of = |crowd| Forecast { crowd, ..forecast() }.describe();
    let said = of(Some(Crowd { others: 0.84, cores: 2 }));
    let busy = "note: other programs kept 0.8 of 2 cores busy while this was timed: without them this machine does more";
    assert!(said.contains(busy), "{said}");
    assert!(!of(None).contains("other programs"));
}

#[test]
fn what_is_left_of_a_resumed_run_leaves_out_what_is_done() {
    let made = forecast();
    assert_eq!(made.seconds_left(StageName::Pretrain, 0), made.seconds());
    assert_eq!(made.seconds_left(StageName::Pretrain, 750), 105.5 / 4.0 + 51.25 + 3.0);
    assert_eq!(made.seconds_left(StageName::Finetune, 500), 3.0);
}

#[test]
fn early_epochs_of_small_crops_are_counted_as_what_they_cost() {
    // Three quarters of 40 epochs take a fifth of a second each, ten a second.
    let costs = Costs { early_epoch: 0.2, early_share: 0.75, ..costs(0, false) };
    let mut made = forecast();
    made.stages = vec![stage(StageName::Finetune, costs, 40)];
    let seconds = 30.0 * 0.2 + 10.0 + 0.25;
    assert!((made.seconds() - seconds - 3.0).abs() < 1e-9, "{}", made.seconds());
    let until = |step| made.stages[0].seconds_until(step) / seconds;
    for (step, share) in [(0, 0.0), (300, 6.0 / 16.0), (355, 11.5 / 16.0), (400, 1.0)] {
        assert!((until(step) - share).abs() < 1e-9, "{step}: {}", until(step));
    }
    assert_eq!(made.units_until(StageName::Finetune, 300), 6094);
    assert!(made.scale(20.0, |_| true, &at_most(800)));
    assert_eq!(
        made.stages[0].epochs, 42,
        "32 early ones: 6.4 + 10 + 3.25; one more takes a second"
    );
}

#[test]
fn what_was_turned_down_is_said_with_its_epochs() {
    let mut made = forecast();
    assert!(made.scale(80.0, |_| true, &at_most(800)));
    // 75 epochs, 3 evaluations, 2 checkpoints, 3 seconds at the end, as where pre-training is left out.
    made.alone = made.without_pretraining(80.0, &at_most(800));
    assert_eq!(made.alone, Some(75));
    let text = made.describe();
    assert!(text.contains("not chosen: no pre-training and 75 epochs of fine-tuning"), "{text}");
    assert_eq!(made.stages.len(), 2, "the plan stays");
    made.stages.remove(0);
    assert_eq!(made.without_pretraining(80.0, &at_most(800)), None);
    assert!(!forecast().describe().contains("not chosen"));
}

#[test]
fn a_short_budget_has_the_smaller_model_and_says_why() {
    let mut config = quick();
    let model = ["pvt_v2_b0", "pvt_v2_b0_small"].map(str::to_owned);
    [config.model.name, config.model.small] = model.clone();
    // Ten steps take a second; seven seconds of 87.01 have passed.
    (config.time_budget, config.model.small_below) = (87.01 / 0.95 / 60.0, 801);
    let of = |config: &RunConfig, chosen: &[StageName]| forecast().smaller(config, chosen);
    let [instead_of, name] = model;
    let smaller = Smaller { name, instead_of, steps: 800, least: 801 };
    assert_eq!(of(&config, &[]).as_ref(), Some(&smaller));
    let applied = with_smaller(&config, &smaller);
    assert_eq!([&applied.model.name, &applied.model.small], ["pvt_v2_b0_small", ""]);
    let decided = Decided { smaller: Some(smaller), ..Decided::default() };
    let said = Forecast { decided, ..forecast() }.describe();
    let words = "pvt_v2_b0_small: the budget has room for 800 steps of pvt_v2_b0, which is trained from 801 on";
    assert!(said.contains(words), "{said}");
    assert!(!forecast().describe().contains("model"));
    let with = |change: fn(&mut RunConfig)| {
        let mut config = config.clone();
        change(&mut config);
        of(&config, &[])
    };
    assert_eq!(with(|config| config.model.small_below = 800), None, "enough steps");
    assert_eq!(with(|config| config.time_budget = 0.0), None, "no budget");
    assert_eq!(with(|config| config.model.small.clear()), None, "no smaller model");
    let both = [StageName::Pretrain, StageName::Finetune];
    assert_eq!(of(&config, &both), None, "epochs that somebody chose");
    assert!(of(&config, &both[1..]).is_some(), "of one stage");
}

/// `quick` with so many epochs of fine-tuning, four fifths of them with crops of 64 px and the last of 112.
fn with_small_crops_first(epochs: usize) -> RunConfig {
    let mut config = quick();
    let finetune = &mut config.finetune;
    (finetune.early_img_size, finetune.img_size, finetune.early_share) = (64, 112, 0.8);
    finetune.optim.epochs = epochs;
    config
}

#[test]
fn crops_are_small_throughout_where_large_ones_would_have_few_steps() {
    let mut config = with_small_crops_first(50);
    config.finetune.least_full_steps = 101;
    // Ten epochs of ten steps.
    let few = SmallCrops { img_size: 64, instead_of: 112, steps: 100, least: 101 };
    assert_eq!(forecast().small_crops(&config), Some(few));
    let applied = with_small_crops(&config, &few);
    assert_eq!(applied.finetune.img_size, 64);
    assert_eq!(forecast().small_crops(&applied), None, "they are small");
    let enough = |change: fn(&mut RunConfig)| {
        let mut config = config.clone();
        change(&mut config);
        forecast().small_crops(&config).is_none()
    };
    assert!(enough(|config| config.finetune.least_full_steps = 100));
    assert!(enough(|config| config.finetune.early_share = 0.0), "all epochs have large ones");
    let decided = Decided { small_crops: Some(few), ..Decided::default() };
    let said = Forecast { decided, ..forecast() }.describe();
    let words = "of 64 px in all epochs of fine-tuning: crops of 112 px would have only 100 steps, and help from 101 on";
    assert!(said.contains(words), "{said}");
    assert!(!forecast().describe().contains("crops     of"));
}

#[test]
fn crops_are_larger_at_the_end_where_there_is_time_for_them() {
    let mut config = with_small_crops_first(200);
    (config.finetune.large_img_size, config.finetune.least_large_epochs) = (224, 10);
    // A quarter of forty epochs.
    let large = LargeCrops { img_size: 224, instead_of: 112, epochs: 10, least: 10 };
    assert_eq!(forecast().large_crops(&config), Some(large));
    assert_eq!(large.with_epochs(11), Some(LargeCrops { epochs: 11, ..large }));
    assert_eq!(large.with_epochs(9), None, "too few after all");
    let applied = with_large_crops(&config);
    assert_eq!(applied.finetune.full_epochs(), 10);
    assert_eq!((applied.finetune.img_size, applied.finetune.early_of(200)), (224, 190));
    assert_eq!(forecast().large_crops(&applied), None, "they are large");
    let none = |change: fn(&mut RunConfig)| {
        let mut config = config.clone();
        change(&mut config);
        forecast().large_crops(&config).is_none()
    };
    assert!(none(|config| config.finetune.least_large_epochs = 11));
    assert!(none(|config| config.finetune.large_img_size = 0));
    assert!(none(|config| config.finetune.early_share = 0.0), "a model of one size");
    let decided = Decided { large_crops: Some(large), ..Decided::default() };
    let said = Forecast { decided, ..forecast() }.describe();
    let words = "of 224 px in the last 10 epochs of fine-tuning, not 112: they help from 10 on";
    assert!(said.contains(words), "{said}");
    assert!(!forecast().describe().contains("px in the last"));
}
