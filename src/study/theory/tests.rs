use super::*;

/// The rows that `tests/golden/theory.py` makes up.
fn made_up(rows: usize, shift: f64) -> Matrix {
    let value = |i: usize, j: usize| (1.7 * i as f64 + 0.9 * (j * j) as f64 + shift).sin();
    (0..rows).map(|i| (0..SIZES.2).map(|j| value(i, j)).collect()).collect()
}

fn trial() -> Trial {
    Trial {
        view_a: made_up(SIZES.0, 0.1),
        view_b: made_up(SIZES.0, 0.7),
        weights: made_up(SIZES.0, 1.9),
        centres: made_up(SIZES.1, 2.6),
        smoothing: 0.1,
        lambda: 0.7,
    }
}

/// What `tests/golden/theory.py` prints: equation, left and right.
const NUMPY: &[(&str, f64, f64)] = &[
    ("5", 14.536_419_778_911_874, 14.536_419_778_911_874),
    ("6", 84.167_555_667_137_53, 84.167_555_667_137_53),
    ("7", 34.206_702_606_207_955, 34.206_702_606_207_955),
    ("7, as the appendix prints it", 34.206_702_606_207_955, 32.902_448_672_122_55),
    ("12, as printed", 46.672_289_668_985_95, 30.036_757_335_547_264),
    ("12, clusters of one size n", 46.672_289_668_985_95, 46.672_289_668_985_95),
    ("12, clusters of any size", 45.515_746_336_296_16, 45.515_746_336_296_16),
    ("14 to 16", 1.945_738_372_121_795_6, 1.945_738_372_121_795_6),
    ("14 to 16", 1.633_126_484_635_409_7, 1.633_126_484_635_409_7),
    ("14 to 16", 0.002_440_759_882_984_049, 0.002_440_759_882_984_049),
    ("19, C_i", 0.632_727_272_727_272_7, 0.632_727_272_727_272_7),
    ("19, C_i'", 0.276_363_636_363_636_4, 0.276_363_636_363_636_4),
    ("19, C of others", 0.009_090_909_090_909_092, 0.009_090_909_090_909_092),
    ("19, C as printed", 0.009_090_909_090_909_092, 0.006_363_636_363_636_363),
    ("19, sum of targets", 1.0, 1.0),
    ("19, sum as printed", 1.0, 0.972_727_272_727_272_8),
    ("20", 1.023_213_837_123_078, 1.023_213_837_123_078),
    ("20", 0.026_599_443_864_446_907, 0.026_599_443_864_446_907),
    ("20, C as printed", 0.031_128_498_177_657_303, 0.026_599_443_864_446_907),
];

#[test]
fn both_sides_are_numpys() {
    let found = identities(&trial());
    assert_eq!(found.len(), NUMPY.len());
    for (found, (equation, left, right)) in found.iter().zip(NUMPY) {
        assert_eq!(found.equation, *equation);
        assert!((found.left - left).abs() < 1e-8, "{found:?} is not {left}");
        assert!((found.right - right).abs() < 1e-8, "{found:?} is not {right}");
    }
}

#[test]
fn what_is_printed_wrong_is_shown_to_be_wrong_on_any_data() {
    for seed in 0..5 {
        for identity in identities(&Trial::random(seed)) {
            let wrong = identity.equation.contains("print");
            assert_eq!(identity.holds, !wrong, "{identity:?}");
            assert!(wrong == (identity.difference > 1e-6), "{identity:?}");
        }
    }
}

/// The paper's example (arXiv 2201.10728): 2,040 images, half of each.
#[test]
fn the_papers_example_has_the_numbers_of_the_recipe() {
    let rows = |count: usize| (0..count).map(|i| vec![(i as f64).sin()]).collect::<Matrix>();
    let trial = Trial {
        view_a: rows(2040),
        view_b: rows(2040),
        weights: rows(2040),
        centres: rows(3),
        smoothing: 0.1,
        lambda: 0.5,
    };
    let found = mixed_targets(&trial);
    for (i, left, right) in [
        (0, 0.450_024_52, 0.450_024_52),
        (1, 0.450_024_52, 0.450_024_52),
        (2, 4.904_365e-5, 4.904_365e-5),
        (3, 4.904_365e-5, 2.452_183e-5),
        (4, 1.0, 1.0),
        (5, 1.0, 0.950_025),
    ] {
        assert!((found[i].left - left).abs() < 1e-6 * left.max(1e-3), "{:?}", found[i]);
        assert!((found[i].right - right).abs() < 1e-6 * right.max(1e-3), "{:?}", found[i]);
    }
}
