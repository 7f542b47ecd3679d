"""Is this answer right? Extract it, bring it into one spelling, compare its value with the gold answer.

Nothing here raises or hangs, whatever the model wrote: lengths are capped here and the work of arithmetic in
`expr`, every scan is linear, and a text beyond a cap is simply not an answer. A gold answer that cannot be read
is an error of the data, found by `check_gold` when the data is loaded.
"""
from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from r1.expr import Group, NotExpression, TooBig, equal, value_of

MAX_WINDOW = 20_000   # characters after the reasoning in which an answer is looked for
MAX_TEXT = 4_000      # characters of an answer


# ---------------------------------------------------------------- extraction

def extract(text: str) -> str | None:
    """The body of the last <answer> after the reasoning, or else the last box; None: nothing or empty.

    A box inside the body stands for the body. What is inside <think>, closed or not, never counts.
    Source: DeepSeek-R1, section 2.2.2 (boxed answers) and its prompt template (tags).
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0][-MAX_WINDOW:]
    if "\0" in text:   # no answer has a NUL; refused here, it cannot surprise a rule further down
        return None
    before, closing, _ = text.rpartition("</answer>")
    _, opening, body = before.rpartition("<answer>")
    boxed = last_boxed(body if closing and opening else text)
    if boxed is None and closing and opening:
        boxed = body
    return (boxed or "").strip() or None


_BRACE = re.compile(r"\\boxed\s{0,3}\{|\\.|[{}]", re.DOTALL)
_CONNECTIVE = re.compile(r"(?:[\s$,;]|\\quad|\\text\{ ?(?:and|or) ?\}|and\b|or\b|和|或)+")


def last_boxed(text: str) -> str | None:
    """Content of the last brace-matched box. Boxes with only a connective between them are one answer."""
    opened: list[tuple[int, int] | None] = []   # per open brace: where its box and the content start
    boxes: list[tuple[int, int, str]] = []      # start, end, content
    for match in _BRACE.finditer(text):
        piece = match.group()
        if piece == "{":
            opened.append(None)
        elif piece.startswith("\\boxed"):
            opened.append(match.span())
        elif piece == "}" and opened and (box := opened.pop()):
            boxes.append((box[0], match.end(), text[box[1]:match.start()]))
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _CONNECTIVE.fullmatch(text, boxes[first - 1][1], boxes[first][0]):
        first -= 1
    return ", ".join(content for _, _, content in boxes[first:])


# ---------------------------------------------------------------- one spelling, one value

_CHARS = str.maketrans({
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},   # full-width forms
    **{c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},               # NFKC would make x2 of x²
    **{c: f"\\frac{{{p}}}{{{q}}}" for c, p, q in ["½12", "⅓13", "⅔23", "¼14", "¾34", "⅕15", "⅙16", "⅛18"]},
    **dict.fromkeys("−–﹣", "-"), **dict.fromkeys("×·⋅∙✕", "*"), **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("\u00a0\u2009\u202f\u3000", " "), "°": "", "π": "\\pi ",
})
_REWRITES = [(re.compile(pattern), by) for pattern, by in [
    (r"\\?[$€£¥]|\\(?:left|right|displaystyle|boxed)(?![A-Za-z])|\^\s?\{?\\circ\b\}?|\\degree\b", ""),
    (r",\\!\s?|\{,\}", ","),
    (r"\\[,;:! ()\[\]]|~|\\q?quad(?![A-Za-z])", " "),
    (r"\\[dtc]?frac(?: ?([0-9]) ?([0-9]))(?![0-9])", r"\\frac{\1}{\2}"),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\in(?![A-Za-z])", "="),
    (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}", r" \1 "),
    (r"\\%|(?<=[0-9}) ])(?:percent|per cent|pct)\b", "%"),
]]
_SHORT_UNITS = frozenset("m cm mm km g kg mg s h min sec ml l L ft in mi lb oz mph".split())
_NOT_UNITS = frozenset(   # words that change the number before them, or that offer another one
    "and but not nor than more less mod pi sqrt root hundred thousand million billion trillion dozen half "
    "halves third thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths eighth "
    "eighths ninth ninths tenth tenths hundredth hundredths squared cubed times plus minus over choose "
    "factorial infinity one two three four five six seven eight nine ten zero base".split())
_NOT_HAN_UNITS = frozenset("零〇一二三四五六七八九十百千万亿半和或非不倍分成折")
_UNIT = re.compile(r"(.*[0-9)}])( ?)([A-Za-z][A-Za-z ]*|[\u4e00-\u9fff]{1,3})(?:\^ ?\{?[23]\}?)?")
_COMMAS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_SPACES = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/])")
_MIXED = re.compile(r"(?<![0-9.^])([0-9]+) ?(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|(?<= )([0-9]+)/([0-9]+))")


def normal(text: str) -> str:
    """`text` in one spelling: ASCII signs, no delimiters or layout commands, single spaces. May raise TooBig."""
    if len(text) > MAX_TEXT or len(text := plain(text)) > MAX_TEXT:   # some characters grow: ½
        raise TooBig
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    return " ".join(text.split()).rstrip(" .,;:?。、")


def plain(text: str) -> str:
    """ASCII for digits of any script, full-width forms and the usual signs; superscripts become powers."""
    if not text.isascii():
        text = "".join(str(int(c)) if c.isdecimal() else c for c in text)
    return text.translate(_CHARS)


def _word(text: str) -> str | None:
    """How other text compares: no spaces, no case; a choice letter without its brackets."""
    word = text.replace(" ", "").casefold()
    return (word[1] if len(word) == 3 and word[0] in "([" and word[2] in ")]" else word) or None


def _bare(text: str) -> str:
    """`text` without thousands separators and without a unit after its last number; 2 1/2 as a sum."""
    if "(" not in text and "[" not in text and "\\{" not in text:   # (1,234) is a pair
        text = _COMMAS.sub(lambda match: match.group().replace(",", ""), text)
    text = _SPACES.sub(lambda match: match.group().replace(" ", ""), text)
    match = _UNIT.fullmatch(text)
    if match and _is_unit(match[3], spaced=bool(match[2])):
        text = match[1]
    return _MIXED.sub(lambda m: f"({m[1]}+{m[2] or m[4]}/{m[3] or m[5]})", text)


def _is_unit(unit: str, spaced: bool) -> bool:
    if not unit.isascii():
        return _NOT_HAN_UNITS.isdisjoint(unit)
    words = unit.split()
    return len(words) <= 3 and all(
        word in _SHORT_UNITS or spaced and len(word) > 2 and word.lower() not in _NOT_UNITS for word in words)


@lru_cache(maxsize=4096)
def parse(text: str) -> Fraction | float | Group | str | None:
    """The value of an answer: a number, a Group, or else its text. None: empty, undefined or beyond a cap.

    Exact where it can be: only pi and roots that are not rational make a float. Never raises.
    """
    try:
        text = normal(text)
        return value_of(_bare(text))
    except NotExpression:
        return _word(text)
    except (TooBig, ArithmeticError, ValueError, RecursionError):   # beyond a cap, 0/0, root of -1
        return None


# ---------------------------------------------------------------- the verdict

def _gold_value(gold: Any) -> Any:
    """The value of a gold answer of kind "math": a number, or a string with or without its box."""
    if isinstance(gold, str):
        return parse(gold if "\\boxed" not in gold else last_boxed(gold) or "")
    if isinstance(gold, (int, Fraction)) and not isinstance(gold, bool):
        return Fraction(gold)
    return parse(repr(gold)) if isinstance(gold, float) and math.isfinite(gold) else None


def is_gold(gold: Any) -> bool:
    """Whether a gold answer can be read."""
    return _gold_value(gold) is not None


def verify(gold: Any, completion: str) -> tuple[bool, str]:
    """Whether a completion gives the gold answer, and why not: ok, wrong, no_answer, unparsed or too_long. Never raises."""
    answer = extract(completion)
    if answer is None:
        return False, "no_answer"
    if len(answer) > MAX_TEXT:
        return False, "too_long"
    value = parse(answer)
    if value is None:
        return False, "unparsed"
    ok = equal(_gold_value(gold), value)
    return ok, "ok" if ok else "wrong"
