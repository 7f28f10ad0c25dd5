//! Speed of the kernels that are not matrix products: bytes they have to read and write, against what
//! one thread reads from memory. More than 100 % means that the operands were in a cache.
//! `cargo run --release -p fewvit-kernels --example passes`

use fewvit_kernels::{
    AdamW, MapShape, Matrix, MixedTarget, PerformerShape, Precision, Sgd, SoftTargets, Windows,
    adamw_step, average_step, cross_entropy, depthwise_gelu_backward, depthwise_gelu_forward, fold,
    gelu_forward, layer_norm_backward, layer_norm_forward, memory_bandwidth, multiply_add_limit,
    performer_backward, performer_forward, sgd_step, simd_level, total_of, unfold,
};
use std::time::Instant;

fn main() {
    let memory = memory_bandwidth();
    println!("{}: {memory:.1} GB/s\n", simd_level());
    let table = Table { memory };
    norms(&table);
    activations(&table);
    maps(&table);
    optimisers(&table);
    println!();
    performer();
}

struct Table {
    /// GB/s of one thread.
    memory: f64,
}

impl Table {
    /// Prints the speed of `run`, which reads and writes `floats` values.
    fn row(&self, name: &str, floats: usize, run: impl FnMut()) {
        let speed = (4 * floats) as f64 / shortest(run) / 1e9;
        println!("{name:<44}{speed:>8.1} GB/s {:>5.0} %", 100.0 * speed / self.memory);
    }
}

/// Tokens of a micro-batch of DeiT-Tiny and its width.
const ROWS: usize = 600;
const DIM: usize = 192;

fn norms(table: &Table) {
    let n = ROWS * DIM;
    let (x, dout, weight, bias) = (values(n), values(n), values(DIM), values(DIM));
    let (mut y, mut moments, mut dx) = (values(n), values(2 * ROWS), values(n));
    table.row("layer norm, 600 x 192", 2 * n, || {
        layer_norm_forward(&x, &weight, &bias, 1e-6, &mut y[..], Some(&mut moments));
    });
    let (mut dw, mut db) = (values(DIM), values(DIM));
    table.row("  backward, with a residual", 4 * n, || {
        let residual = Some(&dout[..]);
        layer_norm_backward(&dout, &x, &moments, &weight, residual, &mut dx, &mut dw, &mut db);
    });
}

fn activations(table: &Table) {
    let n = ROWS * 4 * DIM;
    let (x, mut y, mut derivative) = (values(n), values(n), values(n));
    table.row("GELU and its derivative, 600 x 768", 3 * n, || {
        gelu_forward(&x, &mut y, &mut derivative);
    });
    let (rows, classes) = (256, 2040);
    let row = |i| MixedTarget::mix(i, i + 1, 0.7);
    let targets = SoftTargets { rows: (0..rows).map(row).collect(), on: 0.9, off: 0.1 / 2040.0 };
    let (logits, mut losses) = (values(rows * classes), values(rows));
    let mut slopes = logits.clone();
    table.row("cross-entropy and gradient, 256 x 2040", 2 * rows * classes, || {
        cross_entropy(&logits, classes, &targets, &mut losses, &mut slopes);
    });
}

fn maps(table: &Table) {
    let shape = MapShape { batch: 12, height: 28, width: 28, channels: 256 };
    let n = 12 * 28 * 28 * 256;
    let (weight, bias) = (values(9 * 256), values(256));
    for precision in [Precision::F32, Precision::Bf16] {
        let name = format!("depthwise 3 x 3 with GELU, 12 x 28 x 28 x 256, {}", precision.name());
        let cells = precision.cells(n);
        let [x, mut y, mut dx] = [(); 3].map(|()| match precision {
            Precision::F32 => values(cells),
            Precision::Bf16 => values(cells).into_iter().map(pair_of).collect(),
        });
        table.row(&name, 2 * cells, || {
            let (x, y) = (&x[..], &mut y[..]);
            let (x, y) = (Matrix { cells: x, precision }, Matrix { cells: y, precision });
            depthwise_gelu_forward(&shape, x, &weight, &bias, y);
        });
        let (mut dw, mut db) = (weight.clone(), bias.clone());
        table.row("  backward", 3 * cells, || {
            let dx = Matrix { cells: &mut dx[..], precision };
            let maps = [&y[..], &x].map(|cells| Matrix { cells, precision });
            depthwise_gelu_backward(&shape, maps, &weight, &bias, dx, [&mut dw[..], &mut db]);
        });
    }
    let shape = MapShape { batch: 12, height: 28, width: 28, channels: 64 };
    let windows = Windows { kernel: 3, stride: 2, padding: 1 };
    let (small, unfolded) = (12 * 28 * 28 * 64, 12 * 14 * 14 * 64 * 9);
    let (x, mut out) = (values(small), values(unfolded));
    table.row("unfold 3 x 3 by 2, 12 x 28 x 28 x 64", small + unfolded, || {
        unfold(&shape, &windows, &x[..], &mut out[..]);
    });
    let mut dx = x.clone();
    table.row("  fold, its gradient", small + unfolded, || fold(&shape, &windows, &out, &mut dx));
}

fn optimisers(table: &Table) {
    // Parameters of DeiT-Tiny.
    let n = 5_500_000;
    let (mut p, g, mut m, mut v) = (values(n), values(n), vec![0.0; n], vec![0.0; n]);
    let lr = 1e-3;
    let adamw = AdamW { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05, step: 10 };
    table.row("AdamW, 5.5 M parameters", 7 * n, || adamw_step(&mut p, &g, &mut m, &mut v, &adamw));
    let sgd = Sgd { lr, momentum: 0.9, weight_decay: 1e-4 };
    table.row("SGD", 5 * n, || sgd_step(&mut p, &g, &mut m, &sgd));
    table.row("moving average", 3 * n, || average_step(&mut v, &p, 0.999));
    let others = [&g[..]];
    table.row("sum of two gradients and its square", 3 * n, || {
        total_of(&mut m, &others);
    });
}

/// T2T-ViT's second token module at 112 px: GFLOP/s against the multiply-add limit.
fn performer() {
    let (batch, tokens, dim, features) = (4, 196, 64, 32);
    let precision = Precision::F32;
    let shape = PerformerShape { batch, tokens, dim, features, eps: 1e-8, precision };
    let rows = batch * tokens;
    let (kqv, w, dout) = (values(3 * rows * dim), values(features * dim), values(rows * dim));
    let (mut out, mut phi) = (values(rows * dim), values(shape.saved()));
    let flops = (8 * rows * dim * features) as f64;
    let limit = multiply_add_limit(precision);
    let row = |name: &str, flops: f64, seconds: f64| {
        let speed = flops / seconds / 1e9;
        println!("{name:<44}{speed:>8.1} GFLOP/s {:>5.0} %", 100.0 * speed / limit);
    };
    let forward = shortest(|| performer_forward(&shape, &kqv, &w, &mut out, &mut phi));
    row("performer, 4 x 196 x 64, 32 features", flops, forward);
    let mut dkqv = kqv.clone();
    let backward =
        shortest(|| performer_backward(&shape, &dout, [&kqv, &w, &out, &phi], &mut dkqv));
    row("  backward", 2.0 * flops, backward);
}

/// Seconds of the shortest of the runs that fit in 0.3 s.
fn shortest(mut run: impl FnMut()) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Twice the same value in bf16.
fn pair_of(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & 0xffff_0000 | x.to_bits() >> 16)
}

/// Values in -1..1 without structure that matters to speed.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect()
}
