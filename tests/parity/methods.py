"""Holds `fewvit trace --method` of every pre-training method against PyTorch: the losses of ten steps, every
gradient of the first, and parameters, teacher, queue and centre after the last.

Run after `cargo build --release`: python tests/parity/methods.py [--case NAME ...] [--model NAME]
(torch 2.15, timm 1.0.31, safetensors). The PyTorch side is tests/golden/methods.py. Exits with 1 when a bound
is missed.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/golden"))
from backbones import T2tVit  # noqa: E402
from methods import replay  # noqa: E402

LOSS_BOUND, GRADIENT_BOUND, END_BOUND = 1e-4, 2e-3, 1e-2
STEPS, BATCH = 10, 12
SMALL = ["pretrain.options.hidden=96"]
# Another model than --model, at these sizes.
MODELS = {"moco-v3-pvt": ("pvt_v2_b0", [64]), "moco-v3-t2t": ("t2t_vit_7", [32]), "dino-t2t": ("t2t_vit_7", [32, 64])}
# Views, arguments, --set. The queue of 20 wraps six times in ten steps of twelve keys.
CASES = {
    "idmm": (6, ["--method", "idmm", "--num-classes", "40"], []),
    "idmm-projector": (6, ["--method", "idmm", "--num-classes", "40"], ["pretrain.projector=32"]),
    "idmm-uniform": (6, ["--method", "idmm"], ["pretrain.optim.smoothing_kind=uniform"]),
    "insdis": (2, ["--method", "insdis"], []),
    "supervised": (2, ["--method", "supervised", "--num-classes", "5"], []),
    "simclr": (2, ["--method", "simclr"], []),
    "simclr-plain": (2, ["--method", "simclr"], ["pretrain.options.dim=0"]),
    "simclr-sgd": (2, ["--method", "simclr", "--recipe", "paper-simclr", "--lr", "0.02"], []),
    "supcon": (2, ["--method", "supcon"], []),
    "supcon-sgd": (2, ["--method", "supcon", "--recipe", "paper-supcon", "--lr", "0.02"], []),
    "moco-v2": (2, ["--method", "moco-v2"], ["pretrain.options.queue=20"]),
    "moco-v2-sgd": (
        2,
        ["--method", "moco-v2", "--recipe", "paper-moco-v2", "--lr", "0.1"],
        ["pretrain.options.queue=20", "pretrain.options.momentum=0.9"],
    ),
    "moco-v3": (2, ["--method", "moco-v3"], SMALL),
    "moco-v3-pvt": (2, ["--method", "moco-v3"], SMALL),
    "moco-v3-t2t": (2, ["--method", "moco-v3"], SMALL),
    "moco-v3-open": (2, ["--method", "moco-v3"], [*SMALL, "pretrain.options.freeze_patch_embed=false"]),
    "dino": (6, ["--method", "dino"], [*SMALL, "pretrain.options.prototypes=128"]),
    "dino-schedules": (
        4,
        ["--method", "dino", "--recipe", "paper-dino"],
        [
            *SMALL,
            "pretrain.options.prototypes=128",
            "pretrain.options.teacher_temperature=0.07",
            "pretrain.options.teacher_warmup_epochs=4",
            "pretrain.options.freeze_prototypes_epochs=3",
            "pretrain.options.momentum=0.9",
            "pretrain.optim.clip_grad=0.05",
        ],
    ),
    "dino-clip-all": (
        4,
        ["--method", "dino"],
        [*SMALL, "pretrain.options.prototypes=128", "pretrain.optim.clip_grad=0.5", "pretrain.optim.clip_mode=global"],
    ),
    "dino-t2t": (4, ["--method", "dino"], [*SMALL, "pretrain.options.prototypes=128", "pretrain.optim.clip_grad=0.05"]),
}


def backbone(model, img_size):
    if model == "deit_micro_patch8_96":
        sizes = {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
        return timm.models.VisionTransformer(img_size=img_size, num_classes=0, **sizes)
    if model == "t2t_vit_7":
        t2t = T2tVit(img_size, 256, 7, 4, 2).eval()  # without the performer's dropout, as fewvit traces it
        t2t.num_features = 256
        del t2t.head
        return t2t
    size = {} if model.startswith("pvt") else {"img_size": img_size}
    return timm.create_model(model, num_classes=0, **size)


def relative(ours, theirs, floor):
    return (ours - theirs).norm().item() / max(theirs.norm().item(), floor)


def compare(name, model, img_size, folder):
    """Largest relative differences of losses, of gradients, and of what ten steps changed."""
    views_count, arguments, settings = CASES[name]
    torch.manual_seed(0)
    # Views of one image are a little alike: enough to learn from, not so much that the loss is soon rounding.
    views = torch.randn(views_count, BATCH, 3, img_size, img_size)
    views += 0.3 * torch.randn(1, BATCH, 3, img_size, img_size)
    index = torch.tensor([3, 1, 12, 0, 7, 5, 2, 4, 10, 6, 11, 8])
    targets = torch.tensor([0, 1, 0, 4, 1, 0, 2, 2, 3, 1, 0, 4])
    save_file({"views": views, "index": index, "targets": targets}, folder / "b.safetensors")
    command = [args.program, "trace", "--model", model, "--img-size", str(img_size), *arguments]
    command += ["--batch", folder / "b.safetensors", "--out", folder / "t.safetensors"]
    command += ["--steps", str(STEPS), "--seed", "3", "--threads", str(args.threads)]
    command += ["--lr", "1e-4"] if "--lr" not in arguments else []
    # AdamW makes whole steps of gradients that are zero but for rounding, unless eps is above that.
    adamw = [] if name.endswith("-sgd") else ["pretrain.optim.eps=1e-5"]
    for setting in [*settings, f"pretrain.optim.micro_batch={args.micro_batch}", *adamw]:
        command += ["--set", setting]
    subprocess.run(command, check=True)
    ours = load_file(folder / "t.safetensors")
    with safe_open(folder / "t.safetensors", "pt") as file:
        config = tomllib.loads(file.metadata()["config"])["pretrain"]
    classes = ours["init.head.weight"].shape[0] if "init.head.weight" in ours else 0
    of_rows = targets if config["method"] in ("supervised", "supcon") else index
    init = {k: v for k, v in ours.items() if k.startswith("init.")}
    theirs = replay(backbone(model, img_size), config, init, views, of_rows, STEPS, classes)
    loss = max(abs(a / b - 1) for a, b in zip(ours["loss"].tolist(), theirs["loss"].tolist()))
    slopes = {k: v for k, v in theirs.items() if k.startswith("grad.")}
    # A key's bias, and what a batch norm takes away, has a gradient of exactly zero.
    floor = 1e-3 * max(v.norm().item() for v in slopes.values())
    gradients = [(relative(ours[k], v, floor), k) for k, v in slopes.items()]
    ends = []
    for kind in ("param", "teacher", "state"):
        keys = [k for k in theirs if k.startswith(f"{kind}.")]
        # In a single vector: AdamW turns the rounding of gradients that are zero into whole steps.
        if keys:
            start = {k: init["init." + k.removeprefix("param.")] for k in keys}
            moved = torch.cat([(theirs[k] - start[k]).flatten() for k in keys])
            apart = torch.cat([(ours[k] - theirs[k]).flatten() for k in keys])
            ends.append((apart.norm().item() / moved.norm().item(), kind))
    return loss, *max(gradients), ends, ours["loss"]


parser = argparse.ArgumentParser()
parser.add_argument("--case", nargs="+", default=list(CASES))
parser.add_argument("--model", default="deit_tiny_patch16_224")
parser.add_argument("--img-size", type=int, default=32)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--micro-batch", type=int, default=5)
parser.add_argument("--program", default=ROOT / "target/release/fewvit")
args = parser.parse_args()
failed = False
with tempfile.TemporaryDirectory() as name:
    rows = [(case, *MODELS.get(case, (args.model, [args.img_size]))) for case in args.case]
    for case, model, img_size in [(case, model, size) for case, model, sizes in rows for size in sizes]:
        loss, gradient, key, ends, losses = compare(case, model, img_size, pathlib.Path(name))
        good = loss <= LOSS_BOUND and gradient <= GRADIENT_BOUND and max(ends)[0] <= END_BOUND
        failed |= not good
        after = "  ".join(f"{kind} {value:.2g}" for value, kind in ends)
        print(
            f"{'ok  ' if good else 'FAIL'} {case:<15} {img_size} px  losses {loss:.1e} ({losses[0]:.4f} to {losses[-1]:.4f})  "
            f"gradients {gradient:.1e} ({key})  after ten steps: {after}",
            flush=True,
        )
print(f"bounds: losses {LOSS_BOUND} relative, gradients {GRADIENT_BOUND}, what ten steps changed {END_BOUND}")
sys.exit(failed)
