"""Makes muon.safetensors: three steps of Muon, of PyTorch's own `torch.optim.Muon` where it has a rule.

    python tests/golden/muon.py

Tensors are named STEP.KEY: `0.KEY` are the weights before, `grad.STEP.KEY` the gradients, `STEP.KEY` the
weights after. Matrices are steps of `torch.optim.Muon` with `match_rms_adamw`, convolutions as matrices of their
output channels; all else steps of `torch.optim.AdamW`. In the place of PyTorch's rounds are those of fewvit's
Muon on the singular values themselves, in float64. Made with torch 2.15.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

torch.manual_seed(11)
LR, MOMENTUM, DECAY, BETAS, STEPS = 0.02, 0.95, 0.1, (0.9, 0.999), 3

SHAPES = {
    "high.weight": [40, 12],
    "wide.weight": [9, 33],
    "square.bias": [16],
    "square.weight": [16, 16],
    "conv.weight": [6, 4, 3, 3],
    "dwconv.weight": [8, 1, 3, 3],
    "pos_embed": [1, 5, 6],
    "head.weight": [5, 8],
}
MATRICES = [key for key in SHAPES if key.split(".")[0] in ("high", "wide", "square", "conv") and key != "square.bias"]

# Coefficients of x, x^3 and x^5 of each round, and by how much the bound of the largest singular value's square is
# raised: the fourth root of the sum of the fourth powers of all of their squares.
ROUNDS = [(7.3625, -20.7434, 15.1606), (2.9175, -2.1824, 0.4755)]
MARGIN = 1.02


def orthogonal(matrix, *_):
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (MARGIN * (s**8).sum() ** 0.25).sqrt()
    for a, b, c in ROUNDS:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


torch.optim._muon._zeropower_via_newtonschulz = orthogonal

start = {key: torch.randn(shape).float() for key, shape in SHAPES.items()}
tensors = {f"0.{key}": value.clone() for key, value in start.items()}
flat = lambda key, x: x.reshape(len(x), -1) if key in MATRICES else x
weights = {key: torch.nn.Parameter(flat(key, x.double().clone())) for key, x in start.items()}
muon = torch.optim.Muon(
    [weights[key] for key in MATRICES], lr=LR, momentum=MOMENTUM, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
)
adamw = torch.optim.AdamW(
    [weights[key] for key in SHAPES if key not in MATRICES], lr=LR, betas=BETAS, eps=1e-8, weight_decay=DECAY
)
for step in range(1, STEPS + 1):
    for key, shape in SHAPES.items():
        # Of low rank but for a little, as gradients are, and of another size each.
        rows = shape[0]
        g = torch.randn(rows, 2) @ torch.randn(2, start[key].numel() // rows) + 0.1 * torch.randn(rows, start[key].numel() // rows)
        g = (g * 10.0 ** (step - 3)).reshape(shape).float()
        tensors[f"grad.{step}.{key}"] = g
        weights[key].grad = flat(key, g.double())
    muon.step()
    adamw.step()
    for key, shape in SHAPES.items():
        tensors[f"{step}.{key}"] = weights[key].detach().reshape(shape).float().contiguous()

path = Path(__file__).parent / "muon.safetensors"
save_file(tensors, path)
print(path.stat().st_size, torch.__version__, sorted(MATRICES))
