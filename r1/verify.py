"""Is this answer right? Extract it, read it, compare its value with the gold answer.

Nothing here raises or hangs, whatever the model wrote: lengths are capped here, the work of reading in `latex` and that of
comparing in `compare`; a text beyond a cap is simply not an answer. A gold answer that cannot be read is an error of the data,
found by `accuracy.check_gold` when the data is loaded.
"""
from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from r1.compare import equal
from r1.expr import Group, Named, Node, NotExpression, Relation, TooBig
from r1.latex import value_of
from r1.spelling import MAX_TEXT, bare, normal, word

MAX_WINDOW = 20_000   # characters after the reasoning in which an answer is looked for
MAX_BOXES = 64        # that may be joined
MAX_SHORT = 200       # characters of a text that may be an answer as a whole


# ---------------------------------------------------------------- extraction

def answered(completion: str) -> str:
    """What stands after the reasoning."""
    return completion.rpartition("</think>")[2].partition("<think>")[0]


def tagged(text: str) -> str | None:
    """The body of the last <answer>."""
    before, closing, _ = text.rpartition("</answer>")
    _, opening, body = before.rpartition("<answer>")
    return body if closing and opening else None


def extract(text: str, loose: bool = False) -> str | None:
    """The body of the last <answer> after the reasoning, or else the last box; None: nothing or empty.

    A box inside the body stands for the body. What is inside <think>, closed or not, never counts. `loose` falls back
    on what prose holds (see `_from_prose`): for evaluation and gold answers, never for training.
    Source: DeepSeek-R1, section 2.2.2 (boxed answers) and its prompt template (tags).
    """
    text = answered(text)[-MAX_WINDOW:]
    if "\0" in text:   # no answer has a NUL; refused here, it cannot surprise a rule further down
        return None
    body = tagged(text)
    if body is not None:
        boxed = last_boxed(body)
        found = body if boxed is None else boxed
    else:
        found = loose and _anchored(text, final=True) or last_boxed(text)
        if found is None and loose:
            found = _from_prose(text[-MAX_TEXT:])
    return (found or "").strip(" \n\r") or None


_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{|\\.|[{}]", re.DOTALL)
_CONNECTIVE = re.compile(r"(?:[\s$,;]|\\[()\[\]]|\\quad|\\text\{ ?(?:and|or) ?\}|(?:and|or)\b|和|或)+"
                         r"(?:[a-zA-Z](?:_\{?\w\}?)? ?= ?)?")


def last_boxed(text: str) -> str | None:
    """Content of the last brace-matched box. Boxes with only a connective between them are one answer."""
    opened: list[tuple[int, int] | None] = []   # per open brace: where its box and the content start
    boxes: list[tuple[int, int, int]] = []      # start, end, where the content starts
    for match in _BRACE.finditer(text):
        piece = match.group()
        if piece == "{":
            opened.append(None)
        elif len(piece) > 2:
            opened.append(match.span())
        elif piece == "}" and opened and (box := opened.pop()):
            boxes.append((box[0], match.end(), box[1]))
    last = [(start, end, text[content:end - 1]) for start, end, content in boxes[-MAX_BOXES:]]
    return _joined(text, last)[-1][2] if last else None


def _joined(text: str, pieces: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """(start, end, content) of all pieces, where those with only a connective between them are one."""
    joined: list[tuple[int, int, str]] = []
    for start, end, content in pieces:
        if joined and _CONNECTIVE.fullmatch(text, joined[-1][1], start):
            start, _, before = joined.pop()
            content = f"{before}, {content}"
        joined.append((start, end, content))
    return joined


_NUMBER = re.compile(
    r"(?<!not )(?<![\w.,\\^/])([-+−]?[$€£¥]?(?:\\[dt]?frac\{-?[0-9]{1,30}\}\{[0-9]{1,30}\}|"
    r"[0-9]{1,3}(?:(?: [0-9]{3}){1,6}|(?:\.[0-9]{3}){1,6},[0-9]{1,9})(?![0-9])|[0-9](?:,?[0-9]){0,60})"
    r"(?:\.[0-9]{1,60})?(?:e[-+]?[0-9]{1,3})?"
    r"(?: ?/ ?[0-9]{1,60})?(?: ?(?:\\?%|percent\b|pct\b))?)(?:[cmk]?m[23²³]?|k?g|s|h|m?[lL])?(?![\w^]|[.,][0-9])")
_FORMULA = re.compile(r"\\[\\$]|\$\$(.*?)\$\$|\\\[((?:(?!\\\[).)*?)\\\]|"
                      r"\$(?!\$)((?:[^$\\]|\\.)*)\$(?!\$)|\\\(((?:(?!\\\().)*?)\\\)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Z])\)?(?![\w'])")
_ANCHOR = re.compile(r"(final )?answer(?: is| should be)?\s?:?\s{0,3}[\"“*]{0,3}\s?", re.IGNORECASE)


def _found(pattern: re.Pattern, text: str, start: int = 0, end: int = MAX_WINDOW) -> list[tuple[int, int, str]]:
    """(start, end, content), joined. An inline formula that runs over lines, as two amounts of dollars do, has no content."""
    return _joined(text, [(*m.span(), "" if group > 2 and "\n" in m[group] else m[group])
                          for m in pattern.finditer(text, start, end) if (group := m.lastindex)])


def _anchored(text: str, final: bool) -> str:
    """The formulas or the number right behind the last "(final) answer is"."""
    for match in reversed([m for m in _ANCHOR.finditer(text) if m[1] or not final][-8:]):
        start = match.end()
        for pattern, reach in ((_NUMBER, MAX_SHORT), (_FORMULA, MAX_TEXT)):
            found = _found(pattern, text, start, start + reach)
            if found and found[0][0] == start:
                return last_boxed(found[0][2]) or found[0][2]
        if letter := _LETTER.match(text, start):
            return letter[1]
    return ""


def _from_prose(text: str) -> str:
    """A short text that is an expression; what stands behind "answer is"; the last formula or number; all of it."""
    short = len(text) <= MAX_SHORT
    if short and "\n" not in text.strip() and not isinstance(parse(text, True), str | None):
        return text
    if found := _anchored(text, final=False):
        return found
    formulas = _found(_FORMULA, text)
    found = _found(_NUMBER, text, formulas[-1][1] if formulas else 0) or formulas
    return found[-1][2] if found else text if short else ""


# ---------------------------------------------------------------- the verdict

_WORD = re.compile(r"[A-Za-z]|\([A-Za-z]\)|\[[A-Za-z]\]|[A-Za-z]{3,}|[A-Z]{2,}")


@lru_cache(maxsize=4096)
def parse(text: str, last: bool = False) -> Any:
    """The value of an answer: a number, a Node with free variables, a Group, Named, a Relation, or else its text. None:
    empty, undefined or beyond a cap. `last`: of a chain x = a = b, b counts. Never raises.

    Exact where it can be: only pi, e, functions and roots that are not rational make a float.
    """
    try:
        text = normal(text)
        short = bare(text)
        return word(short) if _WORD.fullmatch(short) else value_of(short, last)
    except NotExpression:
        return word(text)
    except (TooBig, ArithmeticError, ValueError, RecursionError):   # beyond a cap, 0/0
        return None


_DECIMAL_COMMA = re.compile(r"^(-?[0-9]{1,3}(?:\.[0-9]{3})+|-?[0-9]+),([0-9]{1,2}|[0-9]{4,})$")


def _gold_value(gold: Any) -> Any:
    """The value of a number, or of text with or without delimiters and box, or of prose that holds it."""
    if isinstance(gold, (int, Fraction)) and not isinstance(gold, bool):
        return Fraction(gold)
    if isinstance(gold, float) and math.isfinite(gold):
        gold = repr(gold)
    if not isinstance(gold, str):
        return None
    boxed = last_boxed(gold)
    value = parse(gold if boxed is None else boxed, True)
    found = None
    if boxed is None and (isinstance(value, str) and " " in gold.strip() or len(gold) > MAX_SHORT):
        found = extract(gold, loose=True)
    other = parse(found, True) if found else None
    return value if other is None else other


def is_gold(gold: Any) -> bool:
    """Whether a gold answer can be read."""
    return _gold_value(gold) is not None


def verify(gold: Any, completion: str, loose: bool = False, places: int | None = None) -> tuple[bool, str]:
    """Whether a completion gives the gold answer, and why not: ok, wrong, no_answer (no box), unparsed or too_long.

    `loose`: for evaluation only, see `extract`; of a chain x = a = b it takes b, and a decimal comma. `places`: decimals to
    which an answer may be rounded; None: see `compare._rounds_to`. Never raises, and takes no longer than some milliseconds.
    """
    answer = extract(completion, loose)
    if answer is None:
        return False, "no_answer"
    if len(answer) > MAX_TEXT:
        return False, "too_long"
    value, expected = parse(answer, loose), _gold_value(gold)
    if value is None or expected is None:
        return False, "unparsed"
    values = [value]
    if loose:   # 1.000,99 as a number; a sentence that is the gold text
        values += [parse(_DECIMAL_COMMA.sub(lambda m: m[1].replace(".", "") + "." + m[2], bare(normal(answer)))),
                   parse(completion) if isinstance(expected, str) else None]
    try:
        ok = any(equal(expected, each, places) for each in values)
    except (TooBig, RecursionError):
        return False, "too_long"
    return ok, "ok" if ok else "wrong"


# ---------------------------------------------------------------- for a reader

def reading(text: str) -> str:
    """How an answer was read, as text."""
    return _shown(parse(text))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Named):
        return f"{value.name} = {_shown(value.value)}"
    if isinstance(value, Relation):
        return " and ".join(f"{_shown(diff)} {sign} 0" for sign, diff in value.pairs)
    if isinstance(value, (Node, Group)):
        kind, shown = value[0], [each if isinstance(each, str) else _shown(each) for each in value[1]]
        if kind == "var":
            return shown[0]
        if isinstance(value, Node) and kind in "+-*/^":
            return f"({shown[0]} {kind} {shown[1]})"
        inner = ", ".join(shown)
        return f"{kind[0]}{inner}{kind[1]}" if len(kind) == 2 and not kind.isalpha() else f"{kind or 'list'}({inner})"
    return repr(value) if isinstance(value, str) else str(value) if isinstance(value, Fraction) else f"{value:.12g}"
