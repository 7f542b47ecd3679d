"""When two values are equal: numbers exactly or within 1e-9, expressions by their values at fixed random points.

The number of nodes evaluated is capped, so that no verdict takes long.
"""
from __future__ import annotations

import cmath
import hashlib
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Any

from r1.expr import NUMBER, Group, Named, Node, NotExpression, Relation, TooBig, Written, apply, bits, exact

POINT_BITS = 1_024    # the same at a random point; beyond it, floats
MAX_WORK = 1_200      # nodes evaluated, and pairs compared, in one verdict
POINTS = 6            # random points at which two expressions must agree ...
ENOUGH = 3            # ... and at how many of them both must be defined
UNDEFINED = math.nan  # where an expression is not defined; it is close to nothing
RELATIVE = 1e-9       # tolerance where a root or a function made a float
MAX_MARKS = 24        # numbers in two sets of numbers


class Comparison:
    """One verdict. `places`: decimals to which an answer may be rounded; None: see `_rounds_to`. Not symmetric: only
    an answer may be rounded, and only a gold inequality may be answered by an interval. Raises TooBig."""

    def __init__(self, places: int | None = None):
        self.places, self.work = places, MAX_WORK

    def spend(self, work: int = 1) -> None:
        self.work -= work
        if self.work < 0:
            raise TooBig

    def equal(self, gold: Any, value: Any) -> bool:
        self.spend()
        both = isinstance(gold, Named) and isinstance(value, Named)
        if both and _same_name(gold.name, value.name):
            return self.equal(gold.value, value.value)
        if (left := _pairs(gold)) and (right := _pairs(value)):
            return self._relations(left, right)
        if both:
            return False
        gold, value = (v.value if isinstance(v, Named) else v for v in (gold, value))
        if isinstance(gold, Relation) and isinstance(value, Group):
            return self._sets(gold, value)
        if isinstance(gold, Group) and isinstance(value, Group):
            return self._groups(gold, value)
        if isinstance(gold, Group) and gold.brackets == ":" and all(isinstance(i, Fraction) for i in (*gold.items, value)):
            gold = gold.items[0] / gold.items[1] if gold.items[1] else gold   # 7:32 may be 7/32
        if isinstance(gold, str) and isinstance(value, str):
            return gold == value
        gold, value = (math.e if v == "e" else v for v in (gold, value))   # the letter alone may be a choice
        if isinstance(gold, NUMBER) and isinstance(value, NUMBER):
            return self._numbers(gold, value)
        return isinstance(gold, (*NUMBER, Node)) and isinstance(value, (*NUMBER, Node)) and self._expressions(gold, value)

    def _numbers(self, gold: Any, value: Any) -> bool:
        """50% is 50 as well as 0.5."""
        pairs = [(gold, value)]
        percent = [getattr(v, "percent", False) for v in pairs[0]]
        if percent == [True, False]:
            pairs.append((gold * 100, value))
        elif percent == [False, True]:
            pairs.append((gold, Written(value * 100, max(0, value.places - 2))))
        return any(close(g, v) or _rounds_to(g, v, self.places) or self.places is not None and _rounds_to(v, g, self.places)
                   for g, v in pairs)

    # ---- expressions and relations, by their values at random points

    def _value(self, node: Any, env: Callable[[str], Any]) -> Any:
        self.spend()
        if not isinstance(node, Node):
            return node
        if node.op == "var":
            return env(node.args[0])
        if node.op == "call":   # an unknown function is another one at every point
            name, *args = node.args
            self.spend(4)
            values = [env(f"{name}()")] + [self._value(a, env) * env(f"{name}()#{i}") for i, a in enumerate(args)]
            return exact(cmath.sin(sum(values)) + values[-1] * env(f"{name}()'"))
        args = [self._value(a, env) for a in node.args]
        try:
            value = apply(node.op, *args)
        except TooBig:
            value = apply(node.op, *(float(a) if isinstance(a, Fraction) else a for a in args))
        return float(value) if isinstance(value, Fraction) and bits(value) > POINT_BITS else value

    def _value_or_undefined(self, node: Any, env: Callable[[str], Any]) -> Any:
        try:
            return self._value(node, env)
        except (ArithmeticError, ValueError):
            return UNDEFINED

    def _at_points(self, *nodes: Any) -> Iterator[list]:
        """The values of all at every random point at which one of them is defined."""
        for k in range(POINTS):
            values = [self._value_or_undefined(node, lambda name, k=k: point(name, k)) for node in nodes]
            if any(value is not UNDEFINED for value in values):
                yield values

    def _expressions(self, gold: Any, value: Any) -> bool:
        good = 0
        for left, right in self._at_points(gold, value):
            if not close(left, right):
                return False
            good += 1
        return good >= ENOUGH

    def _relations(self, gold: tuple, value: tuple) -> bool:
        """Every sign and difference of one is one of the other, but for a constant factor."""
        rest = list(value)
        for sign, left in gold:
            same = next((p for p in rest if p[0] == sign and self._proportional(left, p[1], sign in "=≠")), None)
            if same is None:
                return False
            rest.remove(same)
        return not rest

    def _proportional(self, gold: Any, value: Any, any_sign: bool) -> bool:
        try:   # a tautology is zero everywhere
            seen = [(left, left / right) for left, right in self._at_points(gold, value) if left or right]
        except ArithmeticError:
            return False
        first, ratio = seen[0] if len(seen) >= ENOUGH else (0, 0)
        return (ratio != 0 and all(close(ratio, other) for _, other in seen)
                and not all(close(first, left) for left, _ in seen)   # 1 < 2 says nothing
                and (any_sign or not isinstance(ratio, complex) and ratio > 0))

    # ---- groups and sets of numbers

    def _groups(self, gold: Group, value: Group) -> bool:
        kinds = {gold.brackets, value.brackets}
        if kinds & {"∪", "∖"}:
            return self._sets(gold, value)
        names, others = _names(gold), _names(value)
        if names and sorted(names) == sorted(others):   # x=1, y=2 is y=2, x=1 and not x=2, y=1
            value = Group(value.brackets, tuple(value.items[others.index(name)] for name in names))
        elif others and others != sorted(others):   # y=1, x=2 is not (1,2)
            return False
        elif kinds <= {"", "{}"} and not names and not others:   # no order, and in a set an item may be said twice
            if kinds == {""} and any(self.equal(a, b) for a, b in combinations(gold.items, 2)):     # 1,2,2 is not 1,1,2
                return len(gold.items) == len(value.items) and self._pair_up(list(gold.items), list(value.items))
            return (len(value.items) >= len(gold.items) and all(any(self.equal(g, v) for v in value.items) for g in gold.items)
                    and all(any(self.equal(g, v) for g in gold.items) for v in value.items))
        return ((len(kinds) == 1 or kinds == {"()", ""}) and len(gold.items) == len(value.items)
                and all(map(self.equal, gold.items, value.items)))

    def _pair_up(self, golds: list, values: list) -> bool:
        """Each of the values to a gold of its own; equality is nearly transitive, so the first that fits will do."""
        for gold in golds:
            found = next((i for i, value in enumerate(values) if self.equal(gold, value)), None)
            if found is None:
                return False
            del values[found]
        return True

    def _sets(self, gold: Any, value: Group) -> bool:
        try:
            return all(self._inside(gold, x) == self._inside(value, x) for x in _probes(gold, value))
        except (ArithmeticError, ValueError):
            return False

    def _inside(self, numbers: Any, x: Any) -> bool:
        """Raises ValueError for what is no set of numbers."""
        if isinstance(numbers, Relation):
            return all(_holds(sign, self._value_or_undefined(diff, lambda _: x)) for sign, diff in numbers.pairs)
        kind, items = numbers
        if kind in ("∪", "∖"):
            left, right = (self._inside(item, x) for item in items)
            return left or right if kind == "∪" else left and not right
        if not all(isinstance(item, (Fraction, float)) for item in items):
            raise ValueError("no number")
        if kind in ("{}", ""):
            return any(close(item, x) for item in items)
        low, high = items
        if kind not in ("()", "(]", "[)", "[]") or low > high or low == high and kind != "[]" or any(
                side in "[]" and math.isinf(end) for side, end in zip(kind, items)):
            raise ValueError("no interval")
        return next((side in "[]" for side, end in zip(kind, items) if close(end, x)), low < x < high)


def equal(gold: Any, value: Any, places: int | None = None) -> bool:
    """Whether the parsed `value` answers the parsed `gold`. Raises TooBig where that takes too long to tell."""
    return Comparison(places).equal(gold, value)


def close(left: Any, right: Any) -> bool:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    try:
        return cmath.isclose(left, right, rel_tol=RELATIVE)
    except OverflowError:   # an exact number beyond the floats
        return False


def _rounds_to(gold: Any, value: Any, places: int | None) -> bool:
    """Whether `value` is a decimal to which `gold` rounds: one of at least `places` decimals, or by default of at least
    4 digits for a fraction that never ends and 7 for a root or a function; 0.3 is no third."""
    given = getattr(value, "places", 0)
    if given < max(1, places or 0) or isinstance(gold, complex) or isinstance(gold, float) and math.isinf(gold):
        return False
    if places is None:
        if isinstance(gold, Fraction) and pow(10, gold.denominator.bit_length(), gold.denominator) == 0:   # the gold ends
            return False
        if abs(value) * 10**given < (1000 if isinstance(gold, Fraction) else 10**6):
            return False
    return abs(Fraction(gold) - value) * 2 * 10**given <= 1


def _pairs(value: Any) -> tuple:
    """A relation, or a name and its value, as pairs; () for what is neither."""
    if isinstance(value, Named):
        try:
            return (("=", apply("-", value.left, value.value)),)
        except (NotExpression, ValueError):   # the value is no number
            return ()
    return value.pairs if isinstance(value, Relation) else ()


def _same_name(gold: str, value: str) -> bool:
    """x is not y and not x'; but V may be V_1, f may be f(x), and so may y."""
    short, long = sorted((gold, value), key=len)
    return short == long or len(short) == 1 and long.startswith((short + "_", short + "(", "f(" if short == "y" else short + "("))


def _names(group: Group) -> list[str]:
    """The names of its items where all have one of their own."""
    names = [item.name for item in group.items if isinstance(item, Named)]
    return names if len(names) == len(set(names)) == len(group.items) > 1 else []


def _probes(gold: Any, value: Any) -> list:
    """Where two sets of real numbers may differ: at all the numbers in them, between these and outside; for a relation also
    near and far from them, and at their ratios, as 3/2 in 2x-3≠0, for what it is worth elsewhere is not known."""
    parts = [gold, value]
    for part in parts:   # it grows
        parts += part if isinstance(part, tuple) else ()
    marks = sorted({p for p in parts if isinstance(p, (Fraction, float)) and not math.isinf(p)}) or [Fraction(0)]
    tests = [*marks, *((a + b) / 2 for a, b in zip(marks, marks[1:])), marks[0] - 1, marks[-1] + 1]
    if isinstance(gold, Relation):
        names = {part.args[0] + "()" * (part.op == "call") for part in parts if isinstance(part, Node) and part.op in ("var", "call")}
        few = sorted({abs(mark) for mark in marks} - {0} | {Fraction(1)})[:6]
        tests += [Fraction(0), *(sign * a / b for a in few for b in few for sign in (1, -1) if a != b or a == 1)]
        tests += [mark + d * (abs(mark) + 1) for mark in marks for d in (Fraction(-1, 10**6), Fraction(1, 10**6))]
        tests += [marks[0] + point("set", k) * 3 ** k for k in range(12)]
        if len(names) != 1 or "()" in "".join(names):
            raise ValueError("not one variable")
    if len(marks) > MAX_MARKS:
        raise ValueError("too many to compare")
    return tests


def _holds(sign: str, diff: Any) -> bool:
    if diff == 0:
        return sign in "=≤"
    if sign in "=≠":
        return sign == "≠" and diff is not UNDEFINED
    return not isinstance(diff, complex) and diff < 0


@lru_cache(maxsize=4096)
def point(name: str, k: int) -> Fraction:
    """The value of a variable at the k-th random point: about 1; positive at even points, at the others of both signs."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    value = Fraction(23 + (digest[k % 6] + 7 * k) % 98, (41, 43, 47)[digest[6 + k % 6] % 3])
    return -value if k % 2 and (1 + digest[12] % 6) >> (k // 2 % 3) & 1 else value      # 1 to 6: neither none nor all of three
