"""Prompts read once, rows without padding, logits in pieces: each against the plain forward over whole padded rows, in float64."""
import random

import pytest
import torch

from r1 import context, data, losses
from r1.context import KVCache, Ragged, added, sdpa
from r1.data import collate, families, micro_batches, prompt_length
from r1.losses import grpo_loss, token_logprobs
from r1.model import ModelConfig, SwiGLU, lay_out, linear, swiglu
from r1.optim import supervised_logprobs
from r1.types import Example

D = torch.float64


def group(rng, prompt: int, lengths: list[int]) -> list[Example]:
    """Completions of these lengths behind one prompt."""
    ids = [rng.randrange(300) for _ in range(prompt)]
    return [Example(ids + [rng.randrange(300) for _ in range(n)], [0] * prompt + [1] * n, rng.uniform(-1, 1), rng.random(),
                    [rng.uniform(-8, -4) for _ in range(n)]) for n in lengths]


def batches(seed: int = 0) -> dict[str, list[Example]]:
    rng = random.Random(seed)
    groups = group(rng, 9, [3, 1, 8]) + group(rng, 4, [2, 2, 2, 5])
    alone = [e for n in (2, 7, 4) for e in group(rng, n, [n + 1])]
    mixed = groups + alone
    rng.shuffle(mixed)
    gap = Example([5, 6, 7, 8, 9, 10, 11], [0, 0, 1, 0, 0, 1, 1], 0.5, 0.3, [-5.0, -6.0, -7.0])
    return {"groups": groups, "alone": alone, "mixed": mixed, "one": group(rng, 5, [1, 1]), "gaps": [gap, *groups[:2], gap],
            "twice": [groups[0], groups[0]]}


def outcome(model, examples: list[Example]):
    """Log-probs, entropies and gradient."""
    b = collate(examples)
    logp, entropy = supervised_logprobs(model, b)
    loss, _ = grpo_loss(logp, b.old_logp, b.adv, b.mask, b.w)
    return b, logp.detach(), entropy, torch.autograd.grad(loss, list(model.parameters()))


def near(a, b, tolerance: float = 2e-6) -> bool:
    """Log-probs are fp32 in any model."""
    return max((x - y).abs().max() for x, y in zip(a, b, strict=True)) < tolerance


@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 1}, {"qk_norm": True, "attention_bias": True, "tie_word_embeddings": False}])
@pytest.mark.parametrize("name", batches())
def test_ragged_rows_are_the_padded_ones(make_model, monkeypatch, name, options):
    """Every log-prob, entropy and gradient; whoever shares a prompt, in any order, with one token behind it or none."""
    examples, model = batches()[name], make_model(D, **options)
    monkeypatch.setattr(data, "PAYS", 0)
    plain, *whole = outcome(model, examples)
    monkeypatch.setattr(data, "PAYS", 100)
    ragged, *parts = outcome(model, examples)
    assert plain.ragged is None and isinstance(ragged.ragged, Ragged)
    assert near([whole[0], whole[1]], [parts[0], parts[1]]) and near(whole[2], parts[2])


def test_a_prompt_is_read_once(make_model):
    """Of 4 completions behind 40 tokens the model sees 40 and the completions, without their last tokens; no padding."""
    seen, model = [], make_model(D)
    hook = model.embed_tokens.register_forward_hook(lambda m, i, out: seen.append(i[0].numel()))
    outcome(model, group(random.Random(0), 40, [3, 9, 2, 6]))
    hook.remove()
    assert seen == [40 + 2 + 8 + 1 + 5]


def test_what_has_no_padding_and_shares_nothing_stays_as_it_is():
    rng = random.Random(0)
    assert collate([e for _ in range(4) for e in group(rng, 5, [7])]).ragged is None


def test_families_and_their_micro_batches():
    """Together within the budget, split where one prompt alone exceeds it, nothing lost; an example of its own is its own family."""
    rng = random.Random(1)
    examples = group(rng, 10, [5] * 4) + group(rng, 20, [4] * 3) + group(rng, 3, [30])
    rng.shuffle(examples)
    assert [(len(f), prompt_length(f[0])) for f in families(examples)] == [(4, 10), (3, 20), (1, 3)]
    for budget, sizes in ((1, [1] * 8), (25, [3, 1, 1, 1, 1, 1]), (32, [4, 3, 1]), (76, [7, 1]), (10_000, [8])):
        made = micro_batches(examples, budget)
        assert sorted(id(e) for g in made for e in g) == sorted(map(id, examples))
        assert [len(g) for g in made] == sizes, budget


@pytest.mark.parametrize("what", ["pieces", "recompute", "both"])
def test_less_memory_is_the_same_gradient(make_model, monkeypatch, what):
    """Logits in pieces of four rows, and no activations kept."""
    model = make_model(D).train()
    _, *whole = outcome(model, batches()["mixed"])
    if what != "recompute":
        monkeypatch.setattr(losses, "LOGITS", 4 * model.cfg.vocab_size)
        monkeypatch.setattr(losses, "PIECE", 1)
    model.recompute = what != "pieces"
    calls, real = [], (losses._statistics, losses._slope)
    monkeypatch.setattr(losses, "_statistics", lambda logits, *more: calls.append(len(logits)) or real[0](logits, *more))
    monkeypatch.setattr(losses, "_slope", lambda logits, *more: calls.append(len(logits)) or real[1](logits, *more))
    _, *parts = outcome(model, batches()["mixed"])
    assert near([whole[0], whole[1]], [parts[0], parts[1]], 1e-12) and near(whole[2], parts[2], 1e-9)
    assert max(calls) <= 4 or what == "recompute"


def test_the_entropy_is_not_rounded_to_bf16(make_model):
    """Under autocast: that of the logits that the model gives, to fp32."""
    model, b = make_model(), collate(batches()["alone"])
    model.bf16 = True
    with torch.no_grad():
        _, entropy = supervised_logprobs(model, b)
        p = model(b.inputs).float().log_softmax(-1)[b.mask]
    assert (entropy + (p.exp() * p).sum(-1)).abs().max() < 2e-2 and not torch.equal(entropy, entropy.bfloat16().float())


# ---- behind a prompt, while sampling -----------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}])
@torch.no_grad()
def test_rows_behind_prompts_read_what_they_read_alone(make_model, options):
    """Prompts of different lengths, with three rows, one and none, out of order; then some of the rows leave and others come."""
    model = make_model(D, **options)
    prompts = [[3, 4, 5, 6, 7], [40, 41], [9, 8, 7]]
    longest = max(map(len, prompts))
    read = KVCache(model.cfg, 3, longest, dtype=D, start=torch.tensor([longest - len(p) for p in prompts]))
    model(torch.tensor([[0] * (longest - len(p)) + p for p in prompts]), read)
    of = torch.tensor([2, 0, 2, 2])
    own, texts = KVCache.join(model.cfg, [(read, torch.arange(0))], 4).behind(read, of), [list(prompts[u]) for u in of]

    def step(new):
        for text, id in zip(texts, new, strict=True):
            text.append(id)
        got = model(torch.tensor(new)[:, None], own)[:, -1]
        for row, text in zip(got, texts, strict=True):
            assert (row - model(torch.tensor([text]))[0, -1]).abs().max() < 1e-12
    for i in range(40):                                       # past what the cache has room for
        step([10 + i, 11 + i, 12 + i, 13 + i])
    keep = torch.tensor([3, 1])
    used, old = own.of[keep].unique(return_inverse=True)
    own = KVCache.join(model.cfg, [(own, keep)], 2).behind(KVCache.join(model.cfg, [(read, used), (read, torch.tensor([1]))]),
                                                           torch.cat((old, torch.tensor([2, 0]))))
    texts[:] = [texts[3], texts[1], list(prompts[1]), list(prompts[used[0]])]
    for i in range(3):
        step([20 + i] * 4)


@pytest.mark.parametrize("short", [0, 512])
@pytest.mark.parametrize("T, before", [(1, 0), (128, 0), (129, 0), (300, 0), (300, 37), (130, 200)])
def test_attention_is_its_formula(monkeypatch, short, T, before):
    """softmax(q k / sqrt D) v, query by query, and its gradient; columns before the rows' own of which some are hidden. By plain
    products and (`short` 0) by torch's kernel."""
    monkeypatch.setattr(context, "SHORT", short)
    g, S = torch.Generator().manual_seed(T), T + before
    q, k, v = (torch.randn(2, n, h, 8, generator=g, dtype=D, requires_grad=True) for n, h in ((T, 6), (S, 2), (S, 2)))
    weight = torch.randn(2, T, 6, 8, generator=g, dtype=D)
    hidden = torch.tensor([0, before // 2])
    seen = (torch.arange(S) <= before + torch.arange(T)[:, None]) & (torch.arange(S) >= hidden[:, None, None])      # (2, T, S)
    own = sdpa(q, k, v, added(seen[:, None], D) if before else None)
    rows = []
    for h in range(6):                                       # three query heads to a key head
        score = torch.einsum("btd,bsd->bts", q[:, :, h], k[:, :, h // 3]) / 8 ** 0.5
        weights = torch.where(seen, score.exp(), 0)
        rows.append(weights / weights.sum(-1, keepdim=True) @ v[:, :, h // 3])
    formula = torch.stack(rows, dim=2)
    torch.testing.assert_close(own, formula)
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (own, formula)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", [0, context.KERNEL])
def test_a_step_of_few_rows_in_bfloat16_is_its_formula(monkeypatch, kernel):
    """The 20th token of two rows, of which one begins behind 5 columns of padding; by products and by torch's kernel, and
    behind a cache that has room left."""
    monkeypatch.setattr(context, "KERNEL", kernel)
    cache = KVCache(ModelConfig(hidden_size=96, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=2), 2, 24, dtype=torch.bfloat16, start=torch.tensor([0, 5]))
    q, k, v = (torch.randn(2, 20, h, 16, generator=torch.Generator().manual_seed(h)).bfloat16() for h in (6, 2, 3))
    v = v[:, :, :2]
    for at in (slice(0, 19), slice(19, 20)):
        cache.positions(at.stop - at.start, torch.device("cpu"))
        own = cache.attend(0, q[:, at], k[:, at], v[:, at])                                # (2, T, 6, 16)
        cache.advance(at.stop - at.start)
    for b, begin in enumerate([0, 5]):
        for h in range(6):
            weights = (k[b, begin:, h // 3].double() @ q[b, 19, h].double() / 4).softmax(0)
            torch.testing.assert_close(own[b, 0, h].double(), weights @ v[b, begin:, h // 3].double(), atol=1e-2, rtol=1e-2)


# ---- written by hand, because autograd would keep or do more ---------------------------------------

def test_swiglu_has_the_gradient_of_its_formula():
    x = torch.randn(2, 3, 8, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(SwiGLU.apply, x)
    gate, up = x.chunk(2, dim=-1)
    assert torch.equal(SwiGLU.apply(x), torch.nn.functional.silu(gate) * up) and torch.equal(swiglu(x), SwiGLU.apply(x))


@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize("compiled", [None, lambda f: f], ids=["plain", "words to compile"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_have_the_gradient_of_log_softmax(monkeypatch, temperature, compiled, rows):
    """Of hidden states and of the head, in pieces and in one; also for a target that the model holds for impossible, and never of words
    that do not count."""
    monkeypatch.setattr(losses, "BLOCK", 16)
    g = torch.Generator().manual_seed(0)
    hidden, head, targets = torch.randn(6, 9, generator=g), torch.randn(53, 9, generator=g) * 2, torch.tensor([0, 3, 49, 7, 7, 1])
    hidden[1] = -100 * head[3]
    weight, got = torch.randn(6, generator=g), []
    plain = lambda x, w: (x @ w[:50].T / temperature).log_softmax(-1)  # noqa: E731
    for how in (lambda x, w: token_logprobs(x, w, targets, temperature, 50, rows, compiled),
                lambda x, w: (plain(x, w).gather(-1, targets[:, None]).squeeze(-1), -(plain(x, w).exp() * plain(x, w)).sum(-1))):
        x, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        y, entropy = how(x, w)
        got.append((y.detach(), entropy.detach(), *torch.autograd.grad((y * weight).sum(), (x, w))))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=3e-5) for a, b in zip(*got, strict=True))
    assert torch.isfinite(got[0][0]).all() and got[0][0][1] < -900


@pytest.mark.parametrize("bias", [False, True])
def test_layers_laid_out_are_the_layers(bias):
    layers = (torch.nn.Linear(24, 40, bias=bias), torch.nn.Linear(24, 8, bias=bias))
    x = torch.randn(3, 5, 24)
    with torch.no_grad():
        plain = torch.cat([layer(x) for layer in layers], dim=-1)
        assert torch.allclose(linear(x, None, *layers), plain, atol=1e-6)
        assert torch.allclose(linear(x, lay_out(layers, torch.float32)), plain, atol=1e-5)
        assert torch.allclose(linear(x, lay_out(layers, torch.bfloat16)).float(), plain, atol=3e-2)
