"""One spelling for what can be written in many ways: a table of characters, a table of rewrites, units. Every scan is linear."""
from __future__ import annotations

import re

from r1.expr import TooBig

MAX_TEXT = 4_000      # characters of an answer

_CHARS = str.maketrans({
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},   # full-width forms
    **{c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},               # NFKC would make x2 of x²
    **{c: f"_{i}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{c: f"\\frac{{{p}}}{{{q}}}" for c, p, q in "½12 ⅓13 ⅔23 ¼14 ¾34 ⅕15 ⅖25 ⅗35 ⅘45 ⅙16 ⅚56 ⅛18 ⅜38 ⅝58 ⅞78".split()},
    **dict.fromkeys("−–﹣", "-"), **dict.fromkeys("×·⋅∙✕", "*"), **dict.fromkeys("÷⁄∕", "/"), "∶": ":",
    **dict.fromkeys("≦⩽", "≤"), **dict.fromkeys("≧⩾", "≥"),
    **dict.fromkeys("\u00a0\u2009\u202f\u3000", " "), "π": "\\pi ", "∅": "\\{\\}", "º": "°", "ℝ": "(-∞,∞)", "≃": "≈", "′": "'",
})


_SIGNS = {
    "*": "times cdot ast", "/": "div", "∈": "in", "≤": "le leq leqslant", "≥": "ge geq geqslant", "<": "lt", ">": "gt",
    "≠": "ne neq", "∪": "cup bigcup", "∖": "setminus backslash", "∞": "infty", "±": "pm", "∓": "mp", "≈": "approx simeq sim",
    "|": "lvert rvert vert mid", ":": "colon", "…": "ldots dots cdots", r"\\{\\}": "emptyset varnothing"}
_REWRITES = [(re.compile(pattern), by) for pattern, by in [
    (r"\f(?=rac)", r"\\f"), (r"\t(?=(?:ext|imes|frac|heta)(?![A-Z]))", r"\\t"),   # eaten by a string literal
    (r"\\\\(?=(?:[dtc]?frac|left|right|sqrt|pi|boxed|text|[lg]eq?|infty|cup|in|pm|times|cdot)(?![a-z]))", r"\\"),   # twice
    (r"\\begin\s?\{(?:[pbBvV]?(?:small)?matrix|array)\}(?:\s?\{[lcr|]*\})?", "⟦"),
    (r"(?:\\\\\s?)?\\end\s?\{(?:[pbBvV]?(?:small)?matrix|array)\}", "⟧"),
    (r"\\\\(?:\[\w*\])?", "¶"),
    (r"\\?[$€£¥]|\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|boxed|rm|bf|quad|qquad)(?![A-Za-z])\.?", " "),
    (r",\\!\s?|\{,\}", ","),
    (r"\\[!]", ""),
    (r"\\[,;: ()\[\]]|~", " "),
    (r"\\[dtc](?=(?:frac|binom)(?![A-Za-z]))", r"\\"), (r"\\frac ?([0-9]) ?([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
    (r"\\sqrt ?\[([^][]*)\]", r"\\root{\1}"), (r"\*\*", "^"), (r"_ ?(?:\{ ?(\w+) ?\}|([0-9]+|[A-Za-z]))", r"_{\1\2}"),
    *((r"\\(?:%s)(?![A-Za-z])" % names.replace(" ", "|"), sign + " ") for sign, names in _SIGNS.items()),
    (r"<=", "≤"), (r">=", "≥"), (r"!=|\\not ?=", "≠"), (r"\+/-", "±"), (r"(?<![A-Za-z])infinity(?![A-Za-z])", "∞"),
    (r"\\mathbb\s?\{R\}|\\mathbb R", "(-∞,∞)"),
    (r"\\(?:(?:text|math)(?:bf|it|rm)?|mbox|operatorname|over(?:line|rightarrow)|vec|bar|hat)\*?\s?\{([^{}]*)\}", r" \1 "),
    (r"\^ ?\{? ?\\circ ?\}?|\\degree(?![A-Za-z])", "°"), (r"° ?[CF](?![A-Za-z])", "°"),
    (r"\\(?:%|#)|(?<=[0-9}) ])(?:percent|per cent|pct)(?![A-Za-z])", "%"),
]]


def plain(text: str) -> str:
    """ASCII for digits of any script, full-width forms and the usual signs; superscripts become powers."""
    if not text.isascii():
        text = re.sub("(?<=[0-9])([cdmk]?m)[²³]", r" \1", text)   # 15m² is no 15 times m
        text = "".join(str(int(c)) if c.isdecimal() else c for c in text)
    return text.translate(_CHARS)


def normal(text: str) -> str:
    """`text` in one spelling: one sign for each meaning, no delimiters or layout commands, single spaces. May raise TooBig."""
    if len(text) > MAX_TEXT or len(text := plain(text)) > MAX_TEXT:   # some characters grow: ½
        raise TooBig
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    return " ".join(text.split()).rstrip(" .,;:?。、")


_SHORT_UNITS = frozenset(
    "m cm mm km nm g kg mg s h ms min sec hr hrs ml mL l L ft in mi yd lb lbs oz mph kJ kW Hz Pa mol".split())
_NOT_UNITS = frozenset(   # words that change the number before them, or that offer another one
    "and but not nor than more less mod pi sqrt root hundred thousand million billion trillion dozen half halves third "
    "fourth quarter fifth sixth seventh eighth ninth tenth hundredth squared cubed times plus minus over choose factorial "
    "infinity negative below inverse reciprocal eleventh twelfth thirteenth twentieth score one two three four five six "
    "seven eight nine ten zero base sin cos tan log exp or".split())
_NOT_UNITS |= frozenset("eleven twelve lakh crore gross permille bps doubled tripled halved fewer percentile".split())
_NUMERAL = re.compile(r".*teen(?:th)?|(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ieth|ie)|(?:hundred|thousand|.*illion)(?:th)?")
_NOT_HAN_UNITS = frozenset("零〇一二三四五六七八九十百千万亿半和或非不倍分成折两兩萬億佰仟拾兆京打厘毫負负几")
_UNIT = re.compile(r"(.*[0-9)}!])( ?)([A-Za-z][A-Za-z /]*|[\u4e00-\u9fff]{1,3})(?: ?\^ ?\{?[23]\}?)?")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z]")   # of no command
_COMMAS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_SPACES = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/])")
_MIXED = re.compile(r"(?<![0-9.^_])([0-9]+) ?(?:\\frac ?\{([0-9]+)\} ?\{([0-9]+)\}|(?<= )([0-9]+)/([0-9]+))")
_LABEL = re.compile(r"^(?!.*\b(?:not|isn|wrong|never)\b)(?:(?:[A-Za-z]{3,} )*[A-Za-z]{3,} ?= ?|(?:[A-Za-z]{2,} )+is |[=≈](?!=) ?)")
_BUILDER = re.compile(r"^\\\{ ?[A-Za-z](?: ?∈ ?\(-∞,∞\))? ?[|:] ?(.*)\\\}$")   # {x | x > 1} is x > 1


def word(text: str) -> str | None:
    """How other text compares: no spaces, no case; a choice letter without its brackets."""
    found = text.replace(" ", "")
    if not re.fullmatch(r"[(\[]?[F-Zf-z][)\]]?", found):   # n is not N
        found = found.casefold()
    return (found[1] if len(found) == 3 and found[0] in "([" and found[2] in ")]" else found) or None


def bare(text: str) -> str:
    """`text` without thousands separators, a label, and a unit after its last number; 2 1/2 as a sum."""
    if "(" not in text and "[" not in text and "\\{" not in text:   # (1,234) is a pair
        text = _COMMAS.sub(lambda match: match.group().replace(",", ""), text)
    text = _SPACES.sub(lambda match: match.group().replace(" ", ""), text)
    text = _BUILDER.sub(r"\1", _LABEL.sub("", text))
    match = _UNIT.fullmatch(text)   # not 2x + 3 m, but l = 3 m
    if match and not _LETTER.search(match[1].rpartition("=")[2]) and _is_unit(match[3], bool(match[2])):
        text = match[1]
    return _MIXED.sub(lambda m: f"({m[1]}+{m[2] or m[4]}/{m[3] or m[5]})", text)


def _is_unit(unit: str, spaced: bool) -> bool:
    if not unit.isascii():
        return _NOT_HAN_UNITS.isdisjoint(unit)
    words = unit.replace("/", " ").split()
    return len(words) <= 3 and all(each in _SHORT_UNITS and (spaced or len(each) > 1) or spaced and len(each) > 2 and not (
        {each.lower(), each.lower().removesuffix("s")} & _NOT_UNITS or _NUMERAL.fullmatch(each.lower().removesuffix("s")))
        for each in words)
