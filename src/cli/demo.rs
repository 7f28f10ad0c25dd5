//! `fewvit demo`: the paper's claim in miniature, on flowers that the program renders itself.

use super::flags::{Job, RunArgs};
use super::progress::Progress;
use super::train::go;
use crate::data::synth;
use crate::error::Result;
use crate::eval::metric::{difference_interval, mcnemar_p};
use crate::report::words::interval;
use crate::run::{self, Folder, Request, Summary, Ui as _};

/// Images of each species in each split, and their side in pixels.
const IMAGES: usize = 24;
const SIDE: usize = 96;

pub(super) fn demo(args: &RunArgs) -> Result<()> {
    let layers = args.layers("demo", std::env::vars_os().collect())?;
    let resolved = run::settle(layers, Job::Train.stages())?;
    let (sources, config) = (resolved.sources(), resolved.config);
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
            sources: sources.clone(),
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
    super::print(&comparison(random, idmm))?;
    super::print(&format!("reports: {}/report.html\n         {}/report.html", random.run, idmm.run))
}

/// The two accuracies and their difference, with what both can and cannot say.
fn comparison(random: &Summary, idmm: &Summary) -> String {
    let line = |name: &str, s: &Summary| {
        let (top1, range) =
            (100.0 * s.top1.unwrap_or_default(), s.top1_interval.unwrap_or_default());
        format!("  {name:<19} {top1:5.1}%  ({})\n", interval(range))
    };
    let (low, high) = difference_interval(&idmm.correct, &random.correct);
    let p = mcnemar_p(&idmm.correct, &random.correct);
    format!(
        "top-1 on {} test images, the same fine-tuning:\n{}{}  \
         these two models differ by {:+.1} to {:+.1} points (95% interval over test images, paired; p = {p:.1e})\n  \
         That compares two trained models, not two methods: other seeds give other models. \
         fewvit demo --seed N trains another pair.",
        idmm.images,
        line("from random weights", random),
        line("from IDMM weights", idmm),
        100.0 * low,
        100.0 * high
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::facts::Provenance;

    fn summary(correct: &[bool]) -> Summary {
        let right = correct.iter().filter(|&&c| c).count() as f64 / correct.len() as f64;
        Summary {
            notes: Vec::new(),
            run: "run".to_owned(),
            top1: Some(right),
            top1_interval: Some((right - 0.1, right + 0.1)),
            images: correct.len(),
            headline: None,
            interval_covers: None,
            provenance: Provenance::Random,
            stages: Vec::new(),
            done: Vec::new(),
            correct: correct.to_vec(),
        }
    }

    #[test]
    fn a_pair_of_models_is_not_called_the_methods_effect() {
        let [worse, better] = [20, 60].map(|n| (0..100).map(|i| i < n).collect::<Vec<_>>());
        let text = comparison(&summary(&worse), &summary(&better));
        for words in [
            "top-1 on 100 test images",
            "from random weights  20.0%  (95% interval 10.0\u{2013}30.0% over images like these, given these weights)",
            "these two models differ by",
            "not two methods",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        assert!(!text.contains("adds") && !text.contains("pre-training"), "{text}");
    }
}
