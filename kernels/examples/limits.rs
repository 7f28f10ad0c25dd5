//! Speed of the kernels on DeiT-Tiny's shapes as a share of the multiply-add limit of one thread.
//! `FEWVIT_SIMD=avx2 cargo run --release -p fewvit-kernels --example limits`

use fewvit_kernels::{
    AttentionShape, Epilogue, Matrix, PackedB, Precision, Qkv, attention_backward,
    attention_forward, has_bf16, matmul, matmul_transposed_a, memory_bandwidth, multiply_add_limit,
    simd_level,
};
use std::time::Instant;

fn main() {
    println!("{}: {:.1} GB/s", simd_level(), memory_bandwidth());
    measure(Precision::F32);
    if has_bf16() {
        measure(Precision::Bf16);
    }
}

fn measure(precision: Precision) {
    let limit = multiply_add_limit(precision);
    println!("\n{precision:?}: {limit:.1} GFLOP/s");
    println!(
        "{:<28}{:>16}{:>16}{:>16}",
        "rows: in x out", "forward", "input gradient", "weight gradient"
    );
    for rows in [400, 800] {
        for (inputs, outputs) in [(192, 576), (192, 192), (192, 768), (768, 192)] {
            products(precision, rows, [inputs, outputs], limit);
        }
    }
    println!("{:<28}{:>16}{:>16}", "attention", "forward", "backward");
    for (batch, tokens) in [(8, 50), (2, 197)] {
        attention(precision, batch, tokens, limit);
    }
}

fn products(precision: Precision, rows: usize, [inputs, outputs]: [usize; 2], limit: f64) {
    let flops = (2 * rows * inputs * outputs) as f64;
    let weight = values(inputs * outputs);
    let (x, dy) = (values(rows * inputs), values(rows * outputs));
    let bias = values(outputs);
    let mut y = vec![0.0; rows * outputs];
    let w = PackedB::pack_transposed(precision, &weight, inputs, outputs);
    let forward = gflops(flops, || matmul(rows, &x[..], &w, &mut y[..], Epilogue::Bias(&bias)));
    let mut dx = vec![0.0; rows * inputs];
    let w = PackedB::pack(precision, &weight, outputs, inputs);
    let input = gflops(flops, || matmul(rows, &dy[..], &w, &mut dx[..], Epilogue::Store));
    let (mut dw, mut db) = (vec![0.0; inputs * outputs], vec![0.0; outputs]);
    let weights = gflops(flops, || {
        let sides = [rows, outputs, inputs];
        matmul_transposed_a(precision, sides, &dy[..], &x[..], &mut dw, Some(&mut db))
    });
    print_row(&format!("{rows}: {inputs} x {outputs}"), &[forward, input, weights], limit);
    if outputs == 4 * inputs {
        let cells = rows * precision.cells(outputs);
        let mut derivative = vec![0.0; cells];
        let w = PackedB::pack_transposed(precision, &weight, inputs, outputs);
        let gelu = gflops(flops, || {
            let epilogue = Epilogue::BiasGelu { bias: &bias, derivative: &mut derivative };
            let y = Matrix { cells: &mut y[..cells], precision };
            matmul(rows, &x[..], &w, y, epilogue);
        });
        print_row("  with GELU", &[gelu], limit);
    }
}

fn attention(precision: Precision, batch: usize, tokens: usize, limit: f64) {
    let (heads, head_dim) = (3, 64);
    let (queries, keys, scale) = (tokens, tokens, 0.125);
    let stored = precision;
    let shape = AttentionShape { batch, queries, keys, heads, head_dim, scale, precision, stored };
    let flops = (4 * batch * heads * tokens * tokens * head_dim) as f64;
    let [qkv, dout] = [576, 192].map(|columns| values(batch * tokens * precision.cells(columns)));
    let mut out = dout.clone();
    let mut sums = vec![0.0; 2 * batch * heads * tokens];
    let forward =
        gflops(flops, || attention_forward(&shape, Qkv::Joint(&qkv), &mut out, Some(&mut sums)));
    let mut dqkv = qkv.clone();
    let backward = gflops(2.0 * flops, || {
        attention_backward(&shape, &dout, Qkv::Joint(&qkv), &sums, Qkv::Joint(&mut dqkv))
    });
    print_row(&format!("{batch} x {tokens} tokens"), &[forward, backward], limit);
}

fn print_row(name: &str, speeds: &[f64], limit: f64) {
    print!("{name:<28}");
    for speed in speeds {
        print!("{speed:>9.1} {:>4.0} %", 100.0 * speed / limit);
    }
    println!();
}

/// Best speed of batches of about 0.2 ms over 0.3 s: like the limit, as if the machine had nothing
/// else to do.
fn gflops(flops: f64, mut run: impl FnMut()) -> f64 {
    let repeats = (2e7 / flops).ceil() as usize;
    let (begin, mut best) = (Instant::now(), 0.0f64);
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        (0..repeats).for_each(|_| run());
        best = best.max(flops * repeats as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// Values in -1..1 without structure that matters to speed.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect()
}
