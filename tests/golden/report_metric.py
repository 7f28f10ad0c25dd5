"""Numbers for the tests of src/eval/metric.rs and src/eval/knn.rs, with numpy and scipy only.

    python tests/golden/report_metric.py
"""
import numpy as np
from scipy.special import log_softmax
from scipy.stats import binomtest, norm


def noise(i, c):
    h = (i * 7919 + c * 104729 + 1) * 2654435761 % 2**32
    h = (h ^ (h >> 15)) * 2246822519 % 2**32
    return (h ^ (h >> 13)) / 2**32 * 6 - 3


labels = np.array([(i * i // 3) % 6 for i in range(120)])
logits = np.array([[noise(i, c) + 2 * (labels[i] == c) for c in range(7)] for i in range(120)], np.float32)
logp = log_softmax(logits.astype(np.float64), axis=1)
pred = logits.argmax(1)
right = pred == labels
print("correct", right.sum(), "of", len(labels))
print("top5", np.mean([l in np.argsort(-r, kind="stable")[:5] for r, l in zip(logits, labels)]))
print("nll", -logp[np.arange(120), labels].mean())
recall = [right[labels == c].mean() for c in range(7) if (labels == c).any()]
print("balanced", np.mean(recall))
f1 = []
for c in range(7):
    tp, fp, fn = ((pred == c) & right).sum(), ((pred == c) & ~right).sum(), ((labels == c) & ~right).sum()
    if tp + fp + fn:
        f1.append(2 * tp / (2 * tp + fp + fn))
print("macro_f1", np.mean(f1), len(f1))
conf = np.exp(logp.max(1))
ece = 0
for lo in range(15):
    m = (conf > lo / 15) & (conf <= (lo + 1) / 15)
    if m.any():
        ece += m.mean() * abs(right[m].mean() - conf[m].mean())
print("ece", ece)
for k, n in ((0, 10), (7, 10), (4138, 6149)):
    i = binomtest(k, n).proportion_ci(0.95, "wilson")
    print("wilson", k, n, i.low, i.high)
for b, c in ((9, 2), (40, 25), (600, 520)):
    print("mcnemar", b, c, binomtest(b, b + c, 0.5).pvalue)


def agresti_min(b, c, n):
    z, b, c, n = norm.ppf(0.975), b + 0.5, c + 0.5, n + 2
    d, half = (b - c) / n, z * np.sqrt(b + c - (b - c) ** 2 / n) / n
    return d - half, d + half


for b, c, n in ((9, 2, 50), (40, 25, 1000)):
    print("difference", b, c, n, agresti_min(b, c, n))
rng = np.random.default_rng(0)
p = np.array([0.72, 0.09, 0.05, 0.14])  # both right, only a, only b, none
draws = rng.multinomial(200, p, 20000)
ci = [agresti_min(b, c, 200) for _, b, c, _ in draws]
print("coverage of the difference", np.mean([lo <= p[1] - p[2] <= hi for lo, hi in ci]))

feats = np.array([[noise(i, d) for d in range(24)] for i in range(120)])
feats[np.arange(120), labels] += 2.5
feats = feats.astype(np.float32).astype(np.float64)
feats /= np.linalg.norm(feats, axis=1, keepdims=True)


def knn(train, train_labels, test, test_labels, k, t, loo):
    ok = 0
    for i, (x, y) in enumerate(zip(test, test_labels)):
        s = train @ x
        if loo:
            s[i] = -np.inf
        near = np.argsort(-s, kind="stable")[:k]
        votes = np.bincount(train_labels[near], np.exp(s[near] / t), minlength=7)
        ok += votes.argmax() == y
    return ok, len(test)


for k, t in ((1, 0.07), (10, 0.07), (20, 0.5), (500, 0.07)):
    print("knn", k, t, "leave-one-out", knn(feats, labels, feats, labels, min(k, 119), t, True),
          "80/40", knn(feats[:80], labels[:80], feats[80:], labels[80:], min(k, 80), t, False))
