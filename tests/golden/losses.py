"""Makes losses.safetensors: the self-supervised losses and their gradients in PyTorch, in float64.

    python tests/golden/losses.py

Each loss is written the way its paper's authors describe it (loops and cross_entropy with class
indices), not the way fewvit computes it. Tensors are named LOSS.CASE.NAME; every input, also the
temperatures, is rounded to float32 before use. `grad.X` is the gradient in the raw input X, before
any normalisation. Made with torch 2.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(4)


def nt_xent(features, tau):
    """SimCLR: cross-entropy over the other rows, in which the positive moves up by the gap."""
    z = F.normalize(features, dim=1)
    n = len(z)
    losses = []
    for a in range(n):
        others = [q for q in range(n) if q != a]
        logits = torch.stack([F.cosine_similarity(z[a], z[q], dim=0) for q in others]) / tau
        positive = others.index((a + n // 2) % n)
        losses.append(F.cross_entropy(logits[None], torch.tensor([positive])))
    return torch.stack(losses).mean()


def sup_con(features, labels, tau, tau_base):
    """SupCon, "out" form: the sum over positives stands outside the logarithm."""
    z = F.normalize(features, dim=1)
    labels = labels[0].long()
    losses = []
    for a in range(len(z)):
        others = torch.arange(len(z)) != a
        log_prob = F.log_softmax((z[others] @ z[a]) / tau, dim=0)
        positives = labels[others] == labels[a]
        losses.append(-log_prob[positives].sum() / max(int(positives.sum()), 1))
    return tau / tau_base * torch.stack(losses).mean()


def info_nce(queries, keys, tau):
    """One direction of MoCo v3, without its factor 2 tau."""
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    return F.cross_entropy(q @ k.T / tau, torch.arange(len(q)))


def moco_v3(q1, q2, k1, k2, tau):
    """Both directions with the factor 2 tau."""
    return 2 * tau * (info_nce(q1, k2, tau) + info_nce(q2, k1, tau))


def moco_v2(queries, keys, queue, tau):
    """One positive and the queue's negatives; class 0 is right."""
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    positive = torch.einsum("nc,nc->n", q, k)[:, None]
    logits = torch.cat([positive, torch.einsum("nc,kc->nk", q, F.normalize(queue, dim=1))], 1) / tau
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def dino(student, teacher, centre, batch, student_temp, teacher_temp):
    """Pairs of a teacher's view and another view of the student."""
    crops = student.split(int(batch))
    total, pairs = 0, 0
    for t, target in enumerate(F.softmax((teacher - centre) / teacher_temp, dim=-1).split(int(batch))):
        for v, crop in enumerate(crops):
            if v != t:
                total += F.cross_entropy(crop / student_temp, target.detach())
                pairs += 1
    assert pairs == 2 * len(crops) - 2
    return total / pairs


def cases():
    """(loss, inputs to differentiate, other tensors, numbers)"""
    normal = torch.randn
    for batch, dim, tau in [(1, 4, 0.5), (2, 8, 0.1), (7, 16, 0.2), (16, 24, 0.1), (9, 3, 1.0), (4, 32, 0.07)]:
        yield nt_xent, {"features": normal(2 * batch, dim)}, {}, {"tau": tau}
    for rows, dim, classes, tau in [(4, 8, 2, 0.1), (12, 16, 3, 0.1), (16, 5, 12, 0.5), (30, 8, 4, 0.07), (9, 12, 40, 0.2)]:
        labels = torch.randint(classes, (1, rows)).float()
        yield sup_con, {"features": normal(rows, dim)}, {"labels": labels}, {"tau": tau, "tau_base": 0.07}
    for batch, dim, tau in [(1, 3, 0.2), (4, 8, 0.2), (16, 16, 0.1), (11, 6, 1.0)]:
        yield info_nce, {"queries": normal(batch, dim), "keys": normal(batch, dim)}, {}, {"tau": tau}
        views = {name: normal(batch, dim) for name in ["q1", "q2", "k1", "k2"]}
        yield moco_v3, views, {}, {"tau": tau}
    for batch, dim, length, tau in [(1, 4, 1, 0.2), (4, 8, 32, 0.2), (12, 16, 48, 0.07), (8, 6, 24, 1.0)]:
        pair = {"queries": normal(batch, dim), "keys": normal(batch, dim), "queue": normal(length, dim)}
        yield moco_v2, pair, {}, {"tau": tau}
    for batch, views, dim, temps in [(1, 2, 6, (0.1, 0.04)), (3, 2, 16, (0.1, 0.07)), (4, 6, 24, (0.1, 0.04)), (2, 10, 32, (0.2, 0.1)), (6, 3, 5, (1.0, 1.0))]:
        others = {"teacher": normal(2 * batch, dim) * 0.3, "centre": normal(1, dim) * 0.2}
        numbers = {"batch": batch, "student_temp": temps[0], "teacher_temp": temps[1]}
        yield dino, {"student": normal(views * batch, dim) * 0.3}, others, numbers


def main():
    out, count = {}, {}
    for loss, inputs, others, numbers in cases():
        case = count[loss] = count.get(loss, -1) + 1
        numbers = {name: torch.tensor(float(value)) for name, value in numbers.items()}
        tensors = inputs | others | numbers
        leaves = {name: t.double().requires_grad_(name in inputs) for name, t in tensors.items()}
        arguments = {name: t.item() if name in numbers else t for name, t in leaves.items()}
        value = loss(**arguments)
        value.backward()
        gradients = {f"grad.{name}": leaves[name].grad for name in inputs}
        if loss is dino:
            momentum = 0.9
            batch_centre = leaves["teacher"].mean(dim=0, keepdim=True)
            gradients["next_centre"] = leaves["centre"] * momentum + batch_centre * (1 - momentum)
        for name, t in (tensors | gradients | {"loss": value.detach()}).items():
            out[f"{loss.__name__}.{case}.{name}"] = t.float().contiguous()
    save_file(out, Path(__file__).parent / "losses.safetensors")


main()
