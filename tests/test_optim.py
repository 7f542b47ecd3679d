"""One optimiser step: the same for every way of splitting it, refused whole when a gradient is broken, in fp32."""
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1 import checkpoint, losses, optim
from r1.config import SFT, Optim
from r1.data import collate
from r1.losses import cross_entropy, grpo_loss, token_weight
from r1.optim import lr_at, make_optimizer, optimise, supervised_logprobs
from r1.runtime import Folder
from r1.supervised import train
from r1.types import Example

LENGTHS = [(3, 9), (5, 1), (2, 14), (7, 4), (1, 6), (4, 2)]       # (prompt, completion)


def examples(how=None, seed=0):
    """Six completions of unequal length with advantages and sampled log-probs; weights as `how` averages."""
    g = torch.Generator().manual_seed(seed)
    weights = token_weight([n for _, n in LENGTHS], how, 16) if how else [1 / sum(n for _, n in LENGTHS)] * len(LENGTHS)
    return [Example(torch.randint(300, (p + n,), generator=g).tolist(), [0] * p + [1] * n,
                    torch.randn(1, generator=g).item(), w, (-5 - 2 * torch.rand(n, generator=g)).tolist())
            for (p, n), w in zip(LENGTHS, weights, strict=True)]


def sft_loss(model):
    def loss_fn(b):
        return cross_entropy(supervised_logprobs(model, b)[0], b.mask, b.w), {"tokens": b.mask.sum()}
    return loss_fn


def rl_loss(model):
    """With the KL term; the sampled log-probs stand in for those of the reference too."""
    def loss_fn(b):
        logp, _ = supervised_logprobs(model, b)
        return grpo_loss(logp, b.old_logp, b.adv, b.mask, b.w, 0.2, 0.2, b.old_logp, 0.05)
    return loss_fn


@pytest.mark.parametrize("adapters, recompute, backend, kinds", [(4, True, "aot_eager", 1), *(pytest.param(*how, 3, marks=pytest.mark.slow) for how in (
    (0, False, "aot_eager"), (0, True, "aot_eager"), (4, False, "aot_eager"), (4, True, "aot_eager"), (0, False, "inductor"), (4, True, "inductor")))])
def test_compiled_layers_are_the_layers(make_model, monkeypatch, adapters, recompute, backend, kinds):
    """As torch's compiler reads them, and (slow, with a C++ compiler) as it writes them: rows with prompts shared, without, with adapters off, in one process;
    the quick one with shared prompts alone, since every kind of rows is compiled anew."""
    from r1 import graph, lora
    from r1.config import LoRA
    real, found = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f, **about: real(f, backend=backend, **about))
    monkeypatch.setattr(graph, "compiled", lambda f: torch.compile(f))
    torch._dynamo.reset()
    shared = [replace(e, ids=[7] * 5 + e.ids[5:]) for e in examples(seed=1) for _ in range(2) if len(e.ids) > 9]
    for compiled in (False, True):
        model = lora.adapt(make_model(num_hidden_layers=1), LoRA(rank=adapters), 0)
        model.recompute = recompute
        if compiled:
            graph.compile_layers(model)
        for rows in (shared, examples(), examples()[:1])[:kinds]:
            with torch.no_grad(), lora.off(model):
                off = supervised_logprobs(model, collate(rows))[0]
            model.zero_grad()
            loss, sums = rl_loss(model)(collate(rows))
            loss.backward()
            found.append([off, loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for plain, other in zip(found[:kinds], found[kinds:], strict=True):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, other, strict=True))


def step(model, rows, loss_fn, micro_tokens, clip=math.inf, lr=1e-3):
    optimizer = make_optimizer(model, lr, (0.9, 0.95), 0.0)
    out = optimise(model, optimizer, rows, loss_fn(model), lr, micro_tokens, clip)
    return out, [p.grad.clone() for p in model.parameters()], [p.detach().clone() for p in model.parameters()]


# ---- micro-batches -----------------------------------------------------------------------------
# Log-probs and loss are fp32 in any model, so a fp64 model shows nothing but the order of a few fp32 sums.

@pytest.mark.parametrize("loss_fn, how", [(sft_loss, None), (rl_loss, "sequence"), (rl_loss, "token"),
                                          (rl_loss, "constant")])
def test_micro_batches_change_nothing(make_model, loss_fn, how):
    """Gradient, its norm, loss, counts and new weights are the same for 1, 2, 4 and all 6 rows per forward."""
    rows, seen = examples(how), []
    whole, grads, weights = step(make_model(torch.float64), rows, loss_fn, 10_000)
    assert whole["grad_norm"] > 0.01
    for micro_tokens, forwards in ((1, 6), (24, 3), (64, 2)):
        model = make_model(torch.float64)
        hook = model.norm.register_forward_hook(lambda *_: seen.append(1))
        out, grads2, weights2 = step(model, rows, loss_fn, micro_tokens)
        hook.remove()
        assert len(seen) == forwards
        seen.clear()
        assert out.keys() == whole.keys() and out == pytest.approx(whole, rel=1e-6)
        norm = torch.stack([g.abs().max() for g in grads]).max()
        assert max((a - b).abs().max() for a, b in zip(grads, grads2, strict=True)) < 1e-12 * norm
        assert max((a - b).abs().max() for a, b in zip(weights, weights2, strict=True)) < 1e-9


def test_the_gradient_is_that_of_the_whole_batch_at_once(make_model):
    """optimise, with clipping off, leaves in .grad what one plain backward over all rows gives."""
    rows, model = examples("token"), make_model(torch.float64)
    loss, _ = rl_loss(model)(collate(rows))
    by_hand = torch.autograd.grad(loss, list(model.parameters()))
    _, grads, _ = step(model, rows, rl_loss, 24)
    assert max((a - b).abs().max() for a, b in zip(grads, by_hand, strict=True)) < 1e-9


def test_clipping_sees_the_whole_gradient(make_model):
    """Not one of a micro-batch: the clipped gradient has the norm asked for and the direction of the whole."""
    rows = examples("sequence")
    whole, grads, _ = step(make_model(torch.float64), rows, rl_loss, 10_000)
    out, clipped, _ = step(make_model(torch.float64), rows, rl_loss, 1, clip=0.01)
    assert abs(out["grad_norm"] - whole["grad_norm"]) < 1e-6                   # reported as it was
    scale = 0.01 / whole["grad_norm"]
    assert max((a * scale - b).abs().max() for a, b in zip(grads, clipped, strict=True)) < 1e-6


def test_a_second_step_starts_from_no_gradient(make_model):
    """Nothing is left over from the step before."""
    model = make_model(torch.float64)
    optimizer = make_optimizer(model, 0.0, (0.9, 0.95), 0.0)
    for _ in range(2):
        optimise(model, optimizer, examples("token"), rl_loss(model), 0.0, 24, math.inf)
    _, grads, _ = step(make_model(torch.float64), examples("token"), rl_loss, 24)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


# ---- what is learned from ----------------------------------------------------------------------

def test_the_end_token_is_in_the_loss(tiny_model, tokenizer, make_model):
    """The SFT loss is the mean over the completion and its EOS, from a plain forward over the conversation."""
    model = make_model(vocab_size=tokenizer.vocab_size)
    prompt = tokenizer.encode("User: What is 3+4?\nAssistant:")
    ids, mask = tokenizer.join(prompt, "<answer>7</answer>")
    n = sum(mask)
    with torch.no_grad():
        logp = model(torch.tensor([ids]))[0].log_softmax(-1)
        each = [logp[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))]
        loss, _ = sft_loss(model)(collate([Example(ids, mask, w=1 / n)]))
    assert ids[-1] == tokenizer.eos_id and len(each) == n == len(tokenizer.encode("<answer>7</answer>")) + 1
    assert loss.item() == pytest.approx(-sum(each) / n, abs=1e-5)


def test_the_vocabulary_projection_sees_the_supervised_positions_only(tiny_model, monkeypatch):
    """(B, T, V) never exists, and the log-probs are those of the full forward."""
    b, shapes, real = collate(examples()), [], losses._statistics
    monkeypatch.setattr(losses, "_statistics", lambda logits, *more: shapes.append(tuple(logits.shape)) or real(logits, *more))
    logp, entropy = supervised_logprobs(tiny_model, b)
    assert shapes == [(sum(n for _, n in LENGTHS), 300)] and not entropy.requires_grad
    every = tiny_model(b.inputs).log_softmax(-1)
    assert torch.allclose(entropy, -(every.exp() * every).sum(-1)[b.mask], atol=1e-5)
    full = every.gather(-1, b.targets[..., None]).squeeze(-1)
    assert torch.allclose(logp, torch.where(b.mask, full, torch.zeros(())), atol=1e-5)
    assert logp.requires_grad


# ---- broken gradients --------------------------------------------------------------------------

@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_skips_the_step(tiny_model, bad):
    """One bad micro-batch of six: weights, moments and step count stay; the next step is as if it had not been."""
    model, rows = tiny_model, examples("token")
    optimizer = make_optimizer(model, 1e-3, (0.9, 0.95), 0.0)
    optimise(model, optimizer, rows, rl_loss(model), 1e-3, 1, 1.0)
    before = [p.detach().clone() for p in model.parameters()]
    state = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
    calls = []

    def poisoned(b):
        calls.append(1)
        loss, sums = rl_loss(model)(b)
        return loss * (bad if len(calls) == 3 else 1), sums

    out = optimise(model, optimizer, rows, poisoned, 1e-3, 1, 1.0)
    assert out["skipped"] == 1 and len(calls) == 6 and not math.isfinite(out["grad_norm"])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    for p, s in zip(model.parameters(), state, strict=True):
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in s.items()) and s["step"] == 1
    good = optimise(model, optimizer, rows, rl_loss(model), 1e-3, 1, 1.0)
    assert good["skipped"] == 0 and all(p.isfinite().all() for p in model.parameters())


def test_a_group_without_supervised_tokens_has_no_gradient(tiny_model):
    """A batch in which nothing is supervised gives a loss and a gradient of exactly 0, not NaN."""
    out, grads, _ = step(tiny_model, [Example([1, 2, 3], [0, 0, 0], 1.0, 0.0, [])], sft_loss, 100)
    assert out["loss"] == 0.0 and out["grad_norm"] == 0.0 and all((g == 0).all() for g in grads)


# ---- AdamW -------------------------------------------------------------------------------------

def test_weight_decay_is_for_matrices_only(tiny_model):
    """With a gradient of 0 a step multiplies matrices by 1 - lr * decay and leaves the norms."""
    before = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
    optimizer = make_optimizer(tiny_model, 0.1, (0.9, 0.95), 0.5)
    for p in tiny_model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in tiny_model.named_parameters():
        assert torch.allclose(p, before[n] * (0.95 if p.dim() > 1 else 1.0), atol=1e-7)


def test_every_parameter_is_optimised_once(tiny_model):
    optimizer = make_optimizer(tiny_model, 1e-3, (0.9, 0.95), 0.1)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in tiny_model.parameters()) and len(held) == len(set(held))


def test_moments_in_the_hosts_memory_change_nothing(make_model, tmp_path, monkeypatch):
    """The same bits as without, also when a run goes on with the other setting; each moment visits its parameter's device once a step."""
    moves, move = [], optim.Hosted._move

    def trained(name, steps, offload):
        model, folder = make_model(), Folder(tmp_path, name, 0, "cpu", {})
        folder.path.mkdir(exist_ok=True)
        cfg = SFT("s", "sft", save_every=2, optim=Optim(lr=1e-3, weight_decay=0.1, offload=offload))
        train(model, lambda step: examples(seed=step), steps, cfg, folder)
        return [p.detach().clone() for p in model.parameters()]

    whole = trained("a", 6, False)
    monkeypatch.setattr(optim.Hosted, "_move", lambda self, device: (moves.append(str(device)), move(self, device)))
    hosted = trained("b", 6, True)
    assert all(torch.equal(p, q) for p, q in zip(whole, hosted, strict=True)) and len(moves) == 2 * 6 * len(whole)
    for name, first, then in (("c", True, False), ("d", False, True)):
        trained(name, 3, first)
        assert all(torch.equal(p, q) for p, q in zip(whole, trained(name, 6, then), strict=True))


def test_master_weights_and_moments_are_fp32_when_the_forward_is_bf16(make_model, tmp_path, monkeypatch):
    """Trained with bf16, in memory and on disk. A step of 1e-5 moves weights of 1, where bf16 has steps of 1/128."""
    model = make_model()
    model.norm.weight.data.fill_(1.0)
    folder = Folder(tmp_path, "s", 0, "cpu", {})
    folder.path.mkdir()
    dtypes, real = [], losses._statistics
    monkeypatch.setattr(losses, "_statistics", lambda logits, *more: dtypes.append(logits.dtype) or real(logits, *more))
    train(model, lambda step: examples(seed=step), 2, SFT("s", "sft", save_every=1, optim=Optim(lr=1e-5, bf16=True)), folder)
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    at, tensors, _ = checkpoint.load_state(Path(folder.path) / "state")
    assert at == 1 and {t.dtype for k, t in tensors.items() if "model." in k or "exp_avg" in k} == {torch.float32}
    assert sum("exp_avg" in k for k in tensors) == 2 * len(list(model.parameters()))
    moved = (tensors["model.norm.weight"] - 1).abs()       # Adam's first step is lr times the gradient's sign
    assert torch.allclose(moved, torch.full_like(moved, 1e-5), rtol=0.02)


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonal_is_a_polynomial_of_the_singular_values(monkeypatch, shape):
    """Five times a s + b s^3 + c s^5, from singular values whose squares sum to 1; singular vectors stay."""
    monkeypatch.setattr(optim, "fast_bf16", lambda device: False)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / (s * s).sum(dim=1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s ** 3 + 2.0315 * s ** 5
    torch.testing.assert_close(optim.orthogonal(x).double(), u * s[:, None] @ v, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fast, close", [(True, 3e-3), (False, 3e-2)])
def test_muon_is_torchs_for_many_matrices_at_once(monkeypatch, fast, close):
    """Weights after five steps of 0.02, some without a gradient. torch's products are in bfloat16, as these are where `fast`."""
    monkeypatch.setattr(optim, "fast_bf16", lambda device: fast)
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g) for shape in ((16, 16), (48, 16), (16, 16), (16, 48), (48, 16))]
    own, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    a, b = optim.Muon(own, {"lr": 0.02, "weight_decay": 0.1}), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for step in range(5):
        for i, (p, q) in enumerate(zip(own, theirs, strict=True)):
            p.grad = q.grad = torch.randn(p.shape, generator=g) if (i, step) != (2, 1) else None
        a.step(), b.step()
    for p, q, t in zip(own, theirs, start, strict=True):
        assert (p - q).norm() / (q - t).norm() < close
        torch.testing.assert_close(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])


# ---- the learning rate -------------------------------------------------------------------------

def test_learning_rate_by_hand():
    """10 steps, 2 of warm-up to 1: 1/2, 1, then a half cosine from 1 to 0.1 over 8 steps."""
    rates = [lr_at(s, 10, 1.0, 2, 0.1, "cosine") for s in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.55) and rates[10] == pytest.approx(0.1)          # half way, and the end
    assert rates[4] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)              # a quarter
    assert all(a > b for a, b in zip(rates[2:], rates[3:], strict=False))
    assert [lr_at(s, 10, 3.0, 2, 0.1, "constant") for s in range(4)] == [1.5, 3.0, 3.0, 3.0]
    assert lr_at(0, 10, 3.0, 0, 0.1, "constant") == lr_at(0, 10, 3.0, 0, 0.1, "cosine") == 3.0


def test_learning_rate_outside_the_plan():
    """More warm-up than steps still rises in a line; beyond the end the rate stays at its last."""
    assert [lr_at(s, 2, 1.0, 4, 0.1, "cosine") for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(50, 10, 1.0, 2, 0.1, "cosine") == pytest.approx(0.1)


def test_the_step_uses_the_rate_it_is_given(make_model):
    """Adam's first step moves every weight by lr * g / (|g| + eps), whatever rate the optimiser was made with."""
    model = make_model(torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = make_optimizer(model, 123.0, (0.9, 0.95), 0.0)
    optimise(model, optimizer, examples("token"), rl_loss(model), 1e-4, 1000, math.inf)
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.allclose(p.detach() - b, -1e-4 * p.grad / (p.grad.abs() + 1e-8), rtol=1e-6, atol=1e-12)
