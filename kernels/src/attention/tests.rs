use super::backward::attention_backward_at;
use super::*;
use crate::reference::{self, Generator, assert_close};

/// Rows of `[q | kv]`, the layout of one joint projection.
fn joint<T: Copy>(q: &[T], kv: &[T], dim: usize) -> Vec<T> {
    let rows = q.chunks(dim).zip(kv.chunks(2 * dim));
    rows.flat_map(|(q, kv)| [q, kv].concat()).collect()
}

#[test]
fn matches_f64_at_every_level() {
    let all = [
        (1, 1, 1, 1, 1),
        (2, 5, 5, 2, 3),
        // Under Miri scores of two blocks.
        (1, 8, 33, 1, 3),
        (1, 17, 17, 1, 2),
        (1, 37, 37, 3, 64),
        (2, 50, 50, 1, 64),
        (2, 1, 50, 3, 64),
        (1, 49, 4, 2, 32),
        (1, 33, 34, 2, 33),
        (1, 300, 300, 1, 16),
    ];
    for &(batch, queries, keys, heads, head_dim) in reference::fewer_under_miri(&all, 4) {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let [precision, stored] = [Precision::F32; 2];
        let shape =
            AttentionShape { batch, queries, keys, heads, head_dim, scale, precision, stored };
        let mut random = Generator::new(keys as u64);
        let dim = heads * head_dim;
        let (q, dout) =
            (random.normal(batch * queries * dim), random.normal(batch * queries * dim));
        let kv = random.normal(2 * batch * keys * dim);
        let exact = reference::attention(&shape, &q, &kv, &dout);
        for level in Level::available() {
            let split = Qkv::Split { q: &q[..], kv: &kv[..] };
            let mut out = vec![9.0; q.len()];
            let mut sums = vec![9.0; 2 * batch * heads * queries];
            attention_forward_at(level, &shape, split, &mut out, Some(&mut sums));
            assert_close(&out, &exact.out, 3e-6);
            let (mut dq, mut dkv) = (vec![9.0; q.len()], vec![9.0; kv.len()]);
            let gradient = Qkv::Split { q: &mut dq[..], kv: &mut dkv[..] };
            attention_backward_at(level, &shape, &dout, split, &sums, gradient);
            assert_close(&dq, &exact.dq, 1e-5);
            assert_close(&dkv, &exact.dkv, 1e-5);
            let mut inference = vec![9.0; q.len()];
            attention_forward_at(level, &shape, split, &mut inference, None);
            assert_eq!(out, inference, "{level:?} {shape:?}");
            if queries == keys {
                let qkv = joint(&q, &kv, dim);
                let qkv = Qkv::Joint(&qkv[..]);
                let mut same = vec![9.0; q.len()];
                attention_forward_at(level, &shape, qkv, &mut same, None);
                assert_eq!(out, same, "{level:?} {shape:?}");
                let mut dqkv = vec![9.0; 3 * q.len()];
                let gradient = Qkv::Joint(&mut dqkv[..]);
                attention_backward_at(level, &shape, &dout, qkv, &sums, gradient);
                assert_eq!(dqkv, joint(&dq, &dkv, dim), "{level:?} {shape:?}");
            }
        }
    }
}

/// Rounded to bf16, every product errs by up to 2^-8 and the softmax passes it on.
#[test]
fn bf16_is_close_to_f64_at_every_level() {
    let all = [
        (1, 5, 6, 2, 5, Precision::F32),
        (2, 3, 7, 2, 6, Precision::Bf16),
        // Under Miri scores of two blocks.
        (1, 8, 34, 1, 4, Precision::Bf16),
        (1, 37, 50, 2, 65, Precision::F32),
        (2, 37, 50, 2, 66, Precision::Bf16),
        (2, 1, 5, 2, 2, Precision::Bf16),
        // Scores of several blocks.
        (1, 300, 301, 1, 16, Precision::Bf16),
    ];
    for &(batch, queries, keys, heads, head_dim, stored) in reference::fewer_under_miri(&all, 3) {
        let (scale, precision) = (1.0 / (head_dim as f32).sqrt(), Precision::Bf16);
        let shape =
            AttentionShape { batch, queries, keys, heads, head_dim, scale, precision, stored };
        bf16_is_close(&shape);
    }
}

fn bf16_is_close(shape: &AttentionShape) {
    let dim = shape.heads * shape.head_dim;
    let mut random = Generator::new(7);
    let queries = shape.batch * shape.queries * dim;
    let (q, dout) = (random.normal(queries), random.normal(queries));
    let kv = random.normal(2 * shape.batch * shape.keys * dim);
    let exact = reference::attention(shape, &q, &kv, &dout);
    let [stored_q, stored_dout, stored_kv] = [&q, &dout, &kv].map(|x| stored(shape, x));
    for level in Level::available() {
        let split = Qkv::Split { q: &stored_q[..], kv: &stored_kv[..] };
        let mut sums = vec![9.0; 2 * shape.batch * shape.heads * shape.queries];
        let (mut out, mut dq) = (vec![9.0; stored_q.len()], vec![9.0; stored_q.len()]);
        let mut dkv = vec![9.0; stored_kv.len()];
        attention_forward_at(level, shape, split, &mut out, Some(&mut sums));
        let gradient = Qkv::Split { q: &mut dq[..], kv: &mut dkv[..] };
        attention_backward_at(level, shape, &stored_dout, split, &sums, gradient);
        for (x, exact) in [(&out, &exact.out), (&dq, &exact.dq), (&dkv, &exact.dkv)] {
            let error = reference::relative_error(&values(shape, x), exact);
            assert!(error < 1e-2, "{level:?} {shape:?}: {error}");
            // A wrong pair somewhere would be worse, f32 everywhere better.
            assert!(error > 1e-4, "{level:?} {shape:?}: {error} is too good for bf16");
        }
    }
}

/// Rows as `shape` stores them.
fn stored(shape: &AttentionShape, x: &[f32]) -> Vec<f32> {
    match shape.stored {
        Precision::F32 => x.to_vec(),
        Precision::Bf16 => {
            let pairs = x.as_chunks::<2>().0.iter();
            pairs.map(|pair| f32::from_bits(bits(pair[0]) | bits(pair[1]) << 16)).collect()
        }
    }
}

/// Upper half of a number rounded to bf16.
fn bits(x: f32) -> u32 {
    reference::bf16(x).to_bits() >> 16
}

/// The values of [`stored`].
fn values(shape: &AttentionShape, x: &[f32]) -> Vec<f32> {
    match shape.stored {
        Precision::F32 => x.to_vec(),
        Precision::Bf16 => {
            let pairs = x.iter().map(|pair| pair.to_bits());
            pairs.flat_map(|pair| [pair << 16, pair >> 16 << 16].map(f32::from_bits)).collect()
        }
    }
}

fn three_scalars(precision: Precision) -> AttentionShape {
    let (batch, queries, keys, heads, head_dim, scale) = (1, 3, 3, 1, 1, 1.0);
    let stored = Precision::F32;
    AttentionShape { batch, queries, keys, heads, head_dim, scale, precision, stored }
}

#[test]
fn large_scores_do_not_overflow_and_not_a_number_shows() {
    let shape = three_scalars(Precision::F32);
    // Query 1000 against keys -3, -1, -2: all scores are far below zero, the second wins.
    let qkv = [1000.0, -3.0, 1.0, 1000.0, -1.0, 2.0, 1000.0, -2.0, 3.0];
    for level in Level::available() {
        let mut out = [0.0; 3];
        attention_forward_at(level, &shape, Qkv::Joint(&qkv[..]), &mut out, None);
        assert_eq!(out, [2.0; 3], "{level:?}");
        let mut diverged = qkv;
        diverged[4] = f32::NAN;
        attention_forward_at(level, &shape, Qkv::Joint(&diverged[..]), &mut out, None);
        assert!(out.iter().all(|x| x.is_nan()), "{level:?}");
    }
}

#[test]
#[should_panic(expected = "the sums: 5 values where 6 are needed")]
fn short_sums_are_refused() {
    let shape = three_scalars(Precision::F32);
    attention_forward(&shape, Qkv::Joint(&[0.0; 9][..]), &mut [0.0; 3], Some(&mut [0.0; 5]));
}
