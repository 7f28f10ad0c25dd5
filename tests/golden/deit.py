"""Writes deit.safetensors: a tiny DeiT of timm with random weights, its logits, features, all
gradients and the losses of ten AdamW steps, for integer targets with label smoothing and for soft
targets. Run: python tests/golden/deit.py (timm 1.0.31, torch 2.15)."""

import pathlib

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
model = timm.models.VisionTransformer(
    img_size=24, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5
)
with torch.no_grad():
    for name, p in model.named_parameters():
        p.add_(0.1 * torch.randn_like(p))  # so that no norm or bias is trivial
start = {k: v.clone() for k, v in model.state_dict().items()}
images = torch.randn(3, 3, 24, 24)
classes = torch.tensor([4, 0, 2])
soft = torch.softmax(torch.randn(3, 5), dim=1)
out = {f"param.{k}": v for k, v in start.items()}
out |= {"images": images, "soft": soft}


def loss_of(kind):
    logits = model(images)
    if kind == "classes":
        return logits, F.cross_entropy(logits, classes, label_smoothing=0.1)
    return logits, F.cross_entropy(logits, soft)


for kind in ["classes", "soft"]:
    model.load_state_dict(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    losses = []
    for step in range(10):
        optimizer.zero_grad()
        logits, loss = loss_of(kind)
        loss.backward()
        if step == 0:
            out["logits"] = logits.detach()
            out["features"] = model.forward_head(model.forward_features(images), pre_logits=True)
            for name, p in model.named_parameters():
                out[f"grad.{kind}.{name}"] = p.grad.clone()
        optimizer.step()
        losses.append(loss.item())
    out[f"losses.{kind}"] = torch.tensor(losses)

path = pathlib.Path(__file__).with_name("deit.safetensors")
save_file({k: v.detach().contiguous().clone() for k, v in out.items()}, path)
print(path, path.stat().st_size)
