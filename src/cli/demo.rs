//! `fewvit demo`: the paper's claim in miniature, on flowers that the program renders itself.

use super::flags::{Job, RunArgs};
use super::progress::Progress;
use super::train::go;
use crate::data::synth;
use crate::error::Result;
use crate::eval::metric::{difference_interval, mcnemar_p};
use crate::run::{self, Folder, Request, Summary, Ui as _};

/// Images of each species in each split, and their side in pixels.
const IMAGES: usize = 24;
const SIDE: usize = 96;

pub(super) fn demo(args: &RunArgs) -> Result<()> {
    let layers = args.layers("demo", std::env::vars_os().collect())?;
    let config = run::settle(layers, Job::Train.stages())?.config;
    let folder = Folder::create(args.output.as_deref(), "demo")?;
    let data = super::train::absolute(&folder.join("flowers"));
    let ui = Progress::new();
    ui.note(&format!("rendering {} flowers into {}", 24 * IMAGES, data.display()));
    synth::write(&data, config.seed, SIDE, IMAGES, IMAGES, |_, _| ())?;
    let mut results = Vec::new();
    for (name, pretrain) in [("from-random-weights", false), ("from-idmm-weights", true)] {
        let request = Request {
            data: data.clone(),
            pretrain,
            finetune: true,
            init: None,
            command: std::env::args().collect(),
        };
        let args = RunArgs { output: Some(folder.join(name)), ..args.clone() };
        ui.note(&format!("== {name}"));
        let Some(summary) = go(&request, &config, &[], &args)? else { return Ok(()) };
        results.push(summary);
    }
    let [random, idmm] = &results[..] else { return Ok(()) };
    match args.json {
        true => results.iter().try_for_each(super::print_json),
        false => compare(random, idmm),
    }
}

fn compare(random: &Summary, idmm: &Summary) -> Result<()> {
    let line = |name: &str, s: &Summary| {
        let (low, high) = s.top1_interval.unwrap_or_default();
        let percent = [s.top1.unwrap_or_default(), low, high].map(|share| 100.0 * share);
        let [top1, low, high] = percent;
        super::print(&format!("{name:<22} {top1:5.1}%  (95% interval {low:.1} to {high:.1})"))
    };
    super::print(&format!("top-1 on {} test images, the same fine-tuning:", idmm.images))?;
    line("  from random weights", random)?;
    line("  from IDMM weights", idmm)?;
    let (low, high) = difference_interval(&idmm.correct, &random.correct);
    let p = mcnemar_p(&idmm.correct, &random.correct);
    super::print(&format!(
        "  pre-training adds {:.1} to {:.1} points (95% interval, paired; p = {p:.1e})",
        100.0 * low,
        100.0 * high
    ))?;
    super::print(&format!("reports: {}/report.html\n         {}/report.html", random.run, idmm.run))
}
