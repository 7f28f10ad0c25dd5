"""Holds `fewvit trace` and `fewvit predict` against timm and PyTorch at full size.

Run after `cargo build --release`: python tests/parity/deit.py [--model NAME] [--img-size S]
[--amp-dtype bf16] (torch 2.15, timm 1.0.31, safetensors). PyTorch computes in f32 in any case. Exits with
1 when a bound is missed.

1. logits, features and every gradient of step 0, and the losses of ten AdamW steps with label
   smoothing and with soft targets;
2. with --export RUN and --images DIR: `timm.create_model("local-dir:RUN/export", pretrained=True)`
   gives the logits that `fewvit predict --json` prints.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# Of logits and features (absolute), gradients and losses (relative). bf16 has 8 significant bits.
BOUNDS = {"f32": (1e-4, 1e-3, 1e-4), "bf16": (5e-2, 2e-2, 2e-2)}
FEWVIT = pathlib.Path(__file__).parents[2] / "target/release/fewvit"
failed = []


def check(what, value, bound):
    print(f"{what:<44} {value:.3g}  (bound {bound:g})")
    if not value <= bound:
        failed.append(what)


def relative(ours, theirs):
    return (ours - theirs).norm().item() / max(theirs.norm().item(), 1e-6)


def trace(model, args, targets, smoothing, folder, kind):
    torch.manual_seed(1)
    images = torch.randn(args.batch, 3, args.img_size, args.img_size)
    save_file(dict(model.state_dict()), folder / "w.safetensors")
    save_file({"images": images, "targets": targets}, folder / "b.safetensors")
    command = [FEWVIT, "trace", "--model", args.model, "--num-classes", "10", "--img-size", str(args.img_size)]
    command += ["--weights", folder / "w.safetensors", "--batch", folder / "b.safetensors"]
    command += ["--out", folder / "t.safetensors", "--steps", "10", "--lr", "1e-3"]
    command += ["--weight-decay", "0.05", "--smoothing", str(smoothing), "--amp-dtype", args.amp_dtype]
    of_outputs, of_gradients, of_losses = BOUNDS[args.amp_dtype]
    subprocess.run(command, check=True)
    ours = load_file(folder / "t.safetensors")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(10):
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        loss.backward()
        if step == 0:
            check(f"{kind}: logits, max abs", (ours["logits"] - logits).abs().max().item(), of_outputs)
            features = model.forward_head(model.forward_features(images), pre_logits=True)
            check(f"{kind}: features, max abs", (ours["features"] - features).abs().max().item(), of_outputs)
            # The key's bias has a gradient of exactly zero, so it is compared with its neighbours.
            worst = max(relative(ours[f"grad.{k}"], p.grad) for k, p in model.named_parameters())
            together = [torch.cat([g.flatten() for g in gradients]) for gradients in zip(
                *((ours[f"grad.{k}"], p.grad) for k, p in model.named_parameters()))]
            check(f"{kind}: gradient, all together, relative", relative(*together), of_gradients)
            check(f"{kind}: gradients, worst relative", worst, of_gradients)
        check(f"{kind}: loss {step}, relative", abs(ours["loss"][step].item() / loss.item() - 1), of_losses)
        optimizer.step()


def export(args):
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model(f"local-dir:{args.export}/export", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    files = sorted(str(p) for p in pathlib.Path(args.images).rglob("*.*") if p.suffix in {".jpg", ".png"})[:32]
    lines = subprocess.run([FEWVIT, "predict", args.export, "--json", *files], check=True, capture_output=True)
    ours = {r["file"]: torch.tensor(r["logits"]) for r in map(json.loads, lines.stdout.splitlines())}
    with torch.no_grad():
        pixels = torch.stack([transform(Image.open(f).convert("RGB")) for f in files])
        theirs = model(pixels)
    worst = max((ours[f] - t).abs().max().item() for f, t in zip(files, theirs))
    check(f"timm on {len(files)} images, max abs logit", worst, args.export_bound)
    same = sum(int(ours[f].argmax() == t.argmax()) for f, t in zip(files, theirs))
    print(f"same class on {same} of {len(files)}")


parser = argparse.ArgumentParser()
parser.add_argument("--model", default="deit_tiny_patch16_224")
parser.add_argument("--img-size", type=int, default=112)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--amp-dtype", choices=BOUNDS, default="f32")
parser.add_argument("--export")
parser.add_argument("--images")
parser.add_argument("--export-bound", type=float, default=1e-4)
args = parser.parse_args()
torch.manual_seed(0)
if args.export:
    export(args)
else:
    with tempfile.TemporaryDirectory() as name:
        for kind, smoothing in [("smoothed classes", 0.1), ("soft targets", 0.0)]:
            model = timm.create_model(args.model, num_classes=10, img_size=args.img_size)
            targets = torch.arange(args.batch) % 10
            if kind == "soft targets":
                targets = torch.softmax(torch.randn(args.batch, 10), dim=1)
            trace(model, args, targets, smoothing, pathlib.Path(name), kind)
sys.exit(1 if failed else 0)
