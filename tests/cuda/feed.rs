//! Crops made on the card against the CPU's, level by level.

use std::sync::Arc;

use fewvit::config::Interpolation;
use fewvit::data::Rgb8;
use fewvit::data::augment::{DrawnView, Op};
use fewvit::data::cache::ImageStore;
use fewvit::data::loader::{BatchSource, Cutting, DrawnCrops, Rows};
use fewvit::data::views::ViewPlan;

use super::*;

/// A linear layer over all pixels at once: of a single row, the gradient of its weight is the gradient of
/// its bias times the pixels.
#[derive(Clone, Copy, Debug)]
struct AllPixels(usize);

impl Family for AllPixels {
    fn num_features(&self) -> usize {
        OUT
    }

    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: 1, multiple_of: 1 }
    }

    fn timm_args(&self, _: usize) -> serde_json::Value {
        serde_json::Value::Null
    }
}

impl Tell for AllPixels {
    fn tell<R: Reader>(&self, r: &mut R, _: usize) -> R::Value {
        let linear = Linear::new(r, "all", [3 * self.0 * self.0, OUT]);
        let pixels = r.pixels();
        let x = r.unfold(pixels, Windows { kernel: self.0, stride: self.0, padding: 0 });
        let x = r.linear(x, &linear);
        r.mean_token(x)
    }
}

fn all_pixels(side: usize) -> NetSpec {
    net(Box::leak(Box::new(AllPixels(side))), side, 3)
}

/// The crop that a card makes of a row of `drawn`, `[side, side, 3]`.
fn on_card_of(
    engine: &mut dyn Engine,
    drawn: &DrawnCrops,
    (row, sample): (usize, usize),
    side: usize,
) -> Vec<u8> {
    let image = drawn.images[row % drawn.images.len()].clone();
    let crops = Crops::Drawn(DrawnCrops {
        images: vec![image],
        views: vec![drawn.views[row].clone()],
        interpolation: drawn.interpolation,
        set_bytes: drawn.set_bytes,
    });
    let group =
        CropBatch { img_size: side, views: 1, crops, samples: vec![sample], mix: Mix::none(1) };
    let (batch, loss) = (Batch { groups: vec![group] }, Classes(3));
    let (objective, drop_path) = (Objective::Rows(&loss), DropPath::OFF);
    // So that a pixel is its level.
    let (mean, std) = ([0.0; 3], [1.0 / 255.0; 3]);
    engine
        .gradient(&StepInput { batch: &batch, objective, drop_path, mean, std, epoch: 0 })
        .expect("a gradient");
    let gradient = engine.kept_gradient().expect("a gradient");
    let (area, width) = (side * side, 3 * side * side);
    let bias = &gradient[OUT * width..][..OUT];
    let most = (0..OUT).max_by(|&a, &b| bias[a].abs().total_cmp(&bias[b].abs())).expect("some");
    let weight = &gradient[most * width..][..width];
    let level = |i: usize| (weight[i % 3 * area + i / 3] / bias[most]).round() as u8;
    (0..width).map(level).collect()
}

fn image(width: usize, height: usize) -> Arc<Rgb8> {
    let level = |i: usize| {
        let (c, x, y) = (i % 3, i / 3 % width, i / 3 / width);
        (x * 255 / width + y * 90 / height + 31 * c + (x * y * 7 + y * y) % 61) as u8
    };
    let pixels = (0..3 * width * height).map(level).collect();
    Arc::new(Rgb8 { width, height, pixels })
}

/// Holds the crops of all rows to the CPU's.
fn compare(drawn: &DrawnCrops, side: usize, what: &str) {
    let net = all_pixels(side);
    let mut engine = on_card(&net, 0, start(&net, Ema::Off));
    for (row, view) in drawn.views.iter().enumerate() {
        let expected = view.of(drawn.image(row), side, drawn.interpolation).pixels;
        let sample = row % drawn.images.len();
        let seen = on_card_of(&mut *engine, drawn, (row, sample), side);
        let apart = seen.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!(apart, Some(0), "{what}, {view:?}");
    }
}

#[test]
fn every_operation_is_the_cpus_to_the_level() {
    if !standin::inside("feed::every_operation_is_the_cpus_to_the_level") {
        return;
    }
    let side = 20;
    let erase = |x, y, seed| Op::Erase { area: CropBox { x, y, w: 6, h: 8 }, seed };
    let cutout = |x, y| Op::Cutout(CropBox { x, y, w: 9, h: 7 });
    let mut chains: Vec<Vec<Op>> = [
        Op::HorizontalFlip,
        Op::Brightness(0.35),
        Op::Brightness(1.7),
        Op::Contrast(0.35),
        Op::Contrast(1.7),
        Op::Saturation(0.2),
        Op::Saturation(1.8),
        Op::Hue(0.17),
        Op::Hue(-0.2),
        Op::Grayscale,
        Op::GaussianBlur(0.1),
        Op::GaussianBlur(0.9),
        Op::GaussianBlur(1.9),
        Op::GaussianBlur(6.0),
        Op::Sharpness(0.3),
        Op::Sharpness(1.8),
        Op::Invert,
        Op::AutoContrast,
        Op::Equalize,
        Op::Posterize(4),
        Op::Posterize(8),
        Op::Solarize(113.8),
        Op::Solarize(128.0),
        Op::Solarize(0.0),
        cutout(0, 15),
        cutout(14, 2),
        erase(1, 11, 5),
        erase(13, 0, u64::MAX - 77),
        Op::ShearX(0.3),
        Op::ShearX(-0.2),
        Op::ShearY(0.1),
        Op::ShearY(-0.3),
        Op::TranslateX(6.3),
        Op::TranslateX(-4.8),
        Op::TranslateY(5.5),
        Op::Rotate(10.0),
        Op::Rotate(30.0),
    ]
    .map(|op| vec![op])
    .into();
    let each: Vec<Op> = chains.iter().flatten().copied().step_by(3).collect();
    chains.push(each);
    chains.push(Vec::new());
    let images = vec![image(31, 23)];
    let area = CropBox { x: 3, y: 2, w: 26, h: 19 };
    let views = chains.into_iter().map(|ops| DrawnView { area, ops }).collect();
    let set_bytes = 3 * 31 * 23;
    let interpolation = Interpolation::Bilinear;
    compare(&DrawnCrops { images, views, interpolation, set_bytes }, side, "an operation");
}

/// Enlarged, shrunk, as large as the crop, rows first, a single pixel; from images that stay on the card,
/// that do not, and that are larger than the working memory.
#[test]
fn resizing_is_the_cpus_to_the_level() {
    if !standin::inside("feed::resizing_is_the_cpus_to_the_level") {
        return;
    }
    let side = 17;
    let area = |x, y, w, h| CropBox { x, y, w, h };
    for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
        let areas = [
            (90, 40, area(0, 0, 90, 40)),
            (90, 40, area(3, 7, 17, 17)),
            (30, 140, area(5, 1, 20, 130)),
            (30, 140, area(29, 139, 1, 1)),
            (60, 60, area(2, 9, 5, 50)),
            (60, 60, area(0, 0, 17, 60)),
        ];
        let images = areas.iter().map(|(w, h, _)| image(*w, *h)).collect::<Vec<_>>();
        let views = areas.iter().map(|&(_, _, area)| DrawnView { area, ops: Vec::new() });
        let views: Vec<DrawnView> = views.collect();
        let all: u64 = images.iter().map(|image| image.pixels.len() as u64).sum();
        for set_bytes in [all, 3 * 90 * 40, 0] {
            let (images, views) = (images.clone(), views.clone());
            let drawn = DrawnCrops { images, views, interpolation, set_bytes };
            compare(&drawn, side, &format!("{interpolation:?}, {set_bytes} bytes"));
        }
    }
    let images = vec![image(5200, 4500)];
    let views = vec![DrawnView { area: area(1, 2, 5198, 4497), ops: vec![Op::HorizontalFlip] }];
    let interpolation = Interpolation::Bilinear;
    compare(&DrawnCrops { images, views, interpolation, set_bytes: 0 }, side, "a huge image");
}

/// Batches of the two stages of recipes, whose crops `cutting` makes.
fn sources(side: usize, cutting: Cutting) -> Vec<(&'static str, BatchSource)> {
    let sizes = [(60, 44), (40, 70), (25, 120), (33, 33), (90, 31)];
    let images = sizes.map(|(width, height)| (*image(width, height)).clone());
    let store = Arc::new(ImageStore::of(images.into()));
    let config = |name| Layers::new(name).and_then(Layers::build).expect("a recipe").config;
    let with = |name: &'static str, views: ViewPlan| {
        let area = CropBox { x: 2, y: 3, w: 6, h: 5 };
        let source = BatchSource {
            images: store.clone(),
            views: Arc::new(views),
            mix: Arc::new(move |_, epoch, rows, _| {
                let kinds = [MixKind::None, MixKind::CutMix(area), MixKind::Mixup];
                let partner = (0..rows).map(|row| (row + 2) % rows).collect();
                Mix { kind: kinds[epoch % 3], lambda: 0.6, partner }
            }),
            seed: 11,
            batch_size: 5,
            drop_last: false,
            threads: 2,
            rows: Rows::All,
            cutting,
            balance: None,
            repeats: 1,
        };
        (name, source)
    };
    let pretrain = |name: &'static str| {
        let mut config = config(name).pretrain;
        config.crops.iter_mut().for_each(|crops| crops.img_size = side);
        with(name, ViewPlan::pretrain(&config))
    };
    let mut finetune = config("paper").finetune;
    finetune.img_size = side;
    vec![pretrain("paper"), pretrain("moco-v3"), with("fine-tuning", ViewPlan::finetune(&finetune))]
}

#[test]
fn whole_views_are_the_cpus_to_the_level() {
    if !standin::inside("feed::whole_views_are_the_cpus_to_the_level") {
        return;
    }
    let side = 18;
    for (name, source) in sources(side, Cutting::Engine) {
        let batch = source.batch(0).expect("a batch");
        for group in &batch.groups {
            let Crops::Drawn(drawn) = &group.crops else { panic!("only drawn") };
            assert_eq!(drawn.set_bytes, source.images.pixel_bytes());
            compare(drawn, side, name);
        }
    }
}

/// Whole steps: the engine is given pixels or what was drawn, and comes to the same bits.
#[test]
fn a_step_is_the_same_whoever_makes_its_crops() {
    if !standin::inside("feed::a_step_is_the_same_whoever_makes_its_crops") {
        return;
    }
    let side = 12;
    let net = net(told(Toy { op: Relu, side, dim: 4 }), side, 3);
    let pairs = sources(side, Cutting::Engine).into_iter().zip(sources(side, Cutting::Loader));
    for ((name, drawn), (_, cut)) in pairs {
        let mut engines = [0, 1].map(|_| on_card(&net, 3, start(&net, Ema::Off)));
        for step in 0..3 {
            let [drawn, cut] = [&drawn, &cut].map(|source| source.batch(step).expect("a batch"));
            let [a, b] = &mut engines;
            let seen = gradient(&mut **a, &drawn, 3, step as u32);
            assert_eq!(seen, gradient(&mut **b, &cut, 3, step as u32), "{name}, step {step}");
        }
    }
}
