"""What did not work, 1: a process reward model in RL. R1 v1 4.2; the form is DeepSeekMath's process supervision (4.1.3).

    python attempts/prm.py configs/findings/prm.yaml

Needs the stage `base` of that config (python train.py configs/findings/prm.yaml makes it). For every seed: the base thinks aloud
about problems; a rule labels each step; a copy of the base with one more output learns the labels; RL rewards steps by what it says.
Everything else, problems, samples, steps and rate, is as in the stage `zero`, which rewards the outcome by rule.
"""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from judge import Judge, fit  # noqa: E402
from r1 import config, grpo, pipeline, sandbox, stop  # noqa: E402
from r1.checkpoint import load_model  # noqa: E402
from r1.hf_config import eos_ids  # noqa: E402
from r1.losses import grpo_loss  # noqa: E402
from r1.optim import lr_at, make_optimizer, optimise, supervised_logprobs  # noqa: E402
from r1.rollout import Scored, roll_out  # noqa: E402
from r1.runtime import Folder, pick_device  # noqa: E402
from r1.tasks import draw, open_sources  # noqa: E402
from r1.tokenizer import Tokenizer  # noqa: E402
from r1.types import Example, UserError  # noqa: E402
from r1.verify import parse  # noqa: E402

END = re.compile(r"(?<=[.。])(?! *</think>)|(?<=</think>)")       # a sentence of the thinking is a step, and the answer is the last one
EQUATION = re.compile(r"(?<![\d+*/-])\d+(?:[+*/-]\d+)*(?:=\d+(?:[+*/-]\d+)*)+")
PROBLEMS, SAMPLES, EPOCHS = 1000, 4, 3


def steps_of(s: Scored, tokenizer: Tokenizer) -> list[int]:
    """For each step, how many of the completion's tokens end with it."""
    at, ids = [], s.rollout.ids
    ends = [found.start() for found in END.finditer(tokenizer.decode(ids))]      # not in s.text, which may begin with what was prefilled
    for i in range(len(ids)):
        text = tokenizer.decode(ids[:i + 1])
        if ends and len(text) >= ends[0] and "\ufffd" not in text:
            at.append(i + 1)
            ends = [e for e in ends if e > len(text)]
    return at + [len(ids)] if not at or at[-1] < len(ids) else at


def labels(s: Scored, at: list[int], tokenizer: Tokenizer) -> list[float]:
    """A step is right if its sums are; the last one, the answer, if the outcome rule says so."""
    out, before = [], 0
    for n in at[:-1]:
        text = tokenizer.decode(s.rollout.ids[before:n])
        out.append(float(all(len({parse(side) for side in e.split("=")}) == 1 for e in EQUATION.findall(text))))
        before = n
    return [*out, s.score.parts["accuracy"]]


class PRM(Judge):
    """How likely a step that ends at a token is right."""

    @torch.no_grad()
    def score(self, rows: list[list[int]], at: list[list[int]]) -> list[list[float]]:
        """The probability at the token before each position of `at`, for every row."""
        out = []
        for i in range(0, len(rows), 64):
            p = torch.sigmoid(self.logits(rows[i:i + 64]))
            out += [[float(p[b, n - 1]) for n in places] for b, places in enumerate(at[i:i + 64])]
        return out


def placed(s: Scored, at: list[int]) -> tuple[list[int], list[int]]:
    """The whole row, and the steps' ends in it."""
    p = s.rollout.prompt_ids
    return p + s.rollout.ids, [len(p) + n for n in at]


def train_prm(base: Path, cfg: config.GRPO, template: str, folder: Folder) -> PRM:
    """On the base's own thoughts; a tenth is held out."""
    model, tokenizer = load_model(base), Tokenizer.load(base)
    problems = draw(open_sources(cfg.data), PROBLEMS, f"{folder.seed}/prm")
    groups, _ = roll_out(model, tokenizer.with_template(template + "<think>"), problems, cfg.sample, SAMPLES, folder.seed, {"accuracy": 1.0}, eos_ids(base), title="prm: thoughts")
    rows = [(*placed(s, at), labels(s, at, tokenizer)) for g in groups for s in g for at in [steps_of(s, tokenizer)]]
    held, rows = rows[:len(rows) // 10], rows[len(rows) // 10:]
    prm = PRM(model)
    fit(prm, rows, EPOCHS, 16, folder.seed)
    said, true = sum(prm.score([r for r, _, _ in held], [a for _, a, _ in held]), []), sum((w for _, _, w in held), [])
    accuracy = sum((p > 0.5) == bool(t) for p, t in zip(said, true, strict=True)) / len(true)
    wrong = torch.tensor([p for p, t in zip(said, true, strict=True) if not t])
    auc = sum(float((p > wrong).float().mean()) for p, t in zip(said, true, strict=True) if t) / sum(true)       # a right step above a wrong one
    folder.write("prm.json", json.dumps({"steps": sum(len(a) for _, a, _ in rows), "right_steps": round(sum(true) / len(true), 4),
                                         "held_out_accuracy": round(accuracy, 4), "held_out_auc": round(auc, 4)}))
    return prm


def process_advantages(scores: list[list[list[float]]], at: list[list[list[int]]], lengths: list[list[int]]) -> list[list[Tensor]]:
    """DeepSeekMath 4.1.3: rewards normalised over all steps of a group; a token's advantage is the sum of those of the steps that
    end with it or after it."""
    out = []
    for group, ends, sizes in zip(scores, at, lengths, strict=True):
        flat = torch.tensor([x for row in group for x in row], dtype=torch.float64)
        mean, std = flat.mean(), flat.std(correction=0).clamp(min=1e-4)
        rows = []
        for row, places, n in zip(group, ends, sizes, strict=True):
            gain = torch.zeros(n, dtype=torch.float64)
            for x, end in zip(row, places, strict=True):
                gain[:end] += (x - mean) / std
            rows.append(gain)
        out.append(rows)
    return out


def rl(prm: PRM, base: Path, cfg: config.GRPO, template: str, folder: Folder) -> None:
    """The loop of r1/grpo.py with steps rewarded instead of outcomes, plus the format's own reward for the whole."""
    policy, tokenizer, eos, o, sources = load_model(base), Tokenizer.load(base).with_template(template), eos_ids(base), cfg.optim, open_sources(cfg.data)
    optimizer = make_optimizer(policy, o.lr, tuple(o.betas), o.weight_decay, o.muon_lr)
    for step in folder.steps(cfg, folder.resume(policy, optimizer), cfg.steps):
        problems = draw(sources, cfg.problems, f"{folder.seed}/zero/{step}/0")
        groups, seconds = roll_out(policy, tokenizer, problems, cfg.sample, cfg.group, grpo.hash_seed(folder.seed, step, 0),
                                   {"format": 1.0}, eos)
        at = [[steps_of(s, tokenizer) for s in g] for g in groups]
        pairs = [placed(s, a) for g, ends in zip(groups, at, strict=True) for s, a in zip(g, ends, strict=True)]
        flat = prm.score([p[0] for p in pairs], [p[1] for p in pairs])
        scores = [flat[i:i + cfg.group] for i in range(0, len(flat), cfg.group)]
        form = grpo.advantages(torch.tensor([[s.score.parts["format"] for s in g] for g in groups], dtype=torch.float64))
        process = process_advantages(scores, at, [[len(s.rollout.ids) for s in g] for g in groups])
        examples = []
        for q, g in enumerate(groups):
            for i, s in enumerate(g):
                r = s.rollout
                adv = torch.cat((torch.zeros(len(r.prompt_ids) - 1), (process[q][i] + form[q, i]).float()))       # (T,) of the targets
                examples.append(Example(r.prompt_ids + r.ids, [0] * len(r.prompt_ids) + [1] * len(r.ids), adv, 1.0, r.logp))
        update = optimise(policy, optimizer, grpo.weigh(examples, cfg), lambda b: outcome(policy, b), lr_at(step, cfg.steps, o.lr, o.warmup, o.final, o.schedule), o.micro_tokens, o.clip)
        mean = [sum(row) / len(row) for row in flat]
        folder.log(step=step, **grpo.describe(groups, form), **update, **seconds, prm=sum(mean) / len(mean),
                   steps_each=sum(map(len, flat)) / len(flat), prm_sum=sum(map(sum, flat)) / len(flat))
        folder.log_samples([{"step": step, "prm": [round(x, 3) for x in scores[0][0]], **groups[0][0].record()}])
    folder.save_model(policy, tokenizer, eos)


def outcome(policy: nn.Module, b) -> tuple[Tensor, dict]:
    logp, _ = supervised_logprobs(policy, b)
    return grpo_loss(logp, None, b.adv, b.mask, b.w)


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError("which config? python attempts/prm.py configs/findings/prm.yaml")
    for cfg in config.each_seed(config.load(sys.argv[1], sys.argv[2:])):
        if cfg.sandbox == "unprotected":
            sandbox.allow_unprotected()
        zero = next(s for s in cfg.stages if s.name == "zero")
        folder = Folder(Path(cfg.out), "prm", cfg.seed, pick_device("cpu"), cfg.templates)
        if not folder.done():
            base, template = folder.find_model(zero.init), folder.template(zero.template)
            rl(train_prm(base, zero, template, folder), base, zero, template, folder)
            folder.finish()
        domains = {"reasoning": cfg.evaluate.domains["reasoning"]}
        pipeline.run_evaluation(replace(cfg.evaluate, domains=domains), zero, folder)


if __name__ == "__main__":
    sys.exit(stop.ends(main))
