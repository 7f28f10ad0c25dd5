//! Fused against composed, value and gradient, on Flex, over odd sizes.

use burn::tensor::{Device, Gradients, Tensor, TensorData, module, ops::ConvOptions};
use fewvit_kernels::Precision;
use rand::RngExt as _;

use super::{
    FlatMemory, MixedTarget, SoftTargets, Windows, autocast, composed, cross_entropy, depthwise,
    dropout, fused, patch_embed, performer, unfold,
};
use crate::rng::{Purpose, stream};

mod halves;

/// Standard normals on the autodiff device, tracked.
fn random<const D: usize>(shape: [usize; D], index: u64) -> Tensor<D> {
    let mut rng = stream(11, Purpose::Bench, 0, index, 0);
    let normal = rand_distr::StandardNormal;
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| rng.sample::<f32, _>(normal)).collect();
    let device = Device::flex().autodiff();
    Tensor::from_data(TensorData::new(values, shape), &device).require_grad()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32")
}

/// Largest difference relative to the largest reference value.
fn assert_close(a: &[f32], b: &[f32], what: &str) {
    assert_within(1e-5, a, b, what);
}

/// [`assert_close`] for results that have lost more to rounding.
fn assert_within(tolerance: f32, a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    let difference = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(difference <= tolerance * largest, "{what}: {difference} of {largest}");
}

/// A gradient that differs in every element, so that mixed-up indices show.
fn weighted_sum<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    (y.clone() * random(y.dims(), 99).detach()).sum()
}

type Linear = fn(Tensor<2>, Tensor<2>, Tensor<1>) -> Tensor<2>;

#[test]
fn linear_layers() {
    let pairs: [(&str, Linear, Linear); 2] = [
        ("linear", fused::linear, composed::linear),
        ("linear_gelu", fused::linear_gelu, composed::linear_gelu),
    ];
    for (name, fused, composed) in pairs {
        for (rows, input, output) in [(1, 1, 1), (7, 5, 33), (50, 192, 576), (37, 63, 65)] {
            let run = |op: Linear| {
                let [x, w] = [random([rows, input], 1), random([output, input], 2)];
                let b = random([output], 3);
                let y = op(x.clone(), w.clone(), b.clone());
                let g = weighted_sum(y.clone()).backward();
                let db = values(b.grad(&g).expect("db"));
                [values(y), values(x.grad(&g).expect("dx")), values(w.grad(&g).expect("dw")), db]
            };
            let (a, b) = (run(fused), run(composed));
            for (i, what) in ["y", "dx", "dw", "db"].iter().enumerate() {
                assert_close(&a[i], &b[i], &format!("{name} {what} {rows}x{input}x{output}"));
            }
        }
    }
}

#[test]
fn layer_norms() {
    type Norm = fn(Tensor<2>, Tensor<1>, Tensor<1>, f64) -> Tensor<2>;
    for (rows, dim) in [(1, 3), (5, 17), (50, 192), (3, 768)] {
        let run = |op: Norm| {
            let (x, w, b) = (random([rows, dim], 4), random([dim], 5), random([dim], 6));
            let y = op(x.clone(), w.clone(), b.clone(), 1e-6);
            let g = weighted_sum(y.clone()).backward();
            let db = values(b.grad(&g).expect("db"));
            [values(y), values(x.grad(&g).expect("dx")), values(w.grad(&g).expect("dw")), db]
        };
        let (a, b) = (run(fused::layer_norm), run(composed::layer_norm));
        for (i, what) in ["y", "dx", "dw", "db"].iter().enumerate() {
            assert_close(&a[i], &b[i], &format!("layer_norm {what} {rows}x{dim}"));
        }
    }
}

#[test]
fn attentions() {
    for (batch, tokens, heads, head_dim) in
        [(1, 1, 1, 1), (2, 37, 3, 64), (3, 50, 2, 20), (1, 5, 4, 7)]
    {
        let run = |op: fn(Tensor<3>, usize) -> Tensor<3>| {
            let qkv = random([batch, tokens, 3 * heads * head_dim], 7);
            let y = op(qkv.clone(), heads);
            let g = weighted_sum(y.clone()).backward();
            [values(y), values(qkv.grad(&g).expect("dqkv"))]
        };
        let (a, b) = (run(fused::attention), run(composed::attention));
        assert_close(&a[0], &b[0], &format!("attention y {batch}x{tokens}x{heads}x{head_dim}"));
        assert_close(&a[1], &b[1], &format!("attention dqkv {batch}x{tokens}x{heads}x{head_dim}"));
    }
}

#[test]
fn linear_layers_with_a_residual() {
    for factors in [None, Some(vec![0.0, 1.5, 1.5, 0.0, 1.0])] {
        type Residual =
            fn(Tensor<2>, Tensor<2>, Tensor<1>, Tensor<2>, Option<Vec<f32>>) -> Tensor<2>;
        let run = |op: Residual| {
            let [x, w, r] = [random([5, 7], 1), random([33, 7], 2), random([5, 33], 4)];
            let b = random([33], 3);
            let y = op(x.clone(), w.clone(), b.clone(), r.clone(), factors.clone());
            let g = weighted_sum(y.clone()).backward();
            let [dx, dw, dr] = [x, w, r].map(|t| values(t.grad(&g).expect("a gradient")));
            [values(y), dx, dw, values(b.grad(&g).expect("db")), dr]
        };
        let (a, b) = (run(fused::linear_residual), run(composed::linear_residual));
        for (i, what) in ["y", "dx", "dw", "db", "dr"].iter().enumerate() {
            assert_close(&a[i], &b[i], &format!("linear_residual {what} {factors:?}"));
        }
    }
}

#[test]
fn cross_attentions() {
    for (batch, queries, keys, heads, head_dim) in
        [(1, 1, 1, 1, 1), (2, 1, 50, 3, 64), (3, 49, 4, 2, 20), (1, 5, 6, 4, 7)]
    {
        let run = |op: fn(Tensor<3>, Tensor<3>, usize) -> Tensor<3>| {
            let q = random([batch, queries, heads * head_dim], 7);
            let kv = random([batch, keys, 2 * heads * head_dim], 8);
            let y = op(q.clone(), kv.clone(), heads);
            let g = weighted_sum(y.clone()).backward();
            [values(y), values(q.grad(&g).expect("dq")), values(kv.grad(&g).expect("dkv"))]
        };
        let (a, b) = (run(fused::cross_attention), run(composed::cross_attention));
        for (i, what) in ["y", "dq", "dkv"].iter().enumerate() {
            assert_close(&a[i], &b[i], &format!("{what} {batch}x{queries}x{keys}x{heads}"));
        }
    }
}

#[test]
fn gradients_collected_in_flat_memory_are_those_of_autodiff() {
    let device = Device::flex();
    let memory = FlatMemory::new(values(random([4 * 6 + 4 + 6 + 6], 12)));
    // A layer norm, then a linear layer, the weight as a leaf and as a part of a leaf.
    let loss = |[w, b, g, c]: [Tensor<1>; 4], whole: bool| {
        let x = fused::layer_norm(random([3, 6], 13), g, c, 1e-6);
        let w = w.reshape([4, 6]);
        match whole {
            true => weighted_sum(fused::linear(x, w, b)),
            false => weighted_sum(fused::linear(x, w.narrow(0, 1, 2), b.narrow(0, 1, 2))),
        }
    };
    let ranges = [0..24, 24..28, 28..34, 34..40];
    for whole in [true, false] {
        let leaves = || {
            let leaf = |r: &std::ops::Range<usize>| {
                let tensor = memory.tensor::<1>(r.clone(), [r.len()], &device);
                Tensor::from_inner(tensor).require_grad()
            };
            ranges.each_ref().map(leaf)
        };
        let add_registered = |tensors: [Tensor<1>; 4], grads: &Gradients, sum: &mut [f32]| {
            for (tensor, range) in tensors.into_iter().zip(ranges.clone()) {
                if let Some(gradient) = tensor.grad(grads) {
                    let pairs = sum[range].iter_mut().zip(values(gradient));
                    pairs.for_each(|(s, g)| *s += g);
                }
            }
        };
        let tensors = leaves();
        let mut expected = vec![0.5; 40];
        let grads = loss(tensors.clone(), whole).backward();
        add_registered(tensors, &grads, &mut expected);
        let tensors = leaves();
        let mut sum = vec![0.5; 40];
        let y = loss(tensors.clone(), whole);
        let grads = memory.collect_gradients(&mut sum, || y.backward());
        assert!(tensors[2].grad(&grads).is_none(), "the norm's weight went to the flat gradient");
        add_registered(tensors, &grads, &mut sum);
        assert_close(&sum, &expected, "flat gradient");
    }
}

#[test]
fn without_autodiff_the_values_are_the_same() {
    let x = random([6, 10], 8);
    let (w, b) = (random([4, 10], 9), random([4], 10));
    let tracked = values(fused::linear_gelu(x.clone(), w.clone(), b.clone()));
    let plain = values(fused::linear_gelu(x.inner(), w.inner(), b.inner()));
    assert_eq!(tracked, plain);
}

#[test]
fn repacked_after_an_update_even_at_the_same_address() {
    // The packed cache must never serve old weights: values change, results must follow.
    let x = Tensor::<2>::ones([1, 3], &Device::flex());
    let bias = Tensor::<1>::zeros([2], &Device::flex());
    for value in [1.0f32, 2.0, 3.0] {
        let w = Tensor::<2>::full([2, 3], value, &Device::flex());
        let y = values(fused::linear(x.clone(), w, bias.clone()));
        assert_eq!(y, vec![3.0 * value; 2]);
    }
}

#[test]
fn convolutions_are_burns() {
    type Conv = fn(Tensor<4>, Tensor<4>, Tensor<1>, Windows) -> Tensor<4>;
    let burns: Conv = |x, weight, bias, windows| {
        let Windows { kernel: _, stride, padding } = windows;
        let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
        let y = module::conv2d(x.permute([0, 3, 1, 2]), weight, Some(bias), options);
        y.permute([0, 2, 3, 1])
    };
    for (kernel, stride, padding) in [(1, 1, 0), (3, 2, 1), (7, 4, 3), (2, 2, 0)] {
        let windows = Windows { kernel, stride, padding };
        let run = |op: Conv| {
            let (x, w) = (random([2, 9, 8, 3], 20), random([5, 3, kernel, kernel], 21));
            let b = random([5], 22);
            let y = op(x.clone(), w.clone(), b.clone(), windows);
            let g = weighted_sum(y.clone()).backward();
            let db = values(b.grad(&g).expect("db"));
            [values(y), values(x.grad(&g).expect("dx")), values(w.grad(&g).expect("dw")), db]
        };
        let (a, b) = (run(super::conv2d), run(burns));
        for (i, what) in ["y", "dx", "dw", "db"].iter().enumerate() {
            assert_close(&a[i], &b[i], &format!("conv2d {what} {windows:?}"));
        }
    }
}

#[test]
fn performers() {
    for (batch, tokens, dim, features) in [(1, 1, 1, 1), (2, 5, 7, 3), (3, 37, 16, 8)] {
        let run = |op: fn(Tensor<3>, Tensor<2>) -> Tensor<3>| {
            let kqv = random([batch, tokens, 3 * dim], 28);
            let y = op(kqv.clone() * 0.5, random([features, dim], 29).detach());
            let g = weighted_sum(y.clone()).backward();
            [values(y), values(kqv.grad(&g).expect("dkqv"))]
        };
        let (a, b) = (run(performer::fused), run(performer::composed));
        for (i, what) in ["y", "dkqv"].iter().enumerate() {
            assert_close(&a[i], &b[i], &format!("performer {what} {batch}x{tokens}x{dim}"));
        }
    }
}

#[test]
fn dropouts_with_a_residual() {
    for (factors, width) in [(None, 3), (Some(vec![0.0, 2.0, 1.5, 0.0, 1.0, 0.5]), 3), (None, 7)] {
        let run = |op: fn(Tensor<2>, Tensor<2>, Option<Vec<f32>>) -> Tensor<2>| {
            let (x, r) = (random([2, 3], 30), random([2, width], 31));
            let y = op(x.clone(), r.clone(), factors.clone());
            let g = weighted_sum(y.clone()).backward();
            [values(y), values(x.grad(&g).expect("dx")), values(r.grad(&g).expect("dr"))]
        };
        let (a, b) = (run(dropout::fused), run(dropout::composed));
        for (i, what) in ["y", "dx", "dr"].iter().enumerate() {
            assert_close(&a[i], &b[i], &format!("dropout_residual {what} {factors:?} {width}"));
        }
    }
}

#[test]
fn patch_embeddings() {
    type Embed = fn(Tensor<4>, super::Kernels, super::Norm, Windows) -> Tensor<2>;
    let of_planes: Embed = |images, conv, norm, windows| {
        patch_embed::composed(images.permute([0, 2, 3, 1]), conv, norm, windows)
    };
    let pairs: [(bool, Embed, Embed); 2] = [
        (false, patch_embed::fused, patch_embed::composed),
        (true, patch_embed::fused_of_images, of_planes),
    ];
    for (kernel, stride, padding) in [(3, 2, 1), (7, 4, 3), (2, 2, 0)] {
        let windows = Windows { kernel, stride, padding };
        for (batch, side, channels, dim) in [(1, 7, 3, 5), (2, 9, 16, 8), (0, 8, 2, 3)] {
            for (planes, fused, composed) in &pairs {
                let run = |op: &Embed| {
                    let shape = match planes {
                        true => [batch, channels, side, side],
                        false => [batch, side, side, channels],
                    };
                    let (x, b) = (random(shape, 1), random([dim], 3));
                    let w = random([dim, channels, kernel, kernel], 2);
                    let (nw, nb) = (random([dim], 4), random([dim], 5));
                    let norm = (nw.clone(), nb.clone(), 1e-5);
                    let y = op(x.clone(), (w.clone(), b.clone()), norm, windows);
                    let grads = weighted_sum(y.clone()).backward();
                    let mut results = vec![values(y), values(x.grad(&grads).expect("dx"))];
                    results.push(values(w.grad(&grads).expect("dw")));
                    let vectors = [b, nw, nb].map(|t| values(t.grad(&grads).expect("a gradient")));
                    results.extend(vectors);
                    results
                };
                for (i, (a, b)) in run(fused).iter().zip(&run(composed)).enumerate() {
                    assert_close(a, b, &format!("{i} of {windows:?}, {channels} planes {planes}"));
                }
                let bf16 = autocast(Precision::Bf16, || run(fused));
                if batch > 0 {
                    for (i, (a, b)) in bf16.iter().zip(&run(composed)).enumerate().take(4) {
                        assert_bf16(a, b, &format!("{i} of {windows:?} in bf16"));
                    }
                }
            }
        }
    }
}

#[test]
fn unfolded_maps() {
    for (kernel, stride, padding) in [(1, 1, 0), (3, 2, 1), (7, 4, 2), (2, 2, 0)] {
        let windows = Windows { kernel, stride, padding };
        for (batch, height, width, channels) in [(1, 7, 9, 1), (2, 9, 8, 3), (1, 4, 5, 33)] {
            let run = |op: fn(Tensor<4>, Windows) -> Tensor<4>| {
                let x = random([batch, channels, height, width], 27);
                // Channels that do not lie side by side.
                let y = op(x.clone().permute([0, 2, 3, 1]), windows);
                let g = weighted_sum(y.clone()).backward();
                [values(y), values(x.grad(&g).expect("dx"))]
            };
            let (a, b) = (run(unfold::fused), run(unfold::composed));
            for (i, what) in ["y", "dx"].iter().enumerate() {
                assert_close(&a[i], &b[i], &format!("unfold {what} {windows:?} of {channels}"));
            }
        }
    }
}

#[test]
fn depthwise_convolutions() {
    type Depthwise = fn(Tensor<4>, Tensor<4>, Tensor<1>) -> Tensor<4>;
    for (batch, height, width, channels) in [(1, 1, 1, 1), (2, 3, 5, 17), (1, 7, 4, 64)] {
        let run = |op: Depthwise| {
            let (x, w) =
                (random([batch, height, width, channels], 23), random([channels, 1, 3, 3], 24));
            let b = random([channels], 25);
            let y = op(x.clone(), w.clone(), b.clone());
            let g = weighted_sum(y.clone()).backward();
            let db = values(b.grad(&g).expect("db"));
            [values(y), values(x.grad(&g).expect("dx")), values(w.grad(&g).expect("dw")), db]
        };
        let (a, b) = (run(depthwise::fused), run(depthwise::composed));
        for (i, what) in ["y", "dx", "dw", "db"].iter().enumerate() {
            assert_close(&a[i], &b[i], &format!("depthwise {what} {height}x{width}x{channels}"));
        }
    }
}

/// `|a - b| / |b|` in Euclidean length.
fn relative_error(a: &[f32], b: &[f32]) -> f32 {
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

/// Rounding to bf16 errs by up to 2^-9 a factor; an operation that did not round would be far better.
fn assert_bf16(a: &[f32], b: &[f32], what: &str) {
    let error = relative_error(a, b);
    assert!((1e-4..2e-2).contains(&error), "{what}: {error}");
}

#[test]
fn autocast_rounds_products_to_bf16_forward_and_backward() {
    let run = |precision| {
        let [x, w] = [random([40, 64], 1), random([192, 64], 2)];
        let b = random([192], 3);
        // The backward runs outside of autocast.
        let y = autocast(precision, || {
            // Scores around 1, as they are in a model: large ones would magnify the rounding.
            let qkv = fused::linear(x.clone() * 0.1, w.clone(), b.clone() * 0.1);
            let qkv = qkv.reshape([2, 20, 192]);
            fused::attention(qkv, 2)
        });
        let g = weighted_sum(y.clone()).backward();
        [values(y), values(x.grad(&g).expect("dx")), values(w.grad(&g).expect("dw"))]
    };
    let (f32, bf16) = (run(Precision::F32), run(Precision::Bf16));
    for (i, what) in ["y", "dx", "dw"].iter().enumerate() {
        assert_bf16(&bf16[i], &f32[i], what);
    }
    assert_eq!(run(Precision::F32), f32, "autocast ends");
}

#[test]
fn cross_entropies() {
    for (rows, classes) in [(1, 1), (5, 3), (7, 129), (3, 2040)] {
        for smoothing in [0.0, 0.1] {
            let target = |row: usize| MixedTarget {
                a: row * 5 % classes,
                b: row * 11 % classes,
                shares: [(row % 3) as f32 / 2.0, 0.5],
            };
            let (on, off) = (1.0 - smoothing, smoothing / classes as f64);
            let targets = SoftTargets { rows: (0..rows).map(target).collect(), on, off };
            let run = |op: fn(Tensor<2>, SoftTargets) -> Tensor<1>| {
                let o = random([classes, rows], 26);
                // Rows that do not lie one after the other.
                let y = op(o.clone().transpose(), targets.clone());
                let g = weighted_sum(y.clone()).backward();
                [values(y), values(o.grad(&g).expect("do"))]
            };
            let (a, b) = (run(cross_entropy::fused), run(cross_entropy::composed));
            for (i, what) in ["y", "do"].iter().enumerate() {
                let what = format!("cross-entropy {what} {rows}x{classes}, {smoothing}");
                assert_close(&a[i], &b[i], &what);
            }
        }
    }
}
