"""Evaluation and rejection sampling by hand-counted cases."""
import itertools
import math

import pytest

from r1.evaluate import majority, pass_at, summary
from r1.reject import choose, form, readable
from r1.rewards import reflections, score
from r1.rollout import Scored
from r1.types import Problem, Rollout

P = Problem("chain", "1", "What is 1+1?", 2)


def made(text: str, finish: str = "eos", problem: Problem = P) -> Scored:
    return Scored(problem, Rollout([1], [0] * len(text.split()), [0.0] * len(text.split()), finish), text, score(problem, text, finish, {"accuracy": 1.0}))


def thought(answer, thinking="so it is"):
    return made(f"<think>{thinking}</think><answer>{answer}</answer>")


@pytest.mark.parametrize("n, c, k", [(4, 0, 1), (4, 1, 1), (4, 1, 2), (4, 2, 3), (5, 3, 2), (4, 4, 4), (6, 1, 6)])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_one(n, c, k):
    right = [1.0] * c + [0.0] * (n - c)
    subsets = list(itertools.combinations(right, k))
    assert pass_at(right, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("answers, wins", [
    ((2, 2, 3), 1.0), ((3, 3, 2), 0.0), ((3, 2), 0.0), ((2, 3), 1.0),          # of equals, the first
    (("2", " 2 ", "3", "3", "2"), 1.0)])
def test_majority_vote(answers, wins):
    assert majority([thought(a) for a in answers]) == wins


def test_without_an_answer_there_is_no_vote():
    assert majority([made("no idea"), made("none"), thought(2)]) == 1.0
    assert majority([made("no idea")]) == 0.0


def test_summary_by_hand():
    other = Problem("chain", "2", "What is 2+3?", 5)
    groups = [[thought(2), thought(3)], [made("<think>a</think><answer>5</answer>", problem=other)] * 2]
    s = summary(groups)
    assert s["pass@1"] == 0.75 and s["pass@2"] == 1.0 and s["cons@2"] == 1.0 and s["problems"] == 2
    assert s["se"] == pytest.approx(math.sqrt((0.25**2 + 0.25**2) / 1) / math.sqrt(2))     # sd of (0.5, 1.0) over sqrt(2)
    assert s["format"] == 1.0 and s["truncated"] == 0.0


def test_rejection_keeps_right_readable_distinct_and_short():
    short, long = thought(2, "it is two"), thought(2, "well, it is clear that it must be two")
    wrong, mixed, cut = thought(3), thought(2, "it is 二 here"), made("<think>so</think><answer>2</answer>", "length")
    assert choose([wrong, long, short, short, mixed, cut, made("<answer>2</answer>")], 5) == [short, long]
    assert choose([long, short], 1) == [short]


def test_the_readable_form_keeps_the_thinking_and_adds_a_summary():
    text = readable(thought(2, " one and one "))
    assert text == "<think>one and one</think> The answer is 2. <answer>2</answer>"
    again = score(P, text, "eos", {"accuracy": 1.0})
    assert again.parts["accuracy"] == 1 and again.parts["format"] == 1 and again.parts["language"] == 1
    zh = Problem("chain", "3", "1+1等于多少？", 2, lang="zh")
    s = score(zh, form("一加一", "2", "zh"), "eos", {"accuracy": 1.0})
    assert [s.parts[name] for name in ("accuracy", "format", "language")] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("text, n", [("18-4=15, check 15+4=19, wrong, again", 2), ("Wait, but checkers", 2), ("检查28+9=37，不对", 2), ("", 0),
                                     ("However: buttons are errors", 1)])
def test_reflective_words_are_whole_words_of_the_papers_list(text, n):
    assert reflections(text) == n
