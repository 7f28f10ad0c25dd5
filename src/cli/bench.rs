//! `fewvit bench`.

use std::time::Duration;

use fewvit_kernels::{has_bf16, simd_level};

use super::args::Dtype;
use super::bench_args::{BenchCommand, LimitsArgs, PipelineArgs, StepArgs};
use super::flags::Job;
use super::progress::Progress;
use crate::bench::{self, PipelineSpeed, StepBench};
use crate::config::Unread;
use crate::engine::Machine;
use crate::engine::device::DeviceName;
use crate::error::{Error, Result};
use crate::run::{self, Request};
use crate::train::stage::Stage;

pub(super) fn bench(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Limits(args) => limits(args),
        BenchCommand::Step(args) => step(args),
        BenchCommand::Data(args) => pipeline(args, bench::data),
        BenchCommand::Epoch(args) => pipeline(args, bench::epoch),
    }
}

fn limits(args: &LimitsArgs) -> Result<()> {
    let l = bench::limits(run::threads_or_all(args.threads));
    if args.json {
        return super::print_json(&l);
    }
    let bf16 = l.bf16_gflops_one.zip(l.bf16_gflops_all);
    let bf16 = bf16.map_or(String::new(), |(one, all)| format!(", {one:.0} and {all:.0} in bf16"));
    super::print(&format!(
        "{}: multiply-add {:.0} GFLOP/s in f32 on one core, {:.0} on {}{}; memory {:.0} and {:.0} GB/s",
        l.simd, l.f32_gflops_one, l.f32_gflops_all, l.threads, bf16, l.gb_per_s_one, l.gb_per_s_all
    ))
}

fn step(args: &StepArgs) -> Result<()> {
    if args.batch_size == 0 {
        return Err(Error::Usage("--batch-size 0 leaves nothing to measure".to_owned()));
    }
    let machine = Machine::named(&args.device, run::threads_or_all(args.threads))?;
    let bf16 = args.amp_dtype == Dtype::Bf16;
    if bf16 && machine.device == DeviceName::Cpu && !has_bf16() {
        return Err(Error::Usage(format!(
            "--amp-dtype bf16: this processor ({}) does not multiply bf16, training would use f32",
            simd_level()
        )));
    }
    let products = args.amp_dtype.products();
    products.check(machine.device)?;
    let machine = Machine { products, ..machine };
    let speed = bench::step(&StepBench {
        model: args.model.clone(),
        img_size: args.img_size,
        batch_size: args.batch_size,
        machine,
        micro_batch: args.micro_batch,
        duration: seconds(args.seconds)?,
    })?;
    if args.json {
        return super::print_json(&speed);
    }
    super::print(&format!(
        "{:.1} crops/s, {:.0} GFLOP/s{}, {:.0} ms a step, {:.2} GiB",
        speed.crops_per_s,
        speed.model_gflops,
        speed
            .fraction_of_peak
            .map_or(String::new(), |f| format!(" = {:.0}% of the limit", 100.0 * f)),
        speed.step_ms_median,
        speed.peak_rss_gib
    ))
}

fn pipeline(
    args: &PipelineArgs,
    measure: fn(&Stage, Duration) -> Result<PipelineSpeed>,
) -> Result<()> {
    let train = &args.run.train;
    train.run.refuse_of_runs()?;
    let layers = train.layers(Job::Pretrain, std::env::vars_os().collect())?;
    let resolved = run::settle(layers, Job::Pretrain.stages())?;
    resolved.refuse_unread(&|key| {
        let why = || "a measurement has a length of its own, --seconds".to_owned();
        (key == "time_budget").then(|| Unread { why: why(), tolerated: true })
    })?;
    let config = resolved.config;
    let request = Request {
        data: run::absolute(&args.run.data),
        pretrain: true,
        finetune: false,
        init: None,
        command: Vec::new(),
        sources: Default::default(),
    };
    let data = run::prepare::prepare(&request, &config, &Progress::new())?;
    let speed = measure(&run::pretraining(&config, &data)?, seconds(args.seconds)?)?;
    if train.run.json {
        return super::print_json(&speed);
    }
    let waiting = speed.waiting_for_data.map_or(String::new(), |share| {
        format!(", {:.1}% of the time waiting for crops", 100.0 * share)
    });
    super::print(&format!(
        "{:.1} images/s, {:.1} crops/s, {:.1} s an epoch{waiting}, {:.2} GiB",
        speed.images_per_s, speed.crops_per_s, speed.epoch_s, speed.peak_rss_gib
    ))
}

fn seconds(value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| Error::Usage(format!("--seconds {value} is no duration")))
}
