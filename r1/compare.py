"""When two values are equal: numbers exactly or within 1e-9, expressions by their values at fixed random points.

The number of nodes evaluated is capped, so that no verdict takes long.
"""
from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from r1.expr import NUMBER, Group, Named, Node, NotExpression, Relation, TooBig, Written, apply, bits, exact

POINT_BITS = 1_024    # the same at a random point; beyond it, floats
MAX_WORK = 1_200      # nodes evaluated, and pairs compared, in one verdict
POINTS = 6            # random points at which two expressions must agree ...
ENOUGH = 4            # ... and at how many of them both must be defined
RELATIVE = 1e-9       # tolerance where a root or a function made a float


class Comparison:
    """One verdict. `places`: decimals to which an answer may be rounded; None: see `_rounds_to`. Not symmetric: only
    an answer may be rounded, and only a gold inequality may be answered by an interval. Raises TooBig."""

    def __init__(self, places: int | None = None):
        self.places, self.work = places, MAX_WORK

    def equal(self, gold: Any, value: Any) -> bool:
        self.work -= 1
        if self.work < 0:
            raise TooBig
        if isinstance(gold, (Named, Relation)) and isinstance(value, (Named, Relation)):
            if isinstance(gold, Named) and isinstance(value, Named) and not _other_name(gold.name, value.name):
                return self.equal(gold.value, value.value)
            left, right = _relation(gold), _relation(value)
            if left is not None and right is not None:
                return self._relations(left.pairs, right.pairs)
        gold, value = (v.value if isinstance(v, Named) else v for v in (gold, value))
        if isinstance(gold, Relation) and isinstance(value, Group):
            return self._sets(gold, value)
        if isinstance(gold, Group) and isinstance(value, Group):
            return self._groups(gold, value)
        if isinstance(gold, Group) and gold.brackets == ":" and len(gold.items) == 2 and isinstance(value, Fraction):
            return self.equal(apply("/", *gold.items), value)
        if isinstance(gold, str) and isinstance(value, str):
            return gold == value
        gold, value = (math.e if v == "e" else v for v in (gold, value))   # the letter alone may be a choice
        if isinstance(gold, NUMBER) and isinstance(value, NUMBER):
            return self._numbers(gold, value)
        return isinstance(gold, (*NUMBER, Node)) and isinstance(value, (*NUMBER, Node)) and self._expressions(gold, value)

    # ---- numbers

    def _numbers(self, gold: Any, value: Any) -> bool:
        """50% is 50 as well as 0.5."""
        percent = [getattr(v, "percent", False) for v in (gold, value)]
        return self._close(gold, value) or percent == [True, False] and self._close(gold * 100, value) or (
            percent == [False, True] and self._close(gold, Written(value * 100, max(0, value.places - 2))))

    def _close(self, gold: Any, value: Any) -> bool:
        return close(gold, value) or _rounds_to(gold, value, self.places) or (
            self.places is not None and _rounds_to(value, gold, self.places))

    # ---- expressions and relations, by their values at random points

    def _at(self, node: Any, env: Callable[[str], Any]) -> Any:
        self.work -= 1
        if self.work < 0:
            raise TooBig
        if not isinstance(node, Node):
            return node
        if node.op == "var":
            return env(node.args[0])
        if node.op == "call":   # an unknown function is another one at every point
            name, *args = node.args
            self.work -= 4
            values = [env(f"{name}()")] + [self._at(a, env) * env(f"{name}()#{i}") for i, a in enumerate(args)]
            return exact(cmath.sin(sum(values)) + values[-1] * env(f"{name}()'"))
        args = [self._at(a, env) for a in node.args]
        try:
            value = apply(node.op, *args)
        except TooBig:
            value = apply(node.op, *(float(a) if isinstance(a, Fraction) else a for a in args))
        return float(value) if isinstance(value, Fraction) and bits(value) > POINT_BITS else value

    def _values(self, gold: Any, value: Any) -> Iterator[tuple[Any, Any]]:
        """The values of both at every random point at which both are defined. Raises ValueError where one alone is not."""
        for k in range(POINTS):
            found = []
            for node in (gold, value):
                try:
                    found.append(self._at(node, lambda name, k=k: point(name, k)))
                except (ArithmeticError, ValueError):
                    found.append(None)
            if (found[0] is None) != (found[1] is None):
                raise ValueError("defined on one side only")
            if found[0] is not None:
                yield found[0], found[1]

    def _expressions(self, gold: Any, value: Any) -> bool:
        good = 0
        try:
            for left, right in self._values(gold, value):
                if not close(left, right):
                    return False
                good += 1
        except ValueError:
            return False
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
        ratios, seen = [], []
        try:
            for left, right in self._values(gold, value):
                if left or right:   # a tautology is zero everywhere, and 1 / 0 raises
                    ratios.append(left / right)
                    seen.append(left)
        except (ValueError, ArithmeticError):
            return False
        constant = all(close(seen[0], s) for s in seen)   # 1 < 2 says nothing
        return (len(ratios) >= ENOUGH and all(r and close(ratios[0], r) for r in ratios) and not constant
                and (any_sign or not isinstance(ratios[0], complex) and ratios[0] > 0))

    # ---- groups and sets of numbers

    def _groups(self, gold: Group, value: Group) -> bool:
        if {gold.brackets, value.brackets} & {"∪", "∖"}:
            return self._sets(gold, value)
        if gold.brackets == value.brackets == "matrix":
            return len(gold.items) == len(value.items) and all(
                len(g) == len(v) and all(map(self.equal, g, v)) for g, v in zip(gold.items, value.items))
        names = [_names(gold), _names(value)]
        if all(names) and sorted(names[0]) == sorted(names[1]):   # x=1, y=2 is y=2, x=1 and not x=2, y=1
            order = [names[1].index(name) for name in names[0]]
            value = Group(value.brackets, tuple(value.items[i] for i in order))
        elif {gold.brackets, value.brackets} <= {"", "{}"} and not any(names):   # no order, and an item may be said twice
            return (len(value.items) >= len(gold.items) and all(any(self.equal(g, v) for v in value.items) for g in gold.items)
                    and all(any(self.equal(g, v) for g in gold.items) for v in value.items))
        return ((gold.brackets == value.brackets or {gold.brackets, value.brackets} == {"()", ""})
                and len(gold.items) == len(value.items) and all(map(self.equal, gold.items, value.items)))

    def _sets(self, gold: Any, value: Group) -> bool:
        """Whether two sets of real numbers agree at all their ends, between them and outside."""
        try:
            names = {n for _, diff in gold.pairs for n in names_in(diff)} if isinstance(gold, Relation) else {"x"}
            ends = sorted({*(_ends(gold) if isinstance(gold, Group) else ()), *_ends(value)})
            if len(names) != 1 or len(ends) > 24 or "()" in "".join(names):
                return False
            marks = [end for i, end in enumerate(ends) if i == 0 or not close(end, ends[i - 1])] or [Fraction(0)]
            tests = [*marks, *((a + b) / 2 for a, b in zip(marks, marks[1:])), marks[0] - 1, marks[-1] + 1]
            if isinstance(gold, Relation):   # what it is worth elsewhere is not known from its ends
                tests += [end + d * (abs(end) + 1) for end in marks for d in (Fraction(-1, 10**6), Fraction(1, 10**6))]
                tests += [marks[0] + point("set", k) * 3 ** (k % 9) for k in range(24)] + _suspects(gold)
            return all(self._inside(gold, t, *names) == self._inside(value, t, *names) for t in tests)
        except (ArithmeticError, ValueError):
            return False

    def _inside(self, numbers: Any, x: Any, name: str) -> bool:
        if isinstance(numbers, Relation):
            try:
                return all(_holds(sign, self._at(diff, lambda _: x)) for sign, diff in numbers.pairs)
            except (ArithmeticError, ValueError):   # not defined there
                return False
        kind, items = numbers
        if kind in ("∪", "∖"):
            left, right = (self._inside(item, x, name) for item in items)
            return left or right if kind == "∪" else left and not right
        if kind in ("{}", ""):
            return any(close(item, x) for item in items)
        for side, end in zip(kind, items):
            if close(end, x):
                return side in "[]"
        return items[0] < x < items[1]


def equal(gold: Any, value: Any, places: int | None = None) -> bool:
    """Whether the parsed `value` answers the parsed `gold`. Raises TooBig where that takes too long to tell."""
    return Comparison(places).equal(gold, value)


def roughly(left: Any, right: Any) -> bool:
    """Whether right can be meant by left ≈ right."""
    return not isinstance(left, NUMBER) or isinstance(right, NUMBER) and abs(left - right) <= abs(left) / 10


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


def _relation(value: Any) -> Relation | None:
    if isinstance(value, Named):
        try:
            return Relation((("=", apply("-", value.left, value.value)),))
        except (NotExpression, ValueError):   # the value is no number
            return None
    return value


def _other_name(gold: str, value: str) -> bool:
    """x is not y; V may be V_1 or f(x)."""
    return len(gold) == len(value) == 1 and gold != value


def _names(group: Group) -> list[str]:
    """The names of its items where all have one of their own."""
    names = [item.name for item in group.items if isinstance(item, Named)]
    return names if len(names) == len(set(names)) == len(group.items) > 1 else []


def _ends(numbers: Any) -> Iterator[Any]:
    """The finite ends of intervals and members of sets. Raises ValueError for what is no set of numbers."""
    if isinstance(numbers, Group) and numbers.brackets in ("∪", "∖"):
        for item in numbers.items:
            yield from _ends(item)
        return
    if not isinstance(numbers, Group) or not all(isinstance(i, (Fraction, float)) for i in numbers.items):
        raise ValueError("no set of numbers")
    kind, items = numbers
    if kind not in ("{}", "") and not (len(kind) == len(items) == 2 and kind[0] in "([" and kind[1] in ")]" and (
            items[0] < items[1] or kind == "[]" and items[0] == items[1])):
        raise ValueError("no interval")
    if "[" in kind and items[0] == -math.inf or "]" in kind and items[1] == math.inf:
        raise ValueError("infinity is no member")
    yield from (item for item in items if not math.isinf(item))


def _suspects(relation: Relation) -> list[Fraction]:
    """Where a single point may differ, as 3/2 in 2x-3≠0: the constants and their ratios."""
    todo, found = [diff for _, diff in relation.pairs], {Fraction(1)}
    while todo:
        each = todo.pop()
        todo += each.args if isinstance(each, Node) else ()
        if isinstance(each, Fraction) and each:
            found.add(abs(Fraction(each)))
    found = sorted(found)[:6]
    return [Fraction(0), *(sign * a / b for a in found for b in found for sign in (1, -1) if a != b or a == 1)]


def _holds(sign: str, diff: Any) -> bool:
    if sign in "=≠":
        return (diff == 0) == (sign == "=")
    return not isinstance(diff, complex) and (diff < 0 or sign == "≤" and diff == 0)


@lru_cache(maxsize=4096)
def point(name: str, k: int) -> Fraction:
    """The value of a variable at the k-th random point: about 1, of either sign but for the even points."""
    drawn = zlib.crc32(f"{name}|{k}".encode("utf-8", "surrogatepass"))
    value = Fraction(23 + drawn % 98, (41, 43, 47)[drawn // 98 % 3])
    return -value if k % 2 and drawn >> 20 & 1 else value


def names_in(node: Any) -> Iterator[str]:
    """The variables, and "f()" for an unknown function."""
    todo = [node]
    while todo:
        if isinstance(each := todo.pop(), Node):
            if each.op in ("var", "call"):
                yield each.args[0] + ("()" if each.op == "call" else "")
            todo += each.args
