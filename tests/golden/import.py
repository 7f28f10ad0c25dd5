"""Writes import_zip.pth and import_legacy.pth: the weights of deit.safetensors and pvt_v2.safetensors as
official programs save them, in half precision.
Run: python tests/golden/import.py after deit.py and backbones.py (torch 2.15)."""

import argparse
import pathlib
import re

import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent


def weights(name):
    named = load_file(HERE / f"{name}.safetensors").items()
    return {k.removeprefix("param."): v.clone() for k, v in named if k.startswith("param.")}


def official(key):
    """The name of a timm parameter of PVTv2 in its official program."""
    key = re.sub(r"^patch_embed\.", "patch_embed1.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}.", key)
    key = re.sub(r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}.", key)
    return key.replace(".dwconv.", ".dwconv.dwconv.")


def main():
    # As DINO does, with a projection head beside the backbone, and the arguments of the run.
    teacher = {f"backbone.{k}": v.bfloat16() for k, v in weights("deit").items() if "head" not in k}
    teacher["head.mlp.0.weight"] = torch.zeros(2, 16)
    student = {"module.backbone.cls_token": torch.zeros(1, 1, 16)}
    both = {"student": student, "teacher": teacher, "epoch": 7, "args": argparse.Namespace(lr=0.1)}
    torch.save(both, HERE / "import_zip.pth")
    # As PVTv2 does, before PyTorch 1.6.
    state = {official(k): v.half() for k, v in weights("pvt_v2").items()}
    old = dict(_use_new_zipfile_serialization=False, pickle_protocol=4)
    torch.save({"model": state, "epoch": 7}, HERE / "import_legacy.pth", **old)
    for path in HERE.glob("import_*.pth"):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
