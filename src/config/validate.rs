//! Ranges of the settings, in words.

use std::collections::BTreeSet;

use super::{AugmentConfig, CropGroup, HeadInit, Keep, OptimConfig, ProbeConfig, RunConfig};
use crate::backbone::Spec;
use crate::error::Error;

/// The largest side of an image in pixels.
pub const LARGEST_SIDE: usize = 2048;

/// Keys whose values are out of range, each with `is X, must be Y`.
pub(super) fn problems(config: &RunConfig) -> Vec<(String, String)> {
    let mut checks = Checks { section: "", problems: Vec::new() };
    checks.run(config);
    checks.model(config);
    checks.data(config);
    checks.pretrain(config);
    checks.finetune(config);
    checks.eval(config);
    checks.problems
}

/// Problems found so far, and the section whose keys are looked at.
struct Checks {
    section: &'static str,
    problems: Vec<(String, String)>,
}

impl Checks {
    fn require(&mut self, ok: bool, key: &str, value: &dyn std::fmt::Debug, must: &str) {
        if !ok {
            let key = if self.section.is_empty() {
                key.to_owned()
            } else {
                format!("{}.{key}", self.section)
            };
            self.problems.push((key, format!("is {value:?}, must be {must}")));
        }
    }

    /// NaN is in no range.
    fn within(&mut self, key: &str, value: f64, low: f64, high: f64) {
        let must = format!("{low} to {high}");
        self.require((low..=high).contains(&value), key, &value, &must);
    }

    fn at_least_0(&mut self, key: &str, value: f64, below: f64) {
        let must = format!("0 or more and at most {below}");
        self.require((0.0..=below).contains(&value), key, &value, &must);
    }

    fn below_1(&mut self, key: &str, value: f64) {
        self.require((0.0..1.0).contains(&value), key, &value, "0 or more and less than 1");
    }

    fn positive(&mut self, key: &str, value: f64, high: f64) {
        let must = format!("more than 0 and at most {high}");
        self.require(value > 0.0 && value <= high, key, &value, &must);
    }

    fn count(&mut self, key: &str, value: usize, low: usize, high: usize) {
        self.require((low..=high).contains(&value), key, &value, &format!("{low} to {high}"));
    }

    /// Which sides the model takes, it says itself.
    fn side(&mut self, key: &str, value: usize) {
        self.count(key, value, 1, LARGEST_SIDE);
    }

    /// A problem in other words than `must be`.
    fn refuse(&mut self, key: &str, error: &Error) {
        self.problems.push((key.to_owned(), format!("cannot be: {error}")));
    }

    fn range(&mut self, key: &str, [low, high]: [f64; 2], least: f64, most: f64) {
        let ok = low > least && low <= high && high <= most;
        let must = format!("[LOW, HIGH] with {least} < LOW <= HIGH <= {most}");
        self.require(ok, key, &[low, high], &must);
    }

    fn run(&mut self, config: &RunConfig) {
        self.section = "";
        self.count("threads", config.threads, 0, 4096);
        self.at_least_0("time_budget", config.time_budget, 1e6);
        self.at_least_0("checkpoint.every_minutes", config.checkpoint.every_minutes, 1e6);
    }

    fn model(&mut self, config: &RunConfig) {
        let spec = match Spec::find(&config.model.name) {
            Ok(spec) => spec,
            Err(error) => return self.refuse("model.name", &error),
        };
        let small = &config.model.small;
        if let (false, Err(error)) = (small.is_empty(), Spec::find(small)) {
            self.refuse("model.small", &error);
        }
        let crops = config.pretrain.crops.iter().map(|group| ("pretrain.crops", group.img_size));
        let finetune = &config.finetune;
        let early = (finetune.early_share > 0.0)
            .then_some(("finetune.early_img_size", finetune.early_img_size));
        let large = (finetune.large_img_size > 0)
            .then_some(("finetune.large_img_size", finetune.large_img_size));
        let full = [("finetune.img_size", finetune.img_size)];
        let sides: BTreeSet<_> = crops.chain(full).chain(early).chain(large).collect();
        for (key, side) in sides {
            if let Err(error) = spec.check_img_size(side) {
                self.refuse(key, &error);
            }
        }
    }

    fn data(&mut self, config: &RunConfig) {
        self.section = "data";
        let data = &config.data;
        let inside = data.test_fraction > 0.0 && data.test_fraction < 1.0;
        self.require(inside, "test_fraction", &data.test_fraction, "more than 0 and less than 1");
        self.count("cache_short_side", data.cache_short_side, 16, 8192);
        self.at_least_0("cache_ram_gb", data.cache_ram_gb, 1e6);
        self.at_least_0("cache_disk_gb", data.cache_disk_gb, 1e6);
        self.count("dtd_split", data.dtd_split, 1, 10);
        self.count("aircraft_banner", data.aircraft_banner, 0, LARGEST_SIDE);
        let means = data.mean.iter().all(|m| (0.0..=1.0).contains(m));
        self.require(means, "mean", &data.mean, "three numbers of 0 to 1");
        let deviations = data.std.iter().all(|&s| s > 0.0 && s <= 1.0);
        self.require(deviations, "std", &data.std, "three numbers above 0 and at most 1");
    }

    fn pretrain(&mut self, config: &RunConfig) {
        let pretrain = &config.pretrain;
        self.section = "pretrain";
        self.at_least_0("cutmix", pretrain.cutmix, 1000.0);
        self.count("projector", pretrain.projector, 0, 65_536);
        self.within("few_labels", pretrain.few_labels, 0.0, 1.0);
        self.below_1("probe_share", pretrain.probe_share);
        self.crops(&pretrain.crops);
        self.first_head("pretrain.first_head", &pretrain.first_head);
        self.section = "pretrain.optim";
        self.optim(&pretrain.optim, 0);
        self.section = "pretrain.augment";
        self.augment(&pretrain.augment);
    }

    fn crops(&mut self, crops: &[CropGroup]) {
        self.require(!crops.is_empty(), "crops", &crops, "at least one group, like 2x112@0.14-1");
        for group in crops {
            self.count("crops", group.count, 1, 64);
            self.side("crops", group.img_size);
            self.range("crops", group.scale, 0.0, 1.0);
            for probability in [group.blur, group.solarize].into_iter().flatten() {
                self.within("crops", probability, 0.0, 1.0);
            }
        }
        let sides: Vec<_> = crops.iter().map(|group| group.img_size).collect();
        let same = sides.windows(2).all(|pair| pair[0] == pair[1]);
        self.require(same, "crops", &sides, "of one size: the model is built for it");
    }

    fn finetune(&mut self, config: &RunConfig) {
        let finetune = &config.finetune;
        self.section = "finetune";
        self.side("img_size", finetune.img_size);
        self.range("scale", finetune.scale, 0.0, 1.0);
        self.below_1("early_share", finetune.early_share);
        self.range("plain_scale", finetune.plain_scale, 0.0, 1.0);
        self.at_least_0("cutmix", finetune.cutmix, 1000.0);
        self.at_least_0("mixup", finetune.mixup, 1000.0);
        self.below_1("class_weights_beta", finetune.class_weights_beta);
        self.count("repeats", finetune.repeats, 1, 64);
        self.count("least_full_steps", finetune.least_full_steps, 0, 1_000_000_000);
        self.count("large_img_size", finetune.large_img_size, 0, LARGEST_SIDE);
        self.count("least_large_epochs", finetune.least_large_epochs, 0, 1_000_000);
        let (every, patience) = (finetune.eval_every, finetune.patience);
        let measured = finetune.keep == Keep::Last || every > 0;
        self.below_1("eval_share", finetune.eval_share);
        self.require(measured, "eval_every", &every, "1 or more, for keep = \"best\"");
        let waits = patience == 0 || finetune.keep == Keep::Best;
        self.require(waits, "patience", &patience, "0 unless keep is \"best\" (--keep best)");
        self.section = "finetune.optim";
        self.optim(&finetune.optim, 1);
        self.first_head("finetune.first_head", &finetune.first_head);
        self.section = "finetune.augment";
        self.augment(&finetune.augment);
    }

    fn first_head(&mut self, section: &'static str, init: &HeadInit) {
        self.section = section;
        self.at_least_0("spread", init.spread, 100.0);
        self.at_least_0("ridge", init.ridge, 1e6);
    }

    /// 0 epochs skip the stage; fine-tuning cannot be skipped this way.
    fn optim(&mut self, optim: &OptimConfig, least_epochs: usize) {
        self.count("epochs", optim.epochs, least_epochs, 1_000_000);
        self.count("batch_size", optim.batch_size, 1, 65_536);
        self.count("micro_batch", optim.micro_batch, 0, 4096);
        self.positive("lr", optim.lr, 1.0);
        let must = format!("0 or more and at most lr, {:?}", optim.lr);
        let inside = (0.0..=optim.lr).contains(&optim.min_lr);
        self.require(inside, "min_lr", &optim.min_lr, &must);
        self.count("decay_epochs", optim.decay_epochs, 0, 1_000_000);
        let inside = optim.decay_share > 0.0 && optim.decay_share <= 1.0;
        self.require(inside, "decay_share", &optim.decay_share, "above 0 and at most 1");
        self.at_least_0("weight_decay", optim.weight_decay, 1.0);
        self.at_least_0("weight_decay_end", optim.weight_decay_end, 1.0);
        self.below_1("momentum", optim.momentum);
        self.below_1("beta1", optim.beta1);
        self.below_1("beta2", optim.beta2);
        self.positive("eps", optim.eps, 1.0);
        self.at_least_0("warmup_epochs", optim.warmup_epochs, 1e6);
        let too_long = optim.epochs > 0 && optim.warmup_epochs > optim.epochs as f64;
        let must = format!("at most the stage's {} epochs", optim.epochs);
        self.require(!too_long, "warmup_epochs", &optim.warmup_epochs, &must);
        self.at_least_0("clip_grad", optim.clip_grad, 1e6);
        self.below_1("drop_path", optim.drop_path);
        self.below_1("smoothing", optim.smoothing);
    }

    fn augment(&mut self, augment: &AugmentConfig) {
        self.range("ratio", augment.ratio, 0.0, 100.0);
        for (key, probability) in [
            ("hflip", augment.hflip),
            ("color_jitter_prob", augment.color_jitter_prob),
            ("grayscale", augment.grayscale),
            ("blur", augment.blur),
            ("solarize", augment.solarize),
            ("erasing", augment.erasing),
        ] {
            self.within(key, probability, 0.0, 1.0);
        }
        let [light @ .., hue] = augment.color_jitter;
        let ok = light.iter().all(|v| (0.0..=10.0).contains(v)) && (0.0..=0.5).contains(&hue);
        let must = "three strengths of 0 to 10 and a hue of 0 to 0.5";
        self.require(ok, "color_jitter", &augment.color_jitter, must);
        self.range("blur_sigma", augment.blur_sigma, 0.0, 100.0);
    }

    fn eval(&mut self, config: &RunConfig) {
        self.section = "eval";
        self.positive("crop_pct", config.eval.crop_pct, 1.0);
        self.count("knn_k", config.eval.knn_k, 1, 65_536);
        self.positive("knn_temperature", config.eval.knn_temperature, 1000.0);
        self.probe(&config.eval.probe);
    }

    fn probe(&mut self, probe: &ProbeConfig) {
        self.section = "eval.probe";
        let strongest_first = probe.penalties.windows(2).all(|pair| pair[0] > pair[1]);
        let in_range = probe.penalties.iter().all(|p| (0.0..=1e6).contains(p));
        let ok = !probe.penalties.is_empty() && strongest_first && in_range;
        let must = "one or more numbers of 0 to 1000000, the strongest first";
        self.require(ok, "penalties", &probe.penalties, must);
        self.count("folds", probe.folds, 2, 1000);
        self.count("iterations", probe.iterations, 1, 1_000_000);
    }
}
