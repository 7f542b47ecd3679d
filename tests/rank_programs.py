"""What test_ranks.py runs under torchrun, and the first of them in one process too: the same work, and all it comes to in a folder.

    rank_programs.py measure OUT START [OTHER]    every calculation of which several ranks do a share
    rank_programs.py fault WHAT WHO WHERE COUNT MARK ARGS...    train.py ARGS..., in which rank WHO fails once
"""
import dataclasses
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from r1 import checkpoint, grpo as rl, losses, optim, ranks, supervised  # noqa: E402
from r1.config import GRPO, SFT, Optim, Sample  # noqa: E402
from r1.hf_config import eos_ids  # noqa: E402
from r1.losses import advantages, cross_entropy  # noqa: E402
from r1.rollout import roll_out  # noqa: E402
from r1.runtime import Folder  # noqa: E402
from r1.sampler import generate  # noqa: E402
from r1.tasks import draw, open_sources  # noqa: E402
from r1.tokenizer import Tokenizer  # noqa: E402
from r1.types import Example, UserError  # noqa: E402

TEMPLATE = "Q: {prompt}\nA: <think>"
WEIGHTS = {"custom": 1.0, "language": 0.5}
STEPS = 6                   # of every training, with states after 2 and 4
Q, G = 5, 3                 # neither divides by the ranks


def taste(problem, completion: str) -> float:
    """A reward that differs from completion to completion of a model that says nothing sensible."""
    return round(sum(map(ord, completion)) % 7 / 7, 3)


def settings(**changes) -> GRPO:
    """No clipping of the gradient, so that it can be compared."""
    o = {"micro_tokens": 4096, "clip": 1e9, **{k: changes.pop(k) for k in ("micro_tokens", "clip", "bf16") if k in changes}}
    return GRPO(**{"name": "rl", "kind": "grpo", "kl_coef": 0.0, "sample": Sample(max_new_tokens=24, temperature=0.8),
                   "optim": Optim(**o), **changes})


class Kept(torch.optim.SGD):
    """Plain gradient descent that remembers the whole gradient of every step."""

    def __init__(self, model: nn.Module):
        super().__init__(model.parameters(), lr=0.0)
        self.grads, self.model = [], model

    def step(self):
        self.grads.append({n: ranks.whole(p.grad).clone() for n, p in self.model.named_parameters()})
        super().step()


class Findings:
    """Tensors and words under names, the same on every rank; rank 0 writes them down."""

    def __init__(self):
        self.tensors, self.words = {}, {}

    def keep(self, name: str, tensors: dict) -> None:
        self.tensors |= {f"{name}/{k}": v.detach().clone().contiguous() for k, v in tensors.items()}

    def write(self, out: Path) -> None:
        checkpoint.save_file(self.tensors, out / "tensors.safetensors")
        (out / "words.json").write_text(json.dumps(self.words))


def weights(model: nn.Module) -> dict:
    return {n: ranks.whole(p.detach()).clone() for n, p in model.named_parameters()}


def state(optimizer) -> dict:
    """All tensors of an AdamW, whole."""
    return {f"{i}.{k}": ranks.whole(v).clone() for i, (p, s) in enumerate(optimizer.state.items()) for k, v in s.items()}


# ---- one update, of reinforcement learning and of fine-tuning ------------------------------------

def sample(policy, tokenizer, start: Path, round: int = 0, **changes):
    problems = draw(open_sources({"chain": 1, "word": 1}), Q, f"problems/{round}")
    return roll_out(policy, tokenizer.with_template(TEMPLATE), problems, dataclasses.replace(settings().sample, **changes), G, 3 + round, WEIGHTS,
                    eos_ids(start), taste)


def sampled(f: Findings, policy, tokenizer, start: Path) -> list:
    groups, _ = sample(policy, tokenizer, start)
    more, _ = rl.collect(lambda round: sample(policy, tokenizer, start, round, max_new_tokens=6), 2)
    for name, each in (("plain", groups), ("dynamic", more)):
        rollouts = [s.rollout for g in each for s in g]
        f.words[f"sampled/{name}"] = {"ids": [r.prompt_ids + r.ids for r in rollouts], "finish": [r.finish for r in rollouts],
                                      "logp": [r.logp for r in rollouts], "records": [s.record() for g in each for s in g]}
    return groups


def cases(groups: list) -> dict:
    """Name -> (examples, settings): what one rank alone must not see otherwise than all together."""
    adv = advantages(torch.tensor([[s.score.total for s in g] for g in groups], dtype=torch.float64))
    examples = rl.make_examples(groups, adv)
    lengths = {}
    for e in examples:
        lengths.setdefault(len(e.ids), e)                       # one of each length: their order is theirs alone
    apart = [lengths[n] for n in sorted(lengths)]
    # without an advantage every second one, dealt to one rank of two; they stay in the batch where there is a KL
    flat = [dataclasses.replace(e, adv=0.0 if i % 2 else e.adv or 0.5) for i, e in enumerate(apart)]
    return {"plain": (examples, {}), "flat": (flat, {}), "flat_kl": (flat, {"kl_coef": 0.3}), "kl": (examples, {"kl_coef": 0.3}),
            "small": (examples[:8], {"micro_tokens": 130}), "single": (examples, {"micro_tokens": 1}),
            "few": ([e for e in examples if e.adv][:1], {}), "few_kl": (flat[1:2], {"kl_coef": 0.3}),
            "clipped": (examples, {"clip": 0.05}), "token": (examples, {"aggregate": "token", "truncated": "drop"}),
            "inner": (examples, {"minibatches": 2, "inner_epochs": 2, "kl_coef": 0.3}),
            "none": ([dataclasses.replace(e, adv=0.0) for e in examples], {})}


def update(f: Findings, name: str, policy, reference, examples: list, changes: dict) -> None:
    """`learn` by plain gradient descent; the gradients of all its steps, and how its examples were dealt."""
    hands, deal, optimizer = [], ranks.deal, Kept(policy)
    ranks.deal = lambda *a: (hands.append(deal(*a)), hands[-1])[1]
    try:
        cfg = settings(**changes)
        out = rl.learn(policy, reference if cfg.kl_coef else None, optimizer, examples, cfg, 0.0005 if name == "inner" else 0.0, "seed")
    finally:
        ranks.deal = deal
    for i, grads in enumerate(optimizer.grads):
        f.keep(f"grad/{name}/{i}", grads)
    f.words[f"update/{name}"] = out
    dealt = [[{"examples": len(group), "trained": sum(any(e.mask) for e in group), "adv": sum(abs(e.adv) for e in group)}
              for group in hand] for hand in hands]
    f.words[f"hands/{name}"] = ranks.together(lambda: dealt)
    optimizer.zero_grad()


def conversations(step: int, count: int = 7, vocab: int = 700) -> list[Example]:
    rng, made = random.Random(f"conversation/{step}"), []
    for _ in range(count):
        ids = [rng.randrange(vocab) for _ in range(rng.choice([4, 9, 17, 40]))]
        made.append(Example(ids, [0, 0] + [1] * (len(ids) - 2)))
    total = sum(sum(e.mask) for e in made)
    return [Example(e.ids, e.mask, w=1 / total) for e in made]


def supervise(f: Findings, start: Path) -> None:
    for name, count, micro in (("plain", 7, 4096), ("small", 7, 60), ("few", 1, 4096)):
        model = ranks.shard(checkpoint.load_model(start))
        optimizer = Kept(model)
        out = optim.optimise(model, optimizer, conversations(0, count), spread(model), 0.0, micro, 1e9)
        f.keep(f"grad/sft_{name}/0", optimizer.grads[0])
        f.words[f"update/sft_{name}"] = out


def spread(model):
    def loss_fn(b):
        return cross_entropy(optim.supervised_logprobs(model, b)[0], b.mask, b.w), {}
    return loss_fn


# ---- what one rank does alone ------------------------------------------------------------------

def alone(f: Findings, policy, groups: list) -> None:
    """Ranks sample for unequally long; then the gradient is as it was, and the model in shards."""
    mine = ranks.rank() == ranks.world() - 1
    prompts = [[100, 120, 7], [50, 60, 70]] if mine else [[5]]
    with ranks.unsharded(policy):
        rows = generate(policy, prompts, 2, Sample(max_new_tokens=40 if mine else 1), 0, [])
    f.words["alone/lengths"] = ranks.together(lambda: [len(r.ids) for row in rows for r in row])
    kinds = {"model": {type(p).__name__ for p in policy.parameters()}}
    with torch.no_grad():
        policy(torch.tensor([[1, 2, 3]]))
    kinds["forward"] = {type(p).__name__ for p in policy.parameters()}     # every part lets go of its weights after its forward
    update(f, "again", policy, None, *cases(groups)["plain"])
    sizes = [(ranks.local(p).shape[0], p.shape[0]) for p in policy.parameters()]
    f.words["alone/rows"] = ranks.together(lambda: sizes)
    kinds["after"] = {type(p).__name__ for p in policy.parameters()}
    f.words["alone/kinds"] = ranks.together(lambda: {k: sorted(v) for k, v in kinds.items()})


def bad_number(f: Findings, start: Path) -> None:
    """A NaN in one example, so on one rank: no rank steps. Then a step that is whole, and goes on as if nothing had been."""
    model = ranks.shard(checkpoint.load_model(start))
    optimizer = optim.make_optimizer(model, 1e-3, (0.9, 0.95), 0.1)
    step = lambda examples: optim.optimise(model, optimizer, examples, spread(model), 1e-3, 60, 1.0)  # noqa: E731
    step(conversations(0))
    before = {**weights(model), **state(optimizer)}
    broken = conversations(1)
    broken[3] = dataclasses.replace(broken[3], w=float("nan"))
    out = step(broken)
    after = {**weights(model), **state(optimizer)}
    f.words["nan/skipped"] = ranks.together(lambda: out["skipped"])
    f.words["nan/same"] = ranks.together(lambda: before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before))
    f.words["nan/next"] = step(conversations(2))
    f.keep("nan", weights(model))


def half_precision(f: Findings, start: Path, tokenizer) -> None:
    policy = ranks.shard(checkpoint.load_model(start), bf16=True)
    groups, _ = sample(policy, tokenizer, start)
    adv = advantages(torch.tensor([[s.score.total for s in g] for g in groups], dtype=torch.float64))
    f.words["bf16/gap"] = rl.learn(policy, None, Kept(policy), rl.make_examples(groups, adv), settings(), 0.0, "seed")["gap"]
    policy.zero_grad()
    kinds, real = [], losses._statistics
    losses._statistics = lambda logits, *more: kinds.append(str(logits.dtype)) or real(logits, *more)
    optimizer = Kept(policy)
    optim.optimise(policy, optimizer, conversations(0), spread(policy), 0.0, 4096, 1e9)
    losses._statistics = real
    f.keep("grad/bf16/0", optimizer.grads[0])
    adam = optim.make_optimizer(policy, 1e-3, (0.9, 0.95), 0.1)
    optim.optimise(policy, adam, conversations(0), spread(policy), 1e-3, 4096, 1e9)
    kept = [str(t.dtype) for p in policy.parameters() for t in (p, p.grad, *adam.state[p].values())]
    f.words["bf16/kinds"] = ranks.together(lambda: {"logits": sorted(set(kinds)), "kept": sorted(set(kept))})


def words_between(f: Findings) -> None:
    """gather, total, lead and together where what comes out can be said beforehand."""
    f.words["gather"] = [ranks.gather([10 * i for i in ranks.share(list(range(n)))]) for n in range(6)]
    f.words["total"] = ranks.total({"a": 1.5 / ranks.world(), "b": float(ranks.rank() == 0)})
    led = ranks.lead(ranks.rank)
    f.words["lead"] = ranks.together(lambda: [ranks.rank(), led])
    said = []
    for who, error in ((0, UserError("first")), (ranks.world() - 1, ValueError("last"))):
        def fails(who=who, error=error):
            if ranks.rank() == who:
                raise error
        try:
            ranks.together(fails)
        except (UserError, ValueError) as e:
            said.append(f"{type(e).__name__}: {e}")
    f.words["raised"] = ranks.together(lambda: said)


# ---- several steps, and going on from a state ----------------------------------------------------

def folder_of(root: Path, stage, prior: Path | None) -> Folder:
    """The stage's folder, with the states that another run has left there."""
    folder = Folder(root, stage.name, 0, "cpu", {"zero": TEMPLATE})

    def make():
        folder.path.mkdir(parents=True, exist_ok=True)
        if prior:
            shutil.copytree(prior / stage.name, folder.path, dirs_exist_ok=True)
    ranks.lead(make)
    return folder


def fine_tune(root: Path, start: Path, name: str, prior: Path | None = None) -> dict:
    """AdamW on the one model, or Muon with it on the other; the weights after the last step."""
    start = start / ("untied" if name == "muon" else "tied")
    o = Optim(lr=1e-4, muon_lr=0.02 if name == "muon" else 0.0, micro_tokens=60, weight_decay=0.1)
    cfg = SFT(name, "sft", save_every=2, optim=o)
    return weights(supervised.train(checkpoint.load_model(start), conversations, STEPS, cfg, folder_of(root, cfg, prior)))


def reinforce(root: Path, start: Path, name: str, prior: Path | None = None) -> dict:
    """The whole stage, with a reference that follows after every third step."""
    cfg = settings(name=name, init=str(start / "tied"), data={"chain": 1}, reward={"language": 1.0, "custom": 1.0},
                   reward_function=f"{__file__}:taste", steps=STEPS, problems=3, group=4, save_every=2, kl_coef=0.1, ref_every=3,
                   micro_tokens=300)
    cfg.optim.lr = 1e-4
    folder = folder_of(root, cfg, prior)
    rl.grpo(cfg, folder)
    return weights(checkpoint.load_model(folder.model))


def same_gradients(f: Findings, start: Path) -> None:
    """Muon and AdamW given gradients that are equal to the bit: what the ranks add to them is nothing."""
    model, g = ranks.shard(checkpoint.load_model(start)), torch.Generator().manual_seed(0)
    pair = optim.make_optimizer(model, 1e-3, (0.9, 0.95), 0.1, muon_lr=0.02)
    for _ in range(3):
        for p in model.parameters():
            first, last = ranks.rows(p.shape[0])
            p.grad = ranks.like(p, torch.randn(p.shape, generator=g)[first:last].clone())
        pair.step()
    f.keep("pair", weights(model))


def measure(out: Path, both: Path, other: Path | None = None) -> None:
    """All of it into `out`; `other` is what another number of ranks has left, to go on from."""
    f, start, untied = Findings(), both / "tied", both / "untied"
    with ranks.joined("cpu", 60):
        tokenizer, policy = Tokenizer.load(start), ranks.shard(checkpoint.load_model(start))
        reference = checkpoint.load_model(start)
        with torch.no_grad():
            for p in reference.parameters():
                p.mul_(0.95)
        reference = ranks.shard(reference)
        words_between(f)
        groups = sampled(f, policy, tokenizer, start)
        for name, (examples, changes) in cases(groups).items():
            update(f, name, policy, reference, examples, changes)
            if name == "inner":                                            # it has moved the weights
                policy = ranks.shard(checkpoint.load_model(start))
                policy.words = tokenizer.vocab_size                             # as sampling left it
        alone(f, policy, groups)
        supervise(f, untied)
        bad_number(f, start)
        half_precision(f, untied, tokenizer)
        same_gradients(f, untied)
        for name, work in (("adam", fine_tune), ("muon", fine_tune), ("rl", reinforce)):
            f.keep(f"straight/{name}", work(out / "straight", both, name))
            if other:                                                      # a state of another number of ranks, and one's own
                f.keep(f"from_other/{name}", work(out / "from_other", both, name, other / "straight"))
                f.keep(f"from_own/{name}", work(out / "from_own", both, name, out / "straight"))
        if other:
            damaged(f, out, both)
        for name in ("tied", "untied"):
            checkpoint.save_model(out / "model" / name, ranks.shard(checkpoint.load_model(both / name)), tokenizer, [3, 4], 0)
        if ranks.rank() == 0:
            f.write(out)


def damaged(f: Findings, out: Path, start: Path) -> None:
    """The last piece of the newest state is cut short: all ranks go on from the state before."""
    def spoil():
        shutil.copytree(out / "straight/adam", out / "prior/adam")
        os.truncate(sorted((out / "prior/adam/state/step-00000004").glob("state-*"))[-1], 200)
    ranks.lead(spoil)
    f.keep("damaged/adam", fine_tune(out / "damaged", start, "adam", out / "prior"))


# ---- faults ------------------------------------------------------------------------------------

def fault(what: str, who: str, where: str, count: int, mark: Path, args: list[str]) -> int:
    """train.py, in which rank `who` is killed, raises or hangs as it comes to `where` (module.function) for the `count`-th
    time; only where no file `mark` is yet, so that the same command goes on. "kill busy": the others are at work there for long."""
    import train
    if not mark.exists() and (os.environ["RANK"] == who or what == "kill busy"):
        room, _, name = where.partition(".")
        module, left = importlib.import_module(f"r1.{room}"), iter(range(count - 1, -1, -1))
        whole = getattr(module, name)

        def failing(*args, **kwargs):
            now = next(left, 1) == 0
            if now and os.environ["RANK"] != who:
                time.sleep(4)
            elif now:
                mark.touch()
                if what.startswith("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if what == "raise":
                    raise ValueError("out of cheese")
                time.sleep(600)
            return whole(*args, **kwargs)

        setattr(module, name, failing)
    sys.argv = ["train.py", *args]
    return train.main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, *rest = sys.argv[1:]
    if kind == "fault":
        sys.exit(fault(*rest[:3], int(rest[3]), Path(rest[4]), rest[5:]))
    if "NODES" in os.environ:                                              # as torchrun would on so many machines
        os.environ["LOCAL_WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) // int(os.environ["NODES"]))
    measure(*map(Path, rest))
