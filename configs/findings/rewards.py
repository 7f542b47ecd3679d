"""Rewards for configs/findings/reward.yaml: one in grades, two with a hole."""
import re
from dataclasses import replace

from r1.accuracy import accuracy


def graded(problem, completion):
    """1 for the right answer; for a number, the less the further it is off."""
    right, _ = accuracy(problem, completion)
    said = re.search(r"<answer>\s*(-?\d{1,9})\s*</answer>", completion)
    if right or not said or problem.kind != "number":
        return float(right)
    return max(0.0, 0.5 - 0.05 * abs(int(said[1]) - problem.answer))


def weak(problem, completion):
    """Compares by value, so that 19-4+3 answers "What is 19-4+3?": a hole that this project once had."""
    return float(accuracy(replace(problem, kind="math") if problem.kind == "number" else problem, completion)[0])


def lenient(problem, completion):
    """Takes the right number anywhere in the text for an answer: a common way to match."""
    return float(str(problem.answer) in re.findall(r"[0-9]+", completion) if problem.kind == "number" else accuracy(problem, completion)[0])
