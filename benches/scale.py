#!/usr/bin/env python3
"""How the start of a run grows with the number of images: seconds and memory, first and second time.

    python benches/scale.py target/release/fewvit 20000 200000

Makes that many small JPEG files of 100 classes, twice as many for training as for testing, and starts
the preparation of a run on them (`train --dry-run`, and `bench epoch`, which trains for some seconds) with a cache folder of its own. A line for each
number. Needs Pillow, numpy, and about 4 KB of disk an image in the folder for temporary files.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, SIDE = 100, 48
# IDMM's head has a class for each image, which is work of its own.
METHOD = ["--method", "simclr"]


def write(root, count):
    """`count` JPEG files of smooth colours, no two alike, under train/CLASS and test/CLASS."""
    rng = np.random.default_rng(0)
    for i in range(count):
        split = "test" if i % 3 == 0 else "train"
        folder = root / split / f"class-{(i // 3) % CLASSES:03}"
        if i < 3 * CLASSES:
            folder.mkdir(parents=True, exist_ok=True)
        corners = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((SIDE, SIDE)).save(folder / f"{i:07}.jpg", quality=80)


def timed(command, env):
    """Seconds, peak memory in GB, standard output and standard error of a command that must succeed."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        out.seek(0), err.seek(0)
        if status:
            sys.exit(f"{' '.join(command)}\n{err.read()}")
        return seconds, usage.ru_maxrss * 1024 / 1e9, out.read(), err.read()


def main():
    program, counts = sys.argv[1], [int(count) for count in sys.argv[2:]]
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "images"
            write(data, count)
            env = dict(os.environ, XDG_CACHE_HOME=folder + "/cache")
            train = ["train", str(data), "--recipe", "quick", "--model", "deit_micro_patch8_96", "--dry-run",
                     "--json", "--time-budget", "0", *METHOD, "--set", "pretrain.crops=[{ count = 2, img_size = 32, scale = [0.2, 1.0] }]",
                     "--img-size", "32"]
            first, most, _, _ = timed([program, *train], env)
            second, _, _, said = timed([program, *train], env)
            known = "an earlier run had read them" in said
            epoch = ["bench", "epoch", str(data), "--model", "deit_micro_patch8_96", "--json", "--seconds", "5", *METHOD,
                     "--set", "pretrain.crops=[{ count = 2, img_size = 32, scale = [0.2, 1.0] }]", "-b", "256"]
            _, training, out, _ = timed([program, *epoch], env)
            speed = json.loads(out)
            print(f"{count} images: first start {first:.1f} s ({1e6 * first / count:.0f} us an image) and {most:.2f} "
                  f"GB, second {second:.1f} s{'' if known else ' (not known!)'}; training {speed['crops_per_s']:.0f} "
                  f"crops/s and {training:.2f} GB, images in memory included", flush=True)


if __name__ == "__main__":
    main()
