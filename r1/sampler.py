"""Batched sampling with a KV cache: prompts in ids -> rollouts in ids. Knows no text, no rewards, no ranks.

A sample is a pure function of (weights, prompt ids, seed, sample index): its random numbers come from a hash
of those and of the token's position, never from a generator shared with the neighbours. So the same tokens
come out alone, in a batch, in another order, or beside rows that have finished (fp32).
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from r1.config import Sample
from r1.model import KVCache, Transformer
from r1.types import Rollout, UserError


def row_seed(seed: int, prompt: list[int], sample: int) -> int:
    """64 bits for one row, from content alone."""
    text = f"{seed}|{sample}|{','.join(map(str, prompt))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(seeds: np.ndarray, position: np.ndarray) -> np.ndarray:
    """One number in (0, 1) per (row seed, position), both uint64 (N,): the SplitMix64 finaliser."""
    with np.errstate(over="ignore"):
        z = seeds + (position.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def draw(logits: Tensor, u: Tensor, s: Sample) -> tuple[Tensor, Tensor]:
    """Tokens (N,) and their log-probs (N,) under the distribution they are drawn from; logits (N, V), u (N,) float64.

    All in float64, by inverse CDF: a token of probability 0 is never drawn. Raises UserError for non-finite rows."""
    bad = ~torch.isfinite(logits.amax(dim=-1))
    if bad.any():
        raise UserError(f"row {int(bad.nonzero()[0])}: the model's logits are not finite: training has diverged (try a lower lr), "
                        f"or its weights are damaged")
    if s.temperature == 0:
        token = logits.argmax(dim=-1)
        return token, torch.zeros_like(token, dtype=torch.float64)
    logp = torch.log_softmax(truncate(logits.double() / s.temperature, s), dim=-1)   # (N, V)
    cdf = logp.exp().cumsum(dim=-1)
    below = torch.nextafter(cdf[:, -1:], torch.zeros_like(cdf[:, -1:]))        # or rounding could pass the last token
    token = torch.searchsorted(cdf, torch.minimum(u[:, None] * cdf[:, -1:], below), right=True)
    return token.squeeze(-1), logp.gather(-1, token).squeeze(-1)


def truncate(logits: Tensor, s: Sample) -> Tensor:
    """Set everything outside the top k, or outside the smallest set of mass top_p, to -inf."""
    if s.top_k:
        kth = logits.topk(min(s.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if s.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        p = ordered.softmax(dim=-1)
        outside = p.cumsum(dim=-1) - p >= s.top_p                              # the first token always stays
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits


@torch.no_grad()
def generate(model: Transformer, prompts: list[list[int]], n: int, s: Sample, seed: int, eos: Iterable[int],
             limits: list[int] | None = None, stop: Callable[[list[int]], bool] | None = None,
             on_token: Callable[[int, int, int], None] | None = None,
             on_rows: Callable[[int], None] | None = None) -> list[list[Rollout]]:
    """`n` rollouts of each prompt, in the order of the prompts.

    `limits` are token limits per prompt (else s.max_new_tokens); `stop(ids)` ends a row after a token;
    `on_token(prompt, sample, id)` streams; `on_rows(k)` reports k finished rows. Raises UserError for a prompt
    that is empty or leaves no room in the context."""
    limits = limits or [s.max_new_tokens] * len(prompts)
    context = model.cfg.max_position_embeddings
    for i, p in enumerate(prompts):
        if not p:
            raise UserError(f"prompt {i} is empty")
        if len(p) >= context:
            raise UserError(f"prompt {i} has {len(p)} tokens, but the model's context holds {context}; shorten it")
    limits = [min(limit, context - len(p)) for limit, p in zip(limits, prompts, strict=True)]
    was_training = model.training
    model.eval()
    per = max(1, s.max_rows // n)
    out: list[list[Rollout]] = []
    try:
        for i in range(0, len(prompts), per):
            chunk = slice(i, i + per)
            out += _generate_chunk(model, prompts[chunk], n, s, seed, frozenset(eos), limits[chunk], stop,
                                   on_token and (lambda q, g, t, i=i: on_token(i + q, g, t)), on_rows)
    finally:
        model.train(was_training)
    return out


def _prefill(model: Transformer, prompts: list[list[int]], n: int, room: int) -> tuple[KVCache, Tensor]:
    """Read each prompt once, padded on the left; return the cache and last logits, repeated for n samples each."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    cache = KVCache(model.cfg, len(prompts), longest, device, torch.bfloat16 if model.bf16 else model.embed_tokens.weight.dtype)
    cache.start = torch.tensor([longest - len(p) for p in prompts], device=device)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)   # (Q, T)
    at = torch.arange(longest, device=device).expand_as(ids) == longest - 1
    last = model(ids, cache, at)                                                         # (Q, V)
    rows = torch.arange(len(prompts), device=device).repeat_interleave(n)                # (Q * n,)
    return cache.select(rows, longest + room), last[rows]


def _generate_chunk(model, prompts, n, s, seed, eos, limits, stop, on_token, on_rows) -> list[list[Rollout]]:
    N, device = len(prompts) * n, next(model.parameters()).device
    ids: list[list[int]] = [[] for _ in range(N)]
    logps: list[list[float]] = [[] for _ in range(N)]
    finish = ["length"] * N
    limit = np.repeat(np.array(limits), n)
    seeds = np.array([row_seed(seed, p, g) for p in prompts for g in range(n)], dtype=np.uint64)
    live = np.arange(N)                                   # the rows still being decoded, in cache order
    keep = limit > 0
    cache, logits = _prefill(model, prompts, n, int(limit.max()))
    for t in range(int(limit.max())):
        if not keep.all():                                # finished rows leave: a quarter of them, or a full one
            if not keep.any():
                break
            full = cache.length - int(cache.start.min()) >= model.cfg.max_position_embeddings
            if t == 0 or full or keep.sum() <= 0.75 * len(keep):
                rows = torch.from_numpy(np.flatnonzero(keep)).to(device)
                cache, logits = cache.select(rows), logits[rows]
                live, keep = live[keep], keep[keep]
        u = torch.from_numpy(uniform(seeds[live], np.full(len(live), t))).to(device)
        token, logp = draw(logits, u, s)
        for j, (row, id, lp) in enumerate(zip(live, token.tolist(), logp.tolist(), strict=True)):
            if not keep[j]:
                continue
            ids[row].append(id)
            logps[row].append(lp)
            if on_token:
                on_token(row // n, row % n, id)
            if id in eos:
                finish[row], keep[j] = "eos", False
            elif stop and stop(ids[row]):
                finish[row], keep[j] = "stop", False
            elif len(ids[row]) >= limit[row]:
                keep[j] = False
            if not keep[j] and on_rows:
                on_rows(1)
        if keep.any():
            logits = model(token[:, None], cache)[:, -1]  # (N, V)
    rollouts = [Rollout(prompts[r // n], ids[r], logps[r], finish[r]) for r in range(N)]
    return [rollouts[q * n:(q + 1) * n] for q in range(len(prompts))]
