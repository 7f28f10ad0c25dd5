//! Processor time that other programs take while steps are timed: a forecast made beside them is too slow for a
//! quiet machine, and a time budget then has too few epochs.

use serde::Serialize;

/// Share of the threads' time from which on others are worth a note.
const WORTH_SAYING: f64 = 0.1;

/// Other programs that left a run fewer cores than it has threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Crowd {
    /// Cores that they kept busy, in the mean.
    pub others: f64,
    /// Cores that this process may use.
    pub cores: usize,
}

/// Ticks of the cores that this process may use, as Linux counts them since it started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ticks {
    cores: usize,
    all: u64,
    busy: u64,
    own: u64,
}

impl Ticks {
    /// Those until now. None where the system does not tell.
    pub(super) fn now() -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).ok();
        Self::of(&read("stat")?, &read("self/stat")?, &read("self/status")?)
    }

    /// From the text of `/proc/stat`, `/proc/self/stat` and `/proc/self/status`.
    fn of(machine: &str, own: &str, status: &str) -> Option<Self> {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let allowed = numbers(list.trim())?;
        let mut ticks = Self { cores: 0, all: 0, busy: 0, own: own_of(own)? };
        for line in machine.lines() {
            let mut words = line.split_whitespace();
            let core = words.next()?.strip_prefix("cpu").and_then(|n| n.parse().ok());
            if !core.is_some_and(|core: usize| allowed.contains(&core)) {
                continue;
            }
            // user, nice, system, idle, iowait, irq, softirq, and steal, which other machines have had.
            let times: Vec<u64> = words.take(8).map_while(|n| n.parse().ok()).collect();
            let [_, _, _, idle, waiting, ..] = times[..] else { return None };
            let all: u64 = times.iter().sum();
            ticks.cores += 1;
            ticks.all += all;
            ticks.busy += all - idle - waiting;
        }
        Some(ticks)
    }

    /// Who kept the cores busy since `earlier`, if `threads` threads had too few of them left.
    pub(super) fn crowd(&self, earlier: &Self, threads: usize) -> Option<Crowd> {
        let since = |now: u64, then: u64| now.saturating_sub(then) as f64;
        let all = since(self.all, earlier.all);
        let others = since(self.busy, earlier.busy) - since(self.own, earlier.own);
        if all == 0.0 {
            return None;
        }
        let cores = self.cores;
        let others = cores as f64 * others.max(0.0) / all;
        let wanted = threads.min(cores) as f64;
        let missing = wanted - (cores as f64 - others);
        (missing > WORTH_SAYING * wanted).then_some(Crowd { others, cores })
    }
}

/// Fields of `/proc/self/stat` between the name, which is the second, and the user time, which is the 14th
/// (man 5 proc).
const BEFORE_TIMES: usize = 11;

/// User and system time of `/proc/self/stat`, whose second field is a name in brackets.
fn own_of(stat: &str) -> Option<u64> {
    let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(BEFORE_TIMES);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// The numbers of `0-2,5`.
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four cores of which the process may use the last two; these were busy for `busy` ticks of 1,000 each.
    fn ticks(busy: u64, own: u64) -> Ticks {
        let line = |core: usize, busy: u64| {
            format!("cpu{core} {busy} 0 0 {} 3 0 0 0 0 0\n", 1000 - busy - 3)
        };
        let machine = format!(
            "cpu  9 9 9 9 9 9 9 9 9 9\n{}{}{}{}intr 5 5\n",
            line(0, 900),
            line(1, 900),
            line(2, busy),
            line(3, busy)
        );
        let own = format!("7 (a (b) c) S 1 7 7 0 -1 4 5 0 0 0 {own} 20 0 0 20 0 1 0 99");
        Ticks::of(&machine, &own, "Name:\tx\nCpus_allowed_list:\t2-3\n").expect("as Linux writes")
    }

    #[test]
    fn other_programs_are_told_of_where_they_leave_too_few_cores() {
        let none = Ticks { cores: 2, all: 0, busy: 0, own: 0 };
        assert_eq!(ticks(900, 980), Ticks { cores: 2, all: 2000, busy: 1800, own: 1000 });
        let crowd = |busy, own, threads| ticks(busy, own).crowd(&none, threads);
        // 800 of 2,000 ticks are 0.8 of two cores: too many for two threads, not for one.
        assert_eq!(crowd(900, 980, 2), Some(Crowd { others: 0.8, cores: 2 }));
        assert_eq!(crowd(900, 980, 1), None);
        assert_eq!(crowd(900, 980, 16), Some(Crowd { others: 0.8, cores: 2 }), "as many as cores");
        assert_eq!(crowd(900, 1780, 2), None, "all of it is ours");
        assert_eq!(crowd(900, 1700, 2), None, "0.08 of two cores");
        assert_eq!(none.crowd(&none, 2), None, "no time has gone by");
    }

    #[test]
    fn what_linux_does_not_write_is_nothing() {
        assert_eq!(numbers("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(numbers("all"), None);
        assert_eq!(own_of("7 (x) S 1"), None);
        assert_eq!(Ticks::of("cpu0 1 1\n", "7 (x) S", "Name:\tx\n"), None);
    }
}
