"""Holds the ONNX files of every model, run by onnxruntime, against timm (PVTv2, DeiT) and the definition
in tests/golden/backbones.py (T2T-ViT) on photographs.

Run after `cargo build --release`: python tests/parity/onnx_files.py FOLDER_OF_IMAGES [--model NAME ...] [--img-size S ...]
(torch 2.15, timm 1.0.31, onnx, onnxruntime, safetensors, Pillow). Each model gets random weights and is
exported as a folder in timm's layout, which timm loads where it knows the model; `fewvit export` makes the
ONNX file, `onnx.checker` checks it, and onnxruntime runs it on the first 32 images, in batches of 1 and 31.
Exits with 1 when a logit differs by more than 1e-4.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

ROOT = pathlib.Path(__file__).parents[2]
BOUND = 1e-4
IMAGES = 32
CLASSES = [f"class {i}" for i in range(10)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Width, depth, heads, MLP ratio.
T2T = {7: (256, 7, 4, 2), 10: (256, 10, 4, 2), 12: (256, 12, 4, 2)}
T2T |= {14: (384, 14, 6, 3), 19: (448, 19, 7, 3), 24: (512, 24, 8, 3)}
TIMM = [f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")]
TIMM += ["pvt_v2_b0_small", *(f"pvt_v2_b{i}" for i in range(6)), "pvt_v2_b2_li"]
OFFICIAL = [f"t2t_vit_{i}" for i in T2T] + [f"t2t_vit_t_{i}" for i in (14, 19, 24)]


def golden():
    path = ROOT / "tests/golden/backbones.py"
    spec = importlib.util.spec_from_file_location("golden_backbones", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_folder(folder, name, img_size):
    """An export folder of random weights, and the model."""
    args, architecture = {}, name
    if name.startswith("t2t"):
        module = golden()
        block = module.TokenTransformer if "_t_" in name else module.Performer
        model = module.T2tVit(img_size, *T2T[int(name.split("_")[-1])], block)
    else:
        if name == "pvt_v2_b0_small":
            architecture, args = "pvt_v2_b0", {"embed_dims": (16, 32, 80, 128)}
        if name.startswith("deit"):
            args = {"img_size": img_size}
        model = timm.create_model(architecture, num_classes=10, **args)
    config = {
        "architecture": architecture,
        "fewvit_model": name,
        "num_classes": 10,
        "num_features": model.head.in_features,
        "label_names": CLASSES,
        "model_args": args,
        "pretrained_cfg": {
            "num_classes": 10,
            "input_size": [3, img_size, img_size],
            "fixed_input_size": "img_size" in args,
            "crop_pct": 0.875,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": MEAN,
            "std": STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def compare(name, img_size, paths, folder):
    """Largest differences of onnxruntime from PyTorch, normalisation outside and inside, and fewvit's word."""
    torch.manual_seed(0)
    model = write_folder(folder, name, img_size)
    if not name.startswith("t2t"):
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    model.eval()
    view = {"input_size": (3, img_size, img_size), "crop_pct": 0.875, "interpolation": "bicubic"}
    transform = create_transform(**view, mean=MEAN, std=STD, is_training=False)
    photos = [Image.open(path).convert("RGB") for path in paths]
    images = torch.stack([transform(photo) for photo in photos])
    pixels = ((images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255).round()
    with torch.no_grad():
        expected = model(images).numpy()
    differences, said = [], []
    inputs = {"images": images.numpy(), "pixels": pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()}
    for key, value in inputs.items():
        path = folder / f"{key}.onnx"
        command = [ROOT / "target/release/fewvit", "export", folder, *paths[:8], "--output", path, "--json"]
        command += ["--embed-preprocessing"] if key == "pixels" else []
        out = subprocess.run(command, check=True, capture_output=True, text=True)
        said.append(json.loads(out.stdout)["largest_difference"])
        onnx.checker.check_model(onnx.load(path), full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == CLASSES
        seen = [session.run(["logits"], {key: part})[0] for part in (value[:1], value[1:])]
        differences.append(np.abs(np.concatenate(seen) - expected).max())
    return differences, max(said)


parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--model", nargs="+", default=TIMM + OFFICIAL)
parser.add_argument("--img-size", type=int, nargs="+", default=[112, 224])
args = parser.parse_args()
paths = sorted(p for p in args.folder.rglob("*") if p.suffix in (".jpg", ".png"))[:IMAGES]
failed = len(paths) < IMAGES
for model in args.model:
    for img_size in args.img_size:
        with tempfile.TemporaryDirectory() as folder:
            differences, said = compare(model, img_size, paths, pathlib.Path(folder))
        good = max(differences) <= BOUND
        failed |= not good
        print(
            f"{'ok  ' if good else 'FAIL'} {model:<22} {img_size} px  onnxruntime {differences[0]:.1e}, "
            f"with normalisation inside {differences[1]:.1e}; fewvit says {said:.1e}",
            flush=True,
        )
print(f"bound: {BOUND} on {len(paths)} photographs")
sys.exit(failed)
