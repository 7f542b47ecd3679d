"""What did not work, 2: tree search. R1 v1 4.2 tells the attempt without numbers: answers in parts, a search guided by a value model,
actor and value trained on what the search finds, and again.

    python attempts/mcts.py configs/findings/search.yaml

Needs the stages `base` and `zero` of that config. For every seed, ROUNDS times: search on training problems, fine-tune the actor on the
right answers found, train the value on every step. Then, on held-out problems: the last actor alone; its search; and as many plain
samples as the search's tokens pay for, by majority.
"""
import json
import math
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from judge import Judge, fit  # noqa: E402
from r1 import config, sandbox, stop  # noqa: E402
from r1.accuracy import accuracy, find_answer  # noqa: E402
from r1.checkpoint import load_model, save_model  # noqa: E402
from r1.config import Optim, Sample  # noqa: E402
from r1.hf_config import eos_ids  # noqa: E402
from r1.losses import cross_entropy  # noqa: E402
from r1.optim import lr_at, make_optimizer, optimise, supervised_logprobs  # noqa: E402
from r1.runtime import Folder, pick_device  # noqa: E402
from r1.sampler import generate  # noqa: E402
from r1.tasks import draw, draw_distinct, open_sources  # noqa: E402
from r1.tokenizer import Tokenizer  # noqa: E402
from r1.types import Example, Problem, UserError  # noqa: E402

ROUNDS, TRAIN, TEST = 2, 300, 200          # problems
SIMULATIONS, CHILDREN, C = 48, 3, 0.5      # per problem; expansions of a node at most (the paper: capped, too); UCT's constant
WIDEN = 4                                  # visits that earn a node its next child: else no path would reach an answer
STEP = re.compile(r"[.。]$")                # a sentence of the thinking; the last step is all that comes behind it


@dataclass
class Node:
    """A beginning of an answer: its ids behind the prompt, and what was seen below it."""

    ids: list[int]
    done: bool = False
    parent: "Node | None" = None
    children: "list[Node]" = field(default_factory=list)
    tries: int = 0         # of a next step; those that say the same are one child
    visits: int = 0
    total: float = 0.0

    def worth(self) -> float:
        """UCT, Kocsis and Szepesvari 2006."""
        return math.inf if not self.visits else self.total / self.visits + C * math.sqrt(math.log(self.parent.visits) / self.visits)


class Value(Judge):
    """How likely an answer that begins like this ends right."""

    def forward(self, rows: list[list[int]]) -> torch.Tensor:
        """Rows of ids -> logits (B,) at the last token of each."""
        return self.logits(rows)[torch.arange(len(rows)), torch.tensor([len(r) - 1 for r in rows])]


def select(root: Node) -> Node:
    """Down to a node that may still get a child, or that is an answer."""
    node = root
    while node.tries >= min(CHILDREN, 1 + node.visits // WIDEN) and not node.done:
        node = max(node.children, key=Node.worth)
    return node


def step_ends(tokenizer: Tokenizer, ids: list[int]) -> bool:
    return bool(STEP.search(text := tokenizer.decode(ids))) and "</think>" not in text


def search(model, value: Value, tokenizer: Tokenizer, eos: list[int], prompts: list[list[int]], sample: Sample, seed: int) -> tuple[list[Node], int]:
    """One tree for every prompt, all of them a simulation further at a time; the way that was gone most is gone to its end. Returns the
    roots, and the tokens drawn."""
    roots, spent = [Node([]) for _ in prompts], 0

    def grow(leaves: list[Node], seed: int, stop=None) -> list[Node]:
        """The next step of each, or all that is left of it."""
        nonlocal spent
        at = [i for i, leaf in enumerate(leaves) if not leaf.done]
        room = [sample.max_new_tokens - len(leaves[i].ids) for i in at]
        drawn = generate(model, [prompts[i] + leaves[i].ids for i in at], 1, sample, seed, eos, limits=room, stop=stop)
        for i, (r,) in zip(at, drawn, strict=True):
            leaf, spent = leaves[i], spent + len(r.ids)
            leaf.tries += 1
            child = next((c for c in leaf.children if c.ids == leaf.ids + r.ids), None)
            if child is None:
                leaf.children.append(child := Node(leaf.ids + r.ids, r.finish != "stop", leaf))
            leaves[i] = child
        return leaves

    for simulation in range(SIMULATIONS):
        leaves = grow([select(r) for r in roots], seed + simulation, lambda ids: step_ends(tokenizer, ids))
        with torch.no_grad():
            worth = torch.sigmoid(torch.cat([value([p + n.ids for p, n in zip(prompts[i:i + 64], leaves[i:i + 64], strict=True)])
                                             for i in range(0, len(prompts), 64)]))
        for node, x in zip(leaves, worth.tolist(), strict=True):
            while node is not None:
                node.visits, node.total, node = node.visits + 1, node.total + x, node.parent
    grow([principal(r) for r in roots], seed + SIMULATIONS)
    return roots, spent


def principal(node: Node) -> Node:
    while node.children:
        node = max(node.children, key=lambda n: n.visits)
    return node


def nodes(root: Node) -> list[Node]:
    return [root, *(n for child in root.children for n in nodes(child))]


def text(tokenizer: Tokenizer, node: Node, eos: list[int]) -> str:
    return tokenizer.decode([i for i in node.ids if i not in eos])


def chosen(problem: Problem, root: Node, value: Value, prompt: list[int], tokenizer: Tokenizer, eos: list[int]) -> str | None:
    """The finished answer that the value holds to be likeliest, answers of one mind together."""
    ended = [n for n in nodes(root) if n.done]
    if not ended:
        return None
    with torch.no_grad():
        worth = torch.sigmoid(value([prompt + n.ids for n in ended])).tolist()
    votes, example = Counter(), {}
    for n, x in zip(ended, worth, strict=True):
        said = find_answer(problem, whole := text(tokenizer, n, eos))
        if said is not None:
            votes["".join(said.split())] += x
            example.setdefault("".join(said.split()), whole)
    return example[votes.most_common(1)[0][0]] if votes else None


def train_value(base: Path, seen: list[tuple[list[int], list[int], float]], seed: int) -> Value:
    """On answers, where their steps end, and how the answers ended."""
    value = Value(load_model(base))
    fit(value, [(ids, at, [right] * len(at)) for ids, at, right in seen], 2, 16, seed)
    return value


def fine_tune(base: Path, right: list[tuple[list[int], list[int]]], o: Optim, seed: int):
    """The base, taught the right answers found, in four epochs of 16."""
    model, rng, batch = load_model(base), random.Random(seed), 16
    optimizer, steps = make_optimizer(model, o.lr, tuple(o.betas), o.weight_decay), 4 * (len(right) // batch)
    order = [r for _ in range(4) for r in rng.sample(right, len(right))]

    def loss_fn(b):
        logp, _ = supervised_logprobs(model, b)
        return cross_entropy(logp, b.mask, b.w), {}

    for step in range(steps):
        part = order[step * batch:(step + 1) * batch]
        total = sum(len(ids) for _, ids in part)
        optimise(model, optimizer, [Example(p + ids, [0] * len(p) + [1] * len(ids), w=1 / total) for p, ids in part], loss_fn,
                 lr_at(step, steps, o.lr, 5, 0.1, "cosine"), 16384, 1.0)
    return model


def first_seen(model, tokenizer, eos, prompts, problems, sample, seed) -> list[tuple[list[int], list[int], float]]:
    """Before there is a value: every step of plain samples, and how they ended."""
    seen = []
    for problem, prompt, group in zip(problems, prompts, generate(model, prompts, 4, sample, seed, eos), strict=True):
        for r in group:
            right = float(accuracy(problem, tokenizer.decode([i for i in r.ids if i not in eos]))[0])
            ends = [n for n in range(1, len(r.ids)) if step_ends(tokenizer, r.ids[:n])] + [len(r.ids)]
            seen.append((prompt + r.ids, [len(prompt) + n for n in ends], right))
    return seen


def attempt(cfg: config.Config) -> dict:
    """One seed: the rounds, then the comparison."""
    zero = next(s for s in cfg.stages if s.name == "zero")
    folder = Folder(Path(cfg.out), "mcts", cfg.seed, pick_device("cpu"), cfg.templates)
    base, template = folder.find_model(zero.init), folder.template(zero.template)
    tokenizer, eos, sample = Tokenizer.load(base), eos_ids(base), zero.sample
    asked = lambda problems: [tokenizer.encode(template.replace("{prompt}", p.prompt) + "<think>") for p in problems]  # noqa: E731
    model, seen, right = load_model(base), [], []
    result = {"start": measure(model, tokenizer, eos, cfg, asked, 16), "rounds": []}
    for n in range(ROUNDS):
        problems = draw(open_sources(zero.data), TRAIN, f"{cfg.seed}/mcts/{n}")
        prompts = asked(problems)
        if not seen:
            seen = first_seen(model, tokenizer, eos, prompts, problems, sample, cfg.seed)
        roots, spent = search(model, train_value(base, seen, cfg.seed), tokenizer, eos, prompts, sample, 1000 * n)
        for problem, prompt, root in zip(problems, prompts, roots, strict=True):
            for node in (x for x in nodes(root) if x.done):
                ok, path, ends = float(accuracy(problem, text(tokenizer, node, eos))[0]), node, []
                right += [(prompt, node.ids)] * int(ok)
                while path.parent is not None:
                    ends.append(len(prompt) + len(path.ids))
                    path = path.parent
                seen.append((prompt + node.ids, ends, ok))
        model = fine_tune(base, right, Optim(lr=3e-4), cfg.seed)
        result["rounds"].append({"tokens": spent, "found": len(right)} | measure(model, tokenizer, eos, cfg, asked, 16))
        print(f"seed {cfg.seed} round {n}: {result['rounds'][-1]}", flush=True)
    save_model(folder.model, model, tokenizer, eos, eos[0])
    problems = held_out(cfg)
    prompts, value = asked(problems), train_value(base, seen, cfg.seed)
    roots, spent = search(model, value, tokenizer, eos, prompts, replace(cfg.evaluate.sample, max_new_tokens=sample.max_new_tokens), 77)      # as the plain samples are drawn
    found = [chosen(p, r, value, prompt, tokenizer, eos) for p, r, prompt in zip(problems, roots, prompts, strict=True)]
    result["search"] = {"tokens": spent, "right": sum(accuracy(p, t)[0] if t else 0 for p, t in zip(problems, found, strict=True)) / len(problems)}
    length = result["rounds"][-1]["length"]
    result["plain"] = measure(model, tokenizer, eos, cfg, asked, max(1, round(spent / len(problems) / length)))
    return result


def held_out(cfg: config.Config) -> list[Problem]:
    return draw_distinct(cfg.evaluate.domains["reasoning"], TEST, "test/reasoning", test=True)


def measure(model, tokenizer, eos, cfg: config.Config, asked, k: int) -> dict:
    """pass@1 and the majority of k samples on held-out problems."""
    problems, one, most, length = held_out(cfg), 0.0, 0, 0.0
    for problem, group in zip(problems, generate(model, asked(problems), k, cfg.evaluate.sample, 5, eos), strict=True):
        texts = [tokenizer.decode([i for i in r.ids if i not in eos]) for r in group]
        right = [accuracy(problem, t)[0] for t in texts]
        votes = Counter("".join(a.split()) for t in texts if (a := find_answer(problem, t)) is not None)
        best = votes.most_common(1)[0][0] if votes else None
        most += next((r for t, r in zip(texts, right, strict=True) if "".join((find_answer(problem, t) or "").split()) == best), False)
        one, length = one + sum(right) / k, length + sum(len(r.ids) for r in group) / k
    return {"k": k, "pass@1": one / len(problems), "vote": most / len(problems), "length": length / len(problems)}


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError("which config? python attempts/mcts.py configs/findings/search.yaml")
    for cfg in config.each_seed(config.load(sys.argv[1], sys.argv[2:])):
        if cfg.sandbox == "unprotected":
            sandbox.allow_unprotected()
        file = Path(cfg.out) / "mcts" / "result.json"
        if not file.is_file():
            result = attempt(cfg)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.exit(stop.ends(main))
