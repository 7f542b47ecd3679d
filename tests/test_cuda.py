"""On a CUDA device, where there is one: decoding by recorded steps, what CPU and device agree in, moments in the host's memory."""
import random

import pytest
import torch

from r1 import context, graph, ranks
from r1.config import GRPO, Optim, Sample
from r1.grpo import learn
from r1.model import ModelConfig, Transformer
from r1.optim import make_optimizer
from r1.sampler import generate
from r1.types import Example

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SMALL = ModelConfig(vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    max_position_embeddings=600)
PROMPTS = [[5, 6, 7], [9], list(range(20, 60)), [8, 8], [3] * 17]


def small(device="cuda"):
    return Transformer(SMALL).init_weights(1).to(device)


def stepwise(monkeypatch):
    """Decoding without recorded steps."""
    monkeypatch.setattr(graph.Steps, "read", lambda self, token, cache: self.model(token[:, None], cache)[:, -1])


@pytest.mark.parametrize("bf16, share", [(False, 0), (True, 0), (True, context.SHARE)])       # with prompts shared, and copied
@pytest.mark.parametrize("sample", [Sample(max_new_tokens=200), Sample(max_new_tokens=150, max_rows=7), Sample(max_new_tokens=100, temperature=0.0),
                                    Sample(max_new_tokens=100, temperature=0.6, top_p=0.95)])
def test_recorded_steps_are_the_steps(monkeypatch, sample, bf16, share):
    """Through growth of the cache, rows that leave and rows that enter: the same tokens and the same bits of their log-probs."""
    monkeypatch.setattr(context, "SHARE", share)
    model = small()
    model.bf16 = bf16
    eos = [1, 2, 3, 4]                     # so that rows end here and there
    recorded = generate(model, PROMPTS, 4, sample, 3, eos)
    stepwise(monkeypatch)
    assert recorded == generate(model, PROMPTS, 4, sample, 3, eos)


def test_the_device_draws_what_the_cpu_draws():
    """fp32 differs in the last bits, and a draw that lies between two tokens may fall to either: of 600 tokens hardly one."""
    here, there = (generate(small(device), PROMPTS, 4, Sample(max_new_tokens=30), 3, []) for device in ("cpu", "cuda"))
    pairs = [(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True)]
    same = [a.ids == b.ids for a, b in pairs]
    assert sum(same) >= len(same) - 1
    assert max(abs(p - q) for (a, b), s in zip(pairs, same, strict=True) if s for p, q in zip(a.logp, b.logp, strict=True)) < 1e-4


def examples(seed=0):
    rng = random.Random(seed)
    ids = lambda n: [rng.randrange(300) for _ in range(n)]  # noqa: E731
    prompts = [ids(40), ids(9)]
    return [Example(p + (o := ids(rng.randrange(5, 60))), [0] * len(p) + [1] * len(o), rng.choice([-1.0, 0.5]), 1.0, [-5.0] * len(o))
            for p in prompts for _ in range(6)]


def step(device="cuda", times=1, **optim):
    """Weights and metrics after steps of GRPO."""
    o = Optim(**{"lr": 1e-3, "micro_tokens": 400} | optim)
    model = ranks.shard(small(device), o.bf16, o.recompute, o.compile)
    cfg = GRPO("rl", "grpo", sample=Sample(max_new_tokens=60), kl_coef=0.0, optim=o)
    optimizer = make_optimizer(model, o.lr, tuple(o.betas), o.weight_decay, offload=o.offload)
    for i in range(times):
        metrics = learn(model, None, optimizer, examples(i), cfg, o.lr, str(i))
    return [p.detach().cpu() for p in model.parameters()], metrics


@pytest.mark.parametrize("how", [{}, {"recompute": True}, {"compile": True}, {"micro_tokens": 10 ** 6}])
def test_a_step_of_grpo_is_that_of_the_cpu(how):
    (ours, a), (theirs, b) = step("cpu"), step(**how)
    for x in ("loss", "grad_norm", "entropy"):
        assert a[x] == pytest.approx(b[x], rel=1e-4, abs=1e-6)
    for p, q in zip(ours, theirs, strict=True):       # Adam's first step is the gradient's sign, where that is more than rounding
        assert ((p - q).abs() > 1e-5).double().mean() < 0.01


def test_bf16_is_near():
    (_, a), (_, b) = step(), step(bf16=True)
    assert a["loss"] == pytest.approx(b["loss"], rel=0.05, abs=0.02) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.05)


def test_moments_in_the_hosts_memory_are_the_same():
    """The same steps to the bit, from the same gradients: those of one batch differ in their last bits there, where rows share a prompt."""
    weights = []
    for offload in (False, True):
        model, g = small(), torch.Generator().manual_seed(0)
        optimizer = make_optimizer(model, 1e-3, (0.9, 0.95), 0.1, offload=offload)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=g).cuda()
            optimizer.step()
        weights.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*weights, strict=True))
    assert all(v.device.type == "cpu" for o in optimizer.parts for s in o.state.values() for v in s.values())
