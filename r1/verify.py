"""Is this answer right? Extract it, parse it, compare it with the gold answer: exact, bounded, no eval.

Nothing here raises or hangs, whatever the model wrote: lengths, tokens, depth and the bits of exact
results are capped, every scan is linear, and a text beyond a cap is simply not an answer. A gold
answer that cannot be read is an error of the data, found by `check_gold` when the data is loaded.
"""
from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from .types import Problem, UserError

MAX_WINDOW = 20_000   # characters after the reasoning in which an answer is looked for
MAX_TEXT = 4_000      # characters of an answer
MAX_TOKENS = 400      # of an expression
MAX_DEPTH = 40        # of brackets, fractions, roots and powers
MAX_BITS = 4_096      # numerator and denominator of an exact result together
RELATIVE = 1e-9       # tolerance where a root or pi made a float


# ---------------------------------------------------------------- extraction

def extract(text: str) -> str | None:
    """The last `<answer>` body, or else the last `\\boxed{}`, of what follows the reasoning.

    A box inside the answer body stands for the body. Text inside <think>, closed or not, never counts.
    Returns None where there is no answer or an empty one. Source: DeepSeek-R1, sections 2.2.2 and 2.2.3.
    """
    text = text[text.rfind("</think>") + len("</think>") if "</think>" in text else 0:]
    text = text.partition("<think>")[0][-MAX_WINDOW:]
    if "\0" in text:  # no writer of answers makes NUL; refusing it here keeps it out of every rule below
        return None
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        body = text[start + len("<answer>"):end]
        boxed = last_boxed(body)
        body = body if boxed is None else boxed
    else:
        body = last_boxed(text) or ""
    return body.strip() or None


_BRACE = re.compile(r"\\boxed\s{0,3}\{|\\.|[{}]", re.DOTALL)
_CONNECTIVE = re.compile(r"(?:\s|\$|,|;|\\quad|\\(?:text|mathrm)\{\s*(?:and|or)\s*\}|and\b|or\b|和|或)+")


def last_boxed(text: str) -> str | None:
    """Content of the last brace-matched box; boxes with only a connective between them are one answer."""
    opened: list[tuple[int, int] | None] = []   # one entry per open brace: (box start, content start)
    boxes: list[tuple[int, int, str]] = []
    for match in _BRACE.finditer(text):
        piece = match.group()
        if piece == "}":
            box = opened.pop() if opened else None
            if box is not None:
                while boxes and boxes[-1][0] > box[0]:   # a box inside this one is part of it
                    boxes.pop()
                boxes.append((box[0], match.end(), text[box[1]:match.start()]))
        elif piece[-1] == "{" and piece != "\\{":
            opened.append((match.start(), match.end()) if len(piece) > 1 else None)
    if not boxes:
        return None
    last, parts = boxes.pop(), []
    parts.append(last[2])
    while boxes and _CONNECTIVE.fullmatch(text, boxes[-1][1], last[0]):
        last = boxes.pop()
        parts.append(last[2])
    return ", ".join(reversed(parts))


# ---------------------------------------------------------------- parser

class Written(Fraction):
    """A Fraction that remembers how it was written: decimal places, and whether as a percentage."""

    __slots__ = ("places", "percent")

    def __new__(cls, value: Fraction, places: int = 0, percent: bool = False) -> Written:
        self = super().__new__(cls, value)
        self.places, self.percent = places, percent
        return self

    def __neg__(self) -> Written:
        return Written(super().__neg__(), self.places, self.percent)


class Group(NamedTuple):
    """Several values: "()" a tuple, "[]" "(]" "[)" an interval or list, "{}" a set, "" a bare list."""

    brackets: str
    items: tuple


class NotExpression(Exception):
    """The text is not an expression; it may still be a word."""


class TooBig(Exception):
    """The text is beyond a cap; it is no answer at all."""


_CHARS = str.maketrans({
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},   # full-width forms
    **{ord(c): f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{ord(c): f"\\frac{{{p}}}{{{q}}}" for c, p, q in
       [("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅛", 1, 8)]},
    "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/", "∕": "/", "π": "\\pi ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "°": "", "$": "", "€": "", "£": "", "¥": "",
})
_REWRITES = [(re.compile(pattern), by) for pattern, by in [
    (r"\\[$]|\\(?:left|right|displaystyle|boxed)(?![A-Za-z])|\^\s?\{?\\circ\}?|\\degree\b", ""),
    (r",\\!\s?|\{,\}", ","),
    (r"\\[,;:! ()\[\]]|~|\\q?quad(?![A-Za-z])", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\%|(?<=[0-9}) ])(?:percent|per cent|pct)\b", "%"),
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}", r" \1 "),
]]
_SHORT_UNITS = frozenset("m cm mm km g kg mg s h min sec ml l L ft in mi lb oz mph".split())
_NOT_UNITS = frozenset(   # words that change the number before them, or that offer another one
    "and but not nor than more less mod pi sqrt root hundred thousand million billion trillion dozen half "
    "halves third thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths eighth "
    "eighths ninth ninths tenth tenths hundredth hundredths squared cubed times plus minus over choose "
    "factorial infinity one two three four five six seven eight nine ten zero base".split())
_UNIT = re.compile(r"(.*[0-9)}])(\s*)([A-Za-z][A-Za-z ]*|[\u4e00-\u9fff]{1,3})(?:\^\s?\{?[23]\}?)?\s*", re.DOTALL)
_COMMAS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_SPACES = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/])")
_NAME = re.compile(r"\s*(?!\\?pi\b)\\?[A-Za-z]+(?:_(?:\w|\{\w*\}))?'{0,3}(?:\([A-Za-z]\))?\s*")
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+|\\[A-Za-z]+|[A-Za-z]+|\*\*"
                    r"|\\[{}]|[-+*/^(){}\[\],;!%√]|(\S)")


@lru_cache(maxsize=4096)
def parse(text: str) -> Fraction | float | Group | str | None:
    """The value of an answer: a number, a Group, else its casefolded text. None: empty, undefined or too big."""
    if len(text) > MAX_TEXT:
        return None
    text = _ascii(text)
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    text = text.strip().rstrip(".,;:!?。，、；：！？" if not text.rstrip().endswith("!") else "").strip()
    try:
        return _parse_equation(_without_unit(text))
    except NotExpression:
        return _plain(text)
    except (TooBig, ArithmeticError, ValueError):   # out of bounds, 0/0, root of a negative number
        return None


def _ascii(text: str) -> str:
    """ASCII for digits of any script, full-width forms and the usual signs; superscripts become powers."""
    if text.isascii():
        return text.translate(_CHARS)
    return "".join(str(int(c)) if c.isdecimal() else c for c in text).translate(_CHARS)


def _plain(text: str) -> str | None:
    """How a word is compared: no spaces, no case; a choice letter without its brackets."""
    word = "".join(text.split()).casefold()
    if len(word) == 3 and word[0] in "([" and word[2] in ")]":
        word = word[1]
    return word or None


def _without_unit(text: str) -> str:
    """`text` without thousands separators and without a unit after its last number."""
    if "(" not in text and "[" not in text and "\\{" not in text:   # (1,234) is a pair
        text = _COMMAS.sub(lambda m: m.group().replace(",", ""), text)
    text = _SPACES.sub(lambda m: m.group().replace(" ", ""), text)
    match = _UNIT.fullmatch(text)
    if not match:
        return text
    number, space, unit = match.groups()
    if not unit.isascii():
        return text if set(unit) & set("零一二三四五六七八九十百千万亿半和或非不倍分") else number
    words = unit.split()
    if len(words) <= 3 and all(w in _SHORT_UNITS or space and len(w) > 2 and w.lower() not in _NOT_UNITS for w in words):
        return number
    return text


def _parse_equation(text: str) -> Any:
    """Unwraps `name = value`; a chain of values is one answer only if all its members are equal."""
    sides = text.split("=")
    if len(sides) > 1 and _NAME.fullmatch(sides[0]):
        sides = sides[1:]
    values = [_Parser(side).whole() for side in sides]
    if not all(equal(values[0], value) for value in values[1:]):
        raise NotExpression
    return values[0]


class _Parser:
    """Recursive descent over the tokens of one side; every method starts at `self.next` and moves it on."""

    def __init__(self, text: str):
        self.tokens: list[str] = []
        for match in _TOKEN.finditer(text):
            if match.group(1):
                raise NotExpression
            self.tokens.append(match.group())
            if len(self.tokens) > MAX_TOKENS:
                raise TooBig
        self.tokens.append("")   # the end
        self.next = self.depth = 0

    @property
    def token(self) -> str:
        return self.tokens[self.next]

    def take(self, *expected: str) -> str:
        token = self.token
        if expected and token not in expected:
            raise NotExpression
        self.next += 1
        return token

    def whole(self) -> Any:
        items = self.items()
        self.take("")
        return items[0] if len(items) == 1 else Group("", items)

    def items(self) -> tuple:
        """sum {("," | ";") sum}"""
        found = [self.sum()]
        while self.token in (",", ";"):
            self.take()
            found.append(self.sum())
        return tuple(found)

    def sum(self) -> Any:
        """product {("+" | "-") product}"""
        value = self.product()
        while self.token in ("+", "-"):
            sign = self.take()
            other = self.product()
            value = _exact(_number(value) + (_number(other) if sign == "+" else -_number(other)))
        return value

    def product(self) -> Any:
        """signed {("*" | "/" | nothing) signed}; nothing stands for "*" before a bracket, command or name"""
        value = self.signed()
        while True:
            if self.token in ("*", "/"):
                sign = self.take()
                other = self.signed()
                value = _exact(_number(value) * _number(other) if sign == "*" else _number(value) / _number(other))
            elif self.token and (self.token in "([{√" or self.token in ("\\frac", "\\sqrt", "\\pi", "sqrt", "pi")):
                value = _exact(_number(value) * _number(self.power()))
            else:
                return value

    def signed(self) -> Any:
        """{"+" | "-"} power"""
        negative = False
        while self.token in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power()
        return -_number(value) if negative else value

    def power(self) -> Any:
        """atom {"!" | "%"} ["^" signed]"""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooBig
        value = self.atom()
        while self.token in ("!", "%"):
            value = _factorial(value) if self.take() == "!" else _percent(value)
        if self.token in ("^", "**"):
            self.take()
            value = _power(_number(value), _number(self.signed()))
        self.depth -= 1
        return value

    def atom(self) -> Any:
        """A number, a bracket, a fraction, a root or pi."""
        token = self.take()
        if token[:1].isdigit() or token[:1] == ".":
            return self.literal(token)
        if token in ("(", "[", "\\{"):
            items = self.items()
            close = self.take(*("\\}" if token == "\\{" else ")]"))if token != "\\{" else self.take("\\}")
            return items[0] if len(items) == 1 and token != "\\{" else Group((token + close).replace("\\", ""), items)
        if token == "{":
            items = self.items()
            self.take("}")
            return items[0] if len(items) == 1 else Group("", items)
        if token == "\\frac":
            return _exact(_number(self.argument()) / _number(self.argument()))
        if token == "\\sqrt" and self.token == "[":
            self.take()
            degree = _number(self.sum())
            self.take("]")
            return _power(_number(self.argument()), 1 / degree)
        if token in ("\\sqrt", "sqrt", "√"):
            return _root(_number(self.argument() if token == "\\sqrt" else self.power()))
        if token in ("\\pi", "pi"):
            return math.pi
        raise NotExpression

    def argument(self) -> Any:
        """What LaTeX gives to a command: a braced group, or else one digit or one command."""
        token = self.token
        if token.isdigit() and len(token) > 1:
            self.tokens[self.next] = token[1:]
            return Fraction(int(token[0]))
        return self.power() if token != "{" else self.atom_nested()

    def atom_nested(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooBig
        value = self.atom()
        self.depth -= 1
        return value

    def literal(self, token: str) -> Fraction:
        """A number as written; `2 1/2` and `2\\frac12` are mixed numbers."""
        if len(token) > MAX_BITS // 4:
            raise TooBig
        if not token.isdigit():
            mantissa, _, exponent = token.lower().partition("e")
            places = len(mantissa.partition(".")[2]) - int(exponent or 0)
            return Written(_exact(Fraction(token)), max(places, 0))
        whole, start = Fraction(int(token)), self.next
        part = None
        if self.token == "\\frac":
            part = self.atom_nested()
        elif self.token.isdigit() and self.tokens[self.next + 1] == "/" and self.tokens[self.next + 2].isdigit():
            top, _, bottom = self.take(), self.take(), self.take()
            part = Fraction(int(top), int(bottom))
        if isinstance(part, Fraction) and 0 < part < 1:
            return whole + part
        self.next = start   # not a mixed number after all
        return whole


def _number(value: Any) -> Fraction | float:
    if not isinstance(value, (Fraction, float)):
        raise NotExpression   # arithmetic on a tuple
    return value


def _exact(value: Any) -> Fraction | float:
    """`value`, if it is small enough to go on with."""
    if isinstance(value, Fraction) and value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise TooBig
    if isinstance(value, complex) or isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return value


def _power(base: Fraction | float, exponent: Fraction | float) -> Fraction | float:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = base.numerator.bit_length() + base.denominator.bit_length() - 1   # 1 for +-1 and 0
        if bits > 1 and bits * abs(exponent) > MAX_BITS:
            raise TooBig
        sign = base if exponent % 2 else base * base   # (-1) to a huge power is still +-1
        return _exact(base ** exponent) if bits > 1 or exponent <= 0 else sign
    return _exact(float(base) ** float(exponent))


def _root(value: Fraction | float) -> Fraction | float:
    if isinstance(value, Fraction) and value >= 0:
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if (top * top, bottom * bottom) == (value.numerator, value.denominator):
            return Fraction(top, bottom)
    return math.sqrt(value)


def _factorial(value: Any) -> Fraction:
    if not isinstance(value, Fraction) or value.denominator != 1 or value < 0:
        raise NotExpression
    if value > 500:
        raise TooBig
    return _exact(Fraction(math.factorial(int(value))))


def _percent(value: Any) -> Fraction | float:
    if not isinstance(value, Fraction):
        return _number(value) / 100
    places = getattr(value, "places", 0)
    return Written(value / 100, places + 2 if places else 0, percent=True)


# ---------------------------------------------------------------- comparison

def equal(gold: Any, value: Any) -> bool:
    """Whether the parsed `value` answers the parsed `gold`. Not symmetric: only an answer may be rounded.

    Rationals compare exactly, floats within 1e-9 relative. 50% is both 50 and 0.5. A tuple keeps its
    order, a set or a bare list does not; a bare list may stand for a gold tuple of the same order.
    """
    if gold is None or value is None:
        return False
    if isinstance(gold, Group) or isinstance(value, Group):
        return isinstance(gold, Group) and isinstance(value, Group) and _equal_groups(gold, value)
    if isinstance(gold, str) or isinstance(value, str):
        return type(gold) is type(value) and gold == value
    if _equal_numbers(gold, value):
        return True
    gold_percent, percent = getattr(gold, "percent", False), getattr(value, "percent", False)
    if gold_percent == percent:
        return False
    return _equal_numbers(gold * 100, value) if gold_percent else _equal_numbers(gold, value * 100)


def _equal_numbers(gold: Fraction | float, value: Fraction | float) -> bool:
    if isinstance(gold, Fraction) and isinstance(value, Fraction):
        return gold == value or _rounds_to(gold, value)
    try:
        return math.isclose(gold, value, rel_tol=RELATIVE)
    except OverflowError:   # an exact number beyond the floats
        return False


def _rounds_to(gold: Fraction, value: Fraction) -> bool:
    """Whether `value` is written as a decimal that a never-ending gold rounds to, with >= 4 digits."""
    places = getattr(value, "places", 0)
    if places < 1 or pow(10, gold.denominator.bit_length(), gold.denominator) == 0:   # the gold terminates
        return False
    digits = len(str(int(abs(value) * 10**places)))
    return digits >= 4 and abs(gold - value) * 2 * 10**places <= 1


def _equal_groups(gold: Group, value: Group) -> bool:
    unordered = {"", "{}"}
    if gold.brackets in unordered and value.brackets in unordered:
        covered = all(any(equal(g, v) for v in value.items) for g in gold.items)
        return covered and all(any(equal(g, v) for g in gold.items) for v in value.items)
    if gold.brackets != value.brackets and (gold.brackets, value.brackets) != ("()", ""):
        return False
    return len(gold.items) == len(value.items) and all(map(equal, gold.items, value.items))


# ---------------------------------------------------------------- kinds: (gold, answer text) -> reason

def _judge_math(gold: Any, answer: str) -> str:
    value = parse(answer)
    if value is None:
        return "unparsed"
    return "ok" if equal(_gold_value(gold), value) else "wrong"


def _gold_value(gold: Any) -> Any:
    """A gold answer of kind "math": an int, a float, a Fraction or a string, boxed or not."""
    if isinstance(gold, bool):
        return None
    if isinstance(gold, str):
        return parse(gold if "\\boxed" not in gold else last_boxed(gold) or "")
    if isinstance(gold, (int, Fraction)):
        return Fraction(gold)
    return parse(repr(gold)) if isinstance(gold, float) and math.isfinite(gold) else None


_AROUND = " .,;:!?\"'`()[]{}<>*“”‘’（）【】《》「」『』〈〉。，、；：！？…"


def _folded(text: str) -> str:
    """How kind "text" compares: one space for any, no case, nothing around it."""
    text = re.sub(r"\\(?:text|mathrm|textbf)\s?\{([^{}]*)\}", r"\1", _ascii(text))
    return " ".join(text.split()).strip(_AROUND).casefold()


def _judge_text(gold: str, answer: str) -> str:
    return "ok" if _folded(answer) == _folded(gold) else "wrong"


def _judge_countdown(gold: dict, answer: str) -> str:
    """An expression in + - * / that uses each number exactly once and is exactly the target."""
    text = _ascii(answer).replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
    text, equals, result = text.partition("=")
    if not re.fullmatch(r"[-+*/()0-9\s]+", text) or equals and not re.fullmatch(r"\s*-?[0-9]+\s*", result):
        return "unparsed"
    # no sign without a left operand (so no **), no number or bracket right behind another
    if re.search(r"(?:^|[-+*/(])\s*[-+*/]|[0-9)]\s*\(|\)\s*[0-9]|[0-9]\s+[0-9]", text.strip()):
        return "unparsed"
    if Counter(map(int, re.findall(r"[0-9]+", text))) != Counter(gold["numbers"]):
        return "wrong"
    value = parse(text)
    if not isinstance(value, Fraction):
        return "unparsed"
    return "ok" if value == gold["target"] and (not equals or int(result) == gold["target"]) else "wrong"


def _judge_reasoning_gym(gold: dict, answer: str) -> str:
    return "ok" if _gym_score_fn(gold["task"])(answer, gold["entry"]) == 1.0 else "wrong"


@lru_cache(maxsize=None)
def _gym_score_fn(task: str) -> Any:
    import reasoning_gym   # an optional extra, and slow to import

    return reasoning_gym.get_score_answer_fn(task)


KINDS = {"math": _judge_math, "text": _judge_text, "countdown": _judge_countdown,
         "reasoning_gym": _judge_reasoning_gym}


def verify(problem: Problem, completion: str) -> tuple[bool, str]:
    """Whether a completion answers its problem, and why not: ok, wrong, no_answer, unparsed, too_long or error.

    Never raises. Source: the accuracy reward of DeepSeek-R1, section 2.2.2.
    """
    try:
        answer = extract(completion)
        if answer is None:
            return False, "no_answer"
        if len(answer) > MAX_TEXT:
            return False, "too_long"
        reason = KINDS[problem.kind](problem.answer, answer)
        return reason == "ok", reason
    except Exception:   # a rule must not stop a run; the metrics count this reason
        return False, "error"


def check_gold(problem: Problem) -> None:
    """Raises UserError, naming the problem, where its kind is unknown or its gold answer cannot be read."""
    where, gold = f"{problem.task} problem {problem.id!r}", problem.answer
    if problem.kind not in KINDS:
        near = difflib.get_close_matches(str(problem.kind), KINDS, n=1, cutoff=0) or list(KINDS)
        raise UserError(f"{where}: unknown kind {problem.kind!r}; did you mean {near[0]!r}?")
    if problem.kind == "math":
        good = _gold_value(gold) is not None
    elif problem.kind == "text":
        good = isinstance(gold, str) and len(gold) <= MAX_TEXT and bool(_folded(gold))
    elif problem.kind == "countdown":
        good = isinstance(gold, dict) and isinstance(gold.get("numbers"), (list, tuple)) and all(
            type(n) is int for n in [*gold["numbers"], gold.get("target")]) and len(gold["numbers"]) > 0
    else:
        good = isinstance(gold, dict) and isinstance(gold.get("entry"), dict) and _gym_task_exists(where, gold.get("task"))
    if not good:
        raise UserError(f"{where}: the gold answer {str(gold)[:80]!r} cannot be read as kind {problem.kind!r}")


def _gym_task_exists(where: str, task: Any) -> bool:
    try:
        return isinstance(task, str) and callable(_gym_score_fn(task))
    except ImportError:
        raise UserError(f"{where}: kind 'reasoning_gym' needs `pip install reasoning-gym`") from None
    except Exception:   # whatever the library says of a name that it does not know
        return False
