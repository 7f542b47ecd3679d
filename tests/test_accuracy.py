"""One rule per kind of problem: what is right, what is wrong, which gold answers are refused."""
import pytest

from r1.accuracy import accuracy, check_gold
from r1.types import Problem, UserError


def problem(answer, kind="math"):
    return Problem(task="t", id="p1", prompt="?", answer=answer, kind=kind)


def test_a_rule_that_fails_is_a_reason():
    assert accuracy(problem("2"), "\\boxed{2}") == (True, "ok")
    assert accuracy(problem("2", "nonsense"), "\\boxed{2}") == (False, "error")
    assert accuracy(problem({}, "countdown"), "\\boxed{2}") == (False, "error")
    assert accuracy(problem("x", "text"), "\\boxed{" + "x" * 5000 + "}") == (False, "too_long")


# ---------------------------------------------------------------- number

@pytest.mark.parametrize("answer, expected", [
    ("18", True), ("$18$", True), ("18.0", True), ("x = 18", True), ("18 apples", True), ("+18", True), ("36/2", False), ("1,8", False),
    ("19-4+3", False), ("9*2", False), ("18+0", False), ("(18)", False), ("19-4+3=18", False), ("--18", False), ("18!/17!", False),
    ("\\frac{36}{2}", False), ("\\sqrt{324}", False), ("19", False), ("18 or 19", False), ("2*9=18", False)])
def test_a_number_must_be_worked_out(answer, expected):
    """Else to answer "What is 19-4+3?" with 19-4+3 would be right."""
    ok, reason = accuracy(problem("18", "number"), f"<answer>{answer}</answer>")
    assert ok is expected and reason != "error"
    if expected:
        assert accuracy(problem("18"), f"<answer>{answer}</answer>") == (True, "ok")
    assert accuracy(problem("1/2", "number"), "<answer>1/2</answer>")[0] and not accuracy(problem("1/2", "number"), "<answer>1-1/2</answer>")[0]


# ---------------------------------------------------------------- text

@pytest.mark.parametrize("gold, answer, expected", [
    ("Paris", " paris. ", True), ("Paris", "**Paris**", True), ("Paris", "\u201cParis\u201d", True), ("Paris", "\\text{Paris}", True),
    ("\u5317\u4eac", "\u300c\u5317\u4eac\u300d\u3002", True), ("\u5317\u4eac", "\u5317\u4eac\uff01", True),
    ("New York", "new\n  york", True), ("ABC", "\uff21\uff22\uff23", True), ("-5", "-5", True),
    ("-5", "5", False), ("Paris", "Paris or Rome", False), ("New York", "NewYork", False), ("Paris", "...", False),
    ("C++", "C", False), ("\u5317\u4eac", "\u4e1c\u4eac", False),
])
def test_text(gold, answer, expected):
    check_gold(problem(gold, "text"))
    assert accuracy(problem(gold, "text"), f"<answer>{answer}</answer>")[0] is expected


# ---------------------------------------------------------------- countdown

@pytest.mark.parametrize("answer, expected", [
    ("3*5+7", True), ("3*5+7=22", True), ("7 + 5 \u00d7 3", True), ("(7+(3*5))", True), ("$3 \\times 5 + 7 = 22$", True),
    ("3*5+7 = 22.", True), ("5*(3+7/5)", False), ("3*5+7=23", False), ("22", False), ("22=22", False), ("22 = 3*5+7", False),
    ("3*7+5", False), ("3*5", False), ("3*5+7+0", False), ("3*5+7-5+5", False), ("3*5+7*1", False), ("35-7-5-1", False),
    ("3 5 7", False), ("9**9**9", False), ("3**5", False), ("7+5**3", False), ("3!*5+7", False), ("-3*-5+7", False),
    ("+3*5+7", False), ("3*(-5)+7", False), ("(3)(5)+7", False), ("3(5)+7", False), ("3*5+7%", False), ("3*5.0+7", False),
    ("3*5+7 or 22", False), ("3*5+7, 22", False), ("3//5+7", False), ("3*5+7=22=1", False), ("3/(5-5)+7", False),
    ("eval('3*5+7')", False), ("__import__('os')", False), ("3*5+7#", False), ("\\frac{3*5+7}{1}", False), ("", False),
])
def test_countdown(answer, expected):
    ok, reason = accuracy(problem({"numbers": [3, 5, 7], "target": 22}, "countdown"), f"<answer>{answer}</answer>")
    assert ok is expected and reason != "error"


@pytest.mark.parametrize("numbers, target, answer, expected", [
    ([2, 2, 3], 7, "2*2+3", True), ([2, 2, 3], 7, "2*3+1", False), ([2, 2, 3], 5, "2+3", False),
    ([1, 2, 3, 8], 3, "8/(3-1/3)", False), ([3, 3, 8, 8], 24, "8/(3-8/3)", True),          # exact, not float
    ([1, 2], 12, "12", False), ([1, 2], 12, "1 2", False), ([12], 12, "12", True), ([3, 5], 35, "3$5", False),
    ([1, 234], 235, "1,234+1", False), ([1, 234], 1234, "1 234", False), ([2, 4, 2], 4, "2 4/2", False),
    ([4, 2], -2, "2-4", True), ([4, 2], -2, "2-4=-2", True),
    ([1, 2], 3, "\uff11+\uff12", True),
])
def test_countdown_numbers(numbers, target, answer, expected):
    assert accuracy(problem({"numbers": numbers, "target": target}, "countdown"), f"\\boxed{{{answer}}}")[0] is expected


# ---------------------------------------------------------------- gold answers

@pytest.mark.parametrize("kind, gold", [
    ("math", ""), ("math", "\\frac{0}{0}"), ("math", "9^{9^9}"), ("math", None), ("math", True), ("math", [1]),
    ("math", float("nan")), ("math", "\\boxed{}"), ("math", "1" * 5000), ("text", ""), ("text", "..."), ("text", 5),
    ("countdown", "3*5+7"), ("countdown", {}), ("countdown", {"numbers": [], "target": 1}),
    ("countdown", {"numbers": [1, "2"], "target": 3}), ("countdown", {"numbers": [1, 2]}),
    ("reasoning_gym", {"task": "chain_sum"}), ("reasoning_gym", "chain_sum"),
    ("reasoning_gym", {"task": "countdown", "entry": {}}),         # its verifier evaluates the model's text
    ("reasoning_gym", {"task": "no such task", "entry": {}}),      # also without the library
    ("number", "five"), ("numbr", "5"), ("maths", "5"), ("", "5"), (None, "5"),
])
def test_bad_gold_is_refused(kind, gold):
    with pytest.raises(UserError, match="p1"):
        check_gold(problem(gold, kind))


def test_unknown_kind_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'math'"):
        check_gold(problem("5", "maths"))


def test_reasoning_gym():
    gym = pytest.importorskip("reasoning_gym")
    for task in ("chain_sum", "gcd", "spell_backward"):
        entry = gym.create_dataset(task, size=1, seed=7)[0]
        one = problem({"task": task, "entry": entry}, "reasoning_gym")
        check_gold(one)
        assert accuracy(one, f"<answer>{entry['answer']}</answer>") == (True, "ok")
        assert accuracy(one, f"<answer>{entry['answer']}1</answer>")[0] is False
    broken = problem({"task": "gcd", "entry": {}}, "reasoning_gym")
    assert accuracy(broken, "<answer>1</answer>") == (False, "error")
    coin = problem({"task": "coin_flip", "entry": gym.create_dataset("coin_flip", size=1, seed=7)[0]}, "reasoning_gym")
    assert accuracy(coin, "<answer>1e999999999</answer>") == (False, "unparsed")
