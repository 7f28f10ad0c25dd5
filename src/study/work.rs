//! The runs of a study, one after the other or several at once, until none is left to take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::file::Study;
use super::grid::{Cell, Grid, Job, Start};
use super::place::{Claim, Place, State, now};
use crate::config::mark_fitted;
use crate::error::{Error, Result, caught};
use crate::files::{self, absolute};
use crate::run::{self, Folder, Request, Summary, Ui};

/// How a study is done.
pub struct Worker<'a> {
    /// What is done.
    pub study: &'a Study,
    /// The cells and their jobs.
    pub grid: &'a Grid,
    /// Where they are.
    pub place: &'a Place,
    /// Jobs at once in this process.
    pub jobs: usize,
    /// The command line, for the reports.
    pub command: Vec<String>,
    /// Makes the receiver of a job's progress.
    pub ui: &'a (dyn Fn(&Job) -> Box<dyn Ui> + Sync),
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
    /// Milliseconds since 1970 when this process began: what failed since is not tried again.
    began: u64,
    /// What the jobs gave that were done here.
    summaries: Mutex<Vec<(usize, Summary)>>,
    /// What ended the work before its end.
    stopped: Mutex<Option<Error>>,
}

/// Between two looks at what other processes do.
const POLL: Duration = Duration::from_millis(500);

/// What to do next.
enum Next {
    Run(usize, Claim),
    Wait,
    Nothing,
}

/// How a job stands for this process.
#[derive(PartialEq)]
enum Standing {
    Done,
    Failed,
    /// What it starts from is not there yet.
    Blocked,
    Ready,
}

impl<'a> Worker<'a> {
    /// Someone who does the jobs of `grid` in `place`.
    pub fn new(
        study: &'a Study,
        grid: &'a Grid,
        place: &'a Place,
        ui: &'a (dyn Fn(&Job) -> Box<dyn Ui> + Sync),
        interrupted: &'a AtomicBool,
    ) -> Self {
        Self {
            study,
            grid,
            place,
            jobs: 1,
            command: std::env::args().collect(),
            ui,
            interrupted,
            began: now(),
            summaries: Mutex::default(),
            stopped: Mutex::default(),
        }
    }

    /// Does what `cells` need and nobody else does, and returns what the jobs gave that were done
    /// here. A job that fails is written down, and the others go on.
    ///
    /// # Errors
    /// Interrupted; a folder that cannot be used; a run that was begun with other settings.
    pub fn work(self, cells: &[Cell]) -> Result<Vec<(usize, Summary)>> {
        let is_done = |job: usize| self.place.is_done(&self.grid.jobs[job]);
        let wanted = self.grid.needed(cells, &is_done)?;
        let wanted: Vec<_> =
            wanted.into_iter().filter(|&i| self.grid.missing(i).is_none()).collect();
        // Before anything is done, so that a wrong folder is said at once.
        for &job in &wanted {
            self.place.record(&self.grid.jobs[job])?;
        }
        let each = || {
            if let Err(error) = self.take(&wanted) {
                lock(&self.stopped).get_or_insert(error);
            }
        };
        std::thread::scope(|scope| {
            (1..self.jobs.max(1)).for_each(|_| drop(scope.spawn(each)));
            each();
        });
        match self.stopped.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(self.summaries.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Does one job after the other.
    fn take(&self, wanted: &[usize]) -> Result<()> {
        loop {
            if lock(&self.stopped).is_some() {
                return Ok(());
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted("interrupted between two runs".to_owned()));
            }
            match self.next(wanted)? {
                Next::Run(job, claim) => self.run(job, claim)?,
                Next::Wait => std::thread::sleep(POLL),
                Next::Nothing => return Ok(()),
            }
        }
    }

    fn next(&self, wanted: &[usize]) -> Result<Next> {
        let (mut held, mut blocked) = (false, false);
        for &i in wanted {
            let job = &self.grid.jobs[i];
            match self.standing(i)? {
                Standing::Done | Standing::Failed => continue,
                Standing::Blocked => {
                    blocked = true;
                    continue;
                }
                Standing::Ready => {}
            }
            let Some(claim) = self.place.claim(job)? else {
                held = true;
                continue;
            };
            // Another process may have ended it in between.
            if self.standing(i)? == Standing::Ready {
                return Ok(Next::Run(i, claim));
            }
        }
        // Nothing is free now, but a job that waits for one in another process may become ours.
        Ok(if held && blocked { Next::Wait } else { Next::Nothing })
    }

    fn standing(&self, i: usize) -> Result<Standing> {
        let record = self.place.record(&self.grid.jobs[i])?;
        match record.map(|record| record.state) {
            Some(State::Done) => return Ok(Standing::Done),
            Some(State::Failed { at, .. }) if at >= self.began => return Ok(Standing::Failed),
            _ => {}
        }
        Ok(match self.grid.parent(i).map(|parent| self.standing(parent)).transpose()? {
            None | Some(Standing::Done) => Standing::Ready,
            Some(Standing::Failed) => Standing::Failed,
            Some(Standing::Blocked | Standing::Ready) => Standing::Blocked,
        })
    }

    /// Begins the job or goes on with it, and writes down how it ended.
    fn run(&self, i: usize, claim: Claim) -> Result<()> {
        let job = &self.grid.jobs[i];
        let ui = (self.ui)(job);
        ui.note(&format!("== {}", job.name));
        // A fault of ours in one run must not end the others.
        let result = caught(|| self.result(job, &*ui)).unwrap_or_else(|reason| {
            Err(Error::Failed(format!("fewvit itself failed, which is a bug: {reason}")))
        });
        let state = match result {
            Ok(summary) => {
                lock(&self.summaries).push((i, summary));
                State::Done
            }
            Err(error @ (Error::Interrupted(_) | Error::Stopped(_))) => return Err(error),
            // A pair of runs is worth nothing without one of them.
            Err(error) if self.study.together => return Err(error),
            Err(error) => {
                ui.note(&format!("{} failed: {error}", job.name));
                State::Failed { reason: error.to_string(), code: error.exit_code(), at: now() }
            }
        };
        self.place.write(job, state)?;
        drop(claim);
        super::write_tables(self.study, self.grid, self.place).map(|_| ())
    }

    fn result(&self, job: &Job, ui: &dyn Ui) -> Result<Summary> {
        let root = self.place.run(job);
        let data = self.grid.data.get(&job.data).map(|path| absolute(path));
        let data = data.ok_or_else(|| Error::Data(format!("no data given for {}", job.data)))?;
        self.place.write(job, State::Begun)?;
        if root.join(files::RUN).is_file() {
            let mut folder = Folder::open(&root)?;
            return run::resume(&mut folder, Some(&data), ui, self.interrupted);
        }
        let init = match &job.start {
            Start::Random => None,
            Start::Job(parent) => Some(absolute(&self.place.run(&self.grid.jobs[*parent]))),
            Start::Weights(name) => self.grid.weights.get(name).map(|path| absolute(path)),
        };
        let mut request = Request {
            data,
            pretrain: job.stages.pretrain,
            finetune: job.stages.finetune,
            init,
            command: self.command.clone(),
            sources: job.sources.clone(),
        };
        let planned = run::plan(&request, &job.config, &[], ui)?;
        ui.note(&planned.forecast.describe());
        clear_unbegun(&root)?;
        let folder = Folder::create(Some(&root), "")?;
        ui.note(&format!("run folder: {}", root.display()));
        mark_fitted(&mut request.sources, &job.config, &planned.config);
        run::start(&folder, &request, &planned, ui, self.interrupted)
    }
}

/// What a run writes before its `run.json`.
const BEFORE_RUN: [&str; 8] = [
    ".lock",
    "checkpoints",
    "splits.csv",
    "classes.txt",
    "data_report.json",
    "config.toml",
    "env.json",
    files::RUN,
];

/// Removes the folder of a run that was killed before it began to train. Anything else stays.
fn clear_unbegun(root: &std::path::Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(root) else { return Ok(()) };
    let ours = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        BEFORE_RUN.contains(&name.trim_end_matches(files::PARTIAL))
    };
    let empty = std::fs::read_dir(root.join("checkpoints")).map_or(0, Iterator::count) == 0;
    match empty && entries.flatten().all(ours) {
        true => std::fs::remove_dir_all(root).map_err(|source| Error::io("remove", root, source)),
        false => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
