"""Every pre-training method in PyTorch, written from its paper, and ten steps of each on a tiny vision
transformer: run `python tests/golden/methods.py` to write methods.safetensors (torch 2.15, timm 1.0.31).

`replay` is also what tests/parity/methods.py holds `fewvit trace --method` against.
"""

import copy
import json
import math
import pathlib
import tomllib

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn


class Mlp(nn.Module):
    """Linear layers with an activation between them; batch-normalised ones end in plain statistics."""

    def __init__(self, widths, activation, normed=False):
        super().__init__()
        pairs = list(zip(widths, widths[1:]))
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=not normed) for a, b in pairs)
        # As everywhere in training, statistics are the batch's.
        norm = lambda width, affine: nn.BatchNorm1d(width, affine=affine, track_running_stats=False)
        self.norms = nn.ModuleList(norm(b, True) for _, b in pairs[:-1]) if normed else None
        self.plain = norm(widths[-1], False) if normed else None
        self.activation = activation

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i + 1 < len(self.layers):
                x = self.activation(self.norms[i](x) if self.norms else x)
        return self.plain(x) if self.plain else x


class Model(nn.Module):
    """A backbone with the heads of a method, under fewvit's keys."""

    def __init__(self, backbone, config, classes):
        super().__init__()
        self.backbone = backbone
        method, options, d = config["method"], config.get("options", {}), backbone.num_features
        width = d
        if method in ("simclr", "supcon", "moco-v2") and options["dim"] > 0:
            self.projector = Mlp([d, d, options["dim"]], F.relu)
        if method == "moco-v3":
            hidden, out = options["hidden"], options["dim"]
            self.projector = Mlp([d, hidden, hidden, out], F.relu, normed=True)
            self.predictor = Mlp([out, hidden, out], F.relu, normed=True)
        if method == "dino":
            hidden, out = options["hidden"], options["bottleneck"]
            self.projector = Mlp([d, hidden, hidden, out], F.gelu)
            self.head = nn.Linear(out, options["prototypes"], bias=False)
        if method == "idmm" and config["projector"] > 0:
            width = config["projector"]
            self.projector = Mlp([d, d, width], F.relu)
        if method in ("idmm", "supervised"):
            self.head = nn.Linear(width, classes, bias=config["classifier_bias"])

    def features(self, images):
        return self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)

    def projected(self, images):
        features = self.features(images)
        return self.projector(features) if hasattr(self, "projector") else features

    def parameters_by_key(self):
        return {name.removeprefix("backbone."): p for name, p in self.named_parameters()}


def unit(x):
    return F.normalize(x, dim=1)


class Method:
    """A loss over a model and whatever it remembers; `views` is [V, B, 3, S, S]."""

    def __init__(self, model, config, init, targets, steps):
        self.model, self.config, self.options = model, config, config.get("options", {})
        self.targets, self.steps = targets, steps
        self.state = {k.removeprefix("init.state."): v.clone() for k, v in init.items() if k.startswith("init.state.")}
        self.teacher = None

    def before(self, step):
        pass

    def after(self, step):
        pass

    def frozen(self, key, step):
        return False

    def follow(self, momentum):
        """teacher = m teacher + (1 - m) student, over all parameters."""
        with torch.no_grad():
            student = dict(self.model.named_parameters())
            for name, t in self.teacher.named_parameters():
                t.mul_(momentum).add_(student[name], alpha=1 - momentum)


class CrossEntropy(Method):
    """IDMM, InsDis and supervised: mean over a crop group's rows, groups summed."""

    def loss(self, views, step):
        total, first = 0.0, 0
        epsilon, kind = self.config["optim"]["smoothing"], self.config["optim"]["smoothing_kind"]
        for group in self.config["crops"]:
            images = views[first : first + group["count"]].flatten(0, 1)
            first += group["count"]
            logits = self.model.head(self.model.projected(images))
            targets, classes = self.targets.repeat(group["count"]), logits.shape[1]
            if kind == "uniform":
                total = total + F.cross_entropy(logits, targets, label_smoothing=epsilon)
                continue
            soft = torch.full_like(logits, epsilon / (classes - 1))
            soft.scatter_(1, targets[:, None], 1 - epsilon)
            total = total + F.cross_entropy(logits, soft)
        return total


class SimClr(Method):
    """Chen et al. 2020: NT-Xent over the 2 B rows."""

    def loss(self, views, step):
        batch = views.shape[1]
        h = unit(self.model.projected(views.flatten(0, 1)))
        logits = h @ h.T / self.options["temperature"]
        logits.fill_diagonal_(-math.inf)
        positives = torch.arange(2 * batch).roll(batch)
        return F.cross_entropy(logits, positives)


class SupCon(Method):
    """Khosla et al. 2020, the form with the sum outside the logarithm."""

    def loss(self, views, step):
        tau = self.options["temperature"]
        h = unit(self.model.projected(views.flatten(0, 1)))
        labels = self.targets.repeat(2)
        total = 0.0
        for a in range(len(h)):
            others = [q for q in range(len(h)) if q != a]
            similar = h @ h[a] / tau
            log_denominator = torch.logsumexp(similar[others], 0)
            positives = [p for p in others if labels[p] == labels[a]]
            sums = sum(similar[p] - log_denominator for p in positives)
            total = total - tau / self.options["base_temperature"] * sums / max(len(positives), 1)
        return total / len(h)


class MoCoV2(Method):
    """He et al. 2020: queries of view 1 against keys of view 2 and a queue of earlier keys."""

    def __init__(self, *args):
        super().__init__(*args)
        self.teacher = copy.deepcopy(self.model)

    def before(self, step):
        self.follow(self.options["momentum"])

    def loss(self, views, step):
        queue = self.state["queue"]
        q = unit(self.model.projected(views[0]))
        with torch.no_grad():
            k = unit(self.teacher.projected(views[1]))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / self.options["temperature"]
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
        at = int(self.state["queue_at"])
        places = (at + torch.arange(len(k))) % len(queue)
        queue = queue.clone()
        queue[places] = k
        self.state = {"queue": queue, "queue_at": torch.tensor([float((at + len(k)) % len(queue))])}
        return loss


class MoCoV3(Method):
    """Chen, Xie & He 2021, Algorithm 1; projection of the patches frozen, momentum rising to 1 along a cosine."""

    def __init__(self, *args):
        super().__init__(*args)
        self.teacher = copy.deepcopy(self.model)
        del self.teacher.predictor

    def before(self, step):
        m = self.options["momentum"]
        self.follow(1 - (1 - m) * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def loss(self, views, step):
        tau = self.options["temperature"]
        q1, q2 = (unit(self.model.predictor(self.model.projected(v))) for v in views)
        with torch.no_grad():
            k1, k2 = (unit(self.teacher.projected(v)) for v in views)
        own = torch.arange(len(q1))
        ctr = lambda q, k: 2 * tau * F.cross_entropy(q @ k.T / tau, own)
        return ctr(q1, k2) + ctr(q2, k1)

    def frozen(self, key, step):
        return self.options["freeze_patch_embed"] and key.startswith("patch_embed.proj.")


class Dino(Method):
    """Caron et al. 2021, Algorithm 1 with multi-crop, weight-normalised last layer of gain 1."""

    def __init__(self, *args):
        super().__init__(*args)
        self.teacher = copy.deepcopy(self.model)

    def out(self, model, images):
        return unit(model.projected(images)) @ unit(model.head.weight).T

    def teacher_temperature(self, epoch):
        o = self.options
        start, end, warmup = (o[f"teacher_{k}"] for k in ("temperature_start", "temperature", "warmup_epochs"))
        return torch.linspace(start, end, warmup)[epoch].item() if epoch < warmup else end

    def loss(self, views, step):
        student = [self.out(self.model, v) for v in views]
        with torch.no_grad():
            teacher = [self.out(self.teacher, v) for v in views[:2]]
        centre, terms = self.state["centre"], []
        for i, t in enumerate(teacher):
            p = torch.softmax((t - centre) / self.teacher_temperature(step), 1)
            for j, s in enumerate(student):
                if i != j:
                    log_p = torch.log_softmax(s / self.options["student_temperature"], 1)
                    terms.append(-(p * log_p).sum(1).mean())
        m = self.options["centre_momentum"]
        self.state = {"centre": m * centre + (1 - m) * torch.cat(teacher).mean(0)}
        return sum(terms) / len(terms)

    def after(self, step):
        m = self.options["momentum"]
        self.follow(1 - (1 - m) * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def frozen(self, key, step):
        return key == "head.weight" and step < self.options["freeze_prototypes_epochs"]


METHODS = {"idmm": CrossEntropy, "supervised": CrossEntropy, "simclr": SimClr, "supcon": SupCon}
METHODS |= {"moco-v2": MoCoV2, "moco-v3": MoCoV3, "dino": Dino}


def optimiser(params, optim):
    """PyTorch's own, with the decay of one-dimensional parameters as the recipe wants it."""
    flat = [p for p in params.values() if p.ndim <= 1 and optim["no_decay_1d"]]
    rest = [p for p in params.values() if not (p.ndim <= 1 and optim["no_decay_1d"])]
    groups = [{"params": rest, "weight_decay": optim["weight_decay"]}]
    groups += [{"params": flat, "weight_decay": 0.0}] if flat else []
    if optim["kind"] == "sgd":
        return torch.optim.SGD(groups, lr=optim["lr"], momentum=optim["momentum"])
    return torch.optim.AdamW(groups, lr=optim["lr"], betas=(optim["beta1"], optim["beta2"]), eps=optim["eps"])


def clip(params, optim):
    """By the norm of all gradients together, or as DINO each parameter's by its own."""
    bound = optim["clip_grad"]
    if bound == 0:
        return
    if optim["clip_mode"] == "global":
        nn.utils.clip_grad_norm_(params, bound)
        return
    for p in params:
        factor = bound / (p.grad.norm(2) + 1e-6)
        if factor < 1:
            p.grad.mul_(factor)


def replay(backbone, config, init, views, targets, steps, classes):
    """`steps` steps at a constant rate from `init.KEY` with the `[pretrain]` settings in `config`, each step an
    epoch. Returns loss, grad.KEY of the first step, and param.KEY, teacher.KEY, state.KEY after the last."""
    model = Model(backbone, config, classes)
    params = model.parameters_by_key()
    given = {k.removeprefix("init.") for k in init if not k.startswith(("init.teacher.", "init.state."))}
    assert given == set(params), given ^ set(params)
    with torch.no_grad():
        for key, p in params.items():
            p.copy_(init[f"init.{key}"])
    method = METHODS[config["method"]](model, config, init, targets, steps)
    for key, p in method.teacher.named_parameters() if method.teacher else []:
        assert torch.equal(p, init[f"init.teacher.{key.removeprefix('backbone.')}"]), key
    optim, out, losses = optimiser(params, config["optim"]), {}, []
    for step in range(steps):
        method.before(step)
        optim.zero_grad()
        loss = method.loss(views, step)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            out |= {f"grad.{k}": p.grad.clone() for k, p in params.items() if p.grad is not None}
        clip([p for p in params.values() if p.grad is not None], config["optim"])
        if end := config["optim"]["weight_decay_end"]:
            start = config["optim"]["weight_decay"]
            decay = end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))
            optim.param_groups[0]["weight_decay"] = decay
        for key, p in params.items():
            if method.frozen(key, step):
                p.grad = None
        optim.step()
        method.after(step)
    out["loss"] = torch.tensor(losses)
    out |= {f"param.{k}": p.detach() for k, p in params.items()}
    for name, p in method.teacher.named_parameters() if method.teacher else []:
        out[f"teacher.{name.removeprefix('backbone.')}"] = p.detach()
    return out | {f"state.{k}": v.detach() for k, v in method.state.items()}


# A tiny model and batch; src/train/trace/method/tests.rs makes the same views.
STEPS, BATCH, IMG_SIZE = 10, 8, 16
# AdamW makes whole steps of gradients that are zero but for rounding, unless eps is above that.
OPTIM = ["pretrain.optim.lr=0.003", "pretrain.optim.eps=1e-5"]
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
INDEX, TARGETS = [3, 1, 6, 0, 8, 2, 5, 4], [0, 2, 0, 1, 3, 1, 2, 0]
# Views and settings over the method's recipe, as `fewvit trace --set` takes them.
CASES = {
    "idmm": ("idmm", 6, []),
    "idmm-projector": ("idmm", 6, ["pretrain.projector=8"]),
    "insdis": ("insdis", 2, []),
    "supervised": ("supervised", 2, []),
    "simclr": ("simclr", 2, ["pretrain.options.dim=8"]),
    "simclr-plain": ("simclr", 2, ["pretrain.options.dim=0"]),
    "supcon": ("supcon", 2, ["pretrain.options.dim=8"]),
    "supcon-sgd": ("supcon", 2, ["pretrain.options.dim=8", "pretrain.optim.kind=sgd"]),
    "moco-v2": ("moco-v2", 2, ["pretrain.options.dim=8", "pretrain.options.queue=10"]),
    # Batch statistics of four rows magnify rounding: at a higher rate f32 and f64 part.
    "moco-v3": (
        "moco-v3",
        2,
        ["pretrain.options.dim=8", "pretrain.options.hidden=12", "pretrain.optim.lr=0.0005"],
    ),
    "dino-global": (
        "dino",
        4,
        [
            "pretrain.options.hidden=12",
            "pretrain.options.bottleneck=8",
            "pretrain.options.prototypes=20",
            "pretrain.optim.clip_mode=global",
            "pretrain.optim.clip_grad=0.5",
        ],
    ),
    "dino": (
        "dino",
        4,
        [
            "pretrain.options.hidden=12",
            "pretrain.options.bottleneck=8",
            "pretrain.options.prototypes=20",
            "pretrain.options.teacher_temperature=0.07",
            "pretrain.options.teacher_warmup_epochs=3",
            "pretrain.optim.clip_grad=0.05",
        ],
    ),
}
# Of the backbone, these speak for all at the end; heads and state are kept whole.
WITNESSES = ("cls_token", "patch_embed.proj.bias", "blocks.0.norm1.bias", "blocks.0.mlp.fc1.bias", "norm.weight")


def made_up_views(count):
    n = count * BATCH * 3 * IMG_SIZE**2
    return ((torch.arange(n) * 7919 % 253) / 64 - 2).reshape(count, BATCH, 3, IMG_SIZE, IMG_SIZE)


def tiny():
    """Random in every parameter, so that no norm or bias is trivial."""
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(img_size=IMG_SIZE, **VIT)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def pretrain_config(recipe, views, settings):
    """`[pretrain]` of a recipe over that of paper.toml, with a constant rate and these settings."""
    folder = pathlib.Path(__file__).parents[2] / "recipes"
    read = lambda name: tomllib.loads((folder / f"{name}.toml").read_text())["pretrain"]
    config = read("paper")
    for key, value in read(recipe).items() if (folder / f"{recipe}.toml").exists() else []:
        config[key] = config[key] | value if isinstance(config.get(key), dict) else value
    for setting in settings:
        key, value = setting.split("=")
        *path, last = key.split(".")[1:]
        section = config
        for part in path:
            section = section[part]
        section[last] = type(section[last])(value)
    left, crops = views, []
    for group in config["crops"]:
        crops.append({"count": min(group["count"], left)})
        left -= crops[-1]["count"]
    crops[-1]["count"] += left
    return config | {"crops": [group for group in crops if group["count"]]}


def main():
    init = {f"init.{k}": v.clone() for k, v in tiny().state_dict().items()}
    out = dict(init)
    for name, (recipe, views, settings) in CASES.items():
        settings = [*OPTIM, *settings]
        config = pretrain_config(recipe, views, settings)
        classes = {"idmm": max(INDEX) + 1, "supervised": max(TARGETS) + 1}.get(config["method"], 0)
        torch.manual_seed(1)
        fresh = Model(tiny(), config, classes).parameters_by_key()
        heads = {f"init.{k}": v.detach().clone() for k, v in fresh.items() if f"init.{k}" not in init}
        start = init | heads
        if config["method"] in ("moco-v2", "moco-v3", "dino"):
            start |= {f"init.teacher.{k.removeprefix('init.')}": v for k, v in start.items()}
        memory = {}
        if config["method"] == "moco-v2":
            queue = unit(torch.randn(config["options"]["queue"], config["options"]["dim"]))
            memory = {"init.state.queue": queue, "init.state.queue_at": torch.zeros(1)}
        if config["method"] == "dino":
            memory = {"init.state.centre": torch.zeros(config["options"]["prototypes"])}
        of_rows = torch.tensor(TARGETS if config["method"] in ("supervised", "supcon") else INDEX)
        result = replay(tiny(), config, start | memory, made_up_views(views), of_rows, STEPS, classes)
        kept = lambda k: k == "loss" or k.startswith("state.") or not f"init.{k.split('.', 1)[1]}" in init
        kept = {k: v for k, v in result.items() if kept(k) or k.split(".", 1)[1] in WITNESSES}
        out |= {f"{name}.{k}": v for k, v in (heads | memory | kept).items()}
        out[f"{name}.views"] = torch.tensor(float(views))
        print(f"{name:<15} {result['loss'][0]:.5f} to {result['loss'][-1]:.5f}")
    path = pathlib.Path(__file__).with_name("methods.safetensors")
    cases = {name: [recipe, *OPTIM, *settings] for name, (recipe, _, settings) in CASES.items()}
    save_file({k: v.detach().contiguous().clone() for k, v in out.items()}, path, {"cases": json.dumps(cases)})
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
