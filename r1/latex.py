"""From the text of an answer, in the spelling of `spelling.normal` and `bare`, to its value: recursive descent over capped
tokens and depth."""
from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from r1.compare import Comparison, roughly
from r1.expr import (FUNCTIONS, INFINITY, Group, Named, Node, NotExpression, Relation, TooBig, apply, literal, negative, percent,
                     real_root)

MAX_TOKENS = 400
MAX_ITEMS = 64        # of a tuple, list or set
MAX_DEPTH = 40        # of brackets, fractions, roots and powers


_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+|\\?[A-Za-z]+'*|\*\*|\\[{}]|\S")
_PART = r"(?:[A-Za-z]|[A-Z]{2,5}|m?\\(?!pi\b)[A-Za-z]+)'*(?:_(?:[0-9A-Za-z]|\{[^{}]*\}))?"
_NAME = re.compile(r"{0}(?:/{0}|(?::{0})+)?|\\frac\{{{0}\}}\{{{0}\}}|{0}(?:\^\{{?-1\}}?)?(?:\({0}\))?|\({0}(?:,{0})*\)|"
                   r"\|(?![a-z]\|){0}+\|".format(_PART))   # also A/B, A:B, f^-1(x), (x,y), |AB|
_PRODUCT = re.compile(r"(?!as|at|am|an|my|by)(?:a?[b-df-hj-np-tv-z]{1,3}|[A-Z]{1,4}|a)[ie]?")   # letters that are no word
_CLOSING = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "\\{": ("\\}",)}
_AROUND = {"|": ("abs", "|"), "\\lfloor": ("floor", "\\rfloor"), "\\lceil": ("ceil", "\\rceil")}
_RELATIONS = {"=": "=", "≠": "≠", "<": "<", "≤": "≤", ">": "<", "≥": "≤", "∈": "∈", "≈": "≈"}
_SEPARATORS = {",", ";", "and", "or"}
_CALLED = {name: name for name in FUNCTIONS} | {
    "ln": "log", "lg": "lg", "log": "lg", "arcsin": "asin", "arccos": "acos", "arctan": "atan"} | {
    "sec": "cos", "csc": "sin", "cot": "tan"}
_INVERSE = {"sec", "csc", "cot"}
_STOPS = {"", "\\}", "**", "\\rfloor", "\\rceil", *")]}+-*/^!%°'_:&¶⟧±∓∪∖…"} | _SEPARATORS | set(_RELATIONS)


def value_of(text: str, last: bool = False) -> Any:
    """The value of an expression in the spelling of `normal` and `bare`. A chain of values after a name is one value only
    if all its members are equal, or with `last` its last one. Raises NotExpression, TooBig, ArithmeticError or ValueError."""
    if len(_TOKEN.findall(text)) > MAX_TOKENS:
        raise TooBig
    return _Parser(text, last).whole()


class _Parser:
    """Recursive descent over the tokens; every method reads on from `self.next`."""

    def __init__(self, text: str, last: bool):
        self.tokens = [*_TOKEN.findall(text), ""]   # "" is the end
        self.next = self.depth = self.bars = self.angle = 0
        self.last, self.sign = last, 0              # sign: what ± means in this reading, 0 outside an item

    @property
    def token(self) -> str:
        return self.tokens[self.next]

    def take(self, *expected: str) -> str:
        token = self.token
        if token not in expected if expected else not token:
            raise NotExpression
        self.next += bool(token)
        return token

    def whole(self) -> Any:
        items = self.items()
        self.take("")
        return items[0] if len(items) == 1 else Group("", items)

    def items(self) -> tuple:
        """item {("," | ";" | "and" | "or") item}; "a,b;c,d" is a list of tuples."""
        rows: list[list] = [[]]
        between = set()
        while True:
            rows[-1] += self.item()
            if sum(map(len, rows)) > MAX_ITEMS:
                raise TooBig
            if self.token not in _SEPARATORS:
                break
            while self.token in _SEPARATORS:
                between.add(separator := self.take())
            if separator == ";":
                rows.append([])
        if len(rows) > 1 and "," in between:
            return tuple(row[0] if len(row) == 1 else Group("()", tuple(row)) for row in rows)
        return tuple(item for row in rows for item in row)

    def item(self) -> list:
        """A statement; one with ± is two, read twice."""
        if self.sign:
            return [self.statement()]
        start, found = self.next, []
        for self.sign in (1, -1):
            self.next = start
            found.append(self.statement())
            if not {"±", "∓"} & set(self.tokens[start:self.next]):
                break
        self.sign = 0
        if len(found) == 2 and all(isinstance(f, Group) and f.brackets == "{}" for f in found):
            return [Group("{}", found[0].items + found[1].items)]
        return found

    def statement(self) -> Any:
        """sets {relation sets}"""
        parts, names, signs = [], [], []
        while True:
            start = self.next
            parts.append(self.sets())
            text = "".join(self.tokens[start:self.next])
            names.append(text if _NAME.fullmatch(text) else "")
            if self.token not in _RELATIONS:
                break
            signs.append(self.take())
        if "≈" in signs:   # 1/3 ≈ 0.33 is 1/3, x ≈ 11 is 11
            cut = signs.index("≈")
            if cut == 0 and names[0]:
                signs[0], cut = "=", signs.index("≈", 1) if "≈" in signs[1:] else len(signs)
            if not (self.last and any(names)) and cut < len(signs) and not roughly(parts[cut], parts[cut + 1]):
                raise NotExpression   # 2 ≈ 3
            parts, names, signs = parts[:cut + 1], names[:cut + 1], signs[:cut]
        if not signs:
            return parts[0]
        if set(signs) == {"="} or signs == ["∈"] and names[0]:
            return self.equation(parts, names)
        if "∈" in signs:
            raise NotExpression
        pairs = [(_RELATIONS[s], a, b) if s not in ">≥" else (_RELATIONS[s], b, a) for s, a, b in zip(signs, parts, parts[1:])]
        found = tuple((s, apply("-", a, b)) for s, a, b in pairs if not (s in "<≤" and (a == -INFINITY or b == INFINITY)))
        if not found or not all(isinstance(diff, Node) for _, diff in found):
            raise NotExpression
        return Relation(found)

    def equation(self, parts: list, names: list) -> Any:
        """A name and its value, or an equation of two sides."""
        named = next((i for i, name in enumerate(names) if name), None)
        if named is None and len(parts) == 2 and any(isinstance(p, Node) for p in parts):
            return Relation((("=", apply("-", *parts)),))
        values = [p for p, name in zip(parts, names) if not name] or parts[1:]
        same = Comparison().equal   # one budget for the chain
        if not all(same(values[0], value) for value in values[1:]):
            definitions = not isinstance(values[-1], Node) and all(isinstance(v, Node) for v in values[:-1])   # A = πr² = 9π
            if named is None or not self.last and not definitions:
                raise NotExpression   # a hedge: x = 1 = 2
            values = values[-1:]
        if named is None:
            return values[-1]
        left, value = parts[named], values[-1]
        if isinstance(left, Group) and isinstance(value, Group) and left.brackets == "()" and len(left.items) == len(value.items):
            inner = names[named][1:-1].split(",")   # (x,y) = (1,2)
            if len(inner) == len(value.items):
                return Group(value.brackets, tuple(map(Named, inner, left.items, value.items)))
        return Named(names[named], left, value)

    def sets(self) -> Any:
        """ratio {("∪" | "∖") ratio}"""
        value = self.ratio()
        while self.token in ("∪", "∖"):
            sign, pair = self.take(), (value, self.ratio())
            value = Group(sign, tuple(v if isinstance(v, Group) else Group("{}", (v,)) for v in pair))
        return value

    def ratio(self) -> Any:
        """sum {":" sum}"""
        parts = [self.sum()]
        while self.token == ":":
            self.take()
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Group(":", tuple(parts))

    def sum(self) -> Any:
        """product {("+" | "-" | "±") product}"""
        value = self.product()
        while self.token in ("+", "-", "±", "∓"):
            value = apply(self.plus_or_minus(), value, self.product())
        return value

    def plus_or_minus(self) -> str:
        token = self.take()
        return token if token in "+-" else "+" if (token == "±") == (self.sign > 0) else "-"

    def product(self) -> Any:
        """signed {("*" | "/") signed | power}, where a bare power starts with no number"""
        value = self.signed()
        while True:
            if self.token in ("*", "/"):
                value = apply(self.take(), value, self.signed())
            elif self.starts_factor():
                value = apply("*", value, self.power())
            else:
                return value

    def starts_factor(self) -> bool:
        if self.token[:1].isdigit():   # 3!2! but not 3 2
            return self.tokens[self.next - 1] == "!"
        return self.token not in _STOPS and self.token[0] != "." and not (self.token == "|" and self.bars)

    def signed(self) -> Any:
        """{"+" | "-" | "±"} power"""
        minus = False
        while self.token in ("+", "-", "±", "∓"):
            minus ^= self.plus_or_minus() == "-"
        value = self.power()
        return negative(value) if minus else value

    def power(self) -> Any:
        """atom {"!" | "%" | "°"} [("^" | "**") signed]"""
        self.depth += 1   # every way round the grammar passes here
        if self.depth > MAX_DEPTH:
            raise TooBig
        value = self.atom()
        while self.token in ("!", "%", "°"):
            sign = self.take()
            if sign == self.token:   # 5!! is not (5!)!
                raise NotExpression
            if sign == "°":
                value = apply("*", value, math.pi / 180) if self.angle else value
            else:
                value = apply("!", value) if sign == "!" else percent(value)
        if self.token in ("^", "**"):
            self.take()
            value = apply("^", value, self.signed())
        self.depth -= 1
        return value

    def atom(self) -> Any:
        """A number, a bracket, a command with its arguments or a letter."""
        token = self.take()
        if token[:1].isdigit() or len(token) > 1 and token[0] == ".":
            return self.based(token) if self.token == "_" else literal(token)
        if token in _CLOSING:
            return self.bracket(token)
        if token in _AROUND:
            op, close = _AROUND[token]
            self.bars += token == "|"
            value = self.sum()
            self.bars -= self.take(close) == "|"
            return apply(op, value)
        if token == "⟦":
            return self.matrix()
        if token == "∞":
            return INFINITY
        if token == "√":
            return real_root(self.power(), Fraction(2))
        name = token.lstrip("\\")
        if name in ("frac", "binom", "dbinom", "tbinom"):
            return apply("/" if name == "frac" else "choose", self.argument(), self.argument())
        if name == "sqrt":
            degree: Any = Fraction(2)
            if token[0] == "\\" and self.token == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            return real_root(self.argument() if token[0] == "\\" else self.power(), degree)
        if name in _CALLED:
            return self.function(name)
        if name == "pi":
            return math.pi
        if not name[:1].isalpha() or name in _SEPARATORS:
            raise NotExpression
        return self.letter(token)

    def bracket(self, token: str) -> Any:
        bars, self.bars = self.bars, 0
        items = () if token == "\\{" and self.token == "\\}" else self.items()
        close = self.take(*_CLOSING[token])
        self.bars = bars
        if len(items) == 1:
            return items[0]
        return Group({"{": "", "\\{": "{}"}.get(token, token[-1] + close[-1]), items)

    def matrix(self) -> Group:
        """row {"¶" row} ["¶"], where a row is sum {"&" sum}"""
        rows: list[tuple] = [()]
        while True:
            rows[-1] += (self.sum(),)
            if (sign := self.take("&", "¶", "⟧")) == "¶" and self.token != "⟧":
                rows.append(())
            elif sign == "⟧" or sign == "¶" and self.take():
                return Group("matrix", tuple(rows))

    def function(self, name: str) -> Any:
        """sin^2 x, log_2(8), sin 30°: the argument is a bracket, or else a product without brackets and functions."""
        base = exponent = None
        if self.token == "_" and name == "log":
            self.take()
            base = self.argument()
        if self.token == "^":
            self.take()
            exponent = self.argument()
        self.angle += 1
        if self.token in ("(", "[", "{"):
            value = self.atom()
        else:
            value = self.power()
            while self.starts_factor() and self.token not in ("(", "[", "|") and self.token.lstrip("\\") not in _CALLED:
                value = apply("*", value, self.power())
        self.angle -= 1
        called = _CALLED[name]
        if exponent == -1 and called in ("sin", "cos", "tan") and name not in _INVERSE:
            return apply("a" + called, value)
        value = apply("log" if called == "lg" else called, value)
        if called == "lg":
            value = apply("/", value, apply("log", Fraction(10) if base is None else base))
        value = apply("/", Fraction(1), value) if name in _INVERSE else value
        return value if exponent is None else apply("^", value, exponent)

    def letter(self, token: str) -> Any:
        """A variable, e, i, or f(...); letters in a row are a product unless they are a word."""
        if token[0] != "\\" and len(token.rstrip("'")) > 1:
            if not _PRODUCT.fullmatch(token.rstrip("'")):
                raise NotExpression
            self.tokens[self.next - 1:self.next] = token[0], token[1:]
            token = token[0]
        elif self.token == "_":
            self.take()
            token += "_" + self.subscript()
        if token in ("f", "g", "h", "F", "G") or token[-1] == "'" or token[0] in "fghFG" and "_" in token:
            if self.tokens[self.next:self.next + 5] == ["^", "{", "-", "1", "}"]:
                self.next += 5
                token += "^-1"
            if self.token == "(":
                self.take()
                args = self.items()
                self.take(")")
                return Node("call", (token, *(apply("*", Fraction(1), a) for a in args)))   # numbers only
        return {"e": math.e, "i": 1j}.get(token) or Node("var", (token.lstrip("\\"),))

    def subscript(self) -> str:
        if self.token != "{":
            return self.take()
        start = self.next
        while self.take() != "}":
            pass
        return "".join(self.tokens[start + 1:self.next - 1])

    def based(self, token: str) -> Group:
        """1112_3: digits and base stay as they are."""
        self.take()
        base = self.argument()
        if not token.isdigit() or not isinstance(base, Fraction) or not 2 <= base <= 36 or int(max(token)) >= base:
            raise NotExpression
        return Group("base", (literal(token), base))

    def argument(self) -> Any:
        """What LaTeX gives to a command: a braced group, or else one digit, one letter or one command."""
        token = self.token
        if len(token) > 1 and (token.isdigit() or token.isalpha() and token not in _CALLED and token not in ("pi", "sqrt")):
            self.tokens[self.next:self.next + 1] = token[0], token[1:]
            self.next += 1
            return Fraction(int(token[0])) if token.isdigit() else Node("var", (token[0],))
        return self.atom() if token == "{" else self.power()
