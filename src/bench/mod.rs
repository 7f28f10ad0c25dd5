//! `fewvit bench`: what this machine can do, and how much of it training uses.
//!
//! Machines differ and are shared, so a speed says little by itself: each measurement of a step
//! comes with the multiply-add limit measured around it.

mod limits;
mod pipeline;
mod step;

pub use limits::{Limits, limits};
pub use pipeline::{PipelineSpeed, data, epoch};
pub use step::{StepBench, StepSpeed, step};

/// The most memory this process has held, in GiB; 0 where the system does not say.
fn peak_rss_gib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / f64::from(1 << 20)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        _ => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(super::median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(super::median(vec![]).is_nan());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_holds_memory() {
        assert!((0.001..100.0).contains(&super::peak_rss_gib()));
    }
}
