//! Halves of blocks.

use std::cell::Cell;

use burn::tensor::{Gradients, Tensor};
use fewvit_kernels::Precision;

use super::{assert_bf16, assert_close, assert_within, random, values, weighted_sum};
use crate::ops::{
    Layer, Norm, Reduction, attention_block, autocast, conv_mlp_block, mlp_block,
    reduced_attention_block,
};

/// Value and gradients of half a block.
fn run_half(
    half: impl Fn(Tensor<2>, Norm, Layer, Layer) -> Tensor<2>,
    shapes: &Half,
) -> Vec<Vec<f32>> {
    run_half_with(half, shapes).0
}

/// The same with the gradients that tensors of the caller have.
fn run_half_with(
    half: impl Fn(Tensor<2>, Norm, Layer, Layer) -> Tensor<2>,
    shapes: &Half,
) -> (Vec<Vec<f32>>, Gradients) {
    let &Half { rows, dim, inner, outer } = shapes;
    let matrices = [([rows, dim], 1), ([inner, dim], 2), ([dim, outer], 3)];
    let [x, w1, w2] = matrices.map(|(shape, index)| random(shape, index));
    let [g, c, b1, b2] = [(dim, 4), (dim, 5), (inner, 6), (dim, 7)].map(|(n, i)| random([n], i));
    let layers = [(w1.clone(), b1.clone()), (w2.clone(), b2.clone())];
    let [first, second] = layers;
    let y = half(x.clone(), (g.clone(), c.clone(), 1e-6), first, second);
    let grads = weighted_sum(y.clone()).backward();
    let matrices = [x, w1, w2].map(|t| values(t.grad(&grads).expect("a gradient")));
    let vectors = [g, c, b1, b2].map(|t| values(t.grad(&grads).expect("a gradient")));
    (std::iter::once(values(y)).chain(matrices).chain(vectors).collect(), grads)
}

/// Rows and width of the input of half a block, outputs of its first and inputs of its second layer.
struct Half {
    rows: usize,
    dim: usize,
    inner: usize,
    outer: usize,
}

const GRADIENTS: [&str; 8] = ["y", "dx", "dw1", "dw2", "dg", "dc", "db1", "db2"];

#[test]
fn mlp_halves_of_blocks() {
    let run = |[rows, dim, hidden]: [usize; 3], factors: &Option<Vec<f32>>, fused: bool| {
        let half = if fused { mlp_block::fused } else { mlp_block::composed };
        let half = |x, norm, fc1, fc2| half(x, norm, fc1, fc2, factors.clone());
        run_half(half, &Half { rows, dim, inner: hidden, outer: hidden })
    };
    for sides in [[5, 7, 9], [1, 3, 1], [50, 64, 256]] {
        for factors in [None, Some((0..sides[0]).map(|i| (i % 3) as f32).collect())] {
            let [a, b] = [true, false].map(|fused| run(sides, &factors, fused));
            for (i, what) in GRADIENTS.iter().enumerate() {
                assert_close(&a[i], &b[i], &format!("mlp_block {what} {sides:?}"));
            }
        }
    }
    let sides = [37, 34, 130];
    let bf16 = autocast(Precision::Bf16, || run(sides, &None, true));
    let f32 = run(sides, &None, false);
    for (i, what) in GRADIENTS.iter().enumerate() {
        match *what {
            // The sum of the gradient alone.
            "db2" => assert_close(&bf16[i], &f32[i], "mlp_block db2 in bf16"),
            what => assert_bf16(&bf16[i], &f32[i], &format!("mlp_block {what}")),
        }
    }
}

#[test]
fn attention_halves_of_blocks() {
    let run =
        |[batch, tokens, heads, head_dim]: [usize; 4], factors: &Option<Vec<f32>>, fused: bool| {
            let half = if fused { attention_block::fused } else { attention_block::composed };
            let half = |x, norm: Norm, (w, b): Layer, proj| {
                // Scores around 1, as they are in a model: large ones would magnify the rounding.
                half(x, norm, (w * 0.3, b), proj, [batch, heads], factors.clone())
            };
            let (rows, dim) = (batch * tokens, heads * head_dim);
            run_half(half, &Half { rows, dim, inner: 3 * dim, outer: dim })
        };
    for sides in [[1, 1, 1, 3], [2, 37, 3, 16], [3, 50, 2, 20], [1, 5, 4, 7]] {
        let rows = sides[0] * sides[1];
        for factors in [None, Some((0..rows).map(|i| (i % 3) as f32).collect())] {
            let [a, b] = [true, false].map(|fused| run(sides, &factors, fused));
            for (i, what) in GRADIENTS.iter().enumerate() {
                assert_close(&a[i], &b[i], &format!("attention_block {what} {sides:?}"));
            }
        }
    }
    // An odd width keeps f32 between the projections.
    for sides in [[2, 37, 2, 16], [2, 37, 2, 17]] {
        let bf16 = autocast(Precision::Bf16, || run(sides, &None, true));
        let f32 = run(sides, &None, false);
        for (i, what) in GRADIENTS.iter().enumerate() {
            match *what {
                "db2" => assert_close(&bf16[i], &f32[i], "attention_block db2 in bf16"),
                what => {
                    assert_bf16(&bf16[i], &f32[i], &format!("attention_block {what} {sides:?}"))
                }
            }
        }
    }
}

#[test]
fn conv_mlp_halves_of_blocks() {
    let run = |[batch, side, dim, hidden]: [usize; 4], factors: &Option<Vec<f32>>, fused: bool| {
        let half = if fused { conv_mlp_block::fused } else { conv_mlp_block::composed };
        let dwconv = (random([hidden, 1, 3, 3], 8) * 0.5, random([hidden], 9));
        let dwconv = (dwconv.0.detach().require_grad(), dwconv.1);
        let passed = Cell::new(Some(dwconv.clone()));
        let half = |x, norm, fc1, fc2| {
            let dwconv = passed.take().expect("called once");
            half(x, norm, fc1, dwconv, fc2, [batch, side], factors.clone())
        };
        let rows = batch * side * side;
        let shapes = Half { rows, dim, inner: hidden, outer: hidden };
        let (mut results, grads) = run_half_with(half, &shapes);
        results.push(values(dwconv.0.grad(&grads).expect("dk")));
        results.push(values(dwconv.1.grad(&grads).expect("dkb")));
        results
    };
    let names = || GRADIENTS.iter().chain(&["dkernels", "dconv_bias"]).enumerate();
    for sides in [[1, 1, 7, 9], [2, 3, 5, 34], [1, 7, 32, 64], [8, 3, 5, 34]] {
        let tokens = sides[1] * sides[1];
        let rows = sides[0] * tokens;
        let by_row = (0..rows).map(|i| (i % 3) as f32).collect();
        // Whole maps are dropped, the first and some on their own.
        let by_map = (0..rows).map(|i| (i / tokens % 3) as f32).collect();
        for factors in [None, Some(by_row), Some(by_map)] {
            let [a, b] = [true, false].map(|fused| run(sides, &factors, fused));
            for (i, what) in names() {
                assert_close(&a[i], &b[i], &format!("conv_mlp_block {what} {sides:?}"));
            }
        }
    }
    for sides in [[2, 5, 34, 130], [1, 6, 16, 33]] {
        let bf16 = autocast(Precision::Bf16, || run(sides, &None, true));
        let f32 = run(sides, &None, false);
        for (i, what) in names().filter(|(_, what)| **what != "db2") {
            assert_bf16(&bf16[i], &f32[i], &format!("conv_mlp_block {what} {sides:?}"));
        }
    }
}

/// Batch, side, heads, width of a head, and the side of the reduction's windows, 0 for none.
type Reduced = [usize; 5];

/// Value and gradients of half a block with fewer keys, those of the tensors that other halves lack at
/// the end.
fn run_reduced(
    [batch, side, heads, head_dim, kernel]: Reduced,
    factors: &Option<Vec<f32>>,
    fused: bool,
) -> Vec<Vec<f32>> {
    let dim = heads * head_dim;
    let half =
        if fused { reduced_attention_block::fused } else { reduced_attention_block::composed };
    // Scores around 1, see `attention_halves_of_blocks`.
    let scaled = |w: Tensor<2>| (w * 0.2).detach().require_grad();
    let kv = (scaled(random([2 * dim, dim], 8)), random([2 * dim], 9));
    let reduction: Option<Reduction> = (kernel > 0).then(|| {
        let conv = (random([dim, dim, kernel, kernel], 10), random([dim], 11));
        (conv, (random([dim], 12), random([dim], 13), 1e-5))
    });
    let passed = Cell::new(Some((kv.clone(), reduction.clone())));
    let half = |x, norm, (w, b): Layer, proj| {
        let (kv, reduction) = passed.take().expect("called once");
        half(x, norm, [(w * 0.2, b), kv, proj], reduction, [batch, side, heads], factors.clone())
    };
    let shapes = Half { rows: batch * side * side, dim, inner: dim, outer: dim };
    let (mut results, grads) = run_half_with(half, &shapes);
    let gradient = "a gradient";
    results.push(values(kv.0.grad(&grads).expect(gradient)));
    results.push(values(kv.1.grad(&grads).expect(gradient)));
    if let Some(((weight, bias), (norm_weight, norm_bias, _))) = reduction {
        results.push(values(weight.grad(&grads).expect(gradient)));
        let vectors = [bias, norm_weight, norm_bias];
        results.extend(vectors.map(|t| values(t.grad(&grads).expect(gradient))));
    }
    results
}

#[test]
fn attention_halves_with_fewer_keys() {
    let others = ["dkv", "dkv_bias", "dsr", "dsr_bias", "dsr_norm", "dsr_norm_bias"];
    let names = || GRADIENTS.iter().chain(&others);
    for sides in
        [[1, 1, 1, 3, 0], [2, 4, 2, 5, 0], [2, 6, 2, 4, 2], [3, 7, 1, 8, 3], [5, 8, 1, 16, 4]]
    {
        let [batch, side, ..] = sides;
        let (rows, tokens) = (batch * side * side, side * side);
        let by_row = (0..rows).map(|i| (i % 3) as f32).collect();
        // Whole maps are dropped, the first and some on their own.
        let by_map = (0..rows).map(|i| (i / tokens % 3) as f32).collect();
        for factors in [None, Some(by_row), Some(by_map), Some(vec![0.0; rows])] {
            let [a, b] = [true, false].map(|fused| run_reduced(sides, &factors, fused));
            for ((a, b), what) in a.iter().zip(&b).zip(names()) {
                // Normed keys make large scores, and the gradients of their softmax cancel.
                assert_within(5e-5, a, b, &format!("reduced_attention_block {what} {sides:?}"));
            }
        }
    }
    // An odd width keeps f32 between the projections.
    for sides in [[2, 8, 2, 16, 4], [2, 6, 2, 17, 2], [2, 5, 2, 16, 0]] {
        let bf16 = autocast(Precision::Bf16, || run_reduced(sides, &None, true));
        let f32 = run_reduced(sides, &None, false);
        for ((bf16, f32), what) in bf16.iter().zip(&f32).zip(names()) {
            if *what != "db2" {
                assert_bf16(bf16, f32, &format!("reduced_attention_block {what} {sides:?}"));
            }
        }
    }
}
