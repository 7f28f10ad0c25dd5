"""Coefficients of `gelu` and `gelu_for_bf16` in kernels/src/gelu.rs (numpy): prints them and the largest
error.

`gelu`, by ascending powers of b = -|x| in -FAR..0: r = Phi(b)^(-1/4) and h = phi(b) / Phi(b). Errors
count by what they do to GELU.

`gelu_for_bf16`, those of x^0, x^2, x^4, ...: Phi(x) and GELU'(x) = Phi(x) + x phi(x) are odd around 1/2,
so x P(x^2) + 1/2 with polynomials P. P is the minimax fit on [0, FLAT] (Lawson's iterated least squares)
among those that reach 1 exactly at FLAT, so that both may be constant beyond it. Errors of Phi count
times max(x, 0.3), as in GELU.
"""

import math

import numpy as np

FLAT = 4.2
X = FLAT * np.sin(np.pi / 2 * np.arange(1, 4001) / 4000)


def big_phi(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def small_phi(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def fit(target, degree, weight):
    """Coefficients of P, the constant first, and the largest weighted error."""
    terms = np.polynomial.chebyshev.chebvander(2 * (X / FLAT) ** 2 - 1, degree)
    terms *= (X * weight)[:, None]
    # At FLAT every Chebyshev polynomial is 1: the last coefficient is what the others leave of 1/2.
    end = 0.5 / FLAT
    left = terms[:, :-1] - terms[:, -1:]
    right = weight * (target - 0.5) - terms[:, -1] * end
    importance = np.ones_like(X)
    for _ in range(3000):
        root = np.sqrt(importance)
        found, *_ = np.linalg.lstsq(left * root[:, None], right * root, rcond=None)
        error = np.abs(left @ found - right)
        importance *= error / error.max() + 1e-3
        importance /= importance.sum()
    chebyshev = np.append(found, end - found.sum())
    in_t = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(chebyshev))
    in_square = in_t(np.polynomial.Polynomial([-1, 2 / FLAT**2]))
    return in_square.coef, error.max()


for name, target, degree, weight in [
    ("PHI", big_phi(X), 7, np.maximum(X, 0.3)),
    ("DERIVATIVE", big_phi(X) + X * small_phi(X), 8, np.ones_like(X)),
]:
    coefficients, error = fit(target, degree, weight)
    print(name, f"error {error:.2e}", *(f"{c:.8g}" for c in coefficients), sep="\n  ")

FAR = 6.0
B = -FAR / 2 * (1 - np.cos(np.pi * np.arange(6001) / 6000))
TAIL = 0.5 * np.vectorize(math.erfc)(-B / math.sqrt(2))


def fit_in_b(target, degree, weight):
    """Coefficients, the constant first, and the largest weighted error."""
    terms = np.polynomial.chebyshev.chebvander(1 + 2 * B / FAR, degree) * weight[:, None]
    importance = np.ones_like(B)
    for _ in range(600):
        root = np.sqrt(importance)
        found, *_ = np.linalg.lstsq(terms * root[:, None], target * weight * root, rcond=None)
        error = np.abs(terms @ found - target * weight)
        importance *= error / error.max() + 1e-3
        importance /= importance.sum()
    in_t = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(found))
    return in_t(np.polynomial.Polynomial([1, 2 / FAR])).coef, error.max()


for name, target, degree, weight in [
    ("ROOT", TAIL**-0.25, 11, np.maximum(-B, 0.7) * 4 * TAIL**1.25),
    ("RATIO", small_phi(B) / TAIL, 7, TAIL * np.maximum(-B, 0.05)),
]:
    coefficients, error = fit_in_b(target, degree, weight)
    print(name, f"error {error:.2e}", *(f"{c:.8g}" for c in coefficients), sep="\n  ")
