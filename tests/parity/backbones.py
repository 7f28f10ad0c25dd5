"""Holds `fewvit trace` of every PVTv2 and T2T-ViT against PyTorch at full size: logits, features and every
gradient of one step with label smoothing. Then T2T-ViT with weights of another img-size, whose position
table is resized as the official code does it (bicubic, no antialias, corners not aligned).

Run after `cargo build --release`: python tests/parity/backbones.py [--model NAME ...] [--img-size S ...]
(torch 2.15, timm 1.0.31, safetensors). PVTv2 is timm's, T2T-ViT that of tests/golden/backbones.py. Exits
with 1 when a bound is missed.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).parents[2]
# Before this folder, where a file has the same name.
sys.path.insert(0, str(ROOT / "tests/golden"))
from backbones import Performer, T2tVit, TokenTransformer  # noqa: E402

LOGITS_BOUND, GRADIENT_BOUND = 2e-4, 2e-3
# Width, depth, heads, MLP ratio.
T2T = {7: (256, 7, 4, 2), 10: (256, 10, 4, 2), 12: (256, 12, 4, 2)}
T2T |= {14: (384, 14, 6, 3), 19: (448, 19, 7, 3), 24: (512, 24, 8, 3)}
MODELS = ["pvt_v2_b0_small", *(f"pvt_v2_b{i}" for i in range(6)), "pvt_v2_b2_li"]
MODELS += [f"t2t_vit_{i}" for i in T2T] + [f"t2t_vit_t_{i}" for i in (14, 19, 24)]


def build(name, img_size):
    if name == "pvt_v2_b0_small":
        return timm.create_model("pvt_v2_b0", num_classes=10, embed_dims=(16, 32, 80, 128))
    if name.startswith("pvt"):
        return timm.create_model(name, num_classes=10)
    block = TokenTransformer if "_t_" in name else Performer
    return T2tVit(img_size, *T2T[int(name.split("_")[-1])], block)


def relative(ours, theirs):
    return (ours - theirs).norm().item() / max(theirs.norm().item(), 1e-6)


def resized(table, old, new):
    """A position table [1, 1 + old^2, d] for a grid of new^2 tokens; the class token's row stays."""
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def compare(name, img_size, batch, folder, from_size=None):
    """Largest differences of logits, features and gradients, and the key of the last."""
    torch.manual_seed(0)
    model = build(name, from_size or img_size).eval()
    images, targets = torch.randn(batch, 3, img_size, img_size), torch.arange(batch) % 10
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "w.safetensors")
    save_file({"images": images, "targets": targets}, folder / "b.safetensors")
    if from_size:
        model.pos_embed.data = resized(model.pos_embed.data, from_size // 16, img_size // 16)
    command = [ROOT / "target/release/fewvit", "trace", "--model", name, "--num-classes", "10"]
    command += ["--img-size", str(img_size), "--weights", folder / "w.safetensors"]
    command += ["--batch", folder / "b.safetensors", "--out", folder / "t.safetensors", "--steps", "1"]
    command += ["--lr", "1e-3", "--weight-decay", "0.05", "--smoothing", "0.1"]
    if args.program:
        command[0] = args.program
    subprocess.run(command, check=True)
    ours = load_file(folder / "t.safetensors")
    logits = model(images)
    F.cross_entropy(logits, targets, label_smoothing=0.1).backward()
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    trained = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
    gradients = [(relative(ours[f"grad.{k}"], p.grad), k) for k, p in trained]
    frozen = [k for k, p in model.named_parameters() if not p.requires_grad]
    # A resized table is only equal but for rounding.
    assert all(torch.allclose(ours[f"param.{k}"], model.state_dict()[k], 0, 1e-6) for k in frozen), frozen
    worst = [(ours[k] - v).abs().max().item() for k, v in [("logits", logits), ("features", features)]]
    return *worst, *max(gradients)


parser = argparse.ArgumentParser()
parser.add_argument("--model", nargs="+", default=MODELS)
parser.add_argument("--img-size", type=int, nargs="+", default=[112, 224])
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--program", help="the fewvit to run, target/release/fewvit if not given")
args = parser.parse_args()
failed = False
with tempfile.TemporaryDirectory() as name:
    for model in args.model:
        pairs = [(img_size, None) for img_size in args.img_size]
        if model in ("t2t_vit_7", "t2t_vit_t_14"):
            pairs += [(224, 112), (112, 224)]
        for img_size, from_size in pairs:
            logits, features, gradient, key = compare(model, img_size, args.batch, pathlib.Path(name), from_size)
            good = max(logits, features) <= LOGITS_BOUND and gradient <= GRADIENT_BOUND
            failed |= not good
            sizes = f"weights of {from_size} at {img_size} px" if from_size else f"{img_size} px"
            print(
                f"{'ok  ' if good else 'FAIL'} {model:<16} {sizes}  logits {logits:.2g}  "
                f"features {features:.2g}  gradients {gradient:.2g} ({key})",
                flush=True,
            )
print(f"bounds: logits and features {LOGITS_BOUND}, gradients {GRADIENT_BOUND} relative")
sys.exit(failed)
