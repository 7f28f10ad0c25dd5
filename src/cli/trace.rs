//! `fewvit trace`.

use toml::Value;

use super::trace_args::TraceArgs;
use crate::config::{Layers, RunConfig, Source, recipe};
use crate::error::{Error, Result};
use crate::run;
use crate::train::trace::method::{self, MethodTrace};
use crate::train::trace::supervised::{self, TraceOptions};

pub(super) fn trace(args: &TraceArgs) -> Result<()> {
    run::check_device(&args.device)?;
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
                precision: args.amp_dtype.precision(),
            })
        }
        _ => Err(Error::Usage(
            "without --method, a trace needs --num-classes, --img-size and --weights".to_owned(),
        )),
    }
}

/// The recipe, its method's over it, a constant rate, files, `--set`, flags.
fn settings(args: &TraceArgs, method: &str) -> Result<RunConfig> {
    let own = &args.of_method;
    let (base, trace) = (own.recipe.as_deref().unwrap_or("paper"), Source::Flag("trace"));
    let mut layers = Layers::new(base)?;
    layers.method(method)?;
    if !recipe::TABLE.iter().any(|recipe| recipe.name == method) {
        layers.put("pretrain.method", method.into(), Source::Flag("--method"))?;
    }
    layers.put("pretrain.optim.lr_schedule", "constant".into(), trace.clone())?;
    layers.put("pretrain.optim.warmup_epochs", 0.0.into(), trace.clone())?;
    layers.put("threads", 1.into(), trace)?;
    own.config.iter().try_for_each(|path| layers.file(path))?;
    own.set.iter().try_for_each(|set| layers.set(set, Source::Flag("--set")))?;
    let whole = |n: u64| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    for (flag, key, value) in [
        ("--model", "model.name", Some(args.model.clone().into())),
        ("--amp-dtype", "amp_dtype", Some(args.amp_dtype.precision().name().into())),
        ("--seed", "seed", own.seed.map(whole)),
        ("--threads", "threads", own.threads.map(|n| whole(n as u64))),
        ("--lr", "pretrain.optim.lr", args.lr.map(Value::Float)),
        ("--weight-decay", "pretrain.optim.weight_decay", args.weight_decay.map(Value::Float)),
        ("--smoothing", "pretrain.optim.smoothing", args.smoothing.map(Value::Float)),
    ] {
        value.map_or(Ok(()), |value| layers.put(key, value, Source::Flag(flag)))?;
    }
    let mut config = layers.build()?.config;
    config.threads = run::threads(&config);
    Ok(config)
}
