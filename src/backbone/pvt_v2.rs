//! PVTv2, a pyramid of four stages with spatial-reduction attention (Wang et al. 2022; recipe
//! section 5.2). Field names are timm's keys.

use burn::module::Module;
use burn::tensor::activation::{gelu, relu};
use burn::tensor::{Tensor, module::adaptive_avg_pool2d};

use super::{Backbone, Family, ImgSizes, Spec};
use crate::graph::{Graph, Value};
use crate::nn::{Conv2d, DropPath, Init, LayerNorm, Linear};
use crate::ops::{self, Windows};

const STAGES: usize = 4;
/// Of the blocks and at the end of a stage.
const NORM_EPS: f64 = 1e-6;
/// Of the patch embeddings and the spatial reduction: PyTorch's default.
const CONV_NORM_EPS: f64 = 1e-5;
const NUM_HEADS: [usize; STAGES] = [1, 2, 5, 8];
/// By how much the keys' side is smaller than the queries'.
const SR_RATIOS: [usize; STAGES] = [8, 4, 2, 1];
/// Side of the keys' map in linear spatial-reduction attention.
const POOL: usize = 7;
/// A first patch is embedded with its neighbours' pixels.
const STEM: Windows = Windows { kernel: 7, stride: 4, padding: 3 };
const DOWNSAMPLE: Windows = Windows { kernel: 3, stride: 2, padding: 1 };
/// Weights of one channel of the depthwise convolution.
const DEPTHWISE_TAPS: usize = 9;

/// Sizes of one family member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvtV2Spec {
    /// Widths of a token, by stage.
    pub embed_dims: [usize; STAGES],
    /// Blocks, by stage.
    pub depths: [usize; STAGES],
    /// Widths of the MLP in units of the token's, by stage.
    pub mlp_ratios: [usize; STAGES],
    /// Whether keys and values are pooled to 7 x 7 (the paper's linear attention).
    pub linear: bool,
}

const B0: PvtV2Spec = PvtV2Spec {
    embed_dims: [32, 64, 160, 256],
    depths: [2, 2, 2, 2],
    mlp_ratios: [8, 8, 4, 4],
    linear: false,
};
const B1: PvtV2Spec = PvtV2Spec { embed_dims: [64, 128, 320, 512], ..B0 };
const B2: PvtV2Spec = PvtV2Spec { depths: [3, 4, 6, 3], ..B1 };

/// The family. The first is the 0.8M model of IDMM's Fig. 3, each width of B0 halved.
pub const TABLE: &[Spec] = &[
    Spec {
        timm_name: Some("pvt_v2_b0"),
        ..Spec::new("pvt_v2_b0_small", &PvtV2Spec { embed_dims: [16, 32, 80, 128], ..B0 })
    },
    Spec::new("pvt_v2_b0", &B0),
    Spec::new("pvt_v2_b1", &B1),
    Spec::new("pvt_v2_b2", &B2),
    Spec::new("pvt_v2_b2_li", &PvtV2Spec { linear: true, ..B2 }),
    Spec::new("pvt_v2_b3", &PvtV2Spec { depths: [3, 4, 18, 3], ..B1 }),
    Spec::new("pvt_v2_b4", &PvtV2Spec { depths: [3, 8, 27, 3], ..B1 }),
    Spec::new("pvt_v2_b5", &PvtV2Spec { depths: [3, 6, 40, 3], mlp_ratios: [4; STAGES], ..B1 }),
];

/// Sizes of one stage.
#[derive(Clone, Copy)]
struct StageSpec {
    /// Width of the stage before, or of a pixel.
    input: usize,
    dim: usize,
    depth: usize,
    num_heads: usize,
    hidden: usize,
    sr_ratio: usize,
    linear: bool,
    /// Of the patch embedding.
    windows: Windows,
}

impl StageSpec {
    /// The queries' and keys' tokens, from the side of the stage's map.
    fn tokens(&self, side: usize) -> [usize; 2] {
        let keys = if self.linear { POOL } else { side / self.sr_ratio };
        [side * side, keys * keys]
    }

    /// Multiply-accumulates of one block and of the patch embedding.
    fn macs(&self, side: usize) -> [usize; 2] {
        let [tokens, keys] = self.tokens(side);
        let d = self.dim;
        let reduction = match (self.linear, self.sr_ratio) {
            (true, _) => keys * d * d,
            (false, 1) => 0,
            (false, ratio) => keys * ratio * ratio * d * d,
        };
        let attn = 2 * tokens * d * d + 2 * keys * d * d + reduction + 2 * tokens * keys * d;
        let mlp = tokens * self.hidden * (2 * d + DEPTHWISE_TAPS);
        [attn + mlp, tokens * self.windows.kernel.pow(2) * self.input * d]
    }
}

impl PvtV2Spec {
    fn stage(&self, index: usize) -> StageSpec {
        let dim = self.embed_dims[index];
        StageSpec {
            input: if index == 0 { 3 } else { self.embed_dims[index - 1] },
            dim,
            depth: self.depths[index],
            num_heads: NUM_HEADS[index],
            hidden: self.mlp_ratios[index] * dim,
            sr_ratio: SR_RATIOS[index],
            linear: self.linear,
            windows: if index == 0 { STEM } else { DOWNSAMPLE },
        }
    }

    /// The stages, each with the side of its map.
    fn stages(&self, img_size: usize) -> impl Iterator<Item = (StageSpec, usize)> {
        let mut side = img_size;
        (0..STAGES).map(move |index| {
            let stage = self.stage(index);
            side = stage.windows.count(side);
            (stage, side)
        })
    }
}

impl Family for PvtV2Spec {
    fn num_features(&self) -> usize {
        self.embed_dims[STAGES - 1]
    }

    /// The first stage needs as many tokens along a side as one key stands for.
    fn img_sizes(&self) -> ImgSizes {
        ImgSizes { smallest: STEM.stride * SR_RATIOS[0], multiple_of: 1 }
    }

    fn macs(&self, img_size: usize) -> u64 {
        let stage = |(stage, side): (StageSpec, usize)| {
            let [block, embed] = stage.macs(side);
            embed + stage.depth * block
        };
        self.stages(img_size).map(stage).sum::<usize>() as u64
    }

    fn stem_macs(&self, img_size: usize) -> u64 {
        self.stages(img_size).next().map_or(0, |(stage, side)| stage.macs(side)[1] as u64)
    }

    /// Of a token and block, about 9 widths and 4 of the MLP's.
    fn activations(&self, img_size: usize) -> usize {
        let stage = |(stage, side): (StageSpec, usize)| {
            let [tokens, _] = stage.tokens(side);
            stage.depth * tokens * (9 * stage.dim + 4 * stage.hidden)
        };
        self.stages(img_size).map(stage).sum()
    }

    /// Any img-size will do, so it is none of them.
    fn timm_args(&self, _: usize) -> serde_json::Value {
        serde_json::json!({
            "embed_dims": self.embed_dims,
            "depths": self.depths,
            "num_heads": NUM_HEADS,
            "mlp_ratios": self.mlp_ratios,
            "sr_ratios": SR_RATIOS,
            "linear": self.linear,
        })
    }

    fn build(&self, _: usize, init: &mut Init) -> Backbone {
        Backbone::PvtV2(PvtV2::new(self, init))
    }
}

/// The backbone: images to one feature vector each.
#[derive(Module, Debug)]
pub struct PvtV2 {
    patch_embed: PatchEmbed,
    stages: Vec<Stage>,
}

#[derive(Module, Debug)]
struct Stage {
    /// The patch embedding of all stages but the first, whose is the model's.
    downsample: Option<PatchEmbed>,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

#[derive(Module, Debug)]
struct PatchEmbed {
    proj: Conv2d,
    norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Attention {
    q: Linear,
    kv: Linear,
    proj: Linear,
    /// With `norm`, what makes fewer keys; the last stage has none.
    sr: Option<Conv2d>,
    norm: Option<LayerNorm>,
    num_heads: usize,
    sr_ratio: usize,
    linear: bool,
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    dwconv: Conv2d,
    fc2: Linear,
    linear: bool,
}

/// Where a block is, for [`DropPath`], and the map that its tokens are.
#[derive(Clone, Copy)]
struct Place {
    batch: usize,
    side: usize,
    block: usize,
    depth: usize,
}

impl PvtV2 {
    /// Freshly initialised.
    pub fn new(spec: &PvtV2Spec, init: &mut Init) -> Self {
        Self {
            patch_embed: PatchEmbed::new(&spec.stage(0), init),
            stages: (0..STAGES).map(|i| Stage::new(&spec.stage(i), i == 0, init)).collect(),
        }
    }

    /// The mean token after the last norm.
    ///
    /// `images`: `[batch, 3, img_size, img_size]`, normalised; returns `[batch, embed_dims[3]]`.
    pub fn forward(&self, images: Tensor<4>, drop_path: &DropPath) -> Tensor<2> {
        let depth = self.stages.iter().map(|stage| stage.blocks.len()).sum();
        let mut map = self.patch_embed.forward(images.permute([0, 2, 3, 1]), STEM);
        let mut block = 0;
        for stage in &self.stages {
            map = stage.forward(map, [block, depth], drop_path);
            block += stage.blocks.len();
        }
        let [batch, side, _, d] = map.dims();
        map.reshape([batch, side * side, d]).mean_dim(1).reshape([batch, d])
    }

    /// [`Self::forward`] in ONNX operators, for images of `img_size` pixels.
    pub fn graph(&self, g: &mut Graph, images: &Value, img_size: usize) -> Value {
        let mut side = STEM.count(img_size);
        let mut rows = self.patch_embed.graph(g, images, STEM);
        let mut dim = self.patch_embed.dim();
        for stage in &self.stages {
            if let Some(embed) = &stage.downsample {
                let map = g.map(&rows, side, dim);
                rows = embed.graph(g, &map, DOWNSAMPLE);
                (side, dim) = (DOWNSAMPLE.count(side), embed.dim());
            }
            rows = stage.blocks.iter().fold(rows, |x, block| block.graph(g, &x, side));
            rows = stage.norm.graph(g, &rows);
        }
        let tokens = g.reshape(&rows, &[-1, (side * side) as i64, dim as i64]);
        g.mean(&tokens, 1)
    }
}

impl Stage {
    fn new(spec: &StageSpec, first: bool, init: &mut Init) -> Self {
        Self {
            downsample: (!first).then(|| PatchEmbed::new(spec, init)),
            blocks: (0..spec.depth).map(|_| Block::new(spec, init)).collect(),
            norm: LayerNorm::new(spec.dim, NORM_EPS, init),
        }
    }

    /// `[batch, side, side, input]` to the stage's `[batch, side, side, dim]`; its first block is
    /// number `first` of `depth`.
    fn forward(
        &self,
        map: Tensor<4>,
        [first, depth]: [usize; 2],
        drop_path: &DropPath,
    ) -> Tensor<4> {
        let map = match &self.downsample {
            Some(embed) => embed.forward(map, DOWNSAMPLE),
            None => map,
        };
        let [batch, side, _, d] = map.dims();
        let mut x = map.reshape([batch * side * side, d]);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, Place { batch, side, block: first + i, depth }, drop_path);
        }
        self.norm.forward(x).reshape([batch, side, side, d])
    }
}

impl PatchEmbed {
    fn new(spec: &StageSpec, init: &mut Init) -> Self {
        Self {
            proj: Conv2d::new([spec.input, spec.dim], 1, spec.windows.kernel, init),
            norm: LayerNorm::new(spec.dim, CONV_NORM_EPS, init),
        }
    }

    /// `[batch, side, side, input]` to `[batch, side, side, dim]` with one token a window.
    fn forward(&self, map: Tensor<4>, windows: Windows) -> Tensor<4> {
        let map = self.proj.forward(map, windows);
        let [batch, side, _, d] = map.dims();
        self.norm.forward(map.reshape([batch * side * side, d])).reshape([batch, side, side, d])
    }

    fn dim(&self) -> usize {
        self.proj.bias.val().dims()[0]
    }

    /// `[batch, input, side, side]` to rows.
    fn graph(&self, g: &mut Graph, map: &Value, windows: Windows) -> Value {
        let map = self.proj.graph(g, map, windows, 1);
        let rows = g.rows(&map, self.dim());
        self.norm.graph(g, &rows)
    }
}

impl Block {
    fn new(spec: &StageSpec, init: &mut Init) -> Self {
        let (d, linear) = (spec.dim, spec.linear);
        Self {
            norm1: LayerNorm::new(d, NORM_EPS, init),
            attn: Attention::new(spec, init),
            norm2: LayerNorm::new(d, NORM_EPS, init),
            mlp: Mlp {
                fc1: Linear::new(d, spec.hidden, init),
                dwconv: Conv2d::new([spec.hidden; 2], spec.hidden, 3, init),
                fc2: Linear::new(spec.hidden, d, init),
                linear,
            },
        }
    }

    /// `x + drop_path(attn(norm1(x)))`, then the same with the MLP; `[batch * tokens, dim]`.
    fn forward(&self, x: Tensor<2>, place: Place, drop_path: &DropPath) -> Tensor<2> {
        let factors = |branch| {
            let rows = [place.batch, place.side * place.side];
            drop_path.factors(rows, [place.block, place.depth], branch)
        };
        let attended = self.attn.forward(self.norm1.forward(x.clone()), place);
        let x = self.attn.proj.forward_residual(attended, x, factors(0));
        self.mlp.forward(x, &self.norm2, place, factors(1))
    }

    fn graph(&self, g: &mut Graph, x: &Value, side: usize) -> Value {
        let normed = self.norm1.graph(g, x);
        let attended = self.attn.graph(g, &normed, side);
        let x = g.add(x, &attended);
        let normed = self.norm2.graph(g, &x);
        let out = self.mlp.graph(g, &normed, side);
        g.add(&x, &out)
    }
}

impl Attention {
    fn new(spec: &StageSpec, init: &mut Init) -> Self {
        let d = spec.dim;
        let kernel = if spec.linear { 1 } else { spec.sr_ratio };
        let reduced = spec.linear || spec.sr_ratio > 1;
        Self {
            q: Linear::new(d, d, init),
            kv: Linear::new(d, 2 * d, init),
            proj: Linear::new(d, d, init),
            sr: reduced.then(|| Conv2d::new([d; 2], 1, kernel, init)),
            norm: reduced.then(|| LayerNorm::new(d, CONV_NORM_EPS, init)),
            num_heads: spec.num_heads,
            sr_ratio: spec.sr_ratio,
            linear: spec.linear,
        }
    }

    /// Up to the output projection, `[batch * tokens, dim]`.
    fn forward(&self, x: Tensor<2>, place: Place) -> Tensor<2> {
        let [rows, d] = x.dims();
        let q = self.q.forward(x.clone()).reshape([place.batch, rows / place.batch, d]);
        let keys = self.reduced(x, place);
        let kv = self.kv.forward(keys).reshape([place.batch as i32, -1, 2 * d as i32]);
        ops::cross_attention(q, kv, self.num_heads).reshape([rows, d])
    }

    /// The tokens that keys and values are made from, `[batch * keys, dim]`.
    fn reduced(&self, x: Tensor<2>, place: Place) -> Tensor<2> {
        let (Some(sr), Some(norm)) = (&self.sr, &self.norm) else { return x };
        let d = x.dims()[1];
        let map = x.reshape([place.batch, place.side, place.side, d]);
        let rows = |map: Tensor<4>| map.reshape([-1, d as i32]);
        if self.linear {
            let pooled = adaptive_avg_pool2d(map.permute([0, 3, 1, 2]), [POOL; 2]);
            let tokens = rows(pooled.permute([0, 2, 3, 1]));
            let weight = sr.weight.val().reshape([d, d]);
            return gelu(norm.forward(ops::linear(tokens, weight, sr.bias.val())));
        }
        let windows = Windows { kernel: self.sr_ratio, stride: self.sr_ratio, padding: 0 };
        norm.forward(rows(sr.forward(map, windows)))
    }

    /// [`Self::forward`] and the output projection.
    fn graph(&self, g: &mut Graph, x: &Value, side: usize) -> Value {
        let d = self.proj.weight.val().dims()[0];
        let q = self.q.graph(g, x);
        let q = g.split_heads(&q, [side * side, 1, self.num_heads], d);
        let (keys, tokens) = self.reduced_graph(g, x, side);
        let kv = self.kv.graph(g, &keys);
        let kv = g.split_heads(&kv, [tokens, 2, self.num_heads], d);
        let scale = ((d / self.num_heads) as f64).powf(-0.5);
        let attended = g.attention([&q[0], &kv[0], &kv[1]], scale, d);
        self.proj.graph(g, &attended)
    }

    /// [`Self::reduced`] and how many tokens of each image it leaves.
    fn reduced_graph(&self, g: &mut Graph, x: &Value, side: usize) -> (Value, usize) {
        let (Some(sr), Some(norm)) = (&self.sr, &self.norm) else {
            return (x.clone(), side * side);
        };
        let d = self.proj.weight.val().dims()[0];
        let (kernel, left, rows) = match self.linear {
            true => (1, POOL, g.pool(x, [side, POOL], d)),
            false => (self.sr_ratio, side / self.sr_ratio, x.clone()),
        };
        let map = g.map(&rows, if self.linear { POOL } else { side }, d);
        let map = sr.graph(g, &map, Windows { kernel, stride: kernel, padding: 0 }, 1);
        let rows = g.rows(&map, d);
        let normed = norm.graph(g, &rows);
        let keys = if self.linear { g.gelu(&normed) } else { normed };
        (keys, left * left)
    }
}

impl Mlp {
    /// `x + factor mlp(norm(x))`, `[batch * tokens, dim]`.
    fn forward(
        &self,
        x: Tensor<2>,
        norm: &LayerNorm,
        place: Place,
        factors: Option<Vec<f32>>,
    ) -> Tensor<2> {
        let (dwconv, Place { batch, side, .. }) = (self.dwconv.kernels(), place);
        if !self.linear {
            let (fc1, fc2) = (self.fc1.layer(), self.fc2.layer());
            return ops::conv_mlp_block(x, norm.norm(), fc1, dwconv, fc2, [batch, side], factors);
        }
        let hidden = relu(self.fc1.forward(norm.forward(x.clone())));
        let [rows, width] = hidden.dims();
        let map = hidden.reshape([batch, side, side, width]);
        let hidden = ops::depthwise_conv3x3_gelu(map, dwconv.0, dwconv.1).reshape([rows, width]);
        self.fc2.forward_residual(hidden, x, factors)
    }

    /// With the second layer.
    fn graph(&self, g: &mut Graph, x: &Value, side: usize) -> Value {
        let hidden = self.fc1.weight.val().dims()[0];
        let x = self.fc1.graph(g, x);
        let x = if self.linear { g.relu(&x) } else { x };
        let map = g.map(&x, side, hidden);
        let map = self.dwconv.graph(g, &map, Windows { kernel: 3, stride: 1, padding: 1 }, hidden);
        let rows = g.rows(&map, hidden);
        let x = g.gelu(&rows);
        self.fc2.graph(g, &x)
    }
}
