"""What both attempts rest on: a language model's body and one number, how likely something is right that ends at a token."""
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1.context import Causal


class Judge(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body, self.head = body, nn.Linear(body.cfg.hidden_size, 1)
        nn.init.zeros_(self.head.weight)                       # no random numbers but the seed's
        nn.init.zeros_(self.head.bias)

    def logits(self, rows: list[list[int]]) -> Tensor:
        """Rows of ids, padded on the right -> (B, T)."""
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for b, row in enumerate(rows):
            ids[b, :len(row)] = torch.tensor(row)
        return self.head(self.body.hidden(ids, Causal())).squeeze(-1)


def fit(judge: Judge, rows: list[tuple[list[int], list[int], list[float]]], epochs: int, batch: int, seed: int) -> None:
    """On rows of ids, the lengths at which they are judged, and what is true there."""
    rng, optimizer = random.Random(seed), torch.optim.AdamW(judge.parameters(), lr=3e-4)
    for _ in range(epochs):
        rng.shuffle(rows)
        for i in range(0, len(rows), batch):
            part = rows[i:i + batch]
            logits = judge.logits([ids for ids, _, _ in part])
            picked = torch.stack([logits[b, n - 1] for b, (_, at, _) in enumerate(part) for n in at])
            loss = F.binary_cross_entropy_with_logits(picked, torch.tensor([x for _, _, true in part for x in true]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    judge.eval()
