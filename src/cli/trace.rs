//! `fewvit trace`.

use toml::Value;

use super::trace_args::TraceArgs;
use crate::config::{Layers, RunConfig, Source, Unread, recipe};
use crate::engine::Machine;
use crate::error::{Error, Result};
use crate::run::{self, Stages};
use crate::train::trace::method::{self, MethodTrace};
use crate::train::trace::supervised::{self, TraceOptions};

pub(super) fn trace(args: &TraceArgs) -> Result<()> {
    let machine = Machine::named(&args.device, 1)?;
    args.amp_dtype.products().check(machine.device)?;
    if args.steps == 0 {
        return Err(Error::Usage("--steps 0 leaves nothing to trace".to_owned()));
    }
    match (&args.method, args.num_classes, args.img_size, &args.weights) {
        (Some(method), ..) => method::trace(&MethodTrace {
            config: settings(args, method)?,
            steps: args.steps,
            img_size: args.img_size,
            num_classes: args.num_classes,
            weights: args.weights.clone(),
            batch: args.batch.clone(),
            out: args.out.clone(),
            device: machine.device,
        }),
        (None, Some(num_classes), Some(img_size), Some(weights)) => {
            supervised::trace(&TraceOptions {
                model: args.model.clone(),
                num_classes,
                img_size,
                weights: weights.clone(),
                batch: args.batch.clone(),
                out: args.out.clone(),
                smoothing: args.smoothing.unwrap_or(0.0),
                lr: args.lr.unwrap_or(5e-4),
                weight_decay: args.weight_decay.unwrap_or(1e-3),
                steps: args.steps,
                machine: Machine { products: args.amp_dtype.products(), ..machine },
            })
        }
        _ => Err(Error::Usage(
            "without --method, a trace needs --num-classes, --img-size and --weights".to_owned(),
        )),
    }
}

/// Settings that a trace has no use for, or makes itself.
const UNREAD: [&str; 11] = [
    "time_budget",
    "data.",
    "eval.",
    "checkpoint.",
    "pretrain.probe_every",
    "pretrain.encoder",
    "pretrain.augment.",
    "pretrain.cutmix",
    "pretrain.optim.drop_path",
    "pretrain.optim.epochs",
    "pretrain.optim.batch_size",
];

/// The recipe, a constant rate, files, `--set`, flags. `--method` may be a recipe of its own.
fn settings(args: &TraceArgs, method: &str) -> Result<RunConfig> {
    let own = &args.of_method;
    let trace = Source::Flag("trace");
    let is_recipe = recipe::TABLE.iter().any(|recipe| recipe.name == method);
    let mut layers = match &own.recipe {
        None if is_recipe => Layers::new(method)?,
        base => {
            let mut layers = Layers::new(base.as_deref().unwrap_or("paper"))?;
            layers.put("pretrain.method", method.into(), Source::Flag("--method"))?;
            layers
        }
    };
    layers.put("pretrain.optim.lr_schedule", "constant".into(), trace.clone())?;
    layers.put("pretrain.optim.warmup_epochs", 0.0.into(), trace.clone())?;
    layers.put("threads", 1.into(), trace)?;
    own.config.iter().try_for_each(|path| layers.file(path))?;
    own.set.iter().try_for_each(|set| layers.set(set, Source::Flag("--set")))?;
    let whole = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    for (flag, key, value) in [
        ("--model", "model.name", Some(args.model.clone().into())),
        ("--amp-dtype", "amp_dtype", Some(args.amp_dtype.products().name().into())),
        ("--seed", "seed", own.seed.map(whole)),
        ("--threads", "threads", own.threads.map(|n| whole(n as u64))),
        ("--lr", "pretrain.optim.lr", args.lr.map(Value::Float)),
        ("--weight-decay", "pretrain.optim.weight_decay", args.weight_decay.map(Value::Float)),
        ("--smoothing", "pretrain.optim.smoothing", args.smoothing.map(Value::Float)),
    ] {
        value.map_or(Ok(()), |value| layers.put(key, value, Source::Flag(flag)))?;
    }
    let resolved = run::settle(layers, Stages { pretrain: true, finetune: false })?;
    resolved.refuse_unread(&|key| {
        let why = || "every step of a trace is an epoch on the views that it is given".to_owned();
        let unread = UNREAD.iter().any(|own| key.starts_with(own));
        unread.then(|| Unread { why: why(), tolerated: true })
    })?;
    let mut config = resolved.config;
    config.threads = run::threads(&config);
    Ok(config)
}
