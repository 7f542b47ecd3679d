"""Low-rank adapters (Hu et al. 2021, LoRA, eq. 3): h = W x + alpha / rank * B A x. W stays as it is, A and B are trained.

What is saved is the sum, a model like any other; and with the adapters switched off the policy is its own reference model.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1.config import LoRA
from r1.types import UserError


class Adapted(nn.Linear):
    """A linear layer beside which a product of rank `rank` is learned. A is random and B zero: it begins as the layer alone."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float, generator: torch.Generator):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale, self.on = layer.in_features, layer.out_features, scale, True
        self.weight, self.bias = layer.weight, layer.bias
        like = {"device": layer.weight.device, "dtype": torch.promote_types(layer.weight.dtype, torch.float32)}
        a = (torch.rand(rank, layer.in_features, generator=generator) * 2 - 1) / math.sqrt(layer.in_features)     # as peft's
        self.a = nn.Parameter(a.to(**like))                                                     # (rank, in)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank, **like))                    # (out, rank)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y + F.linear(F.linear(x, self.a), self.b) * self.scale if self.on else y

    def merged(self) -> Tensor:
        return self.weight + (self.b @ self.a * self.scale).to(self.weight.dtype) if self.on else self.weight


def adapt(model: nn.Module, cfg: LoRA, seed: int) -> nn.Module:
    """Adapters on the layers that end with a name of cfg.targets; all else is frozen. Nothing happens at rank 0."""
    if not cfg.rank:
        return model
    known = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    if wrong := [t for t in cfg.targets if t not in known]:
        raise UserError(f"lora.targets: the model has no layers {wrong[0]!r}; it has {', '.join(sorted(known))}")
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if name in cfg.targets:
                setattr(module, name, Adapted(layer, cfg.rank, cfg.alpha / cfg.rank, generator))
    return model


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """The model without its adapters meanwhile: what it started from."""
    found = [m for m in model.modules() if isinstance(m, Adapted)]
    for m in found:
        m.on = False
    try:
        yield
    finally:
        for m in found:
            m.on = True
