"""One optimiser step, whatever the loss: micro-batches, backward, clip, step."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from r1.data import collate, micro_batches
from r1.losses import token_logprobs
from r1.types import Batch, Example


def lr_at(step: int, steps: int, peak: float, warmup: int, final: float, schedule: str) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then "constant", or "cosine" down to peak * final."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def make_optimizer(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW in fp32; weight decay on matrices only."""
    groups = [{"params": [p for p in model.parameters() if p.requires_grad and p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in model.parameters() if p.requires_grad and p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def supervised_logprobs(model: nn.Module, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, T) of the targets, 0 where not supervised, and the logits (N, V) they come from.

    The vocabulary projection runs over the N supervised positions only: (B, T, V) never exists."""
    logits = model.lm_head(model.hidden(batch.inputs)[batch.mask])                       # (N, V)
    logp = token_logprobs(logits, batch.targets[batch.mask], temperature)                # (N,)
    return torch.zeros(batch.mask.shape, device=logp.device).masked_scatter(batch.mask, logp), logits.detach()


def optimise(model: nn.Module, optimizer: torch.optim.Optimizer, examples: list[Example],
             loss_fn: Callable[[Batch], tuple[Tensor, dict]], lr: float, micro_tokens: int, clip: float) -> dict:
    """One step on `examples`, whose weights `w` already sum over all of them. Returns loss, grad_norm and the
    sums that `loss_fn` returned, added over micro-batches. A step with a non-finite gradient is skipped."""
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, float] = {"loss": 0.0}
    for group in micro_batches(examples, micro_tokens):
        loss, sums = loss_fn(collate(group, device))
        loss.backward()
        for name, value in {"loss": loss.detach(), **sums}.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip))
    skipped = not math.isfinite(norm)
    if not skipped:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return {**totals, "grad_norm": norm, "lr": lr, "skipped": int(skipped)}
