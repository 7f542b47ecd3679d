"""Is this completion right? One rule per kind of problem; what the rule needs stands in `Problem.answer`.

    math             a number, an expression, a set, ...: verify.verify
    number           math whose answer must be worked out: 18, not 19-4+3 again
    text             words, compared without case and punctuation
    countdown        {"numbers", "target"}: an expression that uses each number exactly once
    code             a program, run against tests that it never sees: sandbox.judge
    reasoning_gym    {"task", "entry"}: the verifier of the package's own task

Nothing here raises or hangs, whatever a model wrote. A gold answer that cannot be read is an error of the data,
found by `check_gold` when the data is loaded. Source: the accuracy reward of DeepSeek-R1, section 2.2.2.
"""

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from r1 import sandbox
from r1.expr import TooBig
from r1.spelling import bare, normal, plain
from r1.types import Problem, UserError, nearest
from r1.verify import MAX_TEXT, answered, extract, is_gold, parse, tagged, verify

INFRA = "infra"        # the sandbox itself failed, again and again: nothing is known of the program


def accuracy(problem: Problem, completion: str) -> tuple[bool, str]:
    """Whether a completion answers its problem, and why not: ok, wrong, no_answer, unparsed, too_long, error; for code
    also what became of the program, and INFRA. Never raises."""
    try:
        if problem.kind in MATHS:
            ok, reason = verify(problem.answer, completion)
            if ok and problem.kind == "number" and not _is_number(problem.answer, extract(completion)):
                return False, "unparsed"
            return ok, reason
        answer = find_answer(problem, completion)
        if answer is None:
            return False, "no_answer"
        if len(answer) > (20_000 if problem.kind == "code" else MAX_TEXT):      # characters
            return False, "too_long"
        reason = RULES[problem.kind](problem.answer, answer)
        return reason == "ok", reason
    except TooBig:
        return False, "too_long"
    except Exception:   # a rule must not stop a run; the metrics count this reason
        return False, "error"


def find_answer(problem: Problem, completion: str) -> str | None:
    """The text that is judged: the program of a code problem, else what `verify.extract` finds."""
    return find_program(completion) if problem.kind == "code" else extract(completion)


def _is_number(gold: Any, answer: str) -> bool:
    """Whether an answer is written as a number; as a fraction only where the gold answer is no whole number."""
    number = r"(?:[A-Za-z]\w* ?= ?)?[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|(?P<fraction>[0-9]+/[0-9]+))%?"
    found = re.fullmatch(number, bare(normal(answer)))
    return bool(found) and not (found["fraction"] and getattr(parse(str(gold)), "denominator", 1) == 1)


def find_program(completion: str) -> str | None:
    """The last <answer> after the reasoning, or without one all of it; a fenced block inside stands for the whole."""
    text = answered(completion)
    body = tagged(text)
    fenced = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n[ \t]*)?```", text if body is None else body, re.DOTALL)
    program = fenced[-1] if fenced else body or ""
    return program.strip("\n") if program.strip() else None


# ---------------------------------------------------------------- rules: (gold, answer) -> reason

def _folded(text: str) -> str:
    """How kind "text" compares: single spaces, no case, no punctuation around it."""
    text = re.sub(r"\\text(?:bf|it)?\s?\{([^{}]*)\}", r"\1", plain(text))
    return " ".join(text.split()).strip(" .,;:!?\"'`()[]{}<>*“”‘’（）【】《》「」『』〈〉。，、；：！？…").casefold()


def _judge_countdown(gold: dict, answer: str) -> str:
    """An expression in + - * / that has each number exactly once and is exactly the target."""
    text, equals, result = (part.strip() for part in normal(answer).partition("="))
    value = parse(text)
    # an operator with nothing on its left (also the second of **), or a number or bracket right behind another
    if re.search(r"[^-+*/()0-9 ]|(?:^|[-+*/(]) ?[-+*/]|[0-9)] ?\(|\) ?[0-9]|[0-9] [0-9]", text) or not isinstance(value, Fraction):
        return "unparsed"
    if Counter(map(int, re.findall("[0-9]+", text))) != Counter(gold["numbers"]) or value != gold["target"]:
        return "wrong"
    return "ok" if not equals or parse(result) == value else "wrong"


# Of reasoning-gym 0.1.25: they give the model's text to eval, by themselves or by sympy; the last but one takes
# any text for right, the last takes seconds over a row of negations.
_UNSAFE_GYM_TASKS = frozenset(
    "binary_matrix countdown intermediate_integration n_queens polynomial_multiplication puzzle24 "
    "simple_integration spiral_matrix string_insertion game_of_life_halting propositional_logic".split())


def _judge_reasoning_gym(gold: dict, answer: str) -> str:
    if gold["task"] in _UNSAFE_GYM_TASKS or re.search("[eE][-+]?[0-9]{4}", answer):   # Fraction("1e999999999") hangs
        return "unparsed"
    return "ok" if _gym_score(gold["task"])(answer, gold["entry"]) == 1.0 else "wrong"


@lru_cache(maxsize=None)
def _gym_score(task: str) -> Any:
    import reasoning_gym   # an optional extra, and slow to import

    return reasoning_gym.get_score_answer_fn(task)


RULES: dict[str, Callable[[Any, str], str]] = {
    "text": lambda gold, answer: "ok" if _folded(answer) == _folded(gold) else "wrong",
    "countdown": _judge_countdown,
    "code": lambda gold, program: sandbox.judge(gold.get("prelude", "") + program, gold).reason,
    "reasoning_gym": _judge_reasoning_gym}
MATHS = ("math", "number")
KINDS = [*MATHS, *RULES]


def check_gold(problem: Problem) -> None:
    """Raises UserError, naming the problem, where its kind is unknown or its gold answer cannot be read."""
    where, kind, gold = f"{problem.task} problem {problem.id!r}", problem.kind, problem.answer
    if kind not in KINDS:
        raise UserError(f"{where}: unknown kind {kind!r}{nearest(kind, KINDS)}")
    if kind in MATHS:
        good = is_gold(gold) and (kind == "math" or isinstance(parse(str(gold)), Fraction))
    elif kind == "text":
        good = isinstance(gold, str) and len(gold) <= MAX_TEXT and _folded(gold) != ""
    elif not isinstance(gold, dict):
        good = False
    elif kind == "countdown":
        numbers = gold.get("numbers")
        good = isinstance(numbers, (list, tuple)) and numbers and all(type(n) is int for n in [*numbers, gold.get("target")])
    elif kind == "code":
        sandbox.require()
        good = sandbox.is_gold(gold)
    else:
        good = isinstance(gold.get("entry"), dict) and _check_gym_task(where, gold.get("task"))
    if not good:
        raise UserError(f"{where}: the gold answer {str(gold)[:80]!r} cannot be read as kind {kind!r}")


def _check_gym_task(where: str, task: Any) -> bool:
    if task in _UNSAFE_GYM_TASKS:
        raise UserError(f"{where}: the verifier of the reasoning-gym task {task!r} cannot be trusted with any text")
    try:
        return callable(_gym_score(task))
    except ImportError:
        raise UserError(f"{where}: kind 'reasoning_gym' needs `pip install reasoning-gym`") from None
    except Exception:   # whatever the library says to a name that it does not know
        return False
