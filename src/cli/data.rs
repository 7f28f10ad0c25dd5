//! `fewvit data ...`.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::data_args::{
    BadImage, CheckArgs, DataCommand, OpenArgs, PreviewArgs, PreviewStage, SplitArgs, StatsArgs,
    SynthArgs,
};
use super::progress::Progress;
use super::readable::unreadable_image;
use super::{data_list, data_sample};
use crate::config::{DataConfig, Layers, RunConfig, Source};
use crate::data::check::Checked;
use crate::data::data_report::{DataReport, SplitCounts};
use crate::data::look::look_at_all;
use crate::data::manifest::{Manifest, Origin, Split, SplitOrigin};
use crate::data::source::Opened;
use crate::data::views::ViewPlan;
use crate::data::{check, file_name, named, source, split, synth};
use crate::engine::device;
use crate::error::{Error, Result};
use crate::files::folder_of;
use crate::report::pictures;
use crate::run::prepare::decode_sample;
use crate::run::{self, Ui as _};

pub(super) fn data(command: &DataCommand) -> Result<()> {
    match command {
        DataCommand::Check(args) => check(args),
        DataCommand::Stats(args) => stats(args),
        DataCommand::Preview(args) => preview(args),
        DataCommand::Synth(args) => synth(args),
        DataCommand::Split(args) => draw_split(args),
        DataCommand::List(args) => data_list::list(args.json),
        #[cfg(feature = "fetch")]
        DataCommand::Fetch(args) => super::fetch::fetch(args),
        DataCommand::Sample(args) => data_sample::sample(args),
    }
}

pub(super) fn config(recipe: &str, set: &[String]) -> Result<RunConfig> {
    let mut layers = Layers::new(recipe)?;
    set.iter().try_for_each(|set| layers.set(set, Source::Flag("--set")))?;
    Ok(layers.build()?.config)
}

/// The settings with which a command opens a data set.
pub(super) fn opening(args: &OpenArgs) -> Result<RunConfig> {
    let mut config = config("paper", &args.set)?;
    config.data.allow_empty_class |= args.allow_empty_class;
    Ok(config)
}

/// A data set, with settings that it does not know refused.
pub(super) fn open(path: &Path, config: &DataConfig, seed: u64) -> Result<Opened> {
    let opened = source::open_noting(path, config, seed)?;
    named::check_settings(&opened, config)?;
    Ok(opened)
}

/// The report on a data set, with what was noticed when it was opened.
fn examine(path: &Path, config: &RunConfig, wanted: usize) -> Result<(Manifest, DataReport)> {
    let opened = open(path, &config.data, config.seed)?;
    let ui = Progress::new();
    let threads = run::threads_or_all(wanted);
    let found = look_at_all(&opened.manifest, config.data.depth, threads, &ui.counting("checked"));
    let Checked { mut report, digests } = check::check(&opened.manifest, &found);
    report.add_notes(&opened, &digests);
    ui.finish();
    Ok((opened.manifest, report))
}

fn check(args: &CheckArgs) -> Result<()> {
    device::settle(args.common.device.parse()?)?;
    let mut config = opening(&args.open)?;
    if let Some(policy) = args.on_bad_image {
        config.data.on_bad_image = policy.policy();
    }
    let (manifest, report) = examine(&args.data, &config, args.common.threads)?;
    match args.common.json {
        true => super::print_json(&report)?,
        false => print_report(&report)?,
    }
    check::apply_bad_policy(&manifest, &report, config.data.on_bad_image).map(|_| ())
}

fn stats(args: &StatsArgs) -> Result<()> {
    device::settle(args.common.device.parse()?)?;
    let (_, report) = examine(&args.data, &opening(&args.open)?, args.common.threads)?;
    if args.common.json {
        return super::print_json(&report);
    }
    print_report(&report)?;
    let unlabelled = ("without a label", report.unlabelled());
    let classes = report.classes.iter().map(|class| (class.name.as_str(), class.images));
    let rest = (unlabelled.1 != SplitCounts::default()).then_some(unlabelled);
    classes.chain(rest).try_for_each(|(name, images)| {
        let SplitCounts { train, val, test } = images;
        super::print(&format!("  {name:<32} {train:>5} train {val:>5} val {test:>5} test"))
    })
}

fn print_report(report: &DataReport) -> Result<()> {
    super::print(&format!("{}: {}", report.name, report.layout))?;
    super::print(&format!(
        "width {} to {} pixels (median {}), height {} to {} (median {})",
        report.width.min,
        report.width.max,
        report.width.median,
        report.height.min,
        report.height.max,
        report.height.median
    ))?;
    for bad in &report.bad {
        super::print(&format!("unreadable: {} {}", bad.file, bad.reason))?;
    }
    report.warnings.iter().try_for_each(|warning| super::print(&format!("note: {warning}")))
}

/// Endings of a JPEG's name.
const JPEG: [&str; 2] = ["jpg", "jpeg"];

/// Columns of a preview whose images have one view each.
const COLUMNS: usize = 8;

fn preview(args: &PreviewArgs) -> Result<()> {
    check_output(
        &args.output,
        &JPEG,
        "the picture is written as JPEG; give it a name that ends in .jpg or .jpeg",
    )?;
    refuse_inside(&args.output, &args.data)?;
    let config = config(&args.recipe, &args.set)?;
    let manifest = open(&args.data, &config.data, config.seed)?.manifest;
    let views = match args.stage {
        PreviewStage::Pretrain => ViewPlan::pretrain(&config.pretrain),
        PreviewStage::Finetune => ViewPlan::finetune(&config.finetune),
    };
    let train = manifest.indices(Split::Train);
    // Evenly spread, so that many classes show.
    let count = args.count.get();
    let step = (train.len() / count).max(1);
    let mut crops = Vec::new();
    for (sample, &position) in train.iter().enumerate().step_by(step).take(count) {
        let image = match decode_sample(&manifest.samples[position], config.data.depth) {
            Ok(image) => image,
            Err(error) if args.on_bad_image == BadImage::Error => {
                return Err(unreadable_image(error));
            }
            Err(error) => {
                eprintln!("note: {error}; left out");
                continue;
            }
        };
        crops.extend(
            (0..views.views())
                .map(|view| views.crop(&image, config.seed, 0, sample as u64, view as u32)),
        );
    }
    if crops.is_empty() {
        return Err(Error::Data(format!("{}: no image can be read", args.data.display())));
    }
    let columns = if views.views() > 1 { views.views() } else { COLUMNS };
    pictures::save_jpeg(&args.output, &pictures::contact_sheet(&crops, columns))?;
    super::print(&args.output.display().to_string())
}

fn synth(args: &SynthArgs) -> Result<()> {
    let ui = Progress::new();
    let counting = ui.counting("rendered");
    synth::write(&args.out, args.seed, args.img_size, args.train, args.test, counting)?;
    ui.finish();
    super::print(&args.out.display().to_string())
}

fn draw_split(args: &SplitArgs) -> Result<()> {
    let mut config = opening(&args.open)?;
    config.data.test_fraction = args.test_fraction;
    let opened = open(&args.data, &config.data, args.seed)?;
    match opened.manifest.split_origin {
        SplitOrigin::Made | SplitOrigin::MadeByGroup => {}
        SplitOrigin::Given => {
            return Err(Error::Data(format!(
                "{} has a split of its own, which fewvit uses: there is nothing to draw\n  to draw one, \
                 give images without train/ and test/ folders",
                args.data.display()
            )));
        }
        SplitOrigin::Unlabelled => {
            return Err(Error::Data(format!(
                "{} has no labels, so there is nothing to stratify by\n  sort the images into folders \
                 of their classes",
                args.data.display()
            )));
        }
    }
    check_table(&args.output)?;
    opened.warnings.iter().for_each(|note| eprintln!("note: {note}"));
    split::write_csv(&relative_to(&args.output, opened.manifest)?, &[], &args.output)?;
    super::print(&args.output.display().to_string())
}

/// Refuses a name under which no table can be written.
pub(super) fn check_table(output: &Path) -> Result<()> {
    check_output(output, &["csv"], "the table is written as CSV; give it a name that ends in .csv")
}

/// Refuses a name that is taken, that has none of the endings, for which `advice` tells them, or
/// whose folder does not exist.
fn check_output(output: &Path, endings: &[&str], advice: &str) -> Result<()> {
    if output.exists() {
        return Err(Error::Usage(format!(
            "{} exists and is left as it is; choose another --output",
            output.display()
        )));
    }
    let folder = folder_of(output);
    let has = |ending: &&str| output.extension().is_some_and(|e| e.eq_ignore_ascii_case(*ending));
    let why = if !endings.iter().any(has) {
        advice.to_owned()
    } else if !folder.is_dir() {
        format!("there is no folder {}; make it first", folder.display())
    } else {
        return Ok(());
    };
    Err(Error::Usage(format!("--output {}: {why}", output.display())))
}

/// The manifest with the images' paths counted from the folder of the table at `output`, as
/// whoever reads the table will take them; absolute where the two have no folder in common.
pub(super) fn relative_to(output: &Path, mut manifest: Manifest) -> Result<Manifest> {
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("read", path, e));
    let folder = real(folder_of(output))?;
    // Links to files stay as they are, so only folders are resolved, each once.
    let mut resolved: HashMap<PathBuf, PathBuf> = HashMap::new();
    for sample in &mut manifest.samples {
        let Origin::File(path) = &sample.origin else {
            return Err(Error::Data(format!(
                "{} lies in an archive, into which a table's paths cannot lead; unpack it first",
                manifest.name
            )));
        };
        let (parent, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
        let parent = match resolved.get(parent) {
            Some(real) => real,
            None => resolved.entry(parent.to_path_buf()).or_insert(real(parent)?),
        };
        sample.id = file_name::id_of(&relative(&parent.join(name), &folder));
    }
    Ok(manifest)
}

/// A path as seen from a folder, both absolute.
fn relative(path: &Path, folder: &Path) -> PathBuf {
    let common = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    // The root alone is no folder that anybody would move both with.
    if common < 2 {
        return path.to_path_buf();
    }
    let up = folder.components().skip(common).map(|_| Component::ParentDir);
    up.chain(path.components().skip(common)).collect()
}

/// Refuses to write a picture into the folder of the images, whose number it would add to.
fn refuse_inside(output: &Path, data: &Path) -> Result<()> {
    let folder = folder_of(output);
    let inside =
        || folder.canonicalize().ok()?.starts_with(data.canonicalize().ok()?).then_some(());
    match inside() {
        None => Ok(()),
        Some(()) => Err(Error::Usage(format!(
            "{} would become one of the images of {}; choose an --output elsewhere",
            output.display(),
            data.display()
        ))),
    }
}
