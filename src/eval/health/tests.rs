//! Against numpy (`tests/golden/health.py`) and closed forms.

use super::*;
use rand::RngExt as _;
use safetensors::SafeTensors;

use crate::rng::{Purpose, stream};

fn random(n: usize, dim: usize) -> Vec<f32> {
    let mut rng = stream(8, Purpose::Bench, 0, n as u64, dim as u32);
    (0..n * dim).map(|_| rng.sample::<f32, _>(rand_distr::StandardNormal)).collect()
}

/// The unit vectors along the axes.
fn axes(dim: usize) -> Vec<f32> {
    (0..dim * dim).map(|i| if i % (dim + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

#[track_caller]
fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{got} is not {expected}");
}

#[test]
fn agrees_with_numpy() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/health.safetensors");
    let bytes = std::fs::read(path).expect("the golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    for case in ["tall", "wide", "low_rank", "offset", "scaled_rows"] {
        let view = |name: &str| file.tensor(&format!("{case}.{name}")).expect(name);
        let matrix = |name| -> Vec<f32> {
            view(name).data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
        };
        let (features, positives) = (matrix("features"), matrix("positives"));
        let health =
            Health::of(&features, Some((&features, &positives)), view("features").shape()[1]);
        let figures = view("figures");
        let figures = figures.data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b));
        let alignment = health.alignment.expect("second views");
        let ours = [health.std, health.effective_rank, alignment, health.uniformity];
        for (got, expected) in ours.into_iter().zip(figures) {
            assert!((got - expected).abs() < 1e-5 * expected.abs(), "{case}: {got} {expected}");
        }
    }
}

#[test]
fn equal_features_have_no_spread_and_rank_one() {
    let features = [0.3, -2.0, 0.7, 0.1].repeat(30);
    let health = Health::of(&features, Some((&features, &features)), 4);
    close(health.std, 0.0);
    close(health.effective_rank, 1.0);
    close(health.uniformity, 0.0);
    assert_eq!(health.alignment, Some(0.0));
    assert_eq!(health.full_rank, 4);
}

#[test]
fn the_axes_have_their_closed_forms() {
    let dim = 10;
    let health = Health::of(&axes(dim), None, dim);
    // A dimension is 1 once in `dim` rows; any two axes are sqrt(2) apart.
    let (d, p) = (dim as f64, 0.1f64);
    close(health.std, d.sqrt() * (p * (1.0 - p)).sqrt());
    close(health.effective_rank, d);
    close(health.uniformity, -4.0);
    assert_eq!(health.alignment, None);
    // With the opposite ends the mean is zero, and the spread complete.
    let both: Vec<f32> = axes(dim).into_iter().chain(axes(dim).iter().map(|v| -v)).collect();
    close(feature_std(&both, dim), 1.0);
    // The next row's axis is at a right angle; the opposite end is a diameter away.
    let next = [&both[dim..], &both[..dim]].concat();
    close(alignment(&both, &next, dim), 2.0);
    let opposite: Vec<f32> = both.iter().map(|v| -v).collect();
    close(alignment(&both, &opposite, dim), 4.0);
}

#[test]
fn two_unequal_directions_have_the_rank_of_their_entropy() {
    // Nine rows along one axis and one along another: singular values 3 and 1.
    let mut features = [1.0, 0.0, 0.0].repeat(9);
    features.extend([0.0, 0.0, 1.0]);
    let entropy = -(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
    close(effective_rank(&features, 3), entropy.exp());
}

#[test]
fn the_rank_survives_every_degenerate_matrix() {
    for (features, dim) in [
        (vec![1.0f32; 2], 1),
        (axes(3)[..6].to_vec(), 3),
        ([axes(64), axes(64), axes(64)].concat(), 64),
        ([vec![1.0; 200], vec![-1.0; 200]].concat(), 200),
        (vec![0.0; 6400], 64),
        (vec![1e-38; 6400], 64),
        (vec![f32::MAX; 6400], 64),
        // Equal but for rounding.
        (random(100, 64).iter().map(|v| 1.0 + 1e-7 * v).collect(), 64),
    ] {
        let rank = effective_rank(&normalised(&features, dim), dim);
        assert!((0.999..=64.001).contains(&rank), "{rank}");
    }
    assert!(effective_rank(&[f32::NAN, 1.0, 0.0, 1.0], 2).is_nan());
}

#[test]
fn a_healthy_run_gets_no_warning() {
    let health = Health::of(&random(300, 48), None, 48);
    assert!(health.std > 0.95 && health.effective_rank > 40.0, "{health:?}");
    let options = options("simclr");
    assert_eq!(health.warning(&training(3.1, &options), &Limits::default()), None);
}

/// A method's own settings, as its recipe has them.
fn options(recipe: &str) -> toml::Table {
    let layers = crate::config::Layers::new(recipe).expect(recipe);
    layers.build().expect(recipe).config.pretrain.options
}

fn training(loss: f64, options: &toml::Table) -> Training<'_> {
    Training { loss, chance: Some(5.5), labels: false, options }
}

/// A common direction far longer than what tells the images apart.
fn point() -> Health {
    let features: Vec<f32> = random(300, 48).iter().map(|v| 20.0 + v).collect();
    Health::of(&features, None, 48)
}

/// Everything on a circle within 48 dimensions.
fn circle() -> Health {
    let circle = random(300, 2);
    let circle: Vec<f32> = circle.chunks(2).flat_map(|xy| xy.repeat(24)).collect();
    Health::of(&circle, None, 48)
}

#[test]
fn each_trouble_is_named_with_its_remedy() {
    let limits = Limits::default();
    let healthy = Health::of(&random(300, 48), None, 48);
    let says = |health: &Health, loss: f64, recipe: &str, words: &[&str]| {
        let options = options(recipe);
        let text = health.warning(&training(loss, &options), &limits).expect("a warning");
        words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text:?}"));
    };
    says(&healthy, 5.48, "simclr", &["5.480", "guessing (5.500)", "Raise --lr", "data preview"]);
    says(
        &healthy,
        75.4,
        "simclr",
        &["75.400", "above", "guessing (5.500)", "temperature far below"],
    );
    says(&healthy, f64::NAN, "simclr", &["diverged", "--warmup-epochs"]);
    let sharper = "lower pretrain.options.teacher_temperature";
    says(&point(), 5.5, "dino", &["Collapse", "spread 0.0", "guessing", sharper]);
    says(&point(), 0.1, "dino", &["Collapse", "loss is 0.100", "raise pretrain.options.momentum"]);
    says(&circle(), 2.0, "simclr", &["Partial collapse", "2.0 of 48", "--batch-size"]);
    says(&circle(), 2.0, "moco-v2", &["Partial collapse", "raise pretrain.options.queue"]);
    says(&circle(), 2.0, "paper", &["Partial collapse", "Train for more --epochs"]);
    for broken in [f32::NAN, f32::INFINITY] {
        let mut features = random(300, 48);
        features[100] = broken;
        says(&Health::of(&features, None, 48), 2.0, "simclr", &["diverged"]);
    }
}

#[test]
fn no_advice_names_what_the_method_does_not_have() {
    let healthy = Health::of(&random(300, 48), None, 48);
    let recipes = ["paper", "supervised", "simclr", "supcon", "moco-v2", "moco-v3", "dino"]
        .map(|r| (r, options(r)));
    for (recipe, options) in &recipes {
        for (health, loss) in
            [(healthy, 5.48), (healthy, 75.4), (point(), 5.5), (point(), 0.1), (circle(), 2.0)]
        {
            let text = health.warning(&training(loss, options), &Limits::default());
            let text = text.expect("a warning");
            let named: Vec<&str> = text.split("pretrain.options.").skip(1).collect();
            for rest in &named {
                let key: String =
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(options.contains_key(&key), "{recipe} has no {key}: {text}");
            }
            for (word, key) in [("temperature", "temperature"), ("teacher", "momentum")] {
                let had = options.keys().any(|k| k.contains(key));
                assert!(had || !text.contains(word), "{recipe}, {word}: {text}");
            }
        }
    }
}

#[test]
fn without_a_loss_of_guessing_only_the_features_are_judged() {
    let none = toml::Table::new();
    let training = Training { chance: None, ..training(9.0, &none) };
    let healthy = Health::of(&random(300, 48), None, 48);
    assert_eq!(healthy.warning(&training, &Limits::default()), None);
    let text = point().warning(&training, &Limits::default()).expect("a warning");
    assert!(text.contains("Collapse") && !text.contains("guessing"), "{text}");
}

#[test]
fn labels_need_no_more_directions_than_classes() {
    let options = options("supervised");
    let with_labels = Training { labels: true, ..training(2.0, &options) };
    assert_eq!(circle().warning(&with_labels, &Limits::default()), None);
    assert!(circle().warning(&training(2.0, &options), &Limits::default()).is_some());
}
