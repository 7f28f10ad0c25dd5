"""Holds the import of checkpoints against timm: state dicts with random weights in every form that
`torch.save` writes, under timm's and the official keys, wrapped as the official programs wrap them, give the
features of the model they came from.

Run after `cargo build --release`: python tests/parity/import.py [--program FEWVIT]
(torch 2.15, timm 1.0.31, safetensors, Pillow). Exits with 1 when a bound is missed.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).parents[2]
# Before this folder, where a file has the same name.
sys.path.insert(0, str(ROOT / "tests/golden"))
from backbones import Performer, T2tVit  # noqa: E402

BOUND = 2e-4
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def official(key):
    """The name of a timm parameter of PVTv2 in the official program."""
    key = re.sub(r"^patch_embed\.", "patch_embed1.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}.", key)
    key = re.sub(r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}.", key)
    return key.replace(".dwconv.", ".dwconv.dwconv.")


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


def junk(state):
    """Another model of the same keys."""
    return {k: torch.randn_like(v) for k, v in state.items()}


# How the state dict is wrapped: a function of the state dict.
WRAPPERS = {
    "bare": lambda s: s,
    "DeiT": lambda s: {"model": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "timm": lambda s: {"state_dict": junk(s), "state_dict_ema": s, "metric": np.float64(0.5)},
    "data parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "DINO": lambda s: {
        "student": prefixed(junk(s), "module.backbone."),
        "teacher": prefixed(s, "backbone.") | {"head.mlp.0.weight": torch.randn(4, 4)},
    },
    "MoCo v3": lambda s: {
        "state_dict": prefixed(s, "module.base_encoder.")
        | prefixed(junk(s), "module.momentum_encoder.")
        | {"module.predictor.0.weight": torch.randn(4, 4)},
        "optimizer": {"state": {0: {"exp_avg": torch.randn(4)}}},
    },
}
FORMS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
}


def embed(weights, model, img_size, images, folder):
    out = folder / "features.npy"
    command = [args.program, "embed", weights, images, "--model", model, "--img-size", str(img_size)]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(out)), done.stderr


def trace(weights, model, pixels, classes, folder):
    save_file({"images": pixels, "targets": torch.arange(len(pixels))}, folder / "b.safetensors")
    out = folder / "t.safetensors"
    command = [args.program, "trace", "--model", model, "--img-size", str(pixels.shape[-1])]
    command += ["--num-classes", str(classes), "--weights", weights, "--batch", folder / "b.safetensors"]
    subprocess.run([*command, "--out", out, "--steps", "1", "--lr", "1e-3"], check=True)
    return load_file(out)


def features(model, pixels):
    with torch.no_grad():
        return model.forward_head(model.forward_features(pixels), pre_logits=True)


def check(what, ours, theirs, bound=BOUND):
    difference = (ours - theirs).abs().max().item()
    good = difference <= bound
    failed.append(not good)
    print(f"{'ok  ' if good else 'FAIL'} {what:<52} {difference:.2g}", flush=True)


def photographs(folder):
    """Images of 128 px, which are cropped to 112 px without being scaled; and as the models see them."""
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"images/{i}.png")
    cropped = torch.from_numpy(pixels[:, 8:120, 8:120]).float() / 255
    normal = (cropped - torch.tensor(MEAN)) / torch.tensor(STD)
    return folder / "images", normal.permute(0, 3, 1, 2).contiguous()


def forms(name, model, keys, folder, images, pixels):
    """Every wrapper in every form, single and half precision."""
    state = {keys(k): v.clone() for k, v in model.state_dict().items()}
    path = folder / "w.pth"
    for dtype in [torch.float32, torch.float16, torch.bfloat16, torch.float64]:
        cast = {k: v.to(dtype) for k, v in state.items()}
        model.load_state_dict({k: cast[keys(k)].float() for k in model.state_dict()})
        expected = features(model, pixels)
        wrappers = WRAPPERS if dtype == torch.float32 else {"DeiT": WRAPPERS["DeiT"]}
        for wrapper, wrap in wrappers.items():
            for form, options in FORMS.items():
                torch.save(wrap(cast), path, **options)
                ours, notes = embed(path, name, pixels.shape[-1], images, folder)
                check(f"{name} {keys.__name__} {dtype} {wrapper} {form}", ours, expected)
                assert wrapper == "bare" or "the weights are `" in notes, notes
    model.load_state_dict({k: state[keys(k)] for k in model.state_dict()})


def same(key):
    return key


def main(folder):
    images, pixels = photographs(folder)
    torch.manual_seed(0)
    deit = timm.create_model("deit_tiny_patch16_224", img_size=112, num_classes=10).eval()
    pvt = timm.create_model("pvt_v2_b0", num_classes=10).eval()
    forms("deit_tiny_patch16_224", deit, same, folder, images, pixels)
    for keys in [same, official]:
        forms("pvt_v2_b0", pvt, keys, folder, images, pixels)
    forms("t2t_vit_7", T2tVit(112, 256, 7, 4, 2, Performer).eval(), same, folder, images, pixels)

    path = folder / "w.pth"
    torch.save({"model": {official(k): v for k, v in pvt.state_dict().items()}}, path)
    with torch.no_grad():
        check("trace of official PVTv2: logits", trace(path, "pvt_v2_b0", pixels, 10, folder)["logits"], pvt(pixels))
    large = timm.create_model("deit_tiny_patch16_224", num_classes=1000).eval()
    torch.save({"model": large.state_dict()}, path)
    deit.load_state_dict(large.state_dict() | {k: v for k, v in deit.state_dict().items() if "head" in k or k == "pos_embed"})
    resampled = timm.layers.resample_abs_pos_embed(large.pos_embed, new_size=[7, 7], num_prefix_tokens=1, antialias=False)
    deit.pos_embed.data = resampled
    ours, notes = embed(path, "deit_tiny_patch16_224", 112, images, folder)
    check("DeiT of 224 px at 112 px", ours, features(deit, pixels))
    assert "resized from 14 x 14 to 7 x 7" in notes and "head.weight" in notes, notes
    official_t2t = T2tVit(160, 256, 7, 4, 2, Performer).eval()
    torch.save({"state_dict_ema": official_t2t.state_dict()}, path)
    small = T2tVit(112, 256, 7, 4, 2, Performer).eval()
    resampled = timm.layers.resample_abs_pos_embed(official_t2t.pos_embed, new_size=[7, 7], num_prefix_tokens=1, antialias=False)
    state = official_t2t.state_dict() | {"pos_embed": resampled}
    small.load_state_dict(state)
    check("T2T-ViT of 160 px at 112 px", embed(path, "t2t_vit_7", 112, images, folder)[0], features(small, pixels))


parser = argparse.ArgumentParser()
parser.add_argument("--program", default=ROOT / "target/release/fewvit", help="the fewvit to run")
args = parser.parse_args()
failed = []
with tempfile.TemporaryDirectory() as name:
    main(pathlib.Path(name))
print(f"{len(failed) - sum(failed)} of {len(failed)} within {BOUND}")
sys.exit(any(failed))
