"""The objective against values worked out by hand, a plain loop, and what must not change it."""
import math

import pytest
import torch

from r1.losses import advantages, cross_entropy, grpo_loss, k3, token_logprobs, token_weight

D = torch.float64
LN2 = math.log(2)


def tensor(rows):
    return torch.tensor(rows, dtype=D)


# ---- an example that can be checked by hand ----------------------------------------------------
# Ratios [[1.5, 0.9], [1.5, 1, 0.5]] meet: the upper clip with A > 0, an unclipped 1.5 with A < 0, the lower clip
# with A < 0, padding, and a KL gradient in a token whose policy gradient is clipped away.

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
ADV = tensor([[1.0] * 3, [-1.0] * 3])
OLD = tensor([[.4, .2, 1], [.2, .4, .5]]).log()
NEW = tensor([[.6, .18, 1], [.3, .4, .25]]).log()
REF = tensor([[.6, .36, 1], [.3, .2, .5]]).log()
KL = [[0, 1 - LN2, 0], [0, LN2 - .5, 1 - LN2]]          # x - ln x - 1 for x = 1, 2; 1, 1/2, 2


@pytest.mark.parametrize("beta, how, loss, grad", [
    (0.0, "token", 0.24, [[0, -.18, 0], [.3, .2, 0]]),
    (0.0, "sequence", 0.025, [[0, -.225, 0], [.25, 1 / 6, 0]]),
    (0.0, "constant", 0.2, [[0, -.15, 0], [.25, 1 / 6, 0]]),
    (0.1, "token", 0.256137056, [[0, -.2, 0], [.3, .21, -.02]]),
    (0.1, "sequence", 0.041004654, [[0, -.25, 0], [.25, .175, -1 / 60]]),
    (0.1, "constant", 0.213447547, [[0, -1 / 6, 0], [.25, .175, -1 / 60]])])
def test_golden_example(beta, how, loss, grad):
    """Loss and gradient to 1e-9, with the token weights that `token_weight` makes from the lengths 2 and 3."""
    w = tensor([[a] * 3 for a in token_weight([2, 3], how, 3)])
    new = NEW.clone().requires_grad_()
    value, sums = grpo_loss(new, OLD, ADV, MASK, w, 0.2, 0.2, REF if beta else None, beta)
    value.backward()
    assert abs(value.item() - loss) < 1e-9
    assert (new.grad - tensor(grad)).abs().max() < 1e-9
    assert sums["clip_fraction"] == 2            # 1.5 with A > 0 and 0.5 with A < 0; not 1.5 with A < 0
    assert abs(sums["kl"].item() - (sum(map(sum, KL)) if beta else 0)) < 1e-12


def test_grpo_loss_is_the_formula_written_as_a_loop():
    """Random data, ratios on both sides of both clips, against the formula token by token."""
    g = torch.Generator().manual_seed(1)
    B, T, low, high, beta = 6, 9, 0.15, 0.3, 0.04
    old, new, ref = (-3 * torch.rand(B, T, generator=g, dtype=D) for _ in range(3))
    adv = torch.randn(B, 1, generator=g, dtype=D).expand(B, T)
    mask, w = torch.rand(B, T, generator=g) < 0.7, torch.rand(B, T, generator=g, dtype=D)
    loss, clipped, kl = 0.0, 0, 0.0
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                rho, a = math.exp(new[b, t] - old[b, t]), adv[b, t].item()
                inside = min(max(rho, 1 - low), 1 + high)
                x = math.exp(ref[b, t] - new[b, t])
                loss -= w[b, t].item() * (min(rho * a, inside * a) - beta * (x - math.log(x) - 1))
                clipped += inside * a < rho * a
                kl += x - math.log(x) - 1
    value, sums = grpo_loss(new, old, adv, mask, w, low, high, ref, beta)
    assert value.item() == pytest.approx(loss, rel=1e-12)
    assert sums["clip_fraction"].item() == clipped > 5
    assert sums["kl"].item() == pytest.approx(kl, rel=1e-12)


@pytest.mark.parametrize("given", [False, True])
def test_at_ratio_one_the_gradient_is_that_of_reinforce(given):
    """d loss / d logits = -w A (onehot - softmax), without old log-probs and with ones that equal the new."""
    g = torch.Generator().manual_seed(2)
    B, T, V = 3, 5, 7
    logits = torch.randn(B, T, V, generator=g, dtype=D, requires_grad=True)
    target = torch.randint(V, (B, T), generator=g)
    adv, w = torch.randn(B, T, generator=g, dtype=D), torch.rand(B, T, generator=g, dtype=D)
    mask = torch.rand(B, T, generator=g) < 0.6
    logp = logits.log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)
    grpo_loss(logp, logp.detach().clone() if given else None, adv, mask, w)[0].backward()
    onehot = torch.nn.functional.one_hot(target, V)
    by_hand = -(w * adv * mask)[..., None] * (onehot - logits.detach().softmax(-1))
    assert (logits.grad - by_hand).abs().max() < 1e-15


@pytest.mark.parametrize("poison", [1e4, -1e4, math.nan, math.inf, -math.inf])
def test_what_stands_in_masked_positions_does_not_matter(poison):
    """Neither the losses nor their gradients feel numbers, NaN or infinities outside the mask."""
    w = tensor([[.25] * 3, [1 / 6] * 3])

    def both(fill):
        new, old, adv, ref = (torch.where(MASK, t, torch.tensor(fill, dtype=D)) for t in (NEW, OLD, ADV, REF))
        new.requires_grad_()
        loss, sums = grpo_loss(new, old, adv, MASK, w, 0.2, 0.2, ref, 0.1)
        plain = cross_entropy(new, MASK, w)
        return [loss, plain, *torch.autograd.grad(loss + plain, new), sums["kl"], sums["clip_fraction"]]

    for clean, poisoned in zip(both(0.0), both(poison), strict=True):
        assert torch.equal(clean, poisoned)
        assert not (poisoned * torch.ones(2, 3))[~MASK].isnan().any()


# ---- advantages --------------------------------------------------------------------------------

WAYS = [{"std": s, "leave_one_out": o} for s in (True, False) for o in (True, False)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reward", [0.1, 0.3, 1 / 3, 2.2])
def test_identical_rewards_give_exactly_zero(reward, way):
    """Rounding of the mean must not be blown up by a standard deviation of almost 0."""
    for G in range(1, 65):
        for dtype in (torch.float32, D):
            assert torch.equal(advantages(torch.full((2, G), reward, dtype=dtype), **way), torch.zeros(2, G, dtype=D))


@pytest.mark.parametrize("way", WAYS)
def test_advantages_of_a_group_sum_to_zero(way):
    r = torch.rand(50, 13, generator=torch.Generator().manual_seed(3), dtype=D) * 5 - 1
    assert advantages(r, **way).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_groups_never_mix(way):
    """Permuting groups, permuting within a group, or looking at a group alone permutes the advantages, no more."""
    g = torch.Generator().manual_seed(4)
    r = torch.rand(9, 8, generator=g, dtype=D)
    a = advantages(r, **way)
    rows, columns = torch.randperm(9, generator=g), torch.randperm(8, generator=g)
    assert torch.equal(advantages(r[rows], **way), a[rows])
    assert torch.allclose(advantages(r[:, columns], **way), a[:, columns], rtol=0, atol=1e-14)
    for q in range(9):
        assert torch.allclose(advantages(r[q:q + 1], **way), a[q:q + 1], rtol=0, atol=1e-14)
    wild = r.clone()
    wild[3] = 1e6
    assert torch.equal(advantages(wild, **way)[torch.arange(9) != 3], a[torch.arange(9) != 3])


def test_the_standard_deviation_is_that_of_the_population():
    """Of [1, 0, 0, 0] it is sqrt(3)/4, so the advantages are sqrt(3) and -1/sqrt(3)."""
    a = advantages(tensor([[1, 0, 0, 0]]))
    assert torch.allclose(a, tensor([[3, -1, -1, -1]]) / math.sqrt(3), rtol=0, atol=1e-15)


def test_without_std_only_the_mean_is_taken_off():
    assert torch.equal(advantages(tensor([[1, 0, 0, 0], [2, 2, 4, 4]]), std=False),
                       tensor([[.75, -.25, -.25, -.25], [-1, -1, 1, 1]]))


def test_leave_one_out_takes_off_the_mean_of_the_others():
    """[1, 0, 0]: 1 - 0, 0 - 1/2, 0 - 1/2; [3, 5, 10]: 3 - 7.5, 5 - 6.5, 10 - 4."""
    a = advantages(tensor([[1, 0, 0], [3, 5, 10]]), std=False, leave_one_out=True)
    assert torch.allclose(a, tensor([[1, -.5, -.5], [-4.5, -1.5, 6]]), rtol=0, atol=1e-14)


def test_advantages_do_not_know_the_scale_of_rewards():
    """With std, 7 r + 3 gives the advantages of r, also where r is as small as 1e-6."""
    r = torch.rand(5, 6, generator=torch.Generator().manual_seed(5), dtype=D)
    for scale in (7.0, 1e-6):
        assert torch.allclose(advantages(r * scale + 3), advantages(r), atol=1e-7)


# ---- weights, KL, log-probs --------------------------------------------------------------------

def test_token_weights_by_hand():
    """Lengths 2, 0 (left out), 6: the sequence without a token counts nowhere."""
    assert token_weight([2, 0, 6], "sequence", 10) == [1 / 4, 0, 1 / 12]
    assert token_weight([2, 0, 6], "token", 10) == [1 / 8, 0, 1 / 8]
    assert token_weight([2, 0, 6], "constant", 10) == [1 / 20, 0, 1 / 20]


@pytest.mark.parametrize("how", ["sequence", "token", "constant"])
def test_token_weights_of_nothing_are_nothing(how):
    assert token_weight([0, 0], how, 10) == [0, 0] and token_weight([], how, 10) == []


def test_k3_is_never_negative_and_zero_only_for_equals():
    g = torch.Generator().manual_seed(6)
    p, q = torch.randn(2, 10_000, generator=g, dtype=D) * 3
    assert (k3(p, q) > 0).all() and torch.equal(k3(p, p), torch.zeros(10_000, dtype=D))
    extreme = tensor([0.0, -1e3, -1e30])
    assert k3(extreme, extreme.flip(0)).isfinite().all()


def test_k3_has_the_gradient_one_minus_the_ratio():
    g = torch.Generator().manual_seed(7)
    logp, ref = torch.randn(2, 100, generator=g, dtype=D)
    logp.requires_grad_()
    k3(logp, ref).sum().backward()
    assert torch.allclose(logp.grad, 1 - (ref - logp.detach()).exp(), rtol=1e-12)


def test_the_mean_of_k3_is_the_divergence():
    """Summed over all outcomes with their probabilities, k3 is KL(pi || ref)."""
    g = torch.Generator().manual_seed(8)
    logp, ref = torch.randn(2, 4, 11, generator=g, dtype=D).log_softmax(-1)
    exact = (logp.exp() * (logp - ref)).sum(-1)
    assert torch.allclose((logp.exp() * k3(logp, ref)).sum(-1), exact, rtol=1e-12)


@pytest.mark.parametrize("compiled", [None, lambda f: f])
def test_log_probs_and_entropy_by_hand(compiled):
    """Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8; at temperature 1/2 they are as 1, 4, 25."""
    logits = torch.tensor([[1.0, 2.0, 5.0]] * 3).log()
    for temperature, p in ((1.0, [1 / 8, 2 / 8, 5 / 8]), (0.5, [1 / 30, 4 / 30, 25 / 30])):
        logp, entropy = token_logprobs(logits, torch.eye(3), torch.arange(3), temperature, compiled=compiled)
        assert torch.allclose(logp.exp(), torch.tensor(p))
        assert torch.allclose(entropy, torch.tensor(-sum(x * math.log(x) for x in p)))


def test_cross_entropy_by_hand():
    logp = tensor([[.5, .25, .125]]).log()
    value = cross_entropy(logp, torch.tensor([[True, False, True]]), tensor([[.5, .5, .1]]))
    assert value.item() == pytest.approx(.5 * LN2 + .1 * 3 * LN2, rel=1e-15)
