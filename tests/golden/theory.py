"""Both sides of the paper's identities by NumPy, for src/study/theory/tests.rs. Gradients are complex-step
derivatives of losses written with 64-bit logarithms of sums.

    python tests/golden/theory.py
"""
import numpy as np

N, K, D, EPS, LAM = 12, 3, 5, 0.1, 0.7


def made_up(rows, shift):
    return np.array([[np.sin(1.7 * i + 0.9 * j * j + shift) for j in range(D)] for i in range(rows)])


def log_sum(x):
    return np.log(np.exp(x).sum(-1))


def ce(logits, y):
    return (log_sum(logits) - logits[np.arange(len(y)), y]).sum()


def gradient(f, x, h=1e-30):
    g = np.zeros(x.size)
    for i in range(x.size):
        step = x.astype(complex).ravel()
        step[i] += 1j * h
        g[i] = f(step.reshape(x.shape)).imag / h
    return g.reshape(x.shape)


norm = np.linalg.norm
a, b, w, c = made_up(N, 0.1), made_up(N, 0.7), made_up(N, 1.9), made_up(K, 2.6)
labels = np.arange(N)

print("5", ce(a @ a.T, labels))
print("6", ce(a @ w.T, labels) + ce(b @ w.T, labels))
print("7", ce(a @ a.T, labels) + ce(b @ a.T, labels))
wrong = a @ a.T
wrong[labels, labels] = (a * b).sum(1)
print("7 misprinted", (log_sum(wrong) - (a * a).sum(1)).sum() + ce(b @ a.T, labels))

even = labels % K
print("12 tied", ce(a @ c[even].T, labels), "clustering", ce(a @ c.T, even))
uneven = np.array([(i // K) % K if i % K == 0 and i > 0 else i % K for i in range(N)])
print("12 uneven", ce(a @ c[uneven].T, labels), "sizes", np.bincount(uneven))

hard = lambda weights, z: log_sum(weights @ z) - (weights @ z)[0]
by_w = gradient(lambda v: hard(v, a[0]), w)
print("14-16", norm(gradient(lambda v: hard(w, v), a[0])), norm(by_w[0]), norm(by_w[1]))

y = np.full((2, N), EPS / (N - 1))
y[0, 0] = y[1, 1] = 1 - EPS
y = LAM * y[0] + (1 - LAM) * y[1]
print("19", y[0], y[1], y[-1], LAM * EPS / (N - 1))
print("19 printed sum", y[0] + y[1] + (N - 2) * LAM * EPS / (N - 1))
soft = lambda weights: log_sum(weights @ a[0]) - (y * (weights @ a[0])).sum()
by_w = gradient(soft, w)
print("20", norm(by_w[0]), norm(by_w[-1]))
p = np.exp(w @ a[0] - log_sum(w @ a[0]))
print("20 printed", abs(p[-1] - LAM * EPS / (N - 1)) * norm(a[0]))
