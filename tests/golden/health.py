"""Makes health.safetensors: collapse figures of made-up features, in numpy.

    python tests/golden/health.py

CASE.features and CASE.positives are [n, dim] float32; CASE.figures is [std * sqrt(dim), effective
rank, alignment, uniformity] of their unit rows, in float64. scipy's pdist is spelled out.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(3)


def figures(features, positives):
    x, y = [m.astype(np.float64) / np.linalg.norm(m.astype(np.float64), axis=1, keepdims=True) for m in (features, positives)]
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum()
    p = p[p > 1e-12]
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)[np.triu_indices(len(x), 1)]
    return np.array([
        x.std(axis=0).mean() * np.sqrt(x.shape[1]),
        np.exp(-(p * np.log(p)).sum()),
        (np.linalg.norm(x - y, axis=1) ** 2).mean(),
        np.log(np.exp(-2 * distances**2).mean()),
    ])


def main():
    cases = {
        "tall": rng.normal(size=(60, 16)),
        "wide": rng.normal(size=(9, 32)),
        "low_rank": rng.normal(size=(40, 3)) @ rng.normal(size=(3, 24)),
        "offset": rng.normal(size=(50, 12)) + 4,
        "scaled_rows": rng.normal(size=(30, 10)) * np.exp(rng.normal(size=(30, 1)) * 3),
    }
    out = {}
    for name, features in cases.items():
        features = features.astype(np.float32)
        positives = (features + 0.3 * rng.normal(size=features.shape)).astype(np.float32)
        tensors = {"features": features, "positives": positives, "figures": figures(features, positives)}
        out |= {f"{name}.{key}": value for key, value in tensors.items()}
    save_file(out, Path(__file__).parent / "health.safetensors")


main()
