use super::*;
use crate::cli::flags::Job;

/// The commands at the end of a help text.
fn examples(command: &clap::Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    lines.map(|line| line.split(" > ").next().unwrap_or(line).to_owned()).collect()
}

fn walk(command: &clap::Command, visit: &mut dyn FnMut(&clap::Command)) {
    visit(command);
    command.get_subcommands().for_each(|inner| walk(inner, visit));
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::of(line.split_whitespace().map(OsString::from))
}

#[test]
fn the_definition_is_sound_and_every_command_and_flag_is_explained() {
    Cli::command().debug_assert();
    walk(&Cli::command(), &mut |command| {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
        }
    });
}

#[test]
fn every_help_ends_with_two_examples_that_work() {
    let mut seen = 0;
    walk(&Cli::command(), &mut |command| {
        let examples = examples(command);
        assert!(examples.len() >= 2, "{}", command.get_name());
        for line in examples {
            assert!(line.starts_with("fewvit "), "{line}");
            let cli = parse(&line).unwrap_or_else(|e| panic!("{line}\n{e}"));
            let (job, train) = match &cli.command {
                Command::Train(args) => (Job::Train, &args.train),
                Command::Pretrain(args) => (Job::Pretrain, &args.train),
                Command::Finetune(args) => (Job::Finetune, &args.train),
                Command::Config(args) => (Job::Train, &args.train),
                _ => continue,
            };
            train.layers(job, Vec::new()).and_then(crate::config::Layers::build).expect(&line);
            seen += 1;
        }
    });
    assert!(seen >= 13, "{seen}");
}

#[test]
fn a_number_below_zero_is_the_value_of_its_flag() {
    for (line, flag) in [
        ("fewvit train photos/ --epochs -1", "--epochs <N>"),
        ("fewvit train photos/ -b -8", "--batch-size <N>"),
        ("fewvit demo --seed -1", "--seed <N>"),
    ] {
        let text = parse(line).expect_err(line).to_string();
        assert!(text.contains("invalid value '-") && text.contains(flag), "{line}: {text}");
    }
    assert!(parse("fewvit train photos/ -1").is_err());
}

#[test]
fn mistakes_are_usage_errors() {
    for line in [
        "fewvit tarin photos/",
        "fewvit train",
        "fewvit train photos/ --lrr 1",
        "fewvit train photos/ --lr fast",
        "fewvit train photos/ --seed 18446744073709551615",
        "fewvit train photos/ --crops 2x112",
        "fewvit train photos/ --from-scratch --pretrain-epochs 3",
        "fewvit finetune photos/",
        "fewvit finetune photos/ --init a --from-scratch",
        "fewvit predict runs/a",
        "fewvit trace --amp-dtype f16",
    ] {
        assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
    }
    let text = parse("fewvit train photos/ --crops 2x112").expect_err("no scale").to_string();
    assert!(text.contains("has no `@`; a group is COUNTxSIZE@LOW-HIGH"), "{text}");
    assert!(parse("fewvit tarin x").expect_err("a typo").to_string().contains("'train'"));
    assert_eq!(parse("fewvit --help").expect_err("help").exit_code(), 0);
    assert_eq!(parse("fewvit --version").expect_err("version").exit_code(), 0);
}

/// What a command's help offers.
fn offered(path: &[&str]) -> Vec<String> {
    let mut command = Cli::command();
    for name in path {
        command = command.find_subcommand(name).expect(name).clone();
    }
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some(arg.get_long()?.to_owned())).collect()
}

#[test]
fn no_help_offers_what_its_command_refuses() {
    for (path, without, with) in [
        (&["pretrain"][..], &["mixup", "from-scratch", "pretrain-epochs"][..], "method"),
        (
            &["finetune"],
            &["method", "crops", "projector", "no-probe", "pretrain-smoothing"],
            "mixup",
        ),
        (&["config"], &["output", "yes", "dry-run"], "json"),
        (&["demo"], &["time-budget"], "dry-run"),
        (&["bench", "data"], &["output", "yes", "dry-run", "mixup"], "json"),
        (&["bench", "epoch"], &["output", "yes", "dry-run", "mixup"], "seconds"),
        (&["train"], &[], "mixup"),
    ] {
        let offered = offered(path);
        assert!(offered.contains(&with.to_owned()), "{path:?} --{with}");
        for flag in without {
            assert!(!offered.contains(&(*flag).to_owned()), "{path:?} --{flag}");
        }
    }
}
