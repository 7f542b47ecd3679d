"""The one place where tokenizer, sampler and rewards meet: problems -> scored completions."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from r1 import ranks
from r1.config import Sample
from r1.model import Transformer
from r1.rewards import INFRA, score_all
from r1.sampler import generate
from r1.tokenizer import Tokenizer
from r1.types import Problem, Rollout, Score, UserError


@dataclass(frozen=True)
class Scored:
    """One completion of a problem: as tokens, as text, and what the rules say."""

    problem: Problem
    rollout: Rollout
    text: str            # with what the template prefilled (such as <think>), without the EOS
    score: Score

    def record(self) -> dict:
        """For samples.jsonl."""
        said = {"completion": self.text, "finish": self.rollout.finish, "length": len(self.rollout.ids)}
        return vars(self.problem) | said | vars(self.score)


def written(tokenizer: Tokenizer, prompt: str, r: Rollout) -> str:
    """The text of a completion, with what its prompt prefilled and without the EOS."""
    return ("<think>" if prompt.rstrip().endswith("<think>") else "") + tokenizer.decode(r.ids[:-1] if r.finish == "eos" else r.ids)


def roll_out(model: Transformer, tokenizer: Tokenizer, problems: list[Problem], sample: Sample, group: int, seed: int,
             weights: dict[str, float], eos: list[int], extra: Callable | None = None,
             title: str = "") -> tuple[list[list[Scored]], dict[str, float]]:
    """`group` scored completions of each problem (Q lists of G), and the seconds spent on each part. Prompts are written by the
    tokenizer's chat template.

    Every rank samples and judges its share of the problems and gets all of them back."""
    ranks.at("sampling")
    model.words = tokenizer.vocab_size
    began, problems = time.perf_counter(), ranks.share(problems)
    texts = [tokenizer.render_prompt([{"role": "user", "content": p.prompt}]) for p in problems]
    with tqdm(total=len(problems) * group, desc=title, leave=False, disable=not title or ranks.rank() > 0 or None) as bar, ranks.unsharded(model):
        rollouts = generate(model, tokenizer.encode_batch(texts), group, sample, seed, eos, on_rows=bar.update)
    sampled = time.perf_counter()
    ranks.at("rewards")
    flat = [(p, r, written(tokenizer, text, r)) for p, text, row in zip(problems, texts, rollouts, strict=True) for r in row]
    scores = score_all([(p, done, r.finish, 1.0 if r.finish == "length" else len(r.ids) / sample.max_new_tokens)
                        for p, r, done in flat], weights, extra)
    scored = [Scored(p, r, done, s) for (p, r, done), s in zip(flat, scores, strict=True)]
    seconds = {"time_sample": sampled - began, "time_reward": time.perf_counter() - sampled}
    return ranks.gather([scored[i:i + group] for i in range(0, len(scored), group)]), seconds


def judged(groups: list[list[Scored]], of: str = "") -> list[list[Scored]]:
    """Without the groups in which the sandbox failed: what nobody could judge is neither right nor wrong. With `of`, none left is an error."""
    left = [g for g in groups if all(s.score.reason != INFRA for s in g)]
    if of and groups and not left:
        raise UserError(f"the sandbox failed in every group of {of}; the machine may be out of memory, processes or disk. "
                        f"The same command continues")
    return left
