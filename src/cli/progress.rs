//! Progress of a run on standard error: a bar on a terminal, one plain line an epoch elsewhere.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::engine::collective;
use crate::run::{RESUMED, Ui};
use crate::words::duration;

/// Draws progress; standard output stays free for results.
pub struct Progress {
    sink: Sink,
    state: Arc<Mutex<State>>,
}

enum Sink {
    Bar(ProgressBar),
    Lines(Mutex<Box<dyn Write + Send>>),
}

/// How far the run is, in units of its forecast.
struct State {
    total: u64,
    done: u64,
    /// Of `done`, those done in this process, since `began`.
    worked: u64,
    began: Instant,
}

impl Progress {
    /// On standard error.
    pub fn new() -> Self {
        // Of several processes one speaks.
        if collective::ranks().rank() > 0 {
            return Self::lines(Box::new(std::io::sink()));
        }
        let on_terminal = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        match std::io::stderr().is_terminal() {
            true => Self::with(Sink::Bar(on_terminal)),
            false => Self::lines(Box::new(std::io::stderr())),
        }
    }

    /// Plain lines to `out`.
    pub fn lines(out: Box<dyn Write + Send>) -> Self {
        Self::with(Sink::Lines(Mutex::new(out)))
    }

    fn with(sink: Sink) -> Self {
        let state = State { total: 0, done: 0, worked: 0, began: Instant::now() };
        let state = Arc::new(Mutex::new(state));
        if let Sink::Bar(bar) = &sink {
            bar.set_style(style(state.clone()));
        }
        Self { sink, state }
    }

    /// A callback `(done, total)` for long loops outside of training. A bar shows each call, plain
    /// output only the end.
    pub fn counting(&self, what: &'static str) -> impl Fn(usize, usize) + Send + Sync + '_ {
        move |done, total| match &self.sink {
            Sink::Bar(bar) if locked(&self.state).total > 0 => {
                bar.set_message(format!("{what} {done}/{total}"));
            }
            // The run's own length is not known yet.
            Sink::Bar(bar) => {
                bar.set_prefix(what);
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
            Sink::Lines(_) if done == total => self.line(&format!("{what}: {total} done")),
            Sink::Lines(_) => {}
        }
    }

    /// A line that stays. Nobody is left to tell if standard error is closed.
    fn line(&self, text: &str) {
        match &self.sink {
            Sink::Bar(bar) => bar.suspend(|| drop(writeln!(std::io::stderr(), "{text}"))),
            Sink::Lines(out) => drop(writeln!(locked(out), "{text}")),
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Ui for Progress {
    fn note(&self, text: &str) {
        self.line(text);
    }

    fn reading(&self, done: usize, total: usize) {
        self.counting("reading images")(done, total);
    }

    fn total(&self, units: u64) {
        // Released before the bar is drawn, since drawing takes the same lock.
        *locked(&self.state) = State { total: units, done: 0, worked: 0, began: Instant::now() };
        if let Sink::Bar(bar) = &self.sink {
            bar.set_length(units);
            bar.reset();
            // Steps can take seconds; the clock goes on between them.
            bar.enable_steady_tick(std::time::Duration::from_millis(200));
        }
    }

    fn stage(&self, name: &str, _units: u64) {
        match &self.sink {
            Sink::Bar(bar) => bar.set_prefix(name.to_owned()),
            Sink::Lines(_) => self.line(name),
        }
    }

    fn advance(&self, units: u64, message: &str) {
        let mut state = locked(&self.state);
        state.done += units;
        if message == RESUMED {
            state.began = Instant::now();
            state.worked = 0;
        } else {
            state.worked += units;
        }
        if let Sink::Bar(bar) = &self.sink {
            // Released first, since drawing takes the same lock.
            let done = state.done;
            drop(state);
            bar.set_position(done);
            if !["", RESUMED].contains(&message) {
                bar.set_message(message.to_owned());
            }
        }
    }

    fn epoch(&self, line: &str) {
        match &self.sink {
            Sink::Bar(bar) => bar.set_message(line.to_owned()),
            Sink::Lines(_) => {
                let so_far = locked(&self.state).describe();
                self.line(&format!("{line}{so_far}"));
            }
        }
    }

    fn finish(&self) {
        if let Sink::Bar(bar) = &self.sink {
            bar.finish_and_clear();
        }
    }
}

impl State {
    /// Seconds left; `None` while nothing has been measured in this process.
    fn left(&self) -> Option<f64> {
        let each = self.began.elapsed().as_secs_f64() / self.worked as f64;
        (self.worked > 0).then(|| each * self.total.saturating_sub(self.done) as f64)
    }

    /// `  [12%, 3 min 10 s left]`; empty while nothing can be said.
    fn describe(&self) -> String {
        let Some(left) = self.left().filter(|_| self.total > 0) else { return String::new() };
        let percent = 100.0 * self.done.min(self.total) as f64 / self.total as f64;
        format!("  [{percent:.0}%, {} left]", duration(left))
    }

    /// For the bar: `3 min 10 s left`, or that it is not known yet; nothing before the run.
    fn time_left(&self) -> String {
        match (self.total, self.left()) {
            (0, _) => String::new(),
            (_, None) => "measuring".to_owned(),
            (_, Some(left)) => format!("{} left", duration(left)),
        }
    }
}

/// Stage, bar for the whole run, time left, last epoch.
const TEMPLATE: &str = "{prefix} {bar:24} {percent}% {time_left}  {wide_msg}";

fn style(state: Arc<Mutex<State>>) -> ProgressStyle {
    let style = ProgressStyle::with_template(TEMPLATE);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("time_left", move |_: &ProgressState, out: &mut dyn fmt::Write| {
        // Nobody is left to tell if the bar cannot be drawn.
        let _ = out.write_str(&locked(&state).time_left());
    })
}

/// The guarded value, even after a panic: a bar that was half drawn does no harm.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            locked(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(locked(&self.0).clone()).expect("text")
        }
    }

    #[test]
    fn plain_output_has_one_line_an_epoch() {
        let page = Page::default();
        let progress = Progress::lines(Box::new(page.clone()));
        progress.note("data: 12 images");
        progress.total(100);
        progress.stage("pretrain", 100);
        for _ in 0..10 {
            progress.advance(5, "step");
        }
        progress.epoch("epoch 1 loss 2.3");
        progress.counting("rendered")(1, 2);
        progress.counting("rendered")(2, 2);
        progress.finish();
        let expected =
            "data: 12 images\npretrain\nepoch 1 loss 2.3  [50%, 0 s left]\nrendered: 2 done\n";
        assert_eq!(page.text(), expected);
    }

    /// 10 units a second in this process, however much an earlier one did.
    #[test]
    fn the_time_left_follows_from_this_process_alone() {
        let progress = Progress::lines(Box::new(Page::default()));
        progress.total(1000);
        progress.stage("pretrain", 1000);
        progress.advance(500, RESUMED);
        assert_eq!(locked(&progress.state).describe(), "");
        progress.advance(100, "");
        locked(&progress.state).began = Instant::now() - Duration::from_secs(10);
        assert_eq!(locked(&progress.state).describe(), "  [60%, 40 s left]");
    }

    #[test]
    fn a_bar_says_no_time_before_it_knows_one() {
        let progress = Progress::lines(Box::new(Page::default()));
        let said = || locked(&progress.state).time_left();
        assert_eq!(said(), "", "not even the length is known");
        progress.total(1000);
        assert_eq!(said(), "measuring");
        progress.advance(500, RESUMED);
        assert_eq!(said(), "measuring", "what was done before says nothing of this process");
        progress.advance(100, "");
        locked(&progress.state).began = Instant::now() - Duration::from_secs(10);
        assert_eq!(said(), "40 s left");
    }

    #[test]
    fn the_bars_template_is_sound() {
        ProgressStyle::with_template(TEMPLATE).expect("a template");
    }

    #[test]
    fn a_bar_takes_the_same_calls_from_any_thread() {
        let progress = Progress::with(Sink::Bar(ProgressBar::hidden()));
        let Sink::Bar(bar) = &progress.sink else { panic!("a bar") };
        progress.counting("decoded")(1, 3);
        assert_eq!((bar.position(), bar.length()), (1, Some(3)));
        progress.total(40);
        assert_eq!((bar.position(), bar.length()), (0, Some(40)));
        progress.stage("finetune", 40);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| progress.advance(1, "step")));
            }
        });
        progress.counting("decoded")(1, 3);
        progress.epoch("epoch 1");
        assert_eq!((bar.position(), bar.length(), bar.message()), (40, Some(40), "epoch 1".into()));
        progress.finish();
    }
}
