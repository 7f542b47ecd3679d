"""What an answer can be worth, and exact and bounded arithmetic.

Numbers are Fractions wherever they can be; pi, e, roots and functions make floats or complex numbers. An expression with
free variables is a tree of Nodes. The bits of every result are capped; nothing is ever given to Python to evaluate.
"""
from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

MAX_DIGITS = 1_200    # of a number as written
MAX_BITS = 4_096      # of the numerator or denominator of an exact result
MAX_FACTORIAL = 400
MAX_DEGREE = 64       # of a root that may be exact
NOISE = 1e-13         # a sum that cancels to less than this share of its terms is zero
INFINITY = math.inf


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


class Node(NamedTuple):
    """An expression with a free variable: "var" (name), "call" (name, arguments of an unknown function) or a key of OPS."""

    op: str
    args: tuple


class Group(NamedTuple):
    """Several values: "()" a tuple, "[]" "(]" "[)" a list or interval, "{}" a set, "" a bare list, ":" a ratio, "matrix" and
    "row", "base" digits and base, "∪" and "∖" two sets."""

    brackets: str
    items: tuple


class Named(NamedTuple):
    """`name = value`; `left` is the name as an expression."""

    name: str
    left: Any
    value: Any


class Relation(NamedTuple):
    """An equation or inequalities that hold together: (sign, left - right) with a sign of "=≠<≤"."""

    pairs: tuple


class NotExpression(Exception):
    """The text is not an expression; it may still be a word."""


class TooBig(Exception):
    """The text is beyond a cap; it is no answer at all."""


NUMBER = (Fraction, float, complex)


# ---------------------------------------------------------------- bounded arithmetic

def apply(op: str, *args: Any) -> Any:
    """A number, or a Node where an argument has a free variable. Raises NotExpression, TooBig, ArithmeticError, ValueError."""
    if op in ("∪", "∖"):
        return Group(op, tuple(a if isinstance(a, Group) else Group("{}", (a,)) for a in args))
    if op == ":":
        return Group(op, args)
    matrix = next((a for a in args if isinstance(a, Group) and a.brackets in ("matrix", "row")), None)
    if op == "*" and matrix:   # a number times all of its items
        return Group(matrix.brackets, tuple(apply(op, *(item if a is matrix else a for a in args)) for item in matrix.items))
    if not all(isinstance(a, (*NUMBER, Node)) for a in args):
        raise NotExpression
    if any(isinstance(a, float) and math.isinf(a) for a in args):
        raise ValueError("arithmetic with infinity")
    if any(isinstance(a, Node) for a in args):
        return Node(op, args)
    try:
        value = exact(OPS[op](*args))
    except TypeError:
        raise ValueError("not for complex numbers") from None
    if isinstance(value, float) and value == 0 and op in ("*", "/", "^", "exp") and all(args):
        raise OverflowError("too small for a float")   # it is not zero
    return value


def literal(token: str) -> Fraction:
    if len(token) > MAX_DIGITS:
        raise TooBig
    if token.isdigit():
        return Fraction(int(token))
    mantissa, _, exponent = token.lower().partition("e")
    return Written(exact(Fraction(token)), max(0, len(mantissa.partition(".")[2]) - int(exponent or 0)))


def bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def exact(value: Any) -> Any:
    """`value`, if it is small enough to go on with; a complex number that is real but for noise becomes so."""
    if isinstance(value, Fraction):
        if bits(value) > MAX_BITS:
            raise TooBig
    elif not cmath.isfinite(value):
        raise ValueError(value)
    elif isinstance(value, complex):
        noise = NOISE * abs(value)
        return value.real if abs(value.imag) <= noise else complex(0, value.imag) if abs(value.real) <= noise else value
    return value


def _sum(left: Any, right: Any) -> Any:
    total = left + right
    return 0.0 if not isinstance(total, Fraction) and abs(total) <= NOISE * abs(left) else total


def _percent(value: Any) -> Any:
    places = getattr(value, "places", 0)
    return Written(value / 100, places + 2 if places else 0, percent=True) if isinstance(value, Fraction) else value / 100


def _power(base: Any, exponent: Any) -> Any:
    if base == exponent == 0:
        raise ValueError("0^0")
    if not isinstance(base, Fraction) or not isinstance(exponent, Fraction):
        return (base if isinstance(base, complex) else float(base)) ** exponent
    if exponent.denominator > 1:
        root = real_root(base, exponent.denominator) if base >= 0 and exponent.denominator <= MAX_DEGREE else 0.0
        return _power(root, Fraction(exponent.numerator)) if isinstance(root, Fraction) else float(base) ** float(exponent)
    if abs(base) == 1:   # also to a huge power
        return base if exponent % 2 else Fraction(1)
    if (bits(base) - 1) * abs(exponent) > MAX_BITS:
        raise TooBig
    return base ** exponent


def real_root(value: Any, degree: Any) -> Any:
    """The real root where there is one, exact where it is rational."""
    if not isinstance(value, Fraction) or degree not in range(2, MAX_DEGREE + 1):
        return apply("^", value, apply("/", Fraction(1), degree))
    if value < 0 and degree % 2:
        return -real_root(-value, degree)
    n = int(degree)
    if value >= 0:
        root = Fraction(*(math.isqrt(p) if n == 2 else round(p ** (1 / n)) for p in value.as_integer_ratio()))
        if root ** n == value:
            return root
    return float(value) ** (1 / n)


def _factorial(value: Any) -> Any:
    if isinstance(value, Fraction) and value.denominator == 1 and value >= 0:
        if value > MAX_FACTORIAL:
            raise TooBig
        return Fraction(math.factorial(int(value)))
    return math.gamma(value + 1)


def _function(name: str) -> Callable[[Any], Any]:
    """A function of `math`, or of `cmath` where the real one is not defined."""
    def apply_function(x: Any) -> Any:
        try:
            y = getattr(cmath if isinstance(x, complex) else math, name)(x)
        except ValueError:
            y = getattr(cmath, name)(complex(x))
        if abs(y) > 1 / NOISE and name == "tan":
            raise ValueError("tan of a right angle")
        return 0.0 if abs(y) <= NOISE * min(1, abs(x)) and name != "exp" else y
    return apply_function


def _whole(rounded: Callable[[Any], int]) -> Callable[[Any], Fraction]:
    return lambda x: Fraction(round(x) if isinstance(x, float) and math.isclose(x, round(x), rel_tol=NOISE) else rounded(x))


FUNCTIONS = {name: _function(name) for name in "sin cos tan asin acos atan sinh cosh tanh log exp".split()}
FUNCTIONS |= {name: lambda x, f=FUNCTIONS[of]: 1 / f(x) for name, of in [("sec", "cos"), ("csc", "sin"), ("cot", "tan")]}
OPS: dict[str, Callable[..., Any]] = {
    "+": _sum, "-": lambda a, b: _sum(a, -b), "*": lambda a, b: a * b, "/": lambda a, b: a / b, "^": _power, "!": _factorial,
    "%": _percent, "°": lambda x: x * (math.pi / 180), "choose": lambda n, k: _factorial(n) / (_factorial(k) * _factorial(n - k)), "abs": abs, "floor": _whole(math.floor),
    "ceil": _whole(math.ceil), "lg": lambda x, base: FUNCTIONS["log"](x) / FUNCTIONS["log"](base), **FUNCTIONS}
