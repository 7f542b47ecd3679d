"""The mathematics of the objective: tensors in, tensors out, no model, no files.

The paper's GRPO (R1 eq. 1-3; DeepSeekMath eq. 3 for the form per token):

    J = E[ 1/G sum_i 1/|o_i| sum_t  min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta KL ]
    rho = pi(o_t) / pi_old(o_t),   A_i = (r_i - mean r) / std r,   KL = x - log x - 1,  x = pi_ref / pi

How tokens are averaged is data (`token_weight`), made from global counts before anything is split into
micro-batches, so every loss here is a plain weighted sum and its gradient knows no batch size.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability (N,) of each target under softmax(logits (N, V) / temperature), and the entropy (N,) of each distribution in
    nats, without gradient; both in float32. Logits are divided by the sampling temperature: the trainer's distribution is the sampler's."""
    return _Read.apply(logits, targets, temperature)


class _Read(torch.autograd.Function):
    """One softmax for all, and nothing but it kept: the vocabulary is wide, and every pass over (N, V) counts."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        x = logits.float()
        if temperature != 1:
            x = x / temperature
        p = torch.softmax(x, dim=-1)
        lse = x.amax(dim=-1) - p.amax(dim=-1).log()             # the largest p, because small ones underflow
        with torch.autocast(x.device.type, enabled=False):      # which would round both to bfloat16
            entropy = lse - torch.linalg.vecdot(p, x)
        ctx.save_for_backward(p, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.mark_non_differentiable(entropy)
        return x.gather(-1, targets[:, None]).squeeze(-1) - lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor):
        p, targets = ctx.saved_tensors
        grad = (grad / ctx.temperature)[:, None]
        return p.mul_(-grad).scatter_add_(-1, targets[:, None], grad).to(ctx.dtype), None, None      # p itself: it is not needed again


def plain_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_logprobs` in words that torch.compile makes two passes of, and nothing in fp32 that is as wide as the vocabulary."""
    x = logits.float() / temperature
    lse = x.logsumexp(dim=-1)
    entropy = lse - ((x - lse[:, None]).exp() * x).sum(dim=-1)
    return x.gather(-1, targets[:, None]).squeeze(-1) - lse, entropy.detach()


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
