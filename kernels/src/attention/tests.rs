use super::*;
use crate::reference::{self, Generator, assert_close};

#[test]
fn matches_f64_at_every_level() {
    for (batch, tokens, heads, head_dim) in [
        (1, 1, 1, 1),
        (2, 5, 2, 3),
        (1, 37, 3, 64),
        (2, 50, 1, 64),
        (1, 33, 2, 33),
        (1, 300, 1, 16),
    ] {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { batch, tokens, heads, head_dim, scale };
        let mut random = Generator::new(tokens as u64);
        let values = batch * tokens * heads * head_dim;
        let (qkv, dout) = (random.normal(3 * values), random.normal(values));
        let exact = reference::attention(&shape, &qkv, &dout);
        for level in Level::available() {
            let mut out = vec![9.0; values];
            let mut probs = vec![9.0; exact.probs.len()];
            attention_forward_at(level, &shape, &qkv, &mut out, Some(&mut probs));
            assert_close(&out, &exact.out, 3e-6);
            assert_close(&probs, &exact.probs, 1e-6);
            let mut dqkv = vec![9.0; 3 * values];
            attention_backward_at(level, &shape, &dout, &qkv, &probs, &mut dqkv);
            assert_close(&dqkv, &exact.dqkv, 1e-5);
            let mut inference = vec![9.0; values];
            attention_forward_at(level, &shape, &qkv, &mut inference, None);
            assert_eq!(out, inference, "{level:?} {shape:?}");
        }
    }
}

#[test]
fn large_scores_do_not_overflow_and_not_a_number_shows() {
    let shape = AttentionShape { batch: 1, tokens: 3, heads: 1, head_dim: 1, scale: 1.0 };
    // Query 1000 against keys -3, -1, -2: all scores are far below zero, the second wins.
    let qkv = [1000.0, -3.0, 1.0, 1000.0, -1.0, 2.0, 1000.0, -2.0, 3.0];
    for level in Level::available() {
        let mut out = [0.0; 3];
        attention_forward_at(level, &shape, &qkv, &mut out, None);
        assert_eq!(out, [2.0; 3], "{level:?}");
        let mut diverged = qkv;
        diverged[4] = f32::NAN;
        attention_forward_at(level, &shape, &diverged, &mut out, None);
        assert!(out.iter().all(|x| x.is_nan()), "{level:?}");
    }
}

#[test]
#[should_panic(expected = "the probabilities: 8 values where 9 are needed")]
fn short_probs_are_refused() {
    let shape = AttentionShape { batch: 1, tokens: 3, heads: 1, head_dim: 1, scale: 1.0 };
    attention_forward(&shape, &[0.0; 9], &mut [0.0; 3], Some(&mut [0.0; 8]));
}
