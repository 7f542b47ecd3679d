"""From examples to batches: the one shift, packing, micro-batches."""
from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from r1.types import Batch, Example


def collate(examples: list[Example], device: torch.device | str = "cpu") -> Batch:
    """Pad on the right and shift once: column t predicts token t + 1. All fields (B, T), T = longest - 1.

    Padding needs no attention mask: it stands behind every real token and causal attention never sees it."""
    B, T = len(examples), max(len(e.ids) for e in examples) - 1
    ids = torch.zeros(B, T + 1, dtype=torch.long)
    mask = torch.zeros(B, T, dtype=torch.bool)
    w, adv = torch.zeros(B, T), torch.zeros(B, T)
    old_logp = torch.zeros(B, T)
    for b, e in enumerate(examples):
        n = len(e.ids)
        ids[b, :n] = torch.tensor(e.ids)
        mask[b, :n - 1] = torch.tensor(e.mask[1:], dtype=torch.bool)
        w[b, :n - 1] = mask[b, :n - 1] * e.w
        adv[b, :n - 1] = mask[b, :n - 1] * e.adv
        if e.old_logp:
            old_logp[b][mask[b]] = torch.tensor(e.old_logp)
    return Batch(*(t.to(device) for t in (ids[:, :-1], ids[:, 1:], mask, w, adv, old_logp)))


def micro_batches(examples: list[Example], max_tokens: int) -> list[list[Example]]:
    """Split into groups whose padded size is at most `max_tokens` (one example at least), like lengths together."""
    groups: list[list[Example]] = []
    longest = 0
    for e in sorted(examples, key=lambda e: len(e.ids)):
        longest = max(longest, len(e.ids))
        if not groups or (len(groups[-1]) + 1) * longest > max_tokens:
            groups.append([])
            longest = len(e.ids)
        groups[-1].append(e)
    return groups


def pack(documents: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Rows of `length` ids: documents one after another, every row begins with a document's beginning,
    and the last one of a row is cut (its rest is dropped, so that no row starts in mid-sentence)."""
    row: list[int] = []
    for ids in documents:
        row += ids
        if len(row) >= length:
            yield row[:length]
            row = []
