"""What each token attends to and where it stands: in rows of their own, in rows that share prompts, behind a cache.

`Transformer.forward` asks its context and knows no difference. B batch, T time (new tokens), S time (a row's columns),
H heads, K key/value heads, R = H / K queries of a key head, D head width; U prompts of P columns, G rows at most behind one.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 2 ** 24      # numbers that plain products may keep for the backward of a layer
SHARE = 2 ** 19    # numbers of keys from which sharing prompts costs a CPU less than a copy for every row
READ = 2 ** 14       # tokens of prompts that are read at once
KERNEL = 1536     # columns of all key heads up to which torch's kernel is faster in bf16 than two products of oneDNN, each of which takes 15 us to begin
SHORT = 512     # so far plain products are up to three times as fast on a CPU as torch's kernel, which keeps less for the backward
CHUNK = 256, 32  # columns that a cache grows by on a GPU, where steps are recorded anew for it, and on a CPU


def copied(cfg, rows: int, prompt: int) -> bool:
    """Whether rows behind prompts as long take copies of them."""
    return rows * prompt * cfg.num_key_value_heads * cfg.head_dim <= SHARE


def send(t: Tensor, device) -> Tensor:
    """To the device, without waiting until it has done what it was given before."""
    return t.contiguous().pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else t.to(device)


class Causal:
    """Rows (B, T) from position 0 on. Padding on the right needs no mask: no real token looks there."""

    def reach(self, T: int) -> int:
        """Positions of the longest row when T more tokens are read."""
        return T

    def positions(self, T: int, device) -> Tensor:
        """Of T new tokens, as they stand after `spread`: (B or 1, T)."""
        return torch.arange(T, device=device)[None]

    def spread(self, x: Tensor) -> Tensor:
        """From the tokens that the layers see, (B, T, _), to the rows that attend."""
        return x

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, T, H, D), k and v (B, T, K, D) -> (B, T, H, D)."""
        return sdpa(q, k, v)

    def collect(self, x: Tensor) -> Tensor:
        """The way back of `spread`."""
        return x

    def advance(self, T: int) -> None:
        """Every layer has read T tokens."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q (B, T, H, D) to k and v (B, S, K, D): causal, or by a mask (B, 1, T, S) of numbers added to scores."""
    (B, T, H, D), (_, S, K, _) = q.shape, k.shape
    if q.device.type == "cpu" and S <= SHORT and B * H * T * S <= SCORES:
        R = H // K
        if mask is None:
            mask = added(torch.ones(T, S, dtype=torch.bool, device=q.device).tril(), q.dtype)[None, None]
        q = (q * D ** -0.5).unflatten(2, (K, R)).permute(0, 2, 3, 1, 4).reshape(B, K, R * T, D)     # (B, K, R T, D)
        with torch.autocast("cpu", enabled=False):           # which would keep the softmax in fp32 too
            scores = (q @ k.permute(0, 2, 3, 1)).view(B, K, R, T, S) + mask.to(q.dtype)[:, None]     # (B, K, R, T, S)
            out = scores.softmax(-1).view(B, K, R * T, S) @ v.transpose(1, 2)                           # (B, K, R T, D)
        return out.view(B, K, R, T, D).permute(0, 3, 1, 2, 4).reshape(B, T, H, D)
    if mask is not None:                                     # no fused kernel takes a mask and grouped queries
        k, v, mask = k.repeat_interleave(H // K, dim=2), v.repeat_interleave(H // K, dim=2), mask.to(q.dtype)     # another dtype is misread
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask,
                                         is_causal=mask is None, enable_gqa=k.shape[2] != H)
    return out.transpose(1, 2)


def added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is seen, as numbers to add to scores."""
    return torch.zeros(seen.shape, device=seen.device, dtype=dtype).masked_fill(~seen, -torch.inf)


class Ragged(Causal):
    """Rows of different lengths without their padding, and the prompts that several of them begin with once: N tokens in one
    row, first those of the prompts, then the rest of every row. Attention alone sees rows: M = U P + B R places.

    `token` (N,) is where in a padded batch (B T,) each token stands, `place` (B, T) the reverse."""

    def __init__(self, prompts: list[int], of: list[int], lengths: list[int]):
        """Lengths of the prompts; for every row its prompt (-1: none) and its length with it."""
        B, U, P, columns = len(of), len(prompts), max(prompts, default=0), max(lengths)
        before = [prompts[u] if u >= 0 else 0 for u in of]
        R = max(n - p for n, p in zip(lengths, before, strict=True))
        runs = [(of.index(u) * columns, 0, p, u * P) for u, p in enumerate(prompts)]     # row of the batch, from, to, place
        runs += [(b * columns, before[b], lengths[b], U * P + b * R) for b in range(B)]
        position = np.concatenate([np.arange(a, z) for _, a, z, _ in runs])
        token = np.concatenate([row + np.arange(a, z) for row, a, z, _ in runs])
        back = np.concatenate([to + np.arange(z - a) for _, a, z, to in runs])           # (N,) the place of each token
        there, at, place = np.full(U * P + B * R, len(token)), np.zeros(U * P + B * R, dtype=int), np.zeros((B, columns), dtype=int)
        there[back], at[back] = np.arange(len(token)), position                          # (M,) the token at each place, N: none
        place.reshape(-1)[token] = np.arange(len(token))
        begin = np.cumsum([0, *prompts])
        for b, u in enumerate(of):
            place[b, :before[b]] = begin[u] + np.arange(before[b])
        self.shape, self.length, self.mask = (U, P, B, R), columns, None
        self.token, self.back, self.there, self.at, self.place = map(torch.from_numpy, (token, back, there, at, place))
        self.of, self.before = torch.tensor(of).clamp(min=0), torch.tensor(before)

    def to(self, device) -> Ragged:
        for name in ("token", "back", "there", "at", "place", "of", "before"):
            setattr(self, name, send(getattr(self, name), device))
        return self

    def reach(self, T: int) -> int:
        return self.length

    def positions(self, T: int, device) -> Tensor:
        """(1, M). Makes the mask that all layers share."""
        U, P, B, R = self.shape
        if U:
            seen = (torch.arange(P, device=device) < self.before[:, None, None]).expand(B, R, P)
            own = torch.ones(R, R, dtype=torch.bool, device=device).tril().expand(B, R, R)
            self.mask = added(torch.cat((seen, own), dim=-1)[:, None], torch.float32)   # (B, 1, R, P + R)
        return self.at[None]

    def spread(self, x: Tensor) -> Tensor:
        return Move.apply(x[0], self.there, self.back)[None]                            # (1, N, _) -> (1, M, _)

    def collect(self, x: Tensor) -> Tensor:
        return Move.apply(x[0], self.back, self.there)[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        U, P, B, R = self.shape
        rows = [t[0, U * P:].unflatten(0, (B, R)) for t in (q, k, v)]                   # (B, R, H or K, D)
        if not U:
            return sdpa(*rows).flatten(0, 1)[None]
        prompts = [t[0, :U * P].unflatten(0, (U, P)) for t in (q, k, v)]                # (U, P, H or K, D)
        behind = [torch.cat((p.index_select(0, self.of), r), dim=1) for p, r in zip(prompts[1:], rows[1:], strict=True)]
        return torch.cat((sdpa(*prompts).flatten(0, 1), sdpa(rows[0], *behind, self.mask).flatten(0, 1)))[None]


class Move(torch.autograd.Function):
    """Rows of x (N, W) to other places: y[i] = x[there[i]], 0 where there[i] is N. `back` is the reverse, and the whole backward."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return F.pad(x, (0, 0, 0, 1)).index_select(0, there)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return F.pad(grad, (0, 0, 0, 1)).index_select(0, ctx.back), None, None


class KVCache(Causal):
    """Keys and values of everything read so far; made by the sampler, advanced once by `forward`.

    Rows are padded on the left, so that all of them write the same column; `start[b]` is the first real column of row b.
    Rows may go on from the rows of another cache (`behind`): the samples of a prompt hold it once, and one product serves
    all their queries. A token's position is its column minus `start`, plus what stands before."""

    def __init__(self, cfg, batch: int, columns: int, device=None, dtype=torch.float32, start: Tensor | None = None):
        shape = (cfg.num_hidden_layers, batch, cfg.num_key_value_heads, columns, cfg.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)   # zeros: a masked NaN would still poison
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        start = torch.zeros(batch, dtype=torch.long) if start is None else start
        self.padding = start.tolist()                             # known without asking the device
        self.start = start.to(device)
        self.offset = -self.start                                 # (B,) position of a row's column 0 ...
        self.ahead = -min(self.padding)                           # ... and its maximum
        self.length = 0                                           # columns written, and on the device
        self.column = self.start.new_zeros(1)
        self.prompts: KVCache | None = None

    def behind(self, prompts: KVCache, of: Tensor) -> KVCache:
        """Let row b go on from row `of[b]` of `prompts`, one token at a time; of (B,)."""
        K, head = self.k.shape[2], torch.arange(self.k.shape[2], device=of.device)
        nth = (of[:, None] == of).tril(-1).sum(1)                                       # (B,) which of its prompt's rows it is
        grid = of.new_zeros(prompts.k.shape[1], G := int(nth.max()) + 1)                # (U, G) the row; 0 in empty places
        grid[of, nth] = torch.arange(len(of), device=of.device)
        self.to_grid = (grid[:, None] * K + head[:, None]).flatten()                    # (U K G) row and head at each place
        self.to_rows = ((of[:, None] * K + head) * G + nth[:, None]).flatten()          # (B K) the place of each row and head
        self.prompts, self.of = prompts, of
        seen = torch.arange(prompts.k.shape[3], device=of.device) >= prompts.start[:, None, None, None]      # (U, 1, 1, P)
        self.mask_prompts = added(seen, prompts.k.dtype).expand(-1, K, -1, -1).flatten(0, 1)      # (U K, 1, P)
        self.offset = prompts.length - prompts.start[of] - self.start
        self.ahead = int(self.offset.max())
        return self

    def reach(self, T: int) -> int:
        return self.length + T + self.ahead

    def positions(self, T: int, device) -> Tensor:
        """(B, T). Makes room for the new tokens, and the mask that all layers share."""
        if (end := self.length + T) > self.k.shape[3]:
            more = (0, 0, 0, self.length + max(T, CHUNK[device.type == "cpu"], end // 16) - self.k.shape[3])
            self.k = F.pad(self.k, more)                          # one after the other: each is twice there meanwhile
            self.v = F.pad(self.v, more)
        key = torch.arange(self.k.shape[3], device=device)                              # (S,)
        column = self.now = self.column + key[:T]                                       # (T,)
        self.long = self.length == 0 and T > SHORT
        if not self.long:
            seen = (key <= column[:, None]) & (key >= self.start[:, None, None])        # (B, T, S)
            seen |= key == column[:, None]                        # padding sees itself: no empty softmax row
            mask = added(seen[:, None], self.k.dtype)                                   # (B, 1, T, S)
            self.mask = mask if T > 1 else mask.expand(-1, self.k.shape[2], -1, -1).flatten(0, 1)      # (B K, 1, S), as `_attend_one` adds it
        return (column + self.offset[:, None]).clamp(min=0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Writes k and v (B, T, K, D) behind what is there; columns not yet written are masked: a product with a part would first copy it."""
        self.k[layer].index_copy_(2, self.now, k.transpose(1, 2).to(self.k.dtype))
        self.v[layer].index_copy_(2, self.now, v.transpose(1, 2).to(self.v.dtype))
        if self.long:                                             # long prompts, one by one: no mask and no padding
            out = torch.zeros_like(q)
            for b, n in enumerate(self.padding):
                out[b:b + 1, n:] = sdpa(q[b:b + 1, n:], k[b:b + 1, n:], v[b:b + 1, n:])
            return out
        k, v = self.k[layer], self.v[layer]                                             # (B, K, S, D)
        return sdpa(q, k.transpose(1, 2), v.transpose(1, 2), self.mask) if q.shape[1] > 1 and self.prompts is None else self._attend_one(layer, q, k, v)

    def _attend_one(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """B rows that read one token each; the scale and the mask are a part of the product, because at this size every operation costs as much."""
        B, K, S, D = k.shape
        q = q.to(k.dtype).reshape(B * K, -1, D)                   # (B K, R, D): a key head's queries as positions of one head
        if self.prompts is None and B * K * S <= KERNEL and k.dtype == torch.bfloat16 and k.device.type == "cpu":
            return F.scaled_dot_product_attention(q.view(B, K, -1, D), k, v, attn_mask=self.mask.view(B, K, 1, S)).reshape(B, 1, -1, D)
        score = lambda mask, q, k: torch.baddbmm(mask, q, k.flatten(0, 1).transpose(1, 2), alpha=D ** -0.5)  # noqa: E731
        scores, v = score(self.mask, q, k), v.flatten(0, 1)                             # (B K, R, S), (B K, S, D)
        if self.prompts is None:
            return (scores.softmax(-1).to(v.dtype) @ v).view(B, 1, -1, D)
        pk, pv, P = self.prompts.k[layer], self.prompts.v[layer].flatten(0, 1), self.prompts.k.shape[3]      # (U, K, P, D), (U K, P, D)
        grid = lambda t: t.reshape(B * K, -1).index_select(0, self.to_grid).view(len(pv), -1, t.shape[-1])      # -> (U K, G R, _)  # noqa: E731
        rows = lambda t: t.view(len(self.to_grid), -1).index_select(0, self.to_rows).view(B * K, -1, t.shape[-1])      # and back  # noqa: E731
        p = torch.cat((rows(score(self.mask_prompts, grid(q), pk)), scores), dim=-1).softmax(-1).to(v.dtype)      # (B K, R, P + S)
        return torch.baddbmm(rows(grid(p[..., :P]) @ pv), p[..., P:], v).view(B, 1, -1, D)

    def advance(self, T: int) -> None:
        self.length += T
        self.column += T

    @staticmethod
    def join(cfg, parts: list[tuple[KVCache, Tensor]], more: int = 0, room: int = 0) -> KVCache:
        """The named rows (repeats allowed) of each cache in one, and `more` rows that have read nothing; all end in the same
        column, with room for so many after it, and columns of none are left out. What they are behind of is not taken along."""
        used = [c.length - int(c.start[rows].min()) if len(rows) else 0 for c, rows in parts]
        first, length, at = parts[0][0].k, max(used), 0
        start = torch.cat([c.start[rows].cpu() + length - c.length for c, rows in parts] + [torch.full((more,), length)])
        new = KVCache(cfg, len(start), length + room, first.device, first.dtype, start)
        new.length = length
        new.column += length
        for (c, rows), columns in zip(parts, used, strict=True):
            to = slice(at, at := at + len(rows))
            new.k[:, to, :, length - columns:length] = c.k[:, rows, :, c.length - columns:c.length]
            new.v[:, to, :, length - columns:length] = c.v[:, rows, :, c.length - columns:c.length]
        return new
