"""Principal components and t-SNE by NumPy, for src/study/figures/: the constants of its tests.

    python tests/golden/tsne.py
"""
import numpy as np

N, D, STEPS = 40, 6, 5
x = np.array([[(1 + j) * np.sin(1.7 * i + 0.9 * j * j) + i % 3 * j for j in range(D)] for i in range(N)])


def pca(x):
    centred = x - x.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    two = vectors[:, [-1, -2]]
    two = two * np.sign(two[np.abs(two).argmax(0), [0, 1]])
    return centred @ two


def conditional(distances, perplexity):
    low, high = 1e-12, 1e12
    for _ in range(300):
        precision = np.sqrt(low * high)
        p = np.exp(-precision * (distances - distances.min()))
        p /= p.sum()
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum()
        low, high = (precision, high) if entropy > np.log(perplexity) else (low, precision)
    return p


square = ((x[:, None] - x[None]) ** 2).sum(-1)
p = np.zeros((N, N))
for i in range(N):
    rest = np.arange(N) != i
    p[i, rest] = conditional(square[i, rest], min(30, (N - 1) / 3))
p = np.maximum((p + p.T) / (2 * N), 1e-12)

y = pca(x)
y *= 1e-4 / np.sqrt((y[:, 0] ** 2).mean())
velocity, gains = np.zeros_like(y), np.ones_like(y)
rate = max(N / 12 / 4, 50)
for step in range(STEPS):
    difference = y[:, None] - y[None]
    near = 1 / (1 + (difference**2).sum(-1))
    np.fill_diagonal(near, 0)
    q = np.maximum(near / near.sum(), 1e-12)
    slope = 4 * (((12 * p - q) * near)[..., None] * difference).sum(1)
    opposite = velocity * slope < 0
    gains = np.where(opposite, gains + 0.2, np.maximum(gains * 0.8, 0.01))
    velocity = 0.5 * velocity - rate * gains * slope
    y = y + velocity

show = lambda rows: ", ".join(f"[{a!r}, {b!r}]" for a, b in rows.tolist())
print(f"const NUMPY: &[[f64; 2]] = &[{show(y[:3])}];")
print(f"const PCA_NUMPY: &[[f64; 2]] = &[{show(pca(x)[:3])}];")
