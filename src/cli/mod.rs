//! The command line: parse, run, print. The only module that writes to the terminal.

pub mod args;
mod bench;
mod bench_args;
mod data;
mod data_args;
mod data_list;
mod data_sample;
mod demo;
mod doctor;
#[cfg(feature = "fetch")]
mod fetch;
mod flags;
mod frozen;
mod frozen_args;
mod model;
mod progress;
mod readable;
mod recipe;
mod reproduce;
mod study;
mod trace;
mod trace_args;
mod train;
mod values;

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::{ContextKind, ContextValue};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::engine::collective;
use crate::error::{Error, Result};
use crate::run::measured::Measured;
use args::{Cli, Command};
use data_args::BadImage;

/// Parses the program's arguments, runs the command and returns the exit code.
pub fn main() -> u8 {
    let cli = match Cli::of(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows which stream its text belongs on; help and version are no errors.
            let _ = error.print();
            let given = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
            if let Some(variable) = variable_to_blame(&error, given) {
                let _ = writeln!(std::io::stderr(), "note: the value is that of {variable}");
            }
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    // The processes of a study share its folder, not a model.
    let apart = matches!(cli.command, Command::Study(_) | Command::Reproduce(_));
    let job = match (!apart).then(collective::start).transpose() {
        Ok(job) => job,
        Err(error) => return exit_code(Err(error)),
    };
    let code = exit_code(run(cli.command));
    if code != 0 {
        collective::ranks().fail(code);
    }
    drop(job);
    code
}

/// The environment variable whose value clap refused as that of a flag, which is not among the `given` words.
fn variable_to_blame(
    error: &clap::Error,
    mut given: impl Iterator<Item = String>,
) -> Option<&'static str> {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let flag = argument.split(' ').next()?;
    let (_, variable) = args::FROM_ENVIRONMENT.into_iter().find(|(known, _)| *known == flag)?;
    let typed = given.any(|word| word.split('=').next() == Some(flag));
    (!typed && std::env::var_os(variable).is_some()).then_some(variable)
}

/// The exit code of a command, whose error goes to standard error.
fn exit_code(result: Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        // Whoever read the results has enough of them: `fewvit predict photos/ | head`.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => 0,
        // The processes of a job stop together, and the first one says so.
        Err(error @ (Error::Interrupted(_) | Error::Stopped(_))) if !first() => error.exit_code(),
        Err(error) => {
            let process = match collective::ranks().rank() {
                0 => String::new(),
                rank => format!(" (process {rank})"),
            };
            let _ = writeln!(std::io::stderr(), "fewvit{process}: {error}");
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<()> {
    let shared = matches!(
        command,
        Command::Train(_) | Command::Pretrain(_) | Command::Finetune(_) | Command::Resume(_)
    );
    let ranks = collective::ranks().size();
    if ranks > 1 && !shared {
        return Err(Error::Usage(format!(
            "this command was started {ranks} times at once; mpirun is for train, pretrain, finetune \
             and resume\n  start it by itself"
        )));
    }
    let out = &mut std::io::stdout();
    let env = || std::env::vars_os().collect();
    match command {
        Command::Train(args) => train::train(&args, flags::Job::Train),
        Command::Pretrain(args) => train::train(&args, flags::Job::Pretrain),
        Command::Finetune(args) => train::finetune(&args),
        Command::Resume(args) => train::resume(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Eval(args) => model::eval(&args),
        Command::Predict(args) => model::predict(&args),
        Command::Export(args) => model::export(&args),
        Command::Knn(args) => frozen::nearest(&args),
        Command::Probe(args) => frozen::probe(&args),
        Command::Embed(args) => frozen::embed(&args),
        Command::Study(args) => study::study(&args),
        Command::Reproduce(args) => reproduce::reproduce(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::Bench(command) => bench::bench(&command),
        Command::Data(command) => data::data(&command),
        Command::Recipe(command) => recipe::recipe(&command, out),
        Command::Config(args) => recipe::config(&args, env(), out),
        Command::Models(args) => model::list(args.json),
        Command::Doctor(args) => {
            let cache = crate::run::prepare::cache_folder("");
            let patient = doctor::Patient {
                cache: cache.as_deref(),
                simd: fewvit_kernels::simd_level(),
                data: args.data.as_deref(),
                output: &args.output,
            };
            doctor::print(&doctor::examine(&patient), args.json, out)?;
            args.data.as_deref().map_or(Ok(()), doctor::check_there)
        }
    }
}

/// The data as the run around `model` sees it; what there is to say of it goes to standard error.
fn measured(model: &Path, data: &Path, on_bad_image: BadImage, threads: usize) -> Result<Measured> {
    let policy = on_bad_image.policy();
    let (measured, notes) = crate::run::measured::open(model, data, policy, threads)?;
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    Ok(measured)
}

/// Notes that an accuracy says nothing where there is nothing to mistake a class for.
fn note_single_class(classes: usize) {
    if classes == 1 {
        eprintln!("note: there is only one class, so every answer is right");
    }
}

/// Prints a line of results.
fn print(text: &str) -> Result<()> {
    // Of several processes one speaks.
    if !first() {
        return Ok(());
    }
    recipe::print(&mut std::io::stdout(), &format!("{text}\n"))
}

/// Prints a value as one line of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::Failed(format!("cannot print the result: {e}")))?;
    print(&text)
}

/// Whether this is the only process of its job or the first one.
fn first() -> bool {
    collective::ranks().rank() == 0
}

/// Set by Ctrl-C or a request of the system to end; the run finishes its step and writes a
/// checkpoint. A second one ends the program at once.
static STOP: AtomicBool = AtomicBool::new(false);

/// Whether it was the system that asked, as job schedulers and shutdowns do, and not the user.
static BY_SYSTEM: AtomicBool = AtomicBool::new(false);

/// [`STOP`], listening from now on.
fn interrupted() -> Result<&'static AtomicBool> {
    static LISTENING: OnceLock<std::io::Result<()>> = OnceLock::new();
    match LISTENING.get_or_init(listen) {
        Ok(()) => Ok(&STOP),
        Err(e) => Err(Error::Failed(format!("cannot listen for Ctrl-C: {e}"))),
    }
}

fn listen() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in &mut signals {
            BY_SYSTEM.store(signal != SIGINT, Ordering::Relaxed);
            if STOP.swap(true, Ordering::Relaxed) {
                if first() {
                    let _ = writeln!(
                        std::io::stderr(),
                        "\nstopped at once: what came after the last checkpoint is lost"
                    );
                }
                std::process::exit(if signal == SIGINT { 130 } else { 75 });
            }
            if first() {
                let _ =
                    writeln!(std::io::stderr(), "stopping after this step; once more to stop now");
            }
        }
    })?;
    Ok(())
}
