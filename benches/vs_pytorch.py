"""Training steps of fewvit against PyTorch on this machine, interleaved.

    cargo build --release
    python benches/vs_pytorch.py --img-size 112 --batch-size 256
    python benches/vs_pytorch.py --isa avx2          # both limited to AVX2

Makes a virtual environment of its own (VENV below) with torch, torchvision and timm. PyTorch is
tried in f32 and bf16 autocast at several batch sizes with an allocator that keeps its memory, and
the fastest mode counts. Then both programs take turns; the ratio of each turn, its median and its
range are printed. Absolute speeds mean little on a shared machine; the ratio and the fraction of the
limit do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path.home() / ".cache" / "fewvit" / "vs-pytorch"
PACKAGES = ["torch", "torchvision", "timm"]
# glibc gives freed memory back to the system by default; a training loop asks for it again at once.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
# MKL makes PyTorch's f32 products on Intel and asks only its own variable.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "FEWVIT_SIMD": "avx2",
}


def worker():
    """Reads `dtype batch_size seconds` lines; answers each with crops a second."""
    import time

    import torch

    model_name, img_size, threads = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build(model_name, img_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=1e-3, fused=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    for line in sys.stdin:
        dtype, batch, seconds = line.split()
        images = torch.randn(int(batch), 3, img_size, img_size)
        targets = torch.arange(int(batch)) % 1000

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
                loss = criterion(model(images).float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        step()
        times, begin = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begin < float(seconds):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(int(batch) / statistics.median(times), flush=True)


def build(name, img_size):
    """timm's model, or T2T-ViT, which timm lacks."""
    import timm

    if name.startswith("t2t_vit"):
        return t2t_vit(name, img_size)
    args = {"img_size": img_size} if name.startswith("deit") else {}
    return timm.create_model(name, num_classes=1000, drop_path_rate=0.1, **args)


def t2t_vit(name, img_size):
    """As tests/golden/backbones.py defines it, with PyTorch's fused attention and the performer's sums
    in the order that makes them linear in the number of tokens."""
    import torch.nn.functional as F

    sys.path.append(str(ROOT / "tests" / "golden"))
    import backbones

    class Performer(backbones.Performer):
        def forward(self, x):
            k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
            k, q = self.phi(k), self.phi(q)
            total = q @ k.sum(1).unsqueeze(-1) + 1e-8
            y = v + self.dropout(self.proj(q @ (k.transpose(1, 2) @ v) / total))
            return y + self.mlp(self.norm2(y))

    def attention(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))

    backbones.SelfAttention.forward = attention
    sizes = {"t2t_vit_7": (256, 7, 4, 2), "t2t_vit_14": (384, 14, 6, 3)}[name]
    return backbones.T2tVit(img_size, *sizes, Performer, num_classes=1000)


class PyTorch:
    def __init__(self, python, options, env):
        command = [python, __file__, "worker", options.model, options.img_size, options.threads]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=pipe, stdout=pipe, text=True, env=env
        )

    def crops_per_s(self, dtype, batch_size, seconds):
        self.process.stdin.write(f"{dtype} {batch_size} {seconds}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("the PyTorch process has ended; its message is above")
        return float(answer)


def fewvit(options, env):
    command = [options.fewvit, "bench", "step", "--json", "--model", options.model]
    command += ["--img-size", options.img_size, "-b", options.batch_size]
    command += ["--amp-dtype", options.amp_dtype, "--threads", options.threads]
    command += ["--seconds", options.seconds]
    output = subprocess.run([str(c) for c in command], env=env, check=True, capture_output=True)
    return json.loads(output.stdout)


def python_with_packages(given):
    if given:
        return given
    python = VENV / "bin" / "python"
    if not python.exists():
        print(f"installing {', '.join(PACKAGES)} in {VENV}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def spread(values, unit=""):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.2f}{unit} ({low:.2f} to {high:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("-b", "--batch-size", type=int, default=256, help="of fewvit")
    parser.add_argument("--amp-dtype", default="f32", help="of fewvit: f32 or bf16")
    parser.add_argument("--torch-batches", default="16,64,256", help="tried, the best counts")
    parser.add_argument("--torch-dtypes", default="f32,bf16", help="tried, the best counts")
    parser.add_argument("--isa", choices=["avx2"], help="limit both programs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--fewvit", default=ROOT / "target" / "release" / "fewvit")
    parser.add_argument("--python", help="one that has the packages")
    options = parser.parse_args()

    env = os.environ | KEEP_MEMORY | (AVX2 if options.isa else {})
    torch = PyTorch(python_with_packages(options.python), options, env)
    modes = {}
    for dtype in options.torch_dtypes.split(","):
        for batch in options.torch_batches.split(","):
            modes[dtype, batch] = torch.crops_per_s(dtype, batch, options.seconds)
            print(f"PyTorch {dtype} batch {batch}: {modes[dtype, batch]:.1f} crops/s")
    dtype, batch = max(modes, key=modes.get)

    theirs, ours, ratios, fractions = [], [], [], []
    for _ in range(options.rounds):
        before = torch.crops_per_s(dtype, batch, options.seconds / 2)
        speed = fewvit(options, env)
        after = torch.crops_per_s(dtype, batch, options.seconds / 2)
        theirs.append((before + after) / 2)
        ours.append(speed["crops_per_s"])
        ratios.append(ours[-1] / theirs[-1])
        fractions.append(speed["fraction_of_peak"])
    print(f"{options.model}, {options.img_size} px, {options.threads} threads")
    print(f"PyTorch {dtype} batch {batch}: {spread(theirs)} crops/s")
    print(f"fewvit {options.amp_dtype} batch {options.batch_size}: {spread(ours)} crops/s")
    print(f"ratio: {spread(ratios, 'x')}; fraction of the limit: {spread(fractions)}")


if __name__ == "__main__":
    worker() if sys.argv[1:2] == ["worker"] else main()
