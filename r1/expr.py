"""What an expression is worth: tokens, a recursive descent over them, exact and bounded arithmetic, equality.

Numbers are Fractions; only pi and roots that are not rational make a float. Tokens, depth and the bits of every
result are capped, so that no text takes long; nothing is ever given to Python to evaluate.
"""
from __future__ import annotations

import math
import re
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Any, NamedTuple

MAX_TOKENS = 400      # of an expression
MAX_ITEMS = 64        # of a tuple, list or set
MAX_DEPTH = 40        # of brackets, fractions, roots and powers
MAX_DIGITS = 1_200    # of a number as written
MAX_BITS = 4_096      # of the numerator or denominator of an exact result
MAX_FACTORIAL = 400
RELATIVE = 1e-9       # tolerance where a root or pi made a float


# ---------------------------------------------------------------- values

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
    """Several values: "()" a tuple, "[]" "(]" "[)" a list or interval, "{}" a set, "" a bare list."""

    brackets: str
    items: tuple


class NotExpression(Exception):
    """The text is not an expression; it may still be a word."""


class TooBig(Exception):
    """The text is beyond a cap; it is no answer at all."""


# ---------------------------------------------------------------- parser

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+|\\?[A-Za-z]+|\*\*|\\[{}]|\S")
_NAME = re.compile(r"(?!\\?pi\b)\\?[A-Za-z]+(?:_(?:\w|\{\w*\}))?'{0,3}(?:\([A-Za-z]\))?|\((?:[A-Za-z],? ?)+\)")
_CLOSING = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "\\{": ("\\}",)}


def value_of(text: str) -> Fraction | float | Group:
    """The value of an expression in the spelling of `verify.parse`. Unwraps `name = value`; a chain of values is one
    value only if all its members are equal. Raises NotExpression, TooBig, ArithmeticError or ValueError."""
    if len(_TOKEN.findall(text)) > MAX_TOKENS:
        raise TooBig
    sides = text.split("=")
    if len(sides) > 1 and _NAME.fullmatch(sides[0].strip()):
        del sides[0]
    values = [_Parser(side).whole() for side in sides]
    if not all(equal(values[0], value) for value in values[1:]):
        raise NotExpression
    return values[0]


class _Parser:
    """Recursive descent over the tokens of one side; every method reads on from `self.next`."""

    def __init__(self, text: str):
        self.tokens = [*_TOKEN.findall(text), ""]   # "" is the end
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
        """sum {("," | ";" | "and" | "or") sum}"""
        found = [self.sum()]
        while self.token in (",", ";", "and", "or"):
            self.take()
            found.append(self.sum())
            if len(found) > MAX_ITEMS:
                raise TooBig
        return tuple(found)

    def sum(self) -> Any:
        """product {("+" | "-") product}"""
        value = self.product()
        while self.token in ("+", "-"):
            value = _apply(self.take(), value, self.product())
        return value

    def product(self) -> Any:
        """signed {("*" | "/") signed | power}, where the bare power starts with a bracket, a root or pi"""
        value = self.signed()
        while True:
            if self.token in ("*", "/"):
                value = _apply(self.take(), value, self.signed())
            elif self.token in ("(", "[", "{", "√", "\\frac", "\\sqrt", "\\pi", "sqrt", "pi"):
                value = _apply("*", value, self.power())
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
        """atom {"!" | "%"} [("^" | "**") signed]"""
        self.depth += 1   # every way round the grammar passes here
        if self.depth > MAX_DEPTH:
            raise TooBig
        value = self.atom()
        while self.token in ("!", "%"):
            value = _factorial(value) if self.take() == "!" else _percent(value)
        if self.token in ("^", "**"):
            value = _apply(self.take(), value, self.signed())
        self.depth -= 1
        return value

    def atom(self) -> Any:
        """A number, a bracket, a fraction, a root or pi."""
        token = self.take()
        if token[:1].isdigit() or len(token) > 1 and token[0] == ".":
            return _literal(token)
        if token in _CLOSING:
            items = self.items()
            close = self.take(*_CLOSING[token])
            if len(items) == 1:
                return items[0]
            return Group("" if token == "{" else token[-1] + close[-1], items)
        if token == "\\frac":
            return _apply("/", self.argument(), self.argument())
        if token == "\\sqrt" and self.token == "[":
            self.take()
            degree = self.sum()
            self.take("]")
            return _apply("^", self.argument(), _apply("/", Fraction(1), degree))
        if token in ("\\sqrt", "sqrt", "√"):
            return _root(_number(self.argument() if token == "\\sqrt" else self.power()))
        if token in ("\\pi", "pi"):
            return math.pi
        raise NotExpression

    def argument(self) -> Any:
        """What LaTeX gives to a command: a braced group, or else one digit or one command."""
        token = self.token
        if len(token) > 1 and token.isdigit():
            self.tokens[self.next] = token[1:]
            return Fraction(int(token[0]))
        return self.atom() if token == "{" else self.power()


# ---------------------------------------------------------------- bounded arithmetic

def _literal(token: str) -> Fraction:
    if len(token) > MAX_DIGITS:
        raise TooBig
    if token.isdigit():
        return Fraction(int(token))
    mantissa, _, exponent = token.lower().partition("e")
    return Written(_exact(Fraction(token)), max(0, len(mantissa.partition(".")[2]) - int(exponent or 0)))


def _apply(sign: str, left: Any, right: Any) -> Fraction | float:
    left, right = _number(left), _number(right)
    return _exact({"+": add, "-": sub, "*": mul, "/": truediv, "^": _power, "**": _power}[sign](left, right))


def _number(value: Any) -> Fraction | float:
    if not isinstance(value, (Fraction, float)):
        raise NotExpression   # arithmetic on a tuple
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact(value: Any) -> Fraction | float:
    """`value`, if it is small enough to go on with."""
    if isinstance(value, Fraction) and _bits(value) > MAX_BITS:
        raise TooBig
    if isinstance(value, complex) or isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return value


def _power(base: Fraction | float, exponent: Fraction | float) -> Fraction | float:
    if not isinstance(base, Fraction) or not isinstance(exponent, Fraction) or exponent.denominator > 1:
        return float(base) ** float(exponent)
    if abs(base) == 1:   # also to a huge power
        return base if exponent % 2 else Fraction(1)
    if (_bits(base) - 1) * abs(exponent) > MAX_BITS:
        raise TooBig
    return base ** exponent


def _root(value: Fraction | float) -> Fraction | float:
    if isinstance(value, Fraction) and value >= 0:
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if (top * top, bottom * bottom) == (value.numerator, value.denominator):
            return Fraction(top, bottom)
    return math.sqrt(value)


def _factorial(value: Any) -> Fraction:
    if not isinstance(value, Fraction) or value.denominator > 1 or value < 0:
        raise NotExpression
    if value > MAX_FACTORIAL:
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

    Rationals compare exactly, floats within 1e-9 relative; 50% is 50 as well as 0.5. A tuple keeps its
    order, sets and bare lists do not; a bare list also answers a gold tuple of the same order.
    """
    if isinstance(gold, Group) and isinstance(value, Group):
        return _equal_groups(gold, value)
    if isinstance(gold, str) and isinstance(value, str):
        return gold == value
    if not isinstance(gold, (Fraction, float)) or not isinstance(value, (Fraction, float)):
        return False
    if getattr(gold, "percent", False) == getattr(value, "percent", False):
        return _equal_numbers(gold, value)
    scaled = (gold * 100, value) if getattr(gold, "percent", False) else (gold, value * 100)
    return _equal_numbers(gold, value) or _equal_numbers(*scaled)


def _equal_numbers(gold: Fraction | float, value: Fraction | float) -> bool:
    if isinstance(gold, Fraction) and isinstance(value, Fraction):
        return gold == value or _rounds_to(gold, value)
    try:
        return math.isclose(gold, value, rel_tol=RELATIVE)
    except OverflowError:   # an exact number beyond the floats
        return False


def _rounds_to(gold: Fraction, value: Fraction) -> bool:
    """Whether `value` is written as a decimal of >= 4 digits to which a never-ending `gold` rounds."""
    places = getattr(value, "places", 0)
    if places < 1 or pow(10, gold.denominator.bit_length(), gold.denominator) == 0:   # the gold ends
        return False
    return abs(value) * 10**places >= 1000 and abs(gold - value) * 2 * 10**places <= 1


def _equal_groups(gold: Group, value: Group) -> bool:
    if {gold.brackets, value.brackets} <= {"", "{}"}:   # no order, and saying an item twice adds nothing
        return (all(any(equal(g, v) for v in value.items) for g in gold.items)
                and all(any(equal(g, v) for g in gold.items) for v in value.items))
    return ((gold.brackets == value.brackets or (gold.brackets, value.brackets) == ("()", ""))
            and len(gold.items) == len(value.items) and all(map(equal, gold.items, value.items)))
