"""Writes pvt_v2.safetensors, pvt_v2_li.safetensors, t2t_vit.safetensors and t2t_vit_t.safetensors: tiny
models with random weights, their logits, features, gradients and the losses of ten AdamW steps, in the
form of deit.py. PVTv2 is timm's; T2T-ViT, which timm lacks, is written here after its official code.
Run: python tests/golden/backbones.py (timm 1.0.31, torch 2.15)."""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

TOKEN_DROPOUT = 0.1


class Performer(nn.Module):
    """Attention with positive random features; the values are the skip connection."""

    def __init__(self, dim, width):
        super().__init__()
        features = width // 2
        self.kqv = nn.Linear(dim, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(TOKEN_DROPOUT)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(TOKEN_DROPOUT)
        )
        rows = torch.linalg.qr(torch.randn(width, features))[0].T
        self.w = nn.Parameter(rows * features**0.5, requires_grad=False)

    def phi(self, x):
        exponent = x @ self.w.T - (x * x).sum(-1, keepdim=True) / 2
        return exponent.exp() / len(self.w) ** 0.5

    def forward(self, x):
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        k, q = self.phi(k), self.phi(q)
        weights = torch.einsum("bqm,bkm->bqk", q, k)  # the whole matrix: the definition
        y = weights @ v / (weights.sum(-1, keepdim=True) + 1e-8)
        y = v + self.dropout(self.proj(y))
        return y + self.mlp(self.norm2(y))


class SelfAttention(nn.Module):
    """`scale_dim` is what the scores are scaled by; with `skip_values` the values are added."""

    def __init__(self, dim, width, heads, scale_dim):
        super().__init__()
        self.heads, self.scale = heads, scale_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x, skip_values=False):
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        y = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(b, n, -1))
        return y + v[:, 0] if skip_values else y


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class TokenTransformer(nn.Module):
    """One head; its scores are scaled by the width of the input."""

    def __init__(self, dim, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.attn = SelfAttention(dim, width, 1, dim)
        self.mlp = Mlp(width, width)

    def forward(self, x):
        x = self.attn(self.norm1(x), skip_values=True)
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    def __init__(self, block, width, dim):
        super().__init__()
        self.attention1 = block(3 * 49, width)
        self.attention2 = block(9 * width, width)
        self.project = nn.Linear(9 * width, dim)

    def forward(self, x):
        for kernel, block in [(7, self.attention1), (3, self.attention2), (3, self.project)]:
            stride, padding = (4, 2) if kernel == 7 else (2, 1)
            x = block(F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2))
            if block is not self.project:
                side = int(x.shape[1] ** 0.5)
                x = x.transpose(1, 2).reshape(len(x), -1, side, side)
        return x


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, dim, heads, dim // heads)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class T2tVit(nn.Module):
    def __init__(self, img_size, dim, depth, heads, mlp_ratio, block=Performer, width=64, num_classes=10):
        super().__init__()
        tokens = (img_size // 16) ** 2 + 1
        self.tokens_to_token = TokensToToken(block, width, dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        position, j = torch.arange(tokens).double()[:, None], torch.arange(dim)
        angle = position / 10000 ** (2 * (j // 2) / dim)
        table = torch.where(j % 2 == 0, angle.sin(), angle.cos()).float()
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, heads, int(mlp_ratio * dim)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward_features(self, x):
        x = self.tokens_to_token(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, x, pre_logits=False):
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def write(name, model, img_size):
    model.eval()  # the performer's dropout
    trained = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for _, p in trained:
            p.add_(0.1 * torch.randn_like(p))  # so that no norm or bias is trivial
    start = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.randn(2, 3, img_size, img_size)
    classes, soft = torch.tensor([4, 0]), torch.softmax(torch.randn(2, 5), dim=1)
    out = {f"param.{k}": v for k, v in start.items()} | {"images": images, "soft": soft}
    for kind in ["classes", "soft"]:
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        losses = []
        for step in range(10):
            optimizer.zero_grad()
            logits = model(images)
            smoothing = 0.1 if kind == "classes" else 0.0
            loss = F.cross_entropy(logits, classes if kind == "classes" else soft, label_smoothing=smoothing)
            loss.backward()
            if step == 0:
                out["logits"] = logits
                out["features"] = model.forward_head(model.forward_features(images), pre_logits=True)
                if kind == "classes":
                    out |= {f"grad.classes.{k}": p.grad.clone() for k, p in trained}
            optimizer.step()
            losses.append(loss.item())
        out[f"losses.{kind}"] = torch.tensor(losses)
    path = pathlib.Path(__file__).with_name(f"{name}.safetensors")
    save_file({k: v.detach().contiguous().clone() for k, v in out.items()}, path)
    print(path, path.stat().st_size)


def main():
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    torch.manual_seed(0)
    sizes = dict(embed_dims=(4, 8, 10, 16), depths=(1, 2, 1, 1), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
    for name, linear in [("pvt_v2", False), ("pvt_v2_li", True)]:
        model = PyramidVisionTransformerV2(num_classes=5, sr_ratios=(8, 4, 2, 1), linear=linear, **sizes)
        write(name, model, 72)
    for name, block in [("t2t_vit", Performer), ("t2t_vit_t", TokenTransformer)]:
        write(name, T2tVit(48, 16, 2, 2, 3, block, width=8, num_classes=5), 48)


if __name__ == "__main__":
    main()
