//! `fewvit recipe` and `fewvit config`.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::args::{ConfigArgs, RecipeCommand};
use super::flags::{Job, Variables};
use crate::config::{Resolved, Setting, recipe, to_toml};
use crate::error::{Error, Result};
use crate::run;

/// Lists the recipes or prints one with its comments.
///
/// # Errors
/// [`Error::Usage`] for an unknown recipe; `out` cannot be written.
pub fn recipe(command: &RecipeCommand, out: &mut impl Write) -> Result<()> {
    match command {
        RecipeCommand::Show { name } => print(out, recipe::get(name)?.text),
        RecipeCommand::List(args) => recipe::TABLE.iter().try_for_each(|recipe| {
            let about = recipe.about()?;
            let line = match args.json {
                true => return print_json(out, &about),
                false => {
                    format!("{:<7} {}\n        cost: {}", about.name, about.summary, about.cost)
                }
            };
            print(out, &format!("{line}\n"))
        }),
    }
}

/// Prints the settings of a run as TOML, or explains one.
///
/// # Errors
/// Settings that cannot be used; `out` cannot be written.
pub fn config(args: &ConfigArgs, env: Variables, out: &mut impl Write) -> Result<()> {
    args.train.run.refuse_of_runs()?;
    let resolved = run::settle(args.train.layers(Job::Train, env)?, Job::Train.stages())?;
    match (&args.explain, args.train.run.json) {
        (Some(key), false) => print(out, &resolved.explain(key)?),
        (Some(key), true) => explain_json(&resolved, key, out),
        (None, false) => print(out, &to_toml(&resolved.config)?),
        (None, true) => print_json(out, &resolved.config),
    }
}

/// An object a key.
fn explain_json(resolved: &Resolved, key: &str, out: &mut impl Write) -> Result<()> {
    let said =
        |setting: &Setting| json!({ "value": setting.value, "set_by": setting.source.to_string() });
    resolved.history(key)?.into_iter().try_for_each(|(key, history)| {
        let mut newest_first = history.iter().rev().map(said);
        let mut line = newest_first.next().unwrap_or_default();
        line["key"] = key.into();
        line["instead_of"] = newest_first.collect();
        print_json(out, &line)
    })
}

fn print_json(out: &mut impl Write, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::Failed(format!("cannot print the result: {e}")))?;
    print(out, &format!("{text}\n"))
}

/// Prints results.
///
/// # Errors
/// `out` cannot be written, or its reader, such as `head`, has seen enough; the program ends then.
pub fn print(out: &mut impl Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).map_err(|e| Error::io("write", Path::new("standard output"), e))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn output(line: &str) -> String {
        let mut out = Vec::new();
        let cli = Cli::try_parse_from(line.split_whitespace()).expect(line);
        match &cli.command {
            Command::Recipe(command) => recipe(command, &mut out).expect(line),
            Command::Config(args) => config(args, Vec::new(), &mut out).expect(line),
            other => panic!("{other:?}"),
        }
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn recipes_are_listed_and_shown() {
        let list = output("fewvit recipe list");
        assert_eq!(list.lines().filter(|line| !line.starts_with(' ')).count(), recipe::TABLE.len());
        for line in output("fewvit recipe list --json").lines() {
            let about: crate::config::About = serde_json::from_str(line).expect("JSON");
            assert_eq!(recipe::get(&about.name).and_then(|r| r.about()).expect("a recipe"), about);
        }
        assert!(output("fewvit recipe show demo").contains("# All numbers are"));
    }

    #[test]
    fn settings_are_printed_and_explained() {
        let text = output("fewvit config --recipe quick --seed 5");
        let table: toml::Table = text.parse().expect("TOML");
        assert_eq!(table["seed"].as_integer(), Some(5));
        let text = output("fewvit config --recipe quick --lr 2e-4 --explain finetune.optim.lr");
        let expected = "finetune.optim.lr = 0.0002\n  set by --lr\n  \
                        instead of 0.002 from recipe `quick`\n  \
                        instead of 0.001 from recipe `paper`, [for.pvt_v2]\n  \
                        instead of 0.0005 from recipe `paper`\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn settings_are_printed_as_json_and_flags_of_runs_are_refused() {
        let text = output("fewvit config --recipe quick --json");
        let config: crate::config::RunConfig = serde_json::from_str(&text).expect("JSON");
        assert_eq!(config.about.name, "quick");
        let text = output("fewvit config --lr 2e-4 --explain finetune.optim.lr --json");
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&line["key"], &line["value"]), (&"finetune.optim.lr".into(), &2e-4.into()));
        assert_eq!(line["set_by"], "--lr");
        assert_eq!(line["instead_of"][0]["set_by"], "recipe `quick`");
        for flag in ["--output runs/a", "--yes", "--dry-run"] {
            let line = format!("fewvit config {flag}");
            let cli = Cli::try_parse_from(line.split_whitespace()).expect(&line);
            let Command::Config(args) = &cli.command else { panic!("{line}") };
            let error = config_error(args);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("begins no run"), "{error}");
        }
    }

    fn config_error(args: &ConfigArgs) -> Error {
        super::config(args, Vec::new(), &mut Vec::new()).expect_err("a flag of runs")
    }
}
