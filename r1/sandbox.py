"""Untrusted programs: run them, get data back, judge it where they cannot reach."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What became of a program: status "pass", "fail" or "infra", and a reason of one word."""

    status: str
    reason: str


def judge(program: str, gold: dict) -> Verdict:
    return Verdict("infra", "infra")


def is_gold(gold: dict) -> bool:
    return True


def require() -> None:
    pass
