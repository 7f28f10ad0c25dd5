"""Training steps of PyTorch on an NVIDIA card in its fastest mode: bf16 autocast, compiled, and the whole step in one
graph. Prints crops a second. Called by benches/gpu.sh.

    python benches/gpu_pytorch.py MODEL IMG_SIZE BATCH_SIZE
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from vs_pytorch import build

WARM_UP = 3
LOOPS = 5
SECONDS = 1.0


def main():
    name, img_size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = build(name, img_size).cuda().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, weight_decay=1e-3, fused=True, capturable=True
    )
    images = torch.randn(batch, 3, img_size, img_size, device="cuda")
    targets = torch.arange(batch, device="cuda") % 1000

    @torch.compile(dynamic=False)
    def loss_of(images, targets):
        return F.cross_entropy(model(images).float(), targets, label_smoothing=0.1)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(images, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def seconds_of(count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    count = max(1, int(SECONDS / LOOPS / seconds_of(2)))
    median = statistics.median(seconds_of(count) for _ in range(LOOPS))
    print(f"PyTorch {name} {img_size} px, batch {batch}, bf16, compiled, one graph: {batch / median:.1f} crops/s")


if __name__ == "__main__":
    main()
