//! `fewvit data fetch`.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::data_args::FetchArgs;
use crate::data::catalog::{self, KnownSet};
use crate::error::{Error, Result};
use crate::fetch::{self, Order, Patience, Told};
use crate::words::counted;

pub(super) fn fetch(args: &FetchArgs) -> Result<()> {
    let set = catalog::find(&args.name)?;
    let to = args.to.clone().unwrap_or_else(|| PathBuf::from(set.name));
    fetch::check_free(&to)?;
    let is_web = |url: &String| url.starts_with("http://") || url.starts_with("https://");
    if let Some(url) = args.mirror.as_ref().filter(|url| !is_web(url)) {
        return Err(Error::Usage(format!("--mirror {url}: must begin with https:// or http://")));
    }
    agree(set, args.yes)?;
    let order = Order { set, to: &to, mirror: args.mirror.as_deref() };
    let mut meter = Meter::new();
    let fetched = fetch::fetch(&order, &Patience::default(), &mut |told| meter.tell(told));
    meter.bar.finish_and_clear();
    let fetched = fetched?;
    let (files, archives) = (counted(fetched.files, "file"), fetched.archives.display());
    eprintln!("{files}; {archives} is no longer needed");
    super::print(&to.display().to_string())
}

/// Shows the terms and sees to it that somebody agrees to them.
fn agree(set: &KnownSet, yes: bool) -> Result<()> {
    eprintln!("{}\n  terms: {}\n  {}", set.title, set.terms, set.page);
    if yes {
        return Ok(());
    }
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Error::Usage(
            "nothing is downloaded before somebody agrees to these terms\n  read them and add --yes"
                .into(),
        ));
    }
    let fail = |e| Error::Failed(format!("cannot ask on this terminal: {e}"));
    eprint!("Do you agree? [y/N] ");
    std::io::stderr().flush().map_err(fail)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(fail)?;
    match ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        true => Ok(()),
        false => Err(Error::Failed("not agreed; nothing was downloaded".into())),
    }
}

/// Progress on standard error: a bar on a terminal, a line each tenth elsewhere.
struct Meter {
    bar: ProgressBar,
    /// What the last line or bar was about, and the tenth it has reached.
    at: (&'static str, String, u64),
}

impl Meter {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = match terminal {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let style = "{msg} {bar:24} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(style);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, at: ("", String::new(), 0) }
    }

    fn tell(&mut self, told: Told) {
        let (what, file, done, total) = match told {
            Told::Note(note) => {
                return self.bar.suspend(|| eprintln!("note: {note}"));
            }
            Told::Progress { what, file, done, total } => (what, file, done, total),
        };
        let other = self.at.0 != what || self.at.1 != file;
        if other {
            self.at = (what, file.to_owned(), 0);
            self.bar.reset();
            self.bar.set_message(format!("{what} {file}"));
        }
        total.into_iter().for_each(|total| self.bar.set_length(total));
        self.bar.set_position(done);
        let tenth = total.map_or(0, |total| 10 * done / total.max(1));
        if self.bar.is_hidden() && (other || tenth > self.at.2) {
            eprintln!("{}", line(what, file, done, total));
        }
        self.at.2 = tenth;
    }
}

/// `downloading setid.mat: 60% of 0.1 MB`.
fn line(what: &str, file: &str, done: u64, total: Option<u64>) -> String {
    let size = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    match total {
        Some(total) => format!("{what} {file}: {}% of {}", 100 * done / total.max(1), size(total)),
        None => format!("{what} {file}: {}", size(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_a_file_is() {
        let text = line("downloading", "a.tgz", 1_500_000, Some(2_000_000));
        assert_eq!(text, "downloading a.tgz: 75% of 2.0 MB");
        assert_eq!(line("checking", "a.tgz", 1_500_000, None), "checking a.tgz: 1.5 MB");
        assert_eq!(line("checking", "empty", 0, Some(0)), "checking empty: 0% of 0.0 MB");
    }
}
