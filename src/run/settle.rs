//! Settings of a run, checked as far as they can be before any image is read.

use std::path::Path;

use toml::Value;

use super::Folder;
use crate::config::{
    ClassWeights, HeadFrom, HeadInit, Layers, LrSchedule, OptimConfig, OptimKind, Resolved,
    RunConfig, Unread, flatten,
};
use crate::error::{Error, Result};
use crate::eval::infer::EvalView;
use crate::export::{Description, timm};
use crate::method;

/// The stages that a command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages {
    /// Pre-training.
    pub pretrain: bool,
    /// Fine-tuning.
    pub finetune: bool,
}

/// The configuration of a run with these stages: in range, its method with options that fit, and
/// nothing set that would do nothing.
///
/// # Errors
/// [`crate::error::Error::Usage`], naming who set what.
pub fn settle(mut layers: Layers, stages: Stages) -> Result<Resolved> {
    let resolved = layers.clone().build()?;
    let config = &resolved.config;
    if stages.pretrain && config.pretrain.optim.epochs > 0 {
        method::check_settings(config)?;
    }
    let idle = resolved.refuse_unread(&|key| unread(&resolved, stages, key))?;
    if idle.is_empty() {
        return Ok(resolved);
    }
    // A flag is about all stages; where nothing reads it, the run has what its recipe says.
    match layers.withdraw(&idle) {
        true => settle(layers, stages),
        // Nobody set these keys: they follow from a flag that sets another one.
        false => Ok(resolved),
    }
}

/// Settings that go with weights: the model, and how an image becomes its input.
const OF_WEIGHTS: [&str; 6] =
    ["model.name", "data.depth", "data.mean", "data.std", "eval.crop_pct", "eval.interpolation"];

/// Settings that the weights at `init` bring along: those of their run, or what their export says;
/// none for a bare file.
///
/// # Errors
/// The run or export cannot be read.
pub fn inherited(init: &Path) -> Result<Vec<(String, Value)>> {
    if let Some(run) = Folder::around(init) {
        let mut settings = flatten(run.read_settings()?);
        settings.retain(|(key, _)| OF_WEIGHTS.contains(&key.as_str()));
        return Ok(settings);
    }
    if !init.is_dir() {
        return Ok(Vec::new());
    }
    let Description { model, view, .. } = timm::describe(init)?;
    let EvalView { crop_pct, interpolation, depth, mean, std } = view;
    let settings = [
        ("model.name", Value::try_from(model)),
        ("data.depth", Value::try_from(depth)),
        ("data.mean", Value::try_from(mean)),
        ("data.std", Value::try_from(std)),
        ("eval.crop_pct", Value::try_from(crop_pct)),
        ("eval.interpolation", Value::try_from(interpolation)),
    ];
    let settings = settings.into_iter().map(|(key, value)| Ok((key.to_owned(), value?)));
    let settings: std::result::Result<_, toml::ser::Error> = settings.collect();
    settings.map_err(|e| Error::Failed(format!("{} cannot be used: {e}", init.display())))
}

/// Whether the run leaves pre-training out, however many of its images have a label.
fn is_left_out(resolved: &Resolved, stages: Stages) -> bool {
    let both = stages.pretrain && stages.finetune;
    both && resolved.config.pretrain.few_labels == 0.0 && !resolved.chosen_epochs("pretrain")
}

/// Why nothing reads a key of the configuration.
fn unread(resolved: &Resolved, stages: Stages, key: &str) -> Option<Unread> {
    let config = &resolved.config;
    let of_stage = outside_stages(resolved, stages, key);
    if of_stage.is_some() {
        return of_stage.map(|why| Unread { why, tolerated: true });
    }
    let (pretrain, finetune) = (&config.pretrain, &config.finetune);
    let by_method = method::unread(&pretrain.method, key);
    let by_kind = of_optim(key, "pretrain.optim.", &pretrain.optim, unread_by_kind).or(of_optim(
        key,
        "finetune.optim.",
        &finetune.optim,
        unread_by_kind,
    ));
    if let Some(why) = by_method.or(by_kind) {
        return Some(Unread { why, tolerated: false });
    }
    switched_off(config, key).map(|why| Unread { why, tolerated: true })
}

/// Keys of a stage that does not take place.
fn outside_stages(resolved: &Resolved, stages: Stages, key: &str) -> Option<String> {
    // What decides whether there is pre-training is read where there is none.
    let decides = ["pretrain.optim.epochs", "pretrain.few_labels"].contains(&key);
    match key.split_once('.')?.0 {
        "pretrain" if !stages.pretrain => Some("this command does not pre-train".to_owned()),
        "pretrain"
            if resolved.config.pretrain.optim.epochs == 0 && key != "pretrain.optim.epochs" =>
        {
            Some("there is no pre-training, its epochs are 0".to_owned())
        }
        "pretrain" if is_left_out(resolved, stages) && !decides => Some(
            "this recipe does not pre-train unless --method names how (--method idmm)".to_owned(),
        ),
        "finetune" if !stages.finetune => Some("this command does not fine-tune".to_owned()),
        _ => None,
    }
}

type OfOptim = fn(&str, &OptimConfig) -> Option<&'static str>;

fn of_optim(key: &str, section: &str, optim: &OptimConfig, why: OfOptim) -> Option<String> {
    why(key.strip_prefix(section)?, optim).map(str::to_owned)
}

fn unread_by_kind(key: &str, optim: &OptimConfig) -> Option<&'static str> {
    match (key, optim.kind) {
        ("momentum", OptimKind::AdamW) => {
            Some("AdamW has betas and no momentum; SGD and Muon have one")
        }
        ("beta1" | "beta2" | "eps", OptimKind::Sgd) => {
            Some("SGD has a momentum and no betas or eps; AdamW and Muon have them")
        }
        _ => None,
    }
}

/// Why the keys of a time budget do nothing.
const NO_BUDGET: &str = "there is no time budget";

/// Keys that something else switches off.
fn switched_off(config: &RunConfig, key: &str) -> Option<String> {
    let (pretrain, finetune) = (&config.pretrain, &config.finetune);
    let t2t = config.model.name.starts_with("t2t_vit");
    let early_is_smaller = finetune.early_img_size < finetune.img_size;
    let is_made = |head: &HeadInit| head.from == HeadFrom::Features;
    let blurred = pretrain.crops.iter().any(|c| c.blur.unwrap_or(pretrain.augment.blur) > 0.0);
    let budget = config.time_budget > 0.0;
    let cases = [
        ("few_images", budget, NO_BUDGET),
        ("pretrain.probe_share", budget || pretrain.probe_share == 0.0, NO_BUDGET),
        ("finetune.eval_share", budget || finetune.eval_share == 0.0, NO_BUDGET),
        ("model.small_below", !config.model.small.is_empty(), "there is no smaller model"),
        ("pretrain.cutmix_lambda", pretrain.cutmix > 0.0, "CutMix is off"),
        ("finetune.mix_lambda", finetune.cutmix > 0.0 || finetune.mixup > 0.0, "nothing is mixed"),
        ("pretrain.augment.blur_sigma", blurred, "the blur is off"),
        ("finetune.augment.blur_sigma", finetune.augment.blur > 0.0, "the blur is off"),
        (
            "pretrain.augment.color_jitter",
            pretrain.augment.color_jitter_prob > 0.0,
            "its probability is 0",
        ),
        (
            "finetune.augment.color_jitter",
            finetune.augment.color_jitter_prob > 0.0,
            "its probability is 0",
        ),
        ("pretrain.first_head.spread", is_made(&pretrain.first_head), "the head's rows are random"),
        ("pretrain.first_head.ridge", is_made(&pretrain.first_head), "the head's rows are random"),
        ("finetune.first_head.spread", is_made(&finetune.first_head), "the head's rows are random"),
        ("finetune.first_head.ridge", is_made(&finetune.first_head), "the head's rows are random"),
        (
            "finetune.early_share",
            finetune.early_share == 0.0 || early_is_smaller,
            "finetune.early_img_size is no smaller than finetune.img_size",
        ),
        (
            "finetune.early_img_size",
            finetune.early_share > 0.0 && early_is_smaller,
            "no epochs have smaller crops",
        ),
        (
            // 0 is what naming finetune.img_size sets here: nobody asked for it.
            "finetune.least_full_steps",
            finetune.least_full_steps == 0 || finetune.early_share > 0.0 && early_is_smaller,
            "no epochs have smaller crops",
        ),
        (
            // 0 is what naming finetune.img_size sets here, too.
            "finetune.large_img_size",
            finetune.large_img_size == 0 || early_is_smaller && finetune.may_be_larger(),
            "no epochs have larger crops than finetune.img_size",
        ),
        (
            "finetune.least_large_epochs",
            finetune.least_large_epochs == 0 || finetune.large_img_size > 0,
            "finetune.large_img_size is 0",
        ),
        (
            "finetune.plain_scale",
            finetune.plain_epochs > 0 || finetune.plain_warmup,
            "there are no plain epochs",
        ),
        (
            "finetune.class_weights_beta",
            finetune.class_weights == ClassWeights::Effective,
            "the class weights are not \"effective\"",
        ),
        ("model.pos_embed", t2t, "only T2T-ViT has a position table that can be computed"),
        (
            "pretrain.options.freeze_patch_embed",
            !t2t,
            "T2T-ViT has no projection of patches that could be frozen",
        ),
    ];
    if let Some((.., why)) = cases.iter().find(|(own, on, _)| *own == key && !on) {
        return Some((*why).to_owned());
    }
    of_optim(key, "pretrain.optim.", &pretrain.optim, optim_switched_off).or(of_optim(
        key,
        "finetune.optim.",
        &finetune.optim,
        optim_switched_off,
    ))
}

/// Why the keys of the cosine's fall do nothing.
const NO_FALL: &str = "only the cosine has epochs of its own";

fn optim_switched_off(key: &str, optim: &OptimConfig) -> Option<&'static str> {
    let cases = [
        ("smoothing_kind", optim.smoothing > 0.0, "the smoothing is 0"),
        ("clip_mode", optim.clip_grad > 0.0, "clip_grad is 0, so nothing is clipped"),
        ("min_lr", optim.lr_schedule != LrSchedule::Constant, "the rate is constant"),
        ("decay_epochs", optim.lr_schedule == LrSchedule::Cosine, NO_FALL),
        ("decay_share", optim.lr_schedule == LrSchedule::Cosine, NO_FALL),
    ];
    cases.into_iter().find(|(own, on, _)| *own == key && !on).map(|(.., why)| why)
}

#[cfg(test)]
mod tests;
