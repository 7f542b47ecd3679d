"""From examples to batches: the one shift, packing, micro-batches."""

from collections.abc import Iterable, Iterator

import torch

from r1.context import Ragged, send
from r1.types import Batch, Example

PAYS = 0.9      # share of the padded tokens, below which rows without padding and with prompts once are faster


def collate(examples: list[Example], device: torch.device | str = "cpu") -> Batch:
    """Pad on the right and shift once: column t predicts token t + 1. All fields (B, T), T = longest - 1.

    Padding needs no attention mask: it stands behind every real token and causal attention never sees it. Where much of the
    batch is padding, or a prompt that other rows have too, `ragged` says how to run the model without."""
    B, T = len(examples), max(len(e.ids) for e in examples) - 1
    ids = torch.zeros(B, T + 1, dtype=torch.long)
    mask = torch.zeros(B, T, dtype=torch.bool)
    w, adv, old_logp = torch.zeros(3, B, T)
    for b, e in enumerate(examples):
        n = len(e.ids)
        ids[b, :n] = torch.tensor(e.ids)
        mask[b, :n - 1] = torch.tensor(e.mask[1:], dtype=torch.bool)
        w[b, :n - 1] = mask[b, :n - 1] * e.w
        adv[b, :n - 1] = mask[b, :n - 1] * e.adv
        if e.old_logp:
            old_logp[b][mask[b]] = torch.tensor(e.old_logp)
    ragged = None
    groups = [g for g in families(examples) if len(g) > 1 and prompt_length(g[0])]
    prompts, member = [prompt_length(g[0]) for g in groups], {id(e): u for u, g in enumerate(groups) for e in g}
    if sum(prompts) + sum(len(e.ids) - 1 - (prompt_length(e) if id(e) in member else 0) for e in examples) < PAYS * B * T:
        ragged = Ragged(prompts, [member.get(id(e), -1) for e in examples], [len(e.ids) - 1 for e in examples]).to(device)
    learned = mask.flatten().nonzero()[:, 0]
    return Batch(*(send(t, device) for t in (ids[:, :-1], ids[:, 1:], mask, learned, w, adv, old_logp)), ragged=ragged)


def prompt_length(e: Example) -> int:
    """Tokens before the first supervised one."""
    return e.mask.index(1) if 1 in e.mask else 0


def families(examples: list[Example]) -> list[list[Example]]:
    """The examples of each prompt together, longest last, and the prompts by their longest."""
    found: dict[tuple, list[Example]] = {}
    for e in sorted(examples, key=lambda e: len(e.ids)):
        found.setdefault(tuple(e.ids[:prompt_length(e)]) or (id(e),), []).append(e)
    return sorted(found.values(), key=lambda g: len(g[-1].ids))


def micro_batches(examples: list[Example], max_tokens: int) -> list[list[Example]]:
    """Split into groups that take at most `max_tokens` places (one example at least). Those of one prompt stay together where
    they fit, and like lengths do."""
    groups: list[list[list[Example]]] = []
    for family in families(examples):
        while family:
            n = len(family)
            while n > 1 and _places([family[:n]]) > max_tokens:
                n -= 1
            if not groups or _places([*groups[-1], family[:n]]) > max_tokens:
                groups.append([])
            groups[-1].append(family[:n])
            family = family[n:]
    return [[e for family in group for e in family] for group in groups]


def _places(group: list[list[Example]]) -> int:
    """Padded tokens of these families: whole rows, or if that is less, prompts once and the rest of the rows."""
    shared = [prompt_length(f[0]) if len(f) > 1 else 0 for f in group]
    B, longest = sum(map(len, group)), max(len(f[-1].ids) for f in group)
    rest = max(len(f[-1].ids) - p for f, p in zip(group, shared, strict=True))
    return min(B * longest, sum(p > 0 for p in shared) * max(shared) + B * rest)


def pack(documents: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Rows of `length` ids: documents one after another, every row begins with a document's beginning,
    and the last one of a row is cut (its rest is dropped, so that no row starts in mid-sentence)."""
    row: list[int] = []
    for ids in documents:
        row += ids
        if len(row) >= length:
            yield row[:length]
            row = []
