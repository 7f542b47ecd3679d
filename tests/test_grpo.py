"""The stage of the paper's reinforcement learning: its gradient written a second time, and what must not change it."""
import copy
import dataclasses
import json
import math
import random

import pytest
import torch

from r1 import checkpoint, config, grpo as stage, losses
from r1.config import GRPO, Optim, Sample
from r1.context import KVCache
from r1.grpo import collect, describe, grpo, hash_seed, learn, make_examples, weigh
from r1.losses import advantages
from r1.model import Transformer
from r1.rollout import Scored, judged
from r1.runtime import Folder
from r1.sampler import generate
from r1.types import Problem, Rollout, Score, UserError
from r1.world import is_test

D = torch.float64
EOS = range(40)                    # of 300 tokens, so that completions end at all lengths
PROMPTS = [[100, 120, 7], [50, 60, 70, 80, 90], [200], [33, 250, 33, 9]]
G = 4


def settings(**changes) -> GRPO:
    """Sequence weights, no KL, no gradient clipping, one update."""
    sample = Sample(max_new_tokens=8, temperature=changes.pop("temperature", 1.0))
    return GRPO(**{"name": "rl", "kind": "grpo", "init": "x", "kl_coef": 0.0, "sample": sample,
                   "optim": Optim(micro_tokens=changes.pop("micro_tokens", 4096), clip=1e9), **changes})


def scored(total: float, ids: list[int], logp=None, finish="eos", prompt=(1, 2), problem=Problem("t", "t", "?", 1)) -> Scored:
    parts = {"accuracy": float(total > 0.5), "format": 1.0, "language": 1.0}
    return Scored(problem, Rollout(list(prompt), ids, logp or [-1.0] * len(ids), finish), "", Score(total, parts, "ok" if total > 0.5 else "wrong"))


def phase(model: Transformer, temperature: float = 1.0, seed: int = 3) -> list[list[Scored]]:
    """One rollout phase of the model: four problems, four completions each, random scores; the last group is flat."""
    rng = random.Random(seed)
    rows = generate(model, PROMPTS, G, Sample(max_new_tokens=8, temperature=temperature), seed, EOS)
    return [[scored(0.3 if q == len(rows) - 1 else rng.choice([0.0, 0.1, 1.0, 1.1]), r.ids, r.logp, r.finish, r.prompt_ids)
             for r in row] for q, row in enumerate(rows)]


def examples_of(groups: list[list[Scored]]):
    return make_examples(groups, advantages(torch.tensor([[s.score.total for s in g] for g in groups], dtype=D)))


class Kept(torch.optim.SGD):
    """Plain gradient descent that remembers the gradient of every step and the weights before it."""

    def __init__(self, model: Transformer):
        super().__init__(model.parameters(), lr=0.0)
        self.grads, self.before, self.model = [], [], model

    def step(self):
        self.grads.append([p.grad.clone() for p in self.model.parameters()])
        self.before.append(copy.deepcopy(self.model))
        super().step()


def gradients(model: Transformer, examples, cfg: GRPO, reference=None, lr: float = 0.0) -> tuple[list, list, dict]:
    """Gradients and weights of every step of `learn`, and what it returns."""
    optimizer = Kept(model)
    out = learn(model, reference, optimizer, examples, cfg, lr, "seed")
    return optimizer.grads, optimizer.before, out


def by_hand(model: Transformer, groups, temperature=1.0, beta=0.0, reference=None, clip=None, std=True, only=None) -> list:
    """R1 equations 1 to 3 written out: a loop over completions, each alone in a forward of its own.

    1/Q sum_q 1/G sum_i 1/|o_i| sum_t (surrogate - beta KL); without `clip` the surrogate is A log pi (REINFORCE),
    with it min(rho A, clip(rho) A) against the sampled log-probs. `only`: the completions that are averaged."""
    def logp(net, r):
        logits = net(torch.tensor([r.prompt_ids + r.ids[:-1]]))[0].to(D) / temperature
        return logits.log_softmax(-1)[torch.arange(len(r.ids)) + len(r.prompt_ids) - 1, r.ids]

    objective, count = 0.0, sum(only is None or only(s) for g in groups for s in g)
    for g in groups:
        mean = sum(s.score.total for s in g) / len(g)
        sd = math.sqrt(sum((s.score.total - mean) ** 2 for s in g) / len(g)) if std else 1.0
        for s in g:
            if only is not None and not only(s):
                continue
            A = (s.score.total - mean) / sd if sd > 1e-9 else 0.0
            new = logp(model, s.rollout)
            terms = A * new
            if clip is not None:
                rho = (new - torch.tensor(s.rollout.logp, dtype=D)).exp()
                terms = torch.minimum(rho * A, rho.clamp(1 - clip, 1 + clip) * A)
            if beta:
                x = (logp(reference, s.rollout).detach() - new).exp()
                terms = terms - beta * (x - x.log() - 1)
            objective = objective + terms.sum() / len(s.rollout.ids) / count
    return [-g for g in torch.autograd.grad(objective, list(model.parameters()))]


def assert_close(a: list, b: list, tolerance: float = 2e-6):
    """Log-probs and the rotary angles are fp32 in a model of any type; relative to the largest entry."""
    scale = max(x.abs().max() for x in b)
    assert scale > 1e-4 and max((x - y).abs().max() for x, y in zip(a, b, strict=True)) < tolerance * scale


# ---- the gradient ------------------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("micro_tokens", [4096, 1])
def test_one_update_is_reinforce_with_the_group_as_baseline(make_model, monkeypatch, temperature, micro_tokens):
    """Over all completions, of which `learn` runs only those that have an advantage, and each of them once."""
    model = make_model(D)
    groups = phase(model, temperature)
    rows, real = [], losses._statistics
    monkeypatch.setattr(losses, "_statistics", lambda logits, *more: rows.append(len(logits)) or real(logits, *more))
    grads, _, out = gradients(model, examples_of(groups), settings(temperature=temperature, micro_tokens=micro_tokens))
    assert_close(grads[0], by_hand(model, groups, temperature))
    counted = [s for g in groups[:-1] for s in g if s.score.total != pytest.approx(sum(t.score.total for t in g) / G)]
    assert len(grads) == 1 and sum(rows) == sum(len(s.rollout.ids) for s in counted) == out["trained_tokens"]
    assert len(rows) == (1 if micro_tokens > 1 else len(counted))        # no second forward for old log-probs
    assert out["clip_fraction"] == 0 and out["kl"] == 0 and out["gap"] < 1e-6


def test_one_update_does_not_ask_what_the_sampler_said(make_model):
    """Its ratio is exactly 1: sampled log-probs that are off by far change no bit of the gradient."""
    model = make_model()
    examples = examples_of(phase(model))
    wrong = [stage.Example(e.ids, e.mask, e.adv, e.w, [x - 5.0 for x in e.old_logp]) for e in examples]
    right, off = (gradients(model, e, settings()) for e in (examples, wrong))
    assert all(torch.equal(a, b) for a, b in zip(right[0][0], off[0][0], strict=True))
    assert off[2]["gap"] == pytest.approx(5.0, abs=1e-4) and off[2]["clip_fraction"] == 0


@pytest.mark.parametrize("clip", [0.2, 10.0])
def test_a_second_epoch_is_the_clipped_objective_against_the_sampled_log_probs(make_model, clip):
    """Its gradient at the weights after the first update; with the paper's clip of 10 nothing is clipped."""
    model = make_model(D)
    groups = phase(model)
    grads, before, out = gradients(model, examples_of(groups), settings(inner_epochs=2, clip_low=clip, clip_high=clip), lr=0.5)
    assert len(grads) == 2
    assert_close(grads[0], by_hand(before[0], groups))
    assert_close(grads[1], by_hand(before[1], groups, clip=clip))
    plain = by_hand(before[1], groups)
    assert max((a - b).abs().max() for a, b in zip(grads[1], plain, strict=True)) > 0.01 * max(p.abs().max() for p in plain)
    assert (out["clip_fraction"] > 0.02) == (clip == 0.2)
    assert out["gap"] < 1e-6               # of the first step, where the weights are still those of the sampler


def test_the_kl_term_pulls_towards_the_reference(make_model):
    """All completions count here, also those without an advantage."""
    model, reference = make_model(D), make_model(D, seed=1)
    groups = phase(model)
    grads, _, out = gradients(model, examples_of(groups), settings(kl_coef=0.3), reference)
    assert_close(grads[0], by_hand(model, groups, beta=0.3, reference=reference))
    assert out["trained_tokens"] == sum(len(s.rollout.ids) for g in groups for s in g) and out["kl"] > 0.1
    assert all(p.grad is None for p in reference.parameters())


def test_the_kl_to_oneself_is_nothing(make_model):
    """0 to the bit, in value and in gradient: the gradient is that without the term."""
    model = make_model()
    groups = phase(model)
    flat = [[scored(1.0, s.rollout.ids, s.rollout.logp, s.rollout.finish, s.rollout.prompt_ids) for s in g] for g in groups]
    grads, _, out = gradients(model, examples_of(flat), settings(kl_coef=0.5), copy.deepcopy(model))
    assert out["kl"] == 0.0 and out["loss"] == 0.0 and all((g == 0).all() for g in grads[0])


@pytest.mark.parametrize("how", ["sequence", "token", "constant"])
@pytest.mark.parametrize("reverse", ["samples", "problems"])
def test_the_order_of_samples_and_of_problems_does_not_matter(make_model, how, reverse):
    model = make_model(D)
    groups = phase(model)
    other = [g[2:] + g[:2] for g in groups] if reverse == "samples" else groups[::-1]
    a, b = (gradients(model, examples_of(g), settings(aggregate=how))[0][0] for g in (groups, other))
    assert_close(a, b, 1e-6)


@pytest.mark.parametrize("how", ["sequence", "token", "constant"])
def test_completions_without_an_advantage_are_left_out_of_the_forward_only(make_model, how):
    """They still count in the average: the gradient is that of running them all, as a KL term of weight 0 does."""
    model = make_model(D)
    examples = examples_of(phase(model))
    assert sum(e.adv == 0 for e in examples) >= G
    few, _, left_out = gradients(model, examples, settings(aggregate=how))
    every, _, run = gradients(model, examples, settings(aggregate=how), reference=make_model(D, seed=1))
    assert run["trained_tokens"] == sum(sum(e.mask) for e in examples) > left_out["trained_tokens"]
    assert_close(few[0], every[0], 1e-6)
    assert left_out["loss"] == pytest.approx(run["loss"], abs=1e-6)


# ---- weights -----------------------------------------------------------------------------------

CUT = [[scored(1.0, [1] * 2), scored(0.0, [1] * 8, finish="length"), scored(0.0, [1] * 4), scored(1.0, [1] * 6, finish="stop")]]


@pytest.mark.parametrize("how, keep, drop", [
    ("sequence", [1 / 8, 1 / 32, 1 / 16, 1 / 24], [1 / 6, 0, 1 / 12, 1 / 18]),
    ("token", [1 / 20] * 4, [1 / 12, 0, 1 / 12, 1 / 12]),
    ("constant", [1 / 32] * 4, [1 / 24, 0, 1 / 24, 1 / 24])])
def test_weights_with_and_without_the_truncated_by_hand(how, keep, drop):
    """Lengths 2, 8 (cut at the limit), 4 and 6 (ended by a stop string), limit 8."""
    for truncated, expected in (("keep", keep), ("drop", drop)):
        made = weigh(examples_of(CUT), settings(aggregate=how, truncated=truncated))
        assert [e.w for e in made] == pytest.approx(expected, abs=1e-15)
        assert [e.adv for e in made] == [1, -1, -1, 1]       # dropping is of the loss, not of the baseline


def test_dropping_the_truncated_leaves_the_gradient_of_the_others(make_model):
    """Averaged over the others, their advantages still relative to the whole group; all cut: exactly nothing."""
    model = make_model(D)
    groups = phase(model)
    cut = sum(s.rollout.finish == "length" for g in groups[:-1] for s in g)
    assert 2 < cut < 10
    grads, *_ = gradients(model, examples_of(groups), settings(truncated="drop"))
    assert_close(grads[0], by_hand(model, groups, only=lambda s: s.rollout.finish != "length"))
    all_cut = [[scored(s.score.total, s.rollout.ids, s.rollout.logp, "length", s.rollout.prompt_ids) for s in g] for g in groups]
    grads, _, out = gradients(model, examples_of(all_cut), settings(truncated="drop"))
    assert out["loss"] == 0 and all((g == 0).all() for step in grads for g in step)


# ---- mini-batches ------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["sequence", "token", "constant"])
@pytest.mark.parametrize("minibatches, epochs", [(1, 1), (3, 1), (2, 3), (6, 2)])
def test_every_completion_is_used_once_per_epoch(monkeypatch, how, minibatches, epochs):
    """Mini-batches of equal size share each epoch out, and their weights are from their own counts."""
    groups = [[scored(g / 4, [10 * q + g] * (1 + (3 * q + g) % 7)) for g in range(4)] for q in range(6)]
    groups[2] = [scored(1.0, [20 + g] * 3) for g in range(4)]                    # flat: counted, then left out
    examples, seen = examples_of(groups), []
    monkeypatch.setattr(stage, "optimise", lambda model, optimizer, chosen, *a: seen.append(chosen) or {"loss": 0.0, **dict.fromkeys(
        ("clip_fraction", "kl", "entropy", "gap", "trained_tokens"), 1.0)})
    cfg = settings(minibatches=minibatches, inner_epochs=epochs, aggregate=how)
    learn(None, torch.nn.Identity(), None, examples, cfg, 0.0, "s")              # with a reference none is left out
    assert len(seen) == minibatches * epochs and {len(m) for m in seen} == {24 // minibatches}
    name = lambda e: e.ids[-1]  # noqa: E731
    orders = [[name(e) for m in seen[i:i + minibatches] for e in m] for i in range(0, len(seen), minibatches)]
    assert all(sorted(o) == sorted(map(name, examples)) for o in orders)
    assert len({tuple(o) for o in orders}) == epochs                             # shuffled anew
    for m in seen:
        lengths = [sum(e.mask) for e in m]
        expected = {"sequence": [1 / len(m) / n for n in lengths], "token": [1 / sum(lengths)] * len(m),
                    "constant": [1 / len(m) / 8] * len(m)}[how]
        assert [e.w for e in m] == pytest.approx(expected, rel=1e-12)
    every, seen[:] = seen[:], []
    learn(None, None, None, examples, cfg, 0.0, "s")
    assert seen == [[e for e in m if e.adv] for m in every]                      # the same shares and the same weights


def test_mini_batches_of_one_epoch_add_up_to_the_whole(make_model):
    """At unmoved weights the mean of their gradients is that of the whole phase."""
    model = make_model(D)
    groups = phase(model)
    grads, *_ = gradients(model, examples_of(groups), settings(minibatches=4))
    assert len(grads) == 4
    assert_close([sum(parts) / 4 for parts in zip(*grads, strict=True)], by_hand(model, groups))


# ---- dynamic sampling --------------------------------------------------------------------------

def script(*rounds: str):
    """A sampler that returns groups by letter: lower case of one mind, upper case mixed."""
    asked = []

    def sample(round):
        asked.append(round)
        return [[scored(t, [ord(c)]) for t in ([0.3] * 3 if c.islower() else [0.0, 1.0, 0.0])] for c in rounds[round]], {"time": 1.0}

    return sample, asked


@pytest.mark.parametrize("dynamic, rounds, expected, calls", [
    (0, ["aBcD", "EFGH"], "aBcD", 1), (3, ["ABCD", "EFGH"], "ABCD", 1), (1, ["aBcD", "EFGH"], "EBFD", 2),
    (2, ["aBcd", "eFgh", "IjKL"], "FBIK", 3), (1, ["aBcd", "eFgh", "IjKL"], "FBcd", 2), (3, ["abcd"] * 4, "abcd", 4),
    (5, ["abcd", "ABCD", "EFGH"], "ABCD", 2)])
def test_groups_of_one_mind_are_replaced_by_further_rounds(dynamic, rounds, expected, calls):
    """In their places, by mixed groups alone, as many as there were, in at most `dynamic` rounds."""
    sample, asked = script(*rounds)
    groups, seconds = collect(sample, dynamic)
    assert "".join(chr(g[0].rollout.ids[0]) for g in groups) == expected
    assert asked == list(range(calls)) and seconds == {"time": float(calls)}


def test_groups_that_nobody_could_judge_are_left_out():
    """A failure of the sandbox is neither right nor wrong: its group is gone, the others are as they were."""
    good, bad = [[scored(1.0, [5]), scored(0.0, [6])] for _ in range(2)]
    bad[1] = dataclasses.replace(bad[1], score=dataclasses.replace(bad[1].score, reason="infra"))
    assert judged([good, bad]) == [good] and judged([bad]) == [] and judged([good]) == [good]


def test_a_group_that_nobody_could_judge_is_replaced_as_a_flat_one_is():
    good, flat, broken = [scored(1.0, [5]), scored(0.0, [6])], [scored(0.0, [7])] * 2, [scored(1.0, [8]), scored(0.0, [9])]
    broken[1] = dataclasses.replace(broken[1], score=dataclasses.replace(broken[1].score, reason="infra"))
    rounds = iter([[broken, good], [flat, good], [good, good]])
    assert collect(lambda _: (next(rounds), {}), 2)[0] == [good, good]
    rounds = iter([[flat], [broken], [good]])
    assert collect(lambda _: (next(rounds), {}), 2)[0] == [good]


def test_a_group_that_nobody_could_judge_moves_nothing(start, tmp_path, monkeypatch):
    """The update is that of the other group alone."""
    roll_out, trained = stage.roll_out, []

    def broken(*args):
        groups, seconds = roll_out(*args)
        return [groups[0], [dataclasses.replace(s, score=dataclasses.replace(s.score, reason="infra", total=9.0)) for s in groups[1]]], seconds

    update = stage.learn
    monkeypatch.setattr(stage, "roll_out", broken)
    monkeypatch.setattr(stage, "learn", lambda *args: trained.append(args[3]) or update(*args))
    metrics = run(start, tmp_path, steps=1)
    assert metrics[0]["unjudged_groups"] == 1 and metrics[0]["reward"] < 9 and len(trained[0]) == 3


def test_when_the_sandbox_fails_everywhere_the_stage_says_so(start, tmp_path, monkeypatch):
    roll_out = stage.roll_out

    def broken(*args):
        groups, seconds = roll_out(*args)
        return [[dataclasses.replace(s, score=dataclasses.replace(s.score, reason="infra")) for s in g] for g in groups], seconds

    monkeypatch.setattr(stage, "roll_out", broken)
    with pytest.raises(UserError, match="the sandbox failed in every group of step 0"):
        run(start, tmp_path, steps=1)


def test_describe_by_hand():
    groups = [[scored(1.0, [1] * 2), scored(0.0, [1] * 4, finish="length")], [scored(0.0, [1] * 6), scored(0.0, [1] * 8)]]
    assert describe(groups, torch.tensor([[1.0, -1.0], [0, 0]])) == {
        "reward": 0.25, "accuracy": 0.25, "format": 1.0, "language": 1.0, "length": 5.0, "length_right": 2.0, "length_wrong": 6.0,
        "reflections": 0.0, "truncated": 0.25, "flat_groups": 0.5, "advantage": 0.5, "sampled_tokens": 20, "reason/ok": 0.25, "reason/wrong": 0.75}


# ---- the whole stage ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory):
    """A folder with a random model, and a reward that its samples differ in."""
    from conftest import random_model
    root = tmp_path_factory.mktemp("start")
    checkpoint.save_model(root / "model", random_model(vocab_size=tokenizer.vocab_size), tokenizer, [tokenizer.eos_id], tokenizer.eos_id)
    (root / "mine.py").write_text("def length(problem, completion):\n    return len(completion.encode()) % 7 / 7\n")
    return root


def run(start, path, **changes) -> list[dict]:
    """The stage in a folder of its own; returns its metrics."""
    folder = Folder(path, "rl", 0, "cpu", {"zero": "User: {prompt}\nAssistant:"})
    folder.path.mkdir(parents=True, exist_ok=True)
    grpo(GRPO(**{"name": "rl", "kind": "grpo", "init": str(start / "model"), "data": {"chain:2": 1.0}, "reward": {"custom": 1.0},
                 "reward_function": f"{start}/mine.py:length", "problems": 2, "group": 3, "kl_coef": 0.0,
                 "sample": Sample(max_new_tokens=6), "optim": Optim(lr=1e-2), **changes}), folder)
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def bits(model) -> dict:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def final(path) -> dict:
    return bits(checkpoint.load_model(path / "rl/model", "cpu"))


@pytest.fixture
def watched(monkeypatch):
    """What the stage does: models loaded, training forwards, rollout phases, weights before and after each update."""
    seen = {"loads": 0, "forwards": 0, "phases": [], "updates": []}
    load, hidden, roll_out, update = checkpoint.load_model, Transformer.hidden, stage.roll_out, stage.learn

    def counted_load(*a):
        seen["loads"] += 1
        return load(*a)

    def counted_hidden(self, ids, context):
        seen["forwards"] += not isinstance(context, KVCache)
        return hidden(self, ids, context)

    def noted_roll_out(model, tokenizer, problems, sample, group, seed, *a):
        groups, seconds = roll_out(model, tokenizer, problems, sample, group, seed, *a)
        seen["phases"].append((problems, seed, groups))
        return groups, seconds

    def noted_learn(policy, reference, optimizer, examples, *a):
        before = bits(policy), reference and bits(reference)
        out = update(policy, reference, optimizer, examples, *a)
        seen["updates"].append((*before, bits(policy), reference and bits(reference), examples))
        return out

    for where, name, value in ((checkpoint, "load_model", counted_load), (Transformer, "hidden", counted_hidden),
                               (stage, "roll_out", noted_roll_out), (stage, "learn", noted_learn)):
        monkeypatch.setattr(where, name, value)
    return seen


def test_without_kl_there_is_one_model_and_one_forward_per_update(start, tmp_path, watched):
    """What is trained on are the ids that were sampled, of problems on the training side, drawn anew each step."""
    metrics = run(start, tmp_path, steps=4)
    assert watched["loads"] == 1 and watched["forwards"] == 4 and len(watched["phases"]) == 4
    assert all(u[1] is None for u in watched["updates"]) and max(m["gap"] for m in metrics) < 1e-5
    for (problems, _, groups), update in zip(watched["phases"], watched["updates"], strict=True):
        assert not any(is_test(p.id.split("|")[0]) for p in problems) and len(problems) == 2
        flat = [s.rollout for g in groups for s in g]
        assert [e.ids for e in update[4]] == [r.prompt_ids + r.ids for r in flat]
        assert [e.ids[-sum(e.mask):] for e in update[4]] == [r.ids for r in flat]
    assert len({s for _, s, _ in watched["phases"]}) == 4 == len({p.id for ps, *_ in watched["phases"] for p in ps}) / 2
    assert not same(watched["updates"][0][0], watched["updates"][-1][2])


@pytest.mark.parametrize("std, leave_one_out", [(True, False), (False, False), (False, True)])
def test_a_completions_advantage_is_over_its_own_group(start, tmp_path, watched, std, leave_one_out):
    """Three groups of four by hand: r - mean of all, or of the other three; divided by the deviation of the four or not."""
    run(start, tmp_path, steps=1, problems=3, group=4, std=std, leave_one_out=leave_one_out)
    expected = []
    for g in watched["phases"][0][2]:
        r = [s.score.total for s in g]
        mean = sum(r) / 4
        sd = math.sqrt(sum((x - mean) ** 2 for x in r) / 4) if std else 1.0
        assert sd > 0.01
        expected += [(x - (sum(r) - x) / 3 if leave_one_out else x - mean) / sd for x in r]
    assert [e.adv for e in watched["updates"][0][4]] == pytest.approx(expected, abs=1e-12)


def test_the_reference_moves_only_every_so_many_steps(start, tmp_path, watched):
    """It is the start for three steps, then the policy after step 3, then that after step 6; one more forward each."""
    metrics = run(start, tmp_path, steps=7, kl_coef=0.05, ref_every=3)
    updates = watched["updates"]
    assert watched["loads"] == 2 and watched["forwards"] == 2 * 7
    assert all(same(u[1], u[3]) for u in updates)                            # an update does not move it
    for step, holds in enumerate([0, 0, 0, 3, 3, 3, 6]):
        assert same(updates[step][1], updates[holds][0])
        assert (metrics[step]["kl"] == 0) == (step == holds), step
    assert not same(updates[0][0], updates[3][0]) and not same(updates[3][0], updates[6][0])


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_when_all_groups_are_of_one_mind_nothing_moves(start, tmp_path, watched, kl_coef):
    """Two more rounds are tried, with other problems and seeds; weights keep their bits and no figure is NaN."""
    metrics = run(start, tmp_path, steps=2, dynamic=2, reward={"accuracy": 1.0}, kl_coef=kl_coef)
    assert len(watched["phases"]) == 6 and len({s for _, s, _ in watched["phases"]}) == 6
    assert len({p.id for ps, *_ in watched["phases"] for p in ps}) == 12
    assert same(final(tmp_path), bits(checkpoint.load_model(start / "model", "cpu")))
    assert all(len(u[4]) == 6 for u in watched["updates"])
    assert all(math.isfinite(v) for m in metrics for v in m.values()) and {m["flat_groups"] for m in metrics} == {1.0}
    assert {m["loss"] for m in metrics} == {m["grad_norm"] for m in metrics} == {0.0}


def test_a_broken_off_stage_continues_with_its_reference_and_its_phase(start, tmp_path, monkeypatch):
    """Saved at step 3, after the reference had moved at 2; broken off in the second mini-batch of step 5."""
    how = {"steps": 6, "kl_coef": 0.05, "ref_every": 2, "minibatches": 2, "inner_epochs": 2, "dynamic": 1, "save_every": 3, "problems": 4}
    straight = run(start, tmp_path / "straight", **how)
    whole, count = stage.optimise, iter(range(100))

    def breaking(*a):
        if next(count) == 4 * 4 + 1:
            raise KeyboardInterrupt
        return whole(*a)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "optimise", breaking)
        with pytest.raises(KeyboardInterrupt):
            run(start, tmp_path / "broken", **how)
    again = run(start, tmp_path / "broken", **how)
    assert same(final(tmp_path / "straight"), final(tmp_path / "broken"))
    figures = lambda rows: [{k: v for k, v in r.items() if not k.startswith("time")} for r in rows]  # noqa: E731
    assert figures(straight) == figures(again) and [r["step"] for r in again] == list(range(6))
    samples = [(tmp_path / d / "rl/samples.jsonl").read_text() for d in ("straight", "broken")]
    assert samples[0] == samples[1]


def test_the_samplers_seed_comes_from_counters():
    """Distinct over runs, steps and rounds, and within 63 bits."""
    seeds = {hash_seed(s, step, r) for s in range(10) for step in range(100) for r in range(3)}
    assert len(seeds) == 3000 and all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("key, value, says", [
    ("sample.top_p", 0.9, "top_p"), ("sample.top_k", 5, "top_k"), ("sample.temperature", 0, "temperature"),
    ("sample.temperature", -1.0, "temperature"), ("minibatches", 3, "multiple of minibatches")])
def test_sampling_that_is_not_what_is_trained_is_refused(key, value, says):
    raw = {"stages": [{"name": "rl", "kind": "grpo", "init": "m", "template": "chat", "data": {"chain": 1}, "problems": 8}]}
    config.parse(copy.deepcopy(raw), "x.yaml")
    with pytest.raises(UserError, match=says):
        config.parse(raw, "x.yaml", [f"rl.{key}={value}"])


def test_what_only_pads_a_vocabulary_is_neither_drawn_nor_counted(start, tokenizer, make_model, tmp_path):
    """A head of 400 more rows than the tokenizer has tokens, each as likely as a token: as if they were not there."""
    small = make_model(vocab_size=tokenizer.vocab_size, tie_word_embeddings=False)
    padded = make_model(vocab_size=tokenizer.vocab_size + 400, tie_word_embeddings=False)
    with torch.no_grad():
        for p, q in zip(padded.parameters(), small.parameters(), strict=True):
            p[:len(q)] = q
    results = []
    for name, model in (("small", small), ("padded", padded)):
        checkpoint.save_model(tmp_path / name, model, tokenizer, [tokenizer.eos_id])
        metrics = run(start, tmp_path / f"{name}-run", init=str(tmp_path / name), steps=2, kl_coef=0.1)
        results.append(([{k: v for k, v in m.items() if not k.startswith("time")} for m in metrics],
                        [p[:len(q)] for p, q in zip(final(tmp_path / f"{name}-run").values(), small.parameters(), strict=True)]))
    assert results[0][0] == results[1][0] and results[0][0][1]["kl"] > 0 and results[0][0][0]["gap"] < 1e-4
    assert all(torch.equal(p, q) for p, q in zip(results[0][1], results[1][1], strict=True))
