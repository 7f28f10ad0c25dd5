use clap::Parser;

use super::*;
use crate::config::{CropGroup, RunConfig};

/// The flags alone, as a command line.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: TrainArgs,
}

fn layers(line: &str, job: Job, env: &[(&str, &str)]) -> Result<Layers> {
    let words = std::iter::once("fewvit").chain(line.split_whitespace());
    let args = Line::try_parse_from(words).expect(line).args;
    args.layers(job, env.iter().map(|&(k, v)| (k.into(), v.into())).collect())
}

fn config(line: &str, job: Job) -> RunConfig {
    layers(line, job, &[]).and_then(Layers::build).expect(line).config
}

fn refused(line: &str, job: Job) -> String {
    let error = layers(line, job, &[]).and_then(Layers::build).expect_err(line);
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

#[test]
fn epochs_and_sizes_belong_to_the_stage_of_the_command() {
    let line = "--epochs 3 --img-size 160 --smoothing 0.2";
    let of = |c: &RunConfig| {
        let (p, f) = (&c.pretrain, &c.finetune);
        let smoothing = (p.optim.smoothing, f.optim.smoothing);
        ((p.optim.epochs, f.optim.epochs), (p.crops[1].img_size, f.img_size), smoothing)
    };
    let train = format!("--recipe paper {line}");
    assert_eq!(of(&config(&train, Job::Train)), ((800, 3), (112, 160), (0.1, 0.2)));
    assert_eq!(of(&config(line, Job::Finetune)), ((800, 3), (112, 160), (0.1, 0.2)));
    assert_eq!(of(&config(line, Job::Pretrain)), ((3, 200), (160, 224), (0.2, 0.1)));
    let line =
        "--recipe paper --pretrain-epochs 5 --pretrain-img-size 96 --pretrain-ls 0 --epochs 3";
    assert_eq!(of(&config(line, Job::Train)), ((5, 3), (96, 224), (0.0, 0.1)));
    assert_eq!(config("--from-scratch", Job::Train).pretrain.optim.epochs, 0);
    assert_eq!(config("--no-probe", Job::Pretrain).pretrain.probe_every, 0);
}

#[test]
fn train_alone_is_quick_and_everything_else_the_paper() {
    let recipe = |line: &str, job| config(line, job).about.name;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, "seed = 1").expect("written");
    let with_file = format!("-c {}", file.display());
    assert_eq!(recipe("", Job::Train), "quick");
    assert_eq!(recipe("--lr 1e-4 --epochs 3", Job::Train), "quick");
    assert_eq!(recipe(&with_file, Job::Train), "paper");
    assert_eq!(recipe(&format!("{with_file} --recipe quick"), Job::Train), "quick");
    assert_eq!(recipe("--recipe paper", Job::Train), "paper");
    assert_eq!([Job::Pretrain, Job::Finetune].map(|job| recipe("", job)), ["paper", "paper"]);
}

#[test]
fn other_flags_reach_every_stage_that_has_the_setting() {
    let line = "-b 8 --lr 1e-3 --weight-decay 0.05 --warmup-epochs 0.5 --drop-path 0 --cutmix 1 \
                --seed 7 --threads 2 --time-budget 2h --on-bad-image skip --mixup 0 \
                --model deit_small_patch16_224 --projector 64 --method idmm --amp-dtype f32";
    let c = config(line, Job::Train);
    for optim in [&c.pretrain.optim, &c.finetune.optim] {
        assert_eq!((optim.batch_size, optim.lr, optim.weight_decay), (8, 1e-3, 0.05));
        assert_eq!((optim.warmup_epochs, optim.drop_path), (0.5, 0.0));
    }
    assert_eq!((c.pretrain.cutmix, c.finetune.cutmix, c.finetune.mixup), (1.0, 1.0, 0.0));
    assert_eq!((c.seed, c.threads, c.time_budget), (7, 2, 120.0));
    assert_eq!((c.model.name.as_str(), c.pretrain.projector), ("deit_small_patch16_224", 64));
    assert!(!c.data.allow_empty_class);
    assert!(config("--allow-empty-class", Job::Finetune).data.allow_empty_class);
    let c = config("-b 8 --cutmix 0", Job::Pretrain);
    assert_eq!((c.pretrain.optim.batch_size, c.finetune.optim.batch_size), (8, 256));
    assert_eq!((c.pretrain.cutmix, c.finetune.cutmix), (0.0, 0.5));
}

/// The paper's Table 8: (smoothing, crops, CutMix) of each row.
#[test]
fn pretrain_reaches_every_row_of_table_8() {
    let one = |img_size| {
        let group =
            CropGroup { count: 2, img_size, scale: [0.14, 1.0], blur: None, solarize: None };
        vec![group]
    };
    let both = config("", Job::Pretrain).pretrain.crops;
    for (line, expected) in [
        ("--crops 2x224@0.14-1 --smoothing 0 --cutmix 0", (0.0, one(224), 0.0)),
        ("--crops 2x112@0.14-1 --img-size 224 --cutmix 0", (0.1, one(224), 0.0)),
        ("--crops 2x112@0.14-1 --cutmix 0", (0.1, one(112), 0.0)),
        ("--crops 2x112@0.14-1,4x112@0.05-0.4 --cutmix 0", (0.1, both.clone(), 0.0)),
        ("", (0.1, both, 0.5)),
    ] {
        let p = config(line, Job::Pretrain).pretrain;
        assert_eq!((p.optim.smoothing, p.crops, p.cutmix), expected, "{line}");
    }
}

#[test]
fn flags_win_over_set_over_the_environment_over_recipes() {
    let env = [("FEWVIT_SEED", "1"), ("FEWVIT_THREADS", "1"), ("FEWVIT_TIME_BUDGET", "1")];
    let line = "--recipe quick --seed 3 --set seed=2 --set threads=2";
    let resolved = layers(line, Job::Train, &env).and_then(Layers::build).expect("valid");
    let c = &resolved.config;
    assert_eq!((c.seed, c.threads, c.time_budget), (3, 2, 1.0));
    assert_eq!(c.pretrain.optim.epochs, 100);
    assert_eq!(resolved.origin("seed"), Some(&Source::Flag("--seed")));
    assert_eq!(resolved.origin("threads"), Some(&Source::Flag("--set")));
    let variable = Source::Env("FEWVIT_TIME_BUDGET".to_owned());
    assert_eq!(resolved.origin("time_budget"), Some(&variable));
}

#[test]
fn what_cannot_be_is_said() {
    let text = refused("--lr -1", Job::Finetune);
    assert!(text.contains("finetune.optim.lr is -1.0, must be more than 0"), "{text}");
    assert!(text.contains("(set by --lr)"), "{text}");
    assert!(refused("--mixup 1", Job::Pretrain).contains("--mixup is about fine-tuning"));
    assert!(refused("--no-probe", Job::Finetune).contains("--no-probe is about pre-training"));
    assert!(refused("--pretrain-img-size 96", Job::Finetune).contains("--pretrain-img-size"));
    assert!(refused("--from-scratch", Job::Pretrain).contains("--from-scratch"));
    assert!(refused("--img-size 100", Job::Pretrain).contains("a multiple of 16"));
    assert!(refused("--recipe papre", Job::Train).contains("did you mean `paper`"));
    assert!(refused("--crops 2x112@0.5-0.1", Job::Train).contains("(set by --crops)"));
    assert!(
        refused("--amp-dtype f64", Job::Train).contains("expected one of `auto`, `f32`, `bf16`")
    );
}

#[test]
fn flags_of_the_other_stage_are_hidden_and_refused_and_no_others() {
    use clap::{CommandFactory, FromArgMatches};
    let values = [
        ("model", "pvt_v2_b0"),
        ("method", "dino"),
        ("crops", "2x112@0.2-1"),
        ("amp-dtype", "f32"),
        ("on-bad-image", "skip"),
        ("device", "cpu"),
        ("recipe", "quick"),
        ("img-size", "128"),
        ("pretrain-img-size", "96"),
        ("set", "seed=3"),
    ];
    for job in [Job::Train, Job::Pretrain, Job::Finetune] {
        for arg in Line::command().get_arguments() {
            let Some(long) = arg.get_long().filter(|long| *long != "config") else { continue };
            let given =
                values.iter().find(|(name, _)| *name == long).map_or("1", |(_, value)| value);
            let mut words = vec!["fewvit".to_owned(), format!("--{long}")];
            words.extend(arg.get_action().takes_values().then(|| given.to_owned()));
            let matches = Line::command().get_matches_from(words);
            let args = Line::from_arg_matches(&matches).expect(long).args;
            let done = args.layers(job, Vec::new()).map(|_| ());
            let offered = !job.hidden().contains(&arg.get_id().as_str());
            // --pretrain-* of `pretrain` are only second names.
            let allowed = offered || (job == Job::Pretrain && long.starts_with("pretrain-"));
            // Fine-tuning never pre-trains.
            let allowed = allowed || long == "from-scratch" && job == Job::Finetune;
            assert_eq!(done.is_ok(), allowed, "{job:?} --{long}: {done:?}");
        }
    }
}

#[test]
fn two_flags_for_one_setting_are_refused() {
    for line in [
        "--epochs 5 --pretrain-epochs 7",
        "--smoothing 0 --pretrain-smoothing 0.1",
        "--img-size 112 --pretrain-img-size 96",
    ] {
        assert!(refused(line, Job::Pretrain).contains("set the same here"), "{line}");
    }
}

fn settled(line: &str, job: Job) -> Result<RunConfig> {
    Ok(crate::run::settle(layers(line, job, &[])?, job.stages())?.config)
}

#[test]
fn a_flag_that_does_nothing_is_an_error() {
    for (line, job, text) in [
        (
            "--method simclr --cutmix 0.5",
            Job::Pretrain,
            "--cutmix does nothing: simclr does not read",
        ),
        ("--method moco-v2 --projector 64", Job::Train, "--projector does nothing: moco-v2"),
        ("--method dino --smoothing 0.2", Job::Pretrain, "--smoothing does nothing: dino"),
        ("--method dino --pretrain-smoothing 0", Job::Train, "--pretrain-smoothing does nothing"),
        ("--recipe supcon --pretrain-ls 0.1", Job::Train, "--pretrain-smoothing does nothing"),
        (
            "--recipe paper --student",
            Job::Train,
            "--student does nothing: idmm does not read pretrain.encoder",
        ),
        ("--projector 64", Job::Train, "--projector does nothing: this recipe does not pre-train"),
        ("--crops 2x96@0.1-1", Job::Train, "--crops does nothing: this recipe does not pre-train"),
        ("--set pretrain.optim.lr=1e-3", Job::Train, "--set pretrain.optim.lr does nothing: this"),
        ("--set pretrain.few_labels=0 --method dino", Job::Train, "--method does nothing: this"),
        ("--from-scratch --crops 2x96@0.1-1", Job::Train, "--crops does nothing"),
        ("--from-scratch --no-probe", Job::Train, "--no-probe does nothing"),
        ("--pretrain-epochs 0 --method dino", Job::Train, "--method does nothing"),
        ("--set pretrain.optim.epochs=0 --projector 8", Job::Train, "--projector does nothing"),
        ("--set finetune.mixup=1", Job::Pretrain, "--set finetune.mixup does nothing"),
    ] {
        let error = settled(line, job).expect_err(line);
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(text), "{line}: {error}");
    }
    for line in [
        "--method simclr --cutmix 0.5",
        "--from-scratch --lr 1e-3",
        "--method dino --student",
        "--lr 1e-3 --batch-size 16",
        "--pretrain-epochs 5 --projector 64",
        "--set pretrain.few_labels=0.2 --crops 2x96@0.1-1",
        "--recipe paper --projector 64",
    ] {
        settled(line, Job::Train).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    let dino = settled("--method dino --student", Job::Train).expect("valid");
    assert_eq!(dino.pretrain.encoder, crate::config::Encoder::Student);
}
