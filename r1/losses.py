"""The mathematics of the objective: tensors in, tensors out, no model, no files.

The paper's GRPO (R1 eq. 1-3; DeepSeekMath eq. 3 for the form per token):

    J = E[ 1/G sum_i 1/|o_i| sum_t  min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta KL ]
    rho = pi(o_t) / pi_old(o_t),   A_i = (r_i - mean r) / std r,   KL = x - log x - 1,  x = pi_ref / pi

How tokens are averaged is data (`token_weight`), made from global counts before anything is split into
micro-batches, so every loss here is a plain weighted sum and its gradient knows no batch size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


LOGITS, PIECE = 2 ** 24, 256      # numbers that exist at once, 64 MB in fp32; but rows at least
BLOCK = 1024                      # logits of a row that compiled code reads into registers


def at_once(vocab_size: int, cpu: bool, compiled: bool = False) -> int:
    """Rows of logits that exist at once: on a GPU 8 times as many, and 32 times where no copy of them is made in fp32."""
    return max(PIECE, LOGITS * (1 if cpu else 32 if compiled else 8) // vocab_size)


def token_logprobs(x: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, words: int = 0, rows: int = 0,
                   compiled: Callable | None = None) -> tuple[Tensor, Tensor]:
    """Log-probability (N,) of each target under softmax(x @ weight.T / temperature), and the entropy (N,) of each distribution in
    nats, without gradient; both in float32. x (N, C), weight (V, C), of which the first `words` count. Logits are divided by the
    sampling temperature: the trainer's distribution is the sampler's. They exist for `rows` of N at a time, and if that is not all are made
    again in the backward; `compiled` is what the passes over them are compiled by."""
    read, slope = (compiled(_statistics_in_blocks), compiled(_slope_in_one)) if compiled else (_statistics, _slope)
    return _Read.apply(x, weight, targets, temperature, words or len(weight), rows or max(1, len(x)), read, slope)


class _Read(torch.autograd.Function):
    """The vocabulary is wide, and every pass over (N, V) counts: one product and one reading here, as much and a writing in the backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, temperature: float, words: int, rows: int, read: Callable, slope: Callable):
        found = []
        with torch.autocast(x.device.type, enabled=False):      # which would round the entropy to bfloat16
            for part, t in zip(x.split(rows), targets.split(rows), strict=True):
                logits = None                                   # one piece at a time
                logits = _logits(part, weight, words)
                found.append(read(logits, t, temperature))
        logp, entropy, lse = (torch.cat(each) for each in zip(*found, strict=True))
        ctx.save_for_backward(x, weight, targets, lse, logits if len(found) == 1 else None)
        ctx.about = temperature, words, rows, slope
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor):
        (x, weight, targets, lse, kept), (temperature, words, rows, slope) = ctx.saved_tensors, ctx.about
        dx, dw = torch.empty_like(x), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for i in range(0, len(x), rows):
            at, logits, d = slice(i, i + rows), None, None
            logits = _logits(x[at], weight, words) if kept is None else kept
            d = slope(logits, targets[at], lse[at], grad[at] / temperature, temperature)      # (n, V)
            dx[at] = d @ weight
            if dw is not None:
                dw.addmm_(d.T, x[at])
        return dx, dw, *[None] * 6


def _logits(x: Tensor, weight: Tensor, words: int) -> Tensor:
    logits = F.linear(x, weight)
    logits[:, words:] = -1e30       # ids beyond the tokenizer's: probability and gradient are 0 (and 0 * inf would be nan)
    return logits


def _statistics(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the targets, entropies, and log of the sum of exp, each (n,), of logits (n, V)."""
    x = logits.float()
    if temperature != 1:
        x = x / temperature
    p = torch.softmax(x, dim=-1)
    lse = x.amax(dim=-1) - p.amax(dim=-1).log()                 # the largest p, because small ones underflow
    return x.gather(-1, targets[:, None]).squeeze(-1) - lse, lse - torch.linalg.vecdot(p, x), lse


def _slope(logits: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """(one at the target - probability) * grad, of logits (n, V)."""
    p = torch.softmax(logits.float() / temperature if temperature != 1 else logits.float(), dim=-1)
    return p.mul_(-grad[:, None]).scatter_add_(-1, targets[:, None], grad[:, None]).to(logits.dtype)


def _statistics_in_blocks(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """`_statistics` in words that torch.compile makes one reading of: sums within blocks, relative to their largest, then over blocks."""
    x = F.pad(logits, (0, -logits.shape[1] % BLOCK), value=-1e30).unflatten(1, (-1, BLOCK)).float() / temperature      # (n, V / BLOCK, BLOCK)
    top = x.amax(dim=-1)
    e = (x - top[..., None]).exp()
    sums, products = e.sum(dim=-1), (e * x).sum(dim=-1)                                 # (n, V / BLOCK)
    most = top.amax(dim=-1, keepdim=True)
    scale = (top - most).exp()
    total = (sums * scale).sum(dim=-1)
    lse = most.squeeze(-1) + total.log()
    logp = logits.gather(-1, targets[:, None]).squeeze(-1).float() / temperature - lse
    return logp, lse - (products * scale).sum(dim=-1) / total, lse


def _slope_in_one(logits: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """`_slope` in words that torch.compile makes one reading and one writing of."""
    own = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return ((own.float() - (logits.float() / temperature - lse[:, None]).exp()) * grad[:, None]).to(logits.dtype)


def advantages(rewards: Tensor, std: bool = True, leave_one_out: bool = False) -> Tensor:
    """Rewards (Q, G) relative to their group, in float64: R1 eq. 3.

    `std=False` is Dr. GRPO's; `leave_one_out` is RLOO's baseline, the mean of the other G - 1. The standard
    deviation is that of the population (the paper leaves it open). Identical rewards give exactly 0, also G = 1."""
    r = rewards.double()
    G = r.shape[1]
    a = r - r.mean(dim=1, keepdim=True)
    if leave_one_out and G > 1:
        a = a * G / (G - 1)                     # r_i - mean of the others
    if std:
        a = a / r.std(dim=1, keepdim=True, correction=0).clamp(min=1e-12)
    same = r.amax(dim=1, keepdim=True) == r.amin(dim=1, keepdim=True)
    return torch.where(same, torch.zeros_like(a), a)    # rounding must not be blown up by a tiny std


def token_weight(lengths: list[int], how: str, max_length: int) -> list[float]:
    """Weight of each token of each of N sequences of these lengths; they sum to about 1 over all tokens.

    "sequence": 1 / (N |o_i|), DeepSeekMath's and R1's mean of means; "token": 1 / total, DAPO's;
    "constant": 1 / (N L), Dr. GRPO's. A length of 0 (left out of the loss) gives 0."""
    N, total = max(1, sum(n > 0 for n in lengths)), max(1, sum(lengths))
    make = {"sequence": lambda n: 1 / (N * n), "token": lambda n: 1 / total, "constant": lambda n: 1 / (N * max_length)}[how]
    return [make(n) if n else 0.0 for n in lengths]


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Schulman's estimate of KL(pi || ref) per token: x - log x - 1 with x = ref / pi. Never negative."""
    log_x = (ref_logp - logp).clamp(-20, 20)     # exp must not overflow
    return log_x.exp() - log_x - 1


def grpo_loss(logp: Tensor, old_logp: Tensor | None, adv: Tensor, mask: Tensor, w: Tensor, clip_low: float = 0.2,
              clip_high: float = 0.2, ref_logp: Tensor | None = None, kl_coef: float = 0.0) -> tuple[Tensor, dict]:
    """The negated objective, and sums over tokens for the log. All inputs (B, T).

    Without `old_logp` the step is on-policy: the ratio is exactly 1 and its gradient that of log pi."""
    zero = torch.zeros_like(logp)
    logp = torch.where(mask, logp, zero)         # where, not *: 0 * nan would be nan
    old = logp.detach() if old_logp is None else torch.where(mask, old_logp, zero)
    ratio = (logp - old).clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    per_token = -torch.minimum(ratio * adv, clipped * adv)
    sums = {"clip_fraction": (mask & (ratio * adv > clipped * adv)).sum(), "kl": zero.sum().detach()}      # min() chose the clipped side
    if ref_logp is not None:
        kl = k3(logp, torch.where(mask, ref_logp, zero))
        per_token = per_token + kl_coef * kl
        sums["kl"] = (kl.detach() * mask).sum()
    return (torch.where(mask, per_token, zero) * w).sum(), sums


def cross_entropy(logp: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    """Weighted negative log-likelihood of the supervised tokens, all (B, T)."""
    return (torch.where(mask, -logp, torch.zeros_like(logp)) * w).sum()
