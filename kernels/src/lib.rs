//! CPU kernels for vision transformers: plain slices in, plain slices out, no dependencies.
//!
//! | module | what | forward | backward |
//! |---|---|---|---|
//! | [`gemm`] | matrix products with bias, GELU and residual folded in | [`matmul`] | [`matmul`] with the weight packed the other way, [`matmul_transposed_a`] |
//! | [`attention`] | softmax(Q K^T scale) V of all heads | [`attention_forward`] | [`attention_backward`] |
//! | [`performer`] | attention by random features | [`performer_forward`] | [`performer_backward`] |
//! | [`norm`] | layer normalisation | [`layer_norm_forward`] | [`layer_norm_backward`] |
//! | [`depthwise`] | 3 x 3 convolutions of single channels, with GELU | [`depthwise_gelu_forward`] | [`depthwise_gelu_backward`] |
//! | [`unfold`](mod@unfold) | windows of maps as rows of a matrix | [`unfold()`], [`unfold_planes`] | [`fold`] |
//! | [`scale`] | rows times their factors | [`scale_rows`] | [`scale_rows`] |
//! | [`cross_entropy`](mod@cross_entropy) | of softmax with smoothed, mixed targets | [`cross_entropy()`] | its `slopes` |
//! | [`gelu`] | exact GELU and its derivative | [`gelu_forward`] | [`Epilogue::Multiply`] |
//! | [`adamw`] | one pass of AdamW | [`adamw_step`] | |
//! | [`sgd`] | one pass of SGD with momentum | [`sgd_step`] | |
//! | [`average`] | moving averages of weights | [`average_step`] | |
//! | [`total`] | gradients added up and measured | [`total_of`] | |
//! | [`limits`] | what this thread could reach at best | [`multiply_add_limit`], [`memory_bandwidth`] | |
//!
//! Every kernel runs on the thread that calls it: the training loop puts one worker on each core,
//! and each worker its own crops through its own kernels. All matrices are row-major `f32`; products
//! may round their factors to bf16 on the way in ([`Precision`]).
//!
//! Each kernel is written once and compiled for AVX-512 and AVX2 with FMA on x86-64, for NEON on
//! aarch64, and for whatever the compilation target guarantees; products of bf16 use the tiles of AMX
//! where the processor has them. The best that the machine has is used; `FEWVIT_SIMD=amx`,
//! `avx512bf16`, `avx512`, `avx2`, `neon` or `scalar`, read once, asks for another one. Results are the
//! same in every run on one level and differ in rounding between levels.

pub mod adamw;
pub mod attention;
pub mod average;
mod check;
pub mod cross_entropy;
pub mod depthwise;
pub mod gelu;
pub mod gemm;
pub mod limits;
mod matrix;
pub mod norm;
pub mod performer;
#[cfg(test)]
mod reference;
pub mod scale;
pub mod sgd;
mod simd;
pub mod total;
pub mod unfold;

pub use adamw::{AdamW, adamw_step};
pub use attention::{AttentionShape, Qkv, attention_backward, attention_forward};
pub use average::average_step;
pub use cross_entropy::{MixedTarget, SoftTargets, cross_entropy};
pub use depthwise::{MapShape, depthwise_gelu_backward, depthwise_gelu_forward};
pub use gelu::gelu_forward;
pub use gemm::{Epilogue, PackedB, matmul, matmul_transposed_a};
pub use limits::{memory_bandwidth, multiply_add_limit};
pub use matrix::{Matrix, Precision};
pub use norm::{layer_norm_backward, layer_norm_forward};
pub use performer::{PerformerShape, performer_backward, performer_forward};
pub use scale::scale_rows;
pub use sgd::{Sgd, sgd_step};
pub use total::total_of;
pub use unfold::{Windows, fold, unfold, unfold_planes};

/// Whether the instruction set in use multiplies bf16; elsewhere [`Precision::Bf16`] is very slow.
pub fn has_bf16() -> bool {
    simd::Level::current().has_bf16()
}

/// Whether [`Precision::Bf16`] is faster than f32 with the instruction set in use.
pub fn bf16_is_faster() -> bool {
    simd::Level::current().bf16_is_faster()
}

/// The instruction set in use: `"amx"`, `"avx512bf16"`, `"avx512"`, `"avx2"`, `"neon"` or `"scalar"`.
/// What `FEWVIT_SIMD` asks for and the machine lacks is not used.
pub fn simd_level() -> &'static str {
    simd::Level::current().name()
}
