//! How cuBLASLt's algorithms are chosen and kept.

use fewvit::engine::TunedProducts;

use super::*;

/// The number that the stand-in gives an algorithm, in all shapes.
fn numbers(tuned: &TunedProducts) -> Vec<&str> {
    tuned.algorithms.values().map(|digits| &digits[15..16]).collect()
}

/// The stand-in's first algorithm is slow, its second as the first but faster, its third rounds otherwise.
#[test]
fn the_fastest_that_rounds_as_the_first_is_taken_and_kept() {
    let name = "products::the_fastest_that_rounds_as_the_first_is_taken_and_kept";
    if !standin::inside_with(name, &[("STANDIN_SLOW", "0")]) {
        return;
    }
    let net = net(told(Toy { op: Attention { heads: 2 }, side: 8, dim: 96 }), 8, 4);
    let (state, batch) = (start(&net, Ema::Off), batch(6, 8, MixKind::None));
    let step = |state: &TrainState| {
        let mut engine = on_card(&net, 0, state.clone());
        let (_, gradient) = gradient(&mut *engine, &batch, 4, 1);
        let optim = &optimisers()[0];
        engine.update(&Update { lr: 0.01, optim, late: &|_| 0 }).expect("an update");
        (gradient, engine.into_state().expect("a state").tuned)
    };
    let (right, tuned) = step(&state);
    assert_eq!(tuned.on, "stand-in 0, driver 13000, cuBLASLt 130000");
    assert!(numbers(&tuned).len() >= 3, "{tuned:?}");
    assert!(numbers(&tuned).iter().all(|number| *number == "1"), "{tuned:?}");
    // Those of another version may mean something else there.
    let others = |on: &str| {
        let third = |(shape, digits): (&String, &String)| {
            (shape.clone(), format!("{}2{}", &digits[..15], &digits[16..]))
        };
        let algorithms = tuned.algorithms.iter().map(third).collect();
        TrainState { tuned: TunedProducts { on: on.to_owned(), algorithms }, ..state.clone() }
    };
    let (elsewhere, kept) = step(&others("stand-in 0, driver 13000, cuBLASLt 120000"));
    assert_eq!((elsewhere, kept), (right.clone(), tuned.clone()));
    let (resumed, kept) = step(&others(&tuned.on));
    assert!(numbers(&kept).iter().all(|number| *number == "2"), "{kept:?}");
    assert!(resumed != right && apart(&resumed, &right) < 1e-4, "they are used");
}
