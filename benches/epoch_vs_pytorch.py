"""Pre-training from JPEG files to updates: `fewvit bench epoch` against the paper's pipeline in PyTorch
and torchvision, interleaved.

    cargo build --release
    python benches/epoch_vs_pytorch.py FOLDER_OF_IMAGES --python PYTHON

PYTHON has torch, torchvision and timm; without it vs_pytorch.py's environment is made and used. PyTorch
decodes each image once a step, makes two crops at scale 0.14 to 1 and four at 0.05 to 0.4 (112 px, jitter,
grayscale, blur) in as many worker processes as there are threads, applies CutMix to each group and takes
an AdamW step on instance classification with label smoothing. It runs in f32 and in bf16 autocast.
fewvit does the same with its recipe `paper`. Both run on the same cores in turns; the ratio of each turn,
its median and its range are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from vs_pytorch import KEEP_MEMORY, ROOT, python_with_packages, spread

GROUPS = [(2, (0.14, 1.0)), (4, (0.05, 0.4))]


def worker(folder, dtype, batch, threads):
    """Answers each line `seconds` with images a second."""
    import time

    import numpy as np
    import timm
    import torch
    from PIL import Image
    from torchvision import transforms as T

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))

    def view(scale):
        return T.Compose([
            T.RandomResizedCrop(112, scale),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(11, (0.1, 2.0))], 0.5),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ])

    views = [view(scale) for count, scale in GROUPS for _ in range(count)]

    class Instances(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            image = Image.open(paths[i]).convert("RGB")
            return [view(image) for view in views], i

    loader = torch.utils.data.DataLoader(
        Instances(), batch, shuffle=True, drop_last=True, num_workers=threads, persistent_workers=True
    )
    model = timm.create_model(
        "deit_tiny_patch16_224", img_size=112, num_classes=len(paths), drop_path_rate=0.1
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=1e-3, fused=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def cutmix(images):
        share = np.random.beta(0.5, 0.5)
        share = max(share, 1 - share)
        side = int(112 * (1 - share) ** 0.5)
        y, x = np.random.randint(0, 113 - side, 2)
        order = torch.randperm(len(images))
        images[:, :, y : y + side, x : x + side] = images[order, :, y : y + side, x : x + side]
        return images, order, 1 - side**2 / 112**2

    def step(crops, index):
        loss, first = 0, 0
        for count, _ in GROUPS:
            images, order, share = cutmix(torch.cat(crops[first : first + count]))
            targets, first = index.repeat(count), first + count
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
                logits = model(images).float()
            loss = loss + share * criterion(logits, targets) + (1 - share) * criterion(logits, targets[order])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def batches():
        while True:
            yield from loader

    stream = batches()
    step(*next(stream))
    for line in sys.stdin:
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < float(line):
            step(*next(stream))
            done += batch
        print(done / (time.perf_counter() - begin), flush=True)


def start(python, options, dtype, env):
    command = [python, __file__, "worker", options.folder, dtype, options.batch_size, options.threads]
    pipe = subprocess.PIPE
    return subprocess.Popen([str(c) for c in command], stdin=pipe, stdout=pipe, text=True, env=env)


def ask(process, seconds):
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def fewvit(options, env):
    command = [options.fewvit, "bench", "epoch", options.folder, "--json", "--recipe", "paper"]
    command += ["--seconds", options.seconds, "--threads", options.threads]
    command += ["--amp-dtype", options.amp_dtype]
    output = subprocess.run([str(c) for c in command], env=env, check=True, capture_output=True)
    return json.loads(output.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-b", "--batch-size", type=int, default=64, help="images a step of PyTorch")
    parser.add_argument("--dtypes", default="f32,bf16", help="of PyTorch")
    parser.add_argument("--amp-dtype", default="f32", help="of fewvit: f32 or bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--fewvit", default=ROOT / "target" / "release" / "fewvit")
    parser.add_argument("--python", help="one that has the packages")
    options = parser.parse_args()
    env = os.environ | KEEP_MEMORY
    python = python_with_packages(options.python)
    theirs = {dtype: start(python, options, dtype, env) for dtype in options.dtypes.split(",")}
    speeds = {dtype: [] for dtype in [*theirs, "fewvit"]}
    for _ in range(options.rounds):
        for dtype, process in theirs.items():
            speeds[dtype].append(ask(process, options.seconds))
        ours = fewvit(options, env)
        speeds["fewvit"].append(ours["images_per_s"])
    print(json.dumps(ours))
    for name, values in speeds.items():
        print(f"{name}: {spread(values)} images/s")
    for dtype in theirs:
        ratios = [ours / their for ours, their in zip(speeds["fewvit"], speeds[dtype])]
        print(f"fewvit against PyTorch {dtype}: {spread(ratios, 'x')}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
