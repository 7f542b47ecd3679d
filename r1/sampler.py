"""Batched sampling with a KV cache: prompts in ids -> rollouts in ids. Knows no text, no rewards, no ranks.

A sample is a pure function of (weights, prompt ids, seed, sample index): its random numbers come from a hash
of those and of the token's position, never from a generator shared with the neighbours. So the same tokens
come out alone, in a batch, in another order, or beside rows that have finished (fp32).
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from r1.config import Sample
from r1.context import CHUNK, READ, KVCache, copied, send
from r1.graph import Steps, on_host
from r1.model import Transformer
from r1.types import Rollout, UserError

BLOCK = 256      # tokens whose probabilities are summed before one of them is drawn


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


def check(logp: Tensor) -> None:
    if not (fine := torch.isfinite(logp)).all():
        raise UserError(f"row {int((~fine).nonzero()[0, 0])}: the model's logits are not finite: training has diverged (try a lower lr), or its weights are damaged")


def pick(logits: Tensor, u: Tensor, s: Sample) -> tuple[Tensor, Tensor]:
    """Tokens (N,) and their log-probs (N,) under the distribution they are drawn from; logits (N, V), u (N,) float64.

    By inverse CDF, first of blocks of tokens, then within one: a token of probability 0 is never drawn. It does not wait for the
    device: rows that are not finite have a log-prob of nan (`check`)."""
    if s.temperature == 0:
        token = logits.argmax(dim=-1)
        return token, (logits.gather(-1, token[:, None])[:, 0] * 0).abs().double()     # nan if any of the row is not finite
    x = logits if s.temperature == 1 else logits.float() / s.temperature
    weight = torch.softmax(truncate(x, s), dim=-1, dtype=torch.float32)                 # (N, V)
    if more := -weight.shape[1] % BLOCK:
        weight = F.pad(weight, (0, more))
    weight = weight.unflatten(1, (-1, BLOCK))
    sums = weight.sum(dim=-1).double()                                                  # (N, V / BLOCK)
    block, rest = _find(sums, u)
    row = torch.arange(len(u), device=u.device)
    inside = weight[row, block].double()                                                # (N, BLOCK)
    index = _find(inside, rest)[0]
    token = (block * BLOCK + index).clamp(max=logits.shape[1] - 1)                      # of a row of nan, too, one that there is
    return token, inside[row, index].log() - sums.sum(-1).log()


def _find(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse CDF of weights (N, K) at u (N,): the index (N,), and how far u lies within it, from 0 to 1."""
    cdf = weight.cumsum(dim=-1)
    total = cdf[:, -1:]
    at = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))    # rounding must not pass the last
    index = torch.searchsorted(cdf, at, right=True).clamp(max=weight.shape[1] - 1)             # nan would be behind the last
    own = weight.gather(-1, index)
    return index.squeeze(-1), ((at - cdf.gather(-1, index) + own) / own).clamp(0, 1).squeeze(-1)


def truncate(logits: Tensor, s: Sample) -> Tensor:
    """Set everything outside the top k, or outside the smallest set of mass top_p, to -inf."""
    if s.top_k:
        logits = logits.masked_fill(logits < logits.topk(min(s.top_k, logits.shape[-1]), dim=-1).values[:, -1:], -torch.inf)
    if s.top_p < 1:
        logits, left, k = logits.float(), torch.arange(len(logits), device=logits.device), 16    # so many are sorted first: seldom are more needed
        lse, all_of, logits = logits.logsumexp(dim=-1, keepdim=True), logits, torch.full_like(logits, -torch.inf)
        while len(left):
            ordered, order = all_of[left].topk(min(k, logits.shape[-1]), dim=-1)                 # (n, k)
            p = (ordered - lse[left]).exp()
            mass = p.cumsum(dim=-1)
            logits[left] = logits[left].scatter(-1, order, ordered.masked_fill(mass - p >= s.top_p, -torch.inf))    # the first token always stays
            left, k = left[(mass[:, -1] < s.top_p) & (k < logits.shape[-1])], k * 8
    return logits


@torch.inference_mode()
def generate(model: Transformer, prompts: list[list[int]], n: int, s: Sample, seed: int, eos: Iterable[int],
             limits: list[int] | None = None, stop: Callable[[list[int]], bool] | None = None,
             on_token: Callable[[int, int, int], None] | None = None,
             on_rows: Callable[[int], None] | None = None) -> list[list[Rollout]]:
    """`n` rollouts of each prompt, in the order of the prompts.

    `limits` are token limits per prompt (else s.max_new_tokens); `stop(ids)` ends a row after a token; `on_token(prompt, sample, id)` streams;
    `on_rows(k)` reports k finished rows. Raises UserError for a prompt that is empty or leaves no room in the context."""
    limits = limits or [s.max_new_tokens] * len(prompts)
    context = model.cfg.max_position_embeddings
    for i, p in enumerate(prompts):
        if not p:
            raise UserError(f"prompt {i} is empty")
        if len(p) >= context:
            raise UserError(f"prompt {i} has {len(p)} tokens, but the model's context holds {context}; shorten it")
    limits = [min(limit, context - len(p)) for limit, p in zip(limits, prompts, strict=True)]
    with model.laid_out():
        return _decode(model, prompts, n, s, seed, frozenset(eos), limits, stop, on_token, on_rows)


def _prefill(model: Transformer, prompts: list[list[int]]) -> tuple[KVCache, Tensor]:
    """Read each prompt once, padded on the left; the cache and the last logits (Q, V)."""
    device, longest = next(model.parameters()).device, max(map(len, prompts))
    start = torch.tensor([longest - len(p) for p in prompts])
    dtype = torch.bfloat16 if model.bf16 else model.embed_tokens.weight.dtype
    cache = KVCache(model.cfg, len(prompts), longest, device, dtype, start)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)   # (Q, T)
    return cache, model(ids, cache, torch.arange(longest - 1, ids.numel(), longest, device=device))


def _refill(model, cache, logits, keep: np.ndarray, prompts: list[list[int]], enter: list[int], n: int, copies: bool) -> tuple[KVCache, Tensor]:
    """The rows that are kept and, behind them, those that enter, in ascending order: of prompt r // n each, and every prompt read
    once. With `copies`, rows go on in copies of what was read of their prompts; else they share it."""
    device, asked = next(model.parameters()).device, sorted({r // n for r in enter})
    at = lambda found: torch.as_tensor(found, device=device)  # noqa: E731
    kept, new, room = at(np.flatnonzero(keep)), np.arange(0), CHUNK[device.type == "cpu"]
    own, last, read = ([(cache, kept)], [logits[kept]], []) if len(kept) else ([], [], [])
    if enter:
        once = max(1, READ // max(len(prompts[q]) for q in asked))
        read, first = zip(*(_prefill(model, [prompts[q] for q in asked[i:i + once]]) for i in range(0, len(asked), once)), strict=True)
        new = np.searchsorted(asked, [r // n for r in enter])
        last.append(torch.cat(first)[at(new)])
    if copies:
        return KVCache.join(model.cfg, own + [(c, at(new[new // once == i] % once)) for i, c in enumerate(read)], room=room), torch.cat(last)
    of, fresh = [new := at(new)], [(c, at(np.arange(c.k.shape[1]))) for c in read]
    if own:
        used, old = cache.of[kept].unique(return_inverse=True)
        of, fresh = [old, new + len(used)], [(cache.prompts, used), *fresh]
    rows = KVCache.join(model.cfg, own or [(read[0], new[:0])], len(enter), room)
    return rows.behind(KVCache.join(model.cfg, fresh), torch.cat(of)), torch.cat(last)


def _decode(model, prompts, n, s, seed, eos, limits, stop, on_token, on_rows) -> list[list[Rollout]]:
    N, device = len(prompts) * n, next(model.parameters()).device
    ids: list[list[int]] = [[] for _ in range(N)]
    logps: list[list[float]] = [[] for _ in range(N)]
    finish = ["length"] * N
    limit = np.repeat(np.array(limits, dtype=int), n)
    seeds = np.array([row_seed(seed, p, g) for p in prompts for g in range(n)], dtype=np.uint64)
    waiting = [r for r in range(N) if limit[r] > 0][::-1]
    live, keep = np.empty(0, dtype=int), np.empty(0, dtype=bool)      # the rows being decoded, in cache order; not finished yet
    cache = logits = None
    copies = n == 1 or copied(model.cfg, min(N, s.max_rows), max(map(len, prompts), default=0))
    steps = Steps(model, lambda logits, u: pick(logits, u, s), s.top_p == 1)
    while waiting or keep.any():
        full = cache is not None and cache.reach(0) >= model.cfg.max_position_embeddings
        if keep.sum() <= 0.75 * len(keep) or full and not keep.all():  # a quarter has finished: they leave, others take their places
            enter = [waiting.pop() for _ in range(min(len(waiting), s.max_rows - int(keep.sum())))]
            cache, logits = _refill(model, cache, logits, keep, prompts, enter, n, copies)
            live = np.concatenate([live[keep], np.array(enter, dtype=int)])
            keep = np.ones(len(live), dtype=bool)
        at = np.array([len(ids[r]) for r in live])
        token, logp = steps.draw(logits, send(torch.from_numpy(uniform(seeds[live], at)), device))
        drawn = on_host(token, logp)
        if early := device.type == "cuda" and (keep & (at + 1 < limit[live])).any():     # the GPU reads on while the host looks at what was drawn
            logits = steps.read(token, cache)
        chosen, logp = drawn()
        check(logp)
        for j, (row, id, lp) in enumerate(zip(live, chosen.tolist(), logp.tolist(), strict=True)):
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
        if keep.any() and not early:
            logits = steps.read(token, cache)                         # (N, V)
    rollouts = [Rollout(prompts[r // n], ids[r], logps[r], finish[r]) for r in range(N)]
    return [rollouts[q * n:(q + 1) * n] for q in range(len(prompts))]
