"""One optimiser step, whatever the loss: micro-batches, backward, clip, step."""
from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor, nn

from r1 import graph, ranks
from r1.data import collate
from r1.losses import at_once, token_logprobs
from r1.model import fast_bf16
from r1.types import Batch, Example

AT_ONCE = 2 ** 24      # numbers of matrices that Muon moves together


def lr_at(step: int, steps: int, peak: float, warmup: int, final: float, schedule: str) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then "constant", or "cosine" down to peak * final."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def make_optimizer(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float,
                   muon_lr: float = 0.0, offload: bool = False) -> torch.optim.Optimizer | Several:
    """AdamW in fp32, weight decay on matrices only. With `muon_lr` the matrices inside the blocks are moved by
    Muon at that rate instead (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/); with `offload` moments
    wait in the host's memory (as in ZeRO-Offload, arXiv 2101.06840, but for the step itself)."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden = [p for n, p in named if muon_lr and p.dim() == 2 and n.startswith("layers.")]
    taken = {id(p) for p in hidden}
    groups = [{"params": [p for _, p in named if id(p) not in taken and p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0}]
    if offload:
        return Several(*(Hosted([{**g, "params": [p]}], lr=lr, betas=betas, fused=True) for g in groups for p in g["params"]))
    adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    return Several(Muon([{"params": hidden, "scale": muon_lr / lr}], {"lr": muon_lr, "weight_decay": weight_decay}), adamw) if hidden else adamw


class Muon(torch.optim.Optimizer):
    """What torch.optim.Muon does with its defaults, but for several matrices of a shape at once, and not in bfloat16 where a CPU
    has no instructions for it."""

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for (R, C), same in groupby(sorted((p for p in group["params"] if p.grad is not None), key=Tensor.size), Tensor.size):
                same, n, mine = list(same), max(1, AT_ONCE // (R * C)), slice(*ranks.rows(R))
                for some in (same[i:i + n] for i in range(0, len(same), n)):
                    moves = orthogonal(torch.stack([ranks.whole(self._momentum(p)) for p in some]))      # (n, R, C): it looks at whole matrices
                    for p, move in zip(some, moves, strict=True):
                        ranks.local(p).mul_(1 - group["lr"] * group["weight_decay"]).add_(move[mine], alpha=-group["lr"] * max(1, R / C) ** 0.5)

    def _momentum(self, p: Tensor) -> Tensor:
        """Nesterov's."""
        if p not in self.state:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return p.grad.lerp(self.state[p]["momentum_buffer"].lerp_(p.grad, 0.05), 0.95)


def orthogonal(x: Tensor) -> Tensor:
    """Matrices (N, R, C) with their singular values brought near to 1, by five steps of Newton and Schulz whose coefficients are Jordan's."""
    y = (x.mT if x.shape[1] > x.shape[2] else x).to(torch.bfloat16 if fast_bf16(x.device.type) else torch.float32)
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp(min=1e-7)                   # (N, 1, 1)
    for _ in range(5):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), y, beta=3.4445)
    return y.mT if x.shape[1] > x.shape[2] else y


class Hosted(torch.optim.AdamW):
    """AdamW of one parameter, whose moments visit its device for the step alone."""

    def step(self) -> None:
        self._move(self.param_groups[0]["params"][0].device)
        super().step()
        self._move("cpu")

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._move("cpu")

    def _move(self, device) -> None:
        for moments in self.state.values():
            moments |= {k: v.to(device) for k, v in moments.items()}


class Several:
    """Optimisers of disjoint parameters, stepped together."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        return [g for o in self.parts for g in o.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for o in self.parts:
            o.zero_grad(set_to_none)

    def step(self) -> None:
        for o in self.parts:
            o.step()


def supervised_logprobs(model: nn.Module, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T) of the targets, 0 where not supervised, and the entropy (N,) of each distribution.

    The vocabulary projection runs over the N supervised positions only: (B, T, V) never exists, and (N, V) in pieces."""
    ids, at, context = batch.inputs, batch.learned, batch.ragged                         # (B, T), (N,)
    targets = batch.targets.flatten().index_select(0, at)                                # (N,)
    if context is not None:
        ids, at = ids.flatten()[context.token][None], context.place.flatten().index_select(0, at)     # (1, N of all tokens), (N,)
    rows = at_once(model.cfg.vocab_size, ids.device.type == "cpu", model.compiled and model.bf16)
    logp, entropy = model(ids, context, at, lambda x, weight: token_logprobs(x, weight, targets, temperature, model.words, rows,
                                                                             graph.compiled if model.compiled else None))
    return logp.new_zeros(batch.mask.numel()).index_copy(0, batch.learned, logp).view(batch.mask.shape), entropy


def optimise(model: nn.Module, optimizer: torch.optim.Optimizer | Several, examples: list[Example],
             loss_fn: Callable[[Batch], tuple[Tensor, dict]], lr: float, micro_tokens: int, clip: float) -> dict:
    """One step on `examples`, whose weights `w` already sum over all of them. Returns loss, grad_norm and the
    sums that `loss_fn` returned, added over micro-batches and ranks. A step with a non-finite gradient is skipped."""
    ranks.at("update")
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    totals = {"loss": torch.zeros(())}
    for group in ranks.deal(examples, micro_tokens):
        loss, sums = loss_fn(collate(group, device))
        loss.backward()
        for name, value in {"loss": loss.detach() / ranks.world(), **sums}.items():
            totals[name] = totals.get(name, 0.0) + value.detach().double()         # no waiting for the device between micro-batches
    norm = float(ranks.whole(nn.utils.clip_grad_norm_(model.parameters(), clip)))
    skipped = not math.isfinite(norm)
    if not skipped:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        optimizer.step()
    return {**ranks.total({name: float(value) for name, value in totals.items()}), "grad_norm": norm, "lr": lr, "skipped": int(skipped)}
