"""Exported models see what timm shows them: logits, pre-processing included, at sizes that 0.875 does not divide.

    python tests/parity/views.py [PATH/TO/fewvit]

Trains for one epoch at each size on made-up pictures and compares `fewvit predict --json` with timm on
pictures of odd shapes. Needs torch, timm and Pillow 13.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

PROGRAM = Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/fewvit").resolve()
SIZES = [96, 144, 160, 208]
SHAPES = [(331, 247), (211, 333), (300, 100), (70, 280), (61, 45), (500, 375)]
rng = np.random.default_rng(0)


def picture(width, height):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def main():
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("a", "b"):
            (folder / "data" / name).mkdir(parents=True)
            for i in range(8):
                picture(40, 40).save(folder / "data" / name / f"{i}.png")
        (folder / "new").mkdir()
        for i, shape in enumerate(SHAPES):
            picture(*shape).save(folder / "new" / f"{i}.png")
        for size in SIZES:
            run = folder / f"run{size}"
            command = [PROGRAM, "train", folder / "data", "--recipe", "quick", "--from-scratch", "--epochs", "1", "-b", "8"]
            subprocess.run([*command, "--img-size", str(size), "--output", run], check=True, capture_output=True)
            lines = subprocess.run([PROGRAM, "predict", run, folder / "new", "--json"], check=True, capture_output=True)
            ours = {Path(r["file"]).name: r["logits"] for r in map(json.loads, lines.stdout.splitlines())}
            model = timm.create_model(f"local-dir:{run}/export", pretrained=True).eval()
            transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
            for name, logits in ours.items():
                with torch.no_grad():
                    theirs = model(transform(Image.open(folder / "new" / name).convert("RGB"))[None])[0].numpy()
                worst = max(worst, float(np.abs(theirs - np.array(logits)).max()))
            assert len(ours) == len(SHAPES)
            print(f"{size} px: largest difference of a logit so far {worst:.1e}")
    assert worst < 1e-5, worst


main()
