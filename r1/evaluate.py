"""Stage evaluate: the paper's protocol (R1 section 3): k samples per problem at temperature 0.6 and top-p 0.95.

pass@1 is the mean over k, cons@k the majority vote; standard errors are over problems.
"""

import json
import math
import time
from pathlib import Path

import torch

from r1 import checkpoint, ranks
from r1.accuracy import find_answer
from r1.config import Evaluate, to_dict
from r1.files import jsonl
from r1.hf_config import eos_ids
from r1.model import Transformer
from r1.rewards import reflections
from r1.rollout import Scored, judged, roll_out
from r1.runtime import Folder, hardware
from r1.tasks import draw_distinct
from r1.tokenizer import Tokenizer
from r1.types import Problem, UserError


def evaluate(cfg: Evaluate, folder: Folder, template: str, source: Path, forbid: list[str]) -> dict:
    """Evaluate the model in `source` on every domain of the config, never drawing the tokens `forbid`; writes eval.json and
    eval_samples.jsonl."""
    ranks.at("loading the model", f"the evaluation of {folder.name}")
    model, tokenizer = checkpoint.load_model(source, folder.device), Tokenizer.load(source).with_template(folder.template(template))
    model.bf16 = folder.bf16(cfg.bf16)
    eos, setting = eos_ids(source), settings(cfg, folder, template)
    if forbid:
        ids = {text: tokenizer.encode(text) for text in forbid}
        if more := [text for text in forbid if len(ids[text]) != 1]:
            raise UserError(f"forbid: {more[0]!r} is {len(ids[more[0]])} tokens of this model, and must be one")
        never = torch.tensor([ids[text][0] for text in forbid], device=folder.device)
        model.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, never, -torch.inf))

    def measure(domain: str, mix: dict[str, float]) -> dict:
        began, problems = time.perf_counter(), draw_distinct(mix, cfg.problems, f"test/{domain}", test=True)
        groups = run(model, tokenizer, problems, cfg, folder.seed, eos, f"{folder.name} {domain}")
        return {"figures": {**summary(groups), "unjudged": len(problems) - len(groups), **split(groups),
                            "each": {g[0].problem.id: (sum(s.score.parts["accuracy"] for s in g) / len(g), majority(g)) for g in groups}},
                "rows": [{"domain": domain, **s.record()} for g in groups for s in g], "seconds": time.perf_counter() - began}

    found = {domain: folder.remember(f"eval-{domain}", lambda d=domain, m=mix: measure(d, m), setting) for domain, mix in cfg.domains.items()}
    result = {"k": cfg.k, "hardware": hardware(), "seed": folder.seed, "settings": setting,
              **{domain: each["figures"] for domain, each in found.items()}, "seconds": round(sum(each["seconds"] for each in found.values()), 1)}
    folder.write("eval_samples.jsonl", jsonl(r for each in found.values() for r in each["rows"]))
    folder.write("eval.json", json.dumps(result, indent=1, ensure_ascii=False))
    return result


def settings(cfg: Evaluate, folder: Folder, template: str) -> dict:
    """What decides the figures, apart from the model."""
    return {**to_dict(cfg), "template": folder.template(template)}


def run(model: Transformer, tokenizer: Tokenizer, problems: list[Problem], cfg: Evaluate, seed: int, eos: list[int],
        title: str) -> list[list[Scored]]:
    """k scored completions of each problem; problems that the sandbox failed on are left out."""
    groups, _ = roll_out(model, tokenizer, problems, cfg.sample, cfg.k, seed, {"accuracy": 1.0}, eos, title=title)
    return judged(groups, title)


def summary(groups: list[list[Scored]]) -> dict[str, float]:
    """Figures of one set of problems; `se` is the standard error of pass@1 over problems."""
    right = [[s.score.parts["accuracy"] for s in g] for g in groups]
    each = [sum(r) / len(r) for r in right]
    flat = [s for g in groups for s in g]
    mean = lambda values: sum(values) / max(1, len(values))  # noqa: E731
    pass1 = mean(each)
    spread = sum((x - pass1) ** 2 for x in each) / max(1, len(each) - 1)
    k = len(groups[0]) if groups else 0
    return {"problems": len(groups), "pass@1": pass1, "se": math.sqrt(spread / max(1, len(each))),
            f"cons@{k}": mean([majority(g) for g in groups]), f"pass@{k}": mean([pass_at(r, k) for r in right]),
            "format": mean([s.score.parts["format"] for s in flat]), "language": mean([s.score.parts["language"] for s in flat]),
            "length": mean([len(s.rollout.ids) for s in flat]), "reflections": mean([reflections(s.text) for s in flat]),
            "truncated": mean([s.rollout.finish == "length" for s in flat])}


def split(groups: list[list[Scored]]) -> dict[str, dict]:
    """The same figures by task, by task and level, and by language."""
    parts = {"by_task": lambda p: p.task, "by_level": lambda p: f"{p.task}:{p.level}", "by_lang": lambda p: p.lang}
    return {name: {key: summary([g for g in groups if of(g[0].problem) == key]) for key in sorted({of(g[0].problem) for g in groups})}
            for name, of in parts.items()}


def pass_at(right: list[float], k: int) -> float:
    """Unbiased chance that one of k samples is right, from n >= k samples: 1 - C(n - c, k) / C(n, k)."""
    n, c = len(right), int(sum(right))
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(group: list[Scored]) -> float:
    """1 if the answer given most often is right (the first of equals); samples without an answer do not vote."""
    votes: dict[str, list[float]] = {}
    for s in group:
        answer = find_answer(s.problem, s.text)
        if answer is not None and answer.strip():
            votes.setdefault("".join(answer.split()).casefold(), []).append(s.score.parts["accuracy"])
    return max(votes.values(), key=len)[0] if votes else 0.0
