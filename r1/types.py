"""The records that pass between the parts. Score, reward and advantage are three different things.

Letters for shapes, everywhere: B batch, T time, C width, H heads, D head width, V vocabulary,
Q problems, G samples per problem.
"""
from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the rules read these records and must not load torch
    from torch import Tensor

    from r1.context import Ragged


class UserError(Exception):
    """Something the user can put right. The scripts print it as one sentence on stderr and exit with 2."""


def nearest(word: str, names: list[str]) -> str:
    """The end of an error about an unknown word: the name that was probably meant, or all there are."""
    near = difflib.get_close_matches(str(word), names, 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f" (valid: {', '.join(names)})"


@dataclass(frozen=True)
class Problem:
    """One question with what a rule needs to check an answer to it."""

    task: str             # family or source, e.g. "chain", "jsonl:mine.jsonl"
    id: str               # stable name; the train/test split hashes it
    prompt: str           # the question as text, without any template
    answer: Any           # gold answer, in the form that the verifier `kind` reads
    kind: str = "math"    # which rule: "math", "number", "text", "countdown", "code" or "reasoning_gym"
    lang: str = "en"      # language in which the reasoning should be: "en", "zh"
    level: int = 0        # difficulty; 0 is ungraded


@dataclass(frozen=True)
class Rollout:
    """One sampled completion."""

    prompt_ids: list[int]
    ids: list[int]        # sampled tokens, the ending EOS included
    logp: list[float]     # of each sampled token, under the distribution it was sampled from
    finish: str           # "eos", "stop" (a stop string) or "length"


@dataclass(frozen=True)
class Score:
    """What the rules say of one completion: every part, their weighted sum, and why it failed."""

    total: float
    parts: dict[str, float]   # "accuracy", "format", "language" in [0, 1]; penalties in [-1, 0]
    reason: str               # of the accuracy part: "ok", "wrong", "no_answer", "unparsed", "too_long", ...


@dataclass(frozen=True)
class Example:
    """Token ids and which of them are trained on. A completion's first token follows its prompt."""

    ids: list[int]                  # P0 P1 P2 A0 A1 A2
    mask: list[int]                 #  0  0  0  1  1  1
    adv: float = 0.0                # RL: the advantage of the whole completion
    w: float = 0.0                  # weight of each supervised token, from global counts
    old_logp: list[float] = field(default_factory=list)   # RL: of the supervised tokens, A0 A1 A2


@dataclass
class Batch:
    """Examples collated and shifted once: column t of every field speaks of the token `targets[:, t]`."""

    inputs: Tensor               # (B, T) int64
    targets: Tensor              # (B, T) int64
    mask: Tensor                 # (B, T) bool: supervised
    learned: Tensor              # (N,) int64: where mask is true, as places in (B T)
    w: Tensor                    # (B, T) float32: token weights, 0 where not supervised
    adv: Tensor                  # (B, T) float32
    old_logp: Tensor             # (B, T) float32: 0 outside of RL
    ref_logp: Tensor | None = None    # (B, T) float32
    ragged: Ragged | None = None      # how to run the model without padding, and with shared prompts once
