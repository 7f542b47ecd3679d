"""From the text of an answer, in the spelling of `spelling.normal` and `bare`, to its value: recursive descent over capped
tokens and depth."""
from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import partial
from typing import Any

from r1.compare import Comparison
from r1.expr import FUNCTIONS, INFINITY, NUMBER, Group, Named, Node, NotExpression, Relation, TooBig, apply, literal, real_root

MAX_TOKENS = 400
MAX_ITEMS = 64        # of a tuple, list, set or matrix
MAX_DEPTH = 60        # of brackets, fractions, roots, signs and operators that bind more and more

_TOKEN = re.compile(r"[0-9]+_\{[0-9]+\}|[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+|\\?[A-Za-z]+'*(?:(?<!log)_\{[^{}]*\})?|\\[{}]|\S")
_PART = r"(?:[A-Za-z]|[A-Z]{2,5}|m?\\(?!pi\b)[A-Za-z]+)'*(?:_\{[^{}]*\})?"
_NAME = re.compile(r"{0}(?:/{0}|(?::{0})+)?|\\frac\{{{0}\}}\{{{0}\}}|{0}(?:\^\{{?-1\}}?)?(?:\({0}\))?|\({0}(?:,{0})*\)|"
                   r"\|[A-Z]{{2,5}}\|".format(_PART))   # also A/B, A:B, f^-1(x), (x,y), |AB|
_PRODUCT = re.compile(r"(?!as|at|am|an|my|by)(?:a?[b-df-hj-np-tv-z]{1,3}|[A-Z]{1,4}|a)[ie]?'*(?:_.*)?")   # letters that are no word
_CLOSING = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "\\{": ("\\}",), "⟦": ("⟧",), "": ("",)}   # "" is the whole text
_AROUND = {"|": ("abs", "|"), "\\lfloor": ("floor", "\\rfloor"), "\\lceil": ("ceil", "\\rceil")}
_SEPARATORS = {",", ";", "and", "or", "&", "¶"}
_RELATIONS = set("=≠<≤>≥∈≈")
_TURNED = {">": "<", "≥": "≤"}
_TIMES, _SIGN = 4, 5   # how strongly a product and a sign before a value bind
_STRENGTH = {"∪": 1, "∖": 1, ":": 2, "+": 3, "-": 3, "*": _TIMES, "/": _TIMES, "^": 6}
_CALLED = {name: name for name in FUNCTIONS} | {
    "ln": "log", "lg": "lg", "log": "lg", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}
_COMMANDS = {"frac": partial(apply, "/"), "binom": partial(apply, "choose"), "root": lambda degree, value: real_root(value, degree)}
_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j, "∞": INFINITY}
_STOPS = {"", "\\}", "\\rfloor", "\\rceil", *")]}+-*/^!%°'_:⟧∪∖…"} | _SEPARATORS | _RELATIONS


def value_of(text: str, last: bool = False) -> Any:
    """The value of an expression in the spelling of `normal` and `bare`; one with ± is two, read twice. A chain of values
    after a name is one value only if all its members are equal, or with `last` its last one. Raises NotExpression, TooBig,
    ArithmeticError or ValueError."""
    if not {"±", "∓"} & set(text):
        return _Parser(text, last).bracket("")
    both = [_Parser(text.translate(str.maketrans("±∓", signs)), last).bracket("") for signs in ("+-", "-+")]
    both = [v if isinstance(v, Group) and v.brackets in ("", "{}") else Group("", (v,)) for v in both]
    return Group(both[0].brackets, both[0].items + both[1].items)


class _Parser:
    """Recursive descent over the tokens; every method reads on from `self.next`."""

    def __init__(self, text: str, last: bool):
        self.tokens: list[str] = []
        for token in (found := _TOKEN.findall(text)):
            product = _PRODUCT.fullmatch(token) and token not in _CALLED and token not in _CONSTANTS
            self.tokens += re.findall("[A-Za-z]'*(?:_.*)?", token) if product else [token]
        self.tokens.append("")   # the end
        self.next = self.depth = self.bars = self.angle = 0
        self.last = last
        if len(found) > MAX_TOKENS:
            raise TooBig

    @property
    def token(self) -> str:
        return self.tokens[self.next]

    def take(self, *expected: str) -> str:
        token = self.token
        if token not in expected if expected else not token:
            raise NotExpression
        self.next += bool(token)
        return token

    def bracket(self, opening: str) -> Any:
        """statement {separator statement} and the closing bracket; "a,b;c,d" is a list of tuples, "a&b¶c&d" a matrix."""
        rows: list[list] = [[]]
        between = set()
        if (opening, self.token) != ("\\{", "\\}"):
            rows[0].append(self.statement())
        while self.token in _SEPARATORS:
            while self.token in _SEPARATORS:
                between.add(separator := self.take())
            if separator in (";", "¶"):
                rows.append([])
            rows[-1].append(self.statement())
        kind = "" if opening == "{" else opening[-1:] + self.token[-1:]
        self.take(*_CLOSING[opening])
        if sum(map(len, rows)) > MAX_ITEMS:
            raise TooBig
        if opening == "⟦":
            return Group("matrix", tuple(Group("row", tuple(row)) for row in rows))
        if len(rows) > 1 and "," in between:
            rows = [[row[0] if len(row) == 1 else Group("()", tuple(row)) for row in rows]]
        items = tuple(item for row in rows for item in row)
        if between == {"and"} and all(isinstance(item, Relation) for item in items):   # x > 0 and x < 1 hold together
            return Relation(tuple(pair for item in items for pair in item.pairs))
        return items[0] if len(items) == 1 else Group(kind, items)

    def statement(self) -> Any:
        """expression {relation expression}"""
        parts, names, signs = [], [], []
        while True:
            start = self.next
            parts.append(self.expression())
            text = "".join(self.tokens[start:self.next])
            names.append(text if _NAME.fullmatch(text) else "")
            if self.token not in _RELATIONS:
                break
            signs.append(self.take())
        if signs[:1] == ["≈"] and names[0]:   # x ≈ 11 is 11
            signs[0] = "="
        if "≈" in signs:                      # 1/3 ≈ 0.33 is 1/3, and 2 ≈ 3 is nothing
            cut = signs.index("≈") + 1
            left, right = parts[cut - 1:cut + 1]
            roughly = not isinstance(left, NUMBER) or isinstance(right, NUMBER) and abs(left - right) <= abs(left) / 10
            if not roughly and not (self.last and any(names)):
                raise NotExpression
            parts, names, signs = parts[:cut], names[:cut], signs[:cut - 1]
        if not signs:
            return parts[0]
        if set(signs) == {"="} or signs == ["∈"] and names[0]:
            return self.equation(parts, names)
        if "∈" in signs:
            raise NotExpression
        pairs = [(_TURNED[s], b, a) if s in _TURNED else (s, a, b) for s, a, b in zip(signs, parts, parts[1:])]
        found = tuple((s, apply("-", a, b)) for s, a, b in pairs if not (s in "<≤" and (a == -INFINITY or b == INFINITY)))
        if not found or not all(isinstance(diff, Node) for _, diff in found):
            raise NotExpression
        return Relation(found)

    def equation(self, parts: list, names: list) -> Any:
        """A name and its value, or an equation of two sides."""
        if not any(names) and len(parts) == 2 and any(isinstance(p, Node) for p in parts):
            return Relation((("=", apply("-", *parts)),))
        first, *more = [p for p, name in zip(parts, names) if not name] or parts[1:]
        value = more[-1] if more else first
        same = Comparison().equal   # one budget for the chain
        if not all(same(first, each) for each in more):
            definition = not isinstance(value, Node) and all(isinstance(v, Node) for v in (first, *more[:-1]))   # A = πr² = 9π
            if not any(names) or not self.last and not definition:
                raise NotExpression   # a hedge: x = 1 = 2
        if not any(names):
            return value
        left, name = next((part, name) for part, name in zip(parts, names) if name)
        inner = name[1:-1].split(",")   # (x,y) = (1,2)
        if isinstance(left, Group) and isinstance(value, Group) and len(left.items) == len(value.items) == len(inner):
            return Group(value.brackets, tuple(map(Named, inner, left.items, value.items)))
        return Named(name, left, value)

    def expression(self, strength: int = 0) -> Any:
        """Operands with the operators between them that bind more strongly than `strength`."""
        self.depth += 1   # every way round the grammar passes here
        if self.depth > MAX_DEPTH:
            raise TooBig
        minus = False
        while self.token in ("+", "-"):
            minus ^= self.take() == "-"
        value = self.expression(_SIGN) if minus else self.atom()
        if minus:
            value = -value if isinstance(value, NUMBER) else apply("*", Fraction(-1), value)
        while True:
            sign = self.token
            if sign in ("!", "%", "°"):
                if self.take() == self.token:   # 5!! is not (5!)!
                    raise NotExpression
                value = value if sign == "°" and not self.angle else apply(sign, value)
            elif _STRENGTH.get(sign, 0) > strength:
                value = apply(self.take(), value, self.expression(min(_STRENGTH[sign], _SIGN)))
            elif strength < _TIMES and self.starts_factor():
                value = apply("*", value, self.expression(_SIGN))
            else:
                self.depth -= 1
                return value

    def starts_factor(self) -> bool:
        if self.token[:1].isdigit():   # 3!2! but not 3 2
            return self.tokens[self.next - 1] == "!"
        return self.token not in _STOPS and self.token[0] != "." and not (self.token == "|" and self.bars)

    def atom(self) -> Any:
        """A number, a bracket, a command with its arguments or a letter."""
        token = self.take()
        name = token.lstrip("\\")
        if "_{" in token and token[0].isdigit():   # 1112_3: digits and base stay as they are
            return Group("base", tuple(map(literal, re.findall("[0-9]+", token))))
        if token[0].isdigit() or len(token) > 1 and token[0] == ".":
            return literal(token)
        if token in _CLOSING:
            return self.bracket(token)
        if token in _AROUND:
            op, close = _AROUND[token]
            self.bars += token == "|"
            value = self.expression()
            self.bars -= self.take(close) == "|"
            return apply(op, value)
        if name in _COMMANDS:
            return _COMMANDS[name](self.argument(), self.argument())
        if name in ("sqrt", "√"):
            return real_root(self.argument() if token == "\\sqrt" else self.expression(_SIGN), Fraction(2))
        if name in _CALLED:
            return self.function(name)
        return _CONSTANTS[name] if name in _CONSTANTS else self.letter(token)

    def argument(self) -> Any:
        """What LaTeX gives to a command: a braced group, or else one digit, one letter or one command."""
        if self.token.isdigit():
            self.tokens[self.next:self.next + 1] = list(self.token)
        return self.atom() if len(self.token) == 1 else self.expression(_SIGN)

    def function(self, name: str) -> Any:
        """sin^2 x, log_2(8), sin 30°: the argument is a bracket, or else a product without brackets and functions."""
        called, base, exponent = _CALLED[name], Fraction(10), None
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
            value = self.expression(_SIGN)
            while self.starts_factor() and self.token not in ("(", "[", "|") and self.token.lstrip("\\") not in _CALLED:
                value = apply("*", value, self.expression(_SIGN))
        self.angle -= 1
        if exponent == -1 and called in ("sin", "cos", "tan"):
            return apply("a" + called, value)
        value = apply(called, value, base) if called == "lg" else apply(called, value)
        return value if exponent is None else apply("^", value, exponent)

    def letter(self, token: str) -> Any:
        """A variable with its subscript, or f(...)."""
        name, _, index = token.partition("_")
        if not name.lstrip("\\")[:1].isalpha() or name in _SEPARATORS or name[0] != "\\" and len(name.rstrip("'")) > 1:
            raise NotExpression
        if (name[0] in "fghFG" or name[-1] == "'") and self.token == "(":
            args = self.bracket(self.take())
            args = args.items if isinstance(args, Group) else (args,)
            return Node("call", (token, *(apply("*", Fraction(1), a) for a in args)))   # numbers only
        return Node("var", (token.lstrip("\\"),))
