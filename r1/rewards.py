"""The rules of R1: a Problem and a completion's text -> Score. No model judges, so there is nothing to flatter.

A completion is the text after the prompt, with the prompt's prefilled part (e.g. `<think>`) put back in
front and without the EOS marker. Nothing here raises at training time; settings are checked beforehand.

    accuracy, format, language   0 to 1
    overlong, repetition         -1 to 0: penalties, in force where they have a (positive) weight
    custom                       what a user's own function returns
"""

import math
import re
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from r1.accuracy import INFRA, accuracy
from r1.sandbox import side_by_side
from r1.types import Problem, Score, UserError, nearest

Reward = Callable[[Problem, str], float]

PARTS = ("accuracy", "format", "language", "overlong", "repetition")   # always computed; a user's own reward adds "custom"


def score(problem: Problem, completion: str, finish: str, weights: dict[str, float], extra: Reward | None = None,
          spent: float = 0.0, verdict: tuple[bool, str] | None = None) -> Score:
    """Every part, and `total` = the sum of weights[part] * part over the parts that have a weight.

    `spent` is the share of the token limit that the completion took, `verdict` the accuracy where it is known already.
    Never raises: what `extra` raises makes custom 0.0 and the reason "custom_error:<Type>", a value that
    is not finite becomes 0.0. Source: DeepSeek-R1, sections 2.2.2 (accuracy, format) and 2.3.2 (language).
    """
    right, reason = verdict or accuracy(problem, completion)
    parts = {"accuracy": float(right), "format": float(not format_fault(completion, finish)),
             "language": language_reward(problem.lang, completion), "overlong": overlong_penalty(spent),
             "repetition": repetition_penalty(completion)}
    if extra is not None:
        try:
            custom = float(extra(problem, completion))
        except (Exception, SystemExit) as error:   # a user's mistake on one text must not end a run
            custom, reason = 0.0, reason if reason == INFRA else f"custom_error:{type(error).__name__}"
        parts["custom"] = custom if math.isfinite(custom) else 0.0
    return Score(sum(weights.get(name, 0.0) * value for name, value in parts.items()), parts, reason)


def score_all(completions: list[tuple[Problem, str, str, float]], weights: dict[str, float],
              extra: Reward | None = None) -> list[Score]:
    """`score` of many (problem, completion, finish, spent). Programs run side by side; the same one runs once."""
    programs = {(id(p), text): (p, text) for p, text, _, _ in completions if p.kind == "code"}       # ids of a file may repeat
    verdicts = dict(zip(programs, side_by_side(accuracy, programs.values()), strict=True))
    return [score(p, text, finish, weights, extra, spent, verdicts.get((id(p), text))) for p, text, finish, spent in completions]


def check_weights(weights: dict[str, float], has_custom: bool = True) -> None:
    """Raises UserError for a weight whose name is unknown or whose value is not a finite number."""
    known = [*PARTS, "custom"] if has_custom else list(PARTS)
    for name, value in weights.items():
        if name not in known:
            raise UserError(f"unknown reward weight {name!r}{nearest(name, known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"the reward weight {name!r} must be a finite number, not {value!r}")


def format_fault(completion: str, finish: str) -> str:
    """What the format rule objects to; "" for thinking, an optional summary, the answer and then the end: each tag once, no empty block."""
    if finish != "eos":
        return f"it did not end by itself ({finish})"
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if wrong := [f"{tag} {n} times" for tag in tags if (n := completion.count(tag)) != 1]:
        return "each tag must stand once: " + ", ".join(wrong)
    match = re.fullmatch("(.*)<think>(.*)</think>.*<answer>(.*)</answer>(.*)", completion, re.DOTALL)   # each tag stands once: one way to match
    if not match:
        return "the tags are in the wrong order"
    if not all(any(c.isprintable() and not c.isspace() for c in block) for block in match.group(2, 3)):     # of spaces and no width alone
        return "an empty block"
    return "nothing may stand before <think> or after </answer>" if match[1].strip() or match[4].strip() else ""


def overlong_penalty(spent: float) -> float:
    """0 up to the last fifth of the token limit, then down in a line to -1 at the limit. Source: DAPO, eq. 13, whose
    limit of 20,480 tokens has a punished interval of 4,096."""
    return max(-1.0, min(0.0, (0.8 - spent) / 0.2))


def repetition_penalty(completion: str, n: int = 4) -> float:
    """Minus the share of the n-grams of words that have been said before."""
    grams = _grams(_words(completion), n)
    return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


# ---------------------------------------------------------------- reflection: measured, never rewarded

def reflections(text: str) -> int:
    """Words of looking back at what was said: the paper's list (v2, C.2), and what says the same in Chinese."""
    english = r"\b(?:wait|mistake|however|but|retry|error|verify|wrong|evaluate|check)\b"
    return len(re.findall(english + "|等等|错误|然而|但是|重试|验证|不对|评估|检查", text, re.I))


SCRIPTS = {   # characters of a script, as the inside of a regex class
    "latin": "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff", "cyrillic": "\u0400-\u052f",
    "han": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "kana": "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff", "hangul": "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3",
    "greek": "\u0370-\u0373\u0376-\u037d\u0386-\u03ff\u1f00-\u1fff", "hebrew": "\u0591-\u05bd\u05d0-\u05ea",
    "arabic": "\u0620-\u065f\u066e-\u06d3\u06d5-\u06ef\u06fa-\u06ff\u0750-\u077f", "devanagari": "\u0900-\u0963\u0971-\u097f"}
LANGUAGES = {   # a language is the set of its scripts
    "en": {"latin"}, "de": {"latin"}, "fr": {"latin"}, "es": {"latin"}, "it": {"latin"}, "pt": {"latin"}, "zh": {"han"},
    "ru": {"cyrillic"}, "uk": {"cyrillic"}, "el": {"greek"}, "ar": {"arabic"}, "he": {"hebrew"}, "hi": {"devanagari"},
    "ja": {"kana", "han"}, "ko": {"hangul"}}
# Frequent words tell languages of one script apart. What two of them share says nothing and counts for neither, so no
# list but the English one has what is an English word too (die, hat, pour, son, non, as, do ...).
COMMON = {lang: frozenset(words.split()) for lang, words in {
    "en": "the of and to in is that it was for as with be by this are or from at which but have had has not we you they if then so can "
          "will there each one all their would what when how because first next now let",
    "de": "der das und ist nicht ein eine einen einem einer dem des auf für sich auch wir sie ich wenn dann aber oder nach bei aus durch "
          "wird werden sind haben zuerst jetzt weil",
    "fr": "le les des et est une dans que qui avec ne pas nous vous ils elle alors mais donc ou où sont ont cette ces du au sur être puis "
          "chaque parce",
    "es": "el los las es una para que por como pero más está tiene entonces cada del al lo su porque cuando nosotros primero ahora",
    "it": "il gli di è una che sono della delle nel nella quindi allora ogni perché abbiamo anche questo questa poi dobbiamo ora",
    "pt": "é uma que não são da das na nos para por então cada porque temos também isso esta este depois primeiro agora em",
    "ru": "и в не на что он как это по но из мы за то все она так его от или если был для при тогда сначала поэтому каждый",
    "uk": "і в не на що він як це по але з ми за то всі вона так його від або якщо був для при тоді спочатку тому кожен й та є",
}.items()}
_WORD = re.compile("|".join(        # han and kana are written without spaces: one character counts as one word
    f"(?P<{name}>[{chars}]" + ("" if name in ("han", "kana") else f"+(?:['’][{chars}]+)*") + ")"
    for name, chars in SCRIPTS.items()) + r"|(?P<other>[^\W\d_])")
# no words of any language: the four tags, commands of LaTeX, a mathematical, Latin or Greek letter on its own. What else looks
# like a tag or a command, and letters in a row, are words: one could write a whole thought in them.
_COMMANDS = """frac dfrac tfrac cfrac binom sqrt cdot times div pm mp le leq ge geq ne neq lt gt in notin cup cap infty pi alpha beta gamma
    delta epsilon theta lambda mu sigma phi varphi omega Delta Sigma Omega sum prod int lim log ln exp sin cos tan cot sec csc arcsin
    arccos arctan left right text textbf textit mathrm mathbf mathbb operatorname boxed quad qquad ldots dots cdots to implies
    Rightarrow rightarrow therefore because angle circ degree displaystyle overline vec hat bar approx equiv sim mid forall exists
    cong perp parallel triangle langle rangle lfloor rfloor lceil rceil pmod bmod mod gcd max min"""
_MATHS = "\u2100-\u214f\U0001d400-\U0001d7ff"
_MARKUP = re.compile(rf"</?(?:think|answer)>|\\(?:{'|'.join(_COMMANDS.split())})(?![A-Za-z])|\\(?:begin|end)\{{[a-z]+\*?\}}"
                     rf"|(?<![{_MATHS}])[{_MATHS}](?![{_MATHS}])"
                     rf"|(?<![{SCRIPTS['latin']}])(?<![^A-Za-z][A-Za-z] )[A-Za-z](?![{SCRIPTS['latin']}])(?! [A-Za-z](?![A-Za-z]))"
                     rf"|(?<![{SCRIPTS['greek']}])[{SCRIPTS['greek']}](?![{SCRIPTS['greek']}])")


def language_reward(lang: str, completion: str) -> float:
    """Share of the words of the reasoning that are in `lang`; 0.0 if the language is not in LANGUAGES.

    Without any word the share is 1.0: bare arithmetic is in no wrong language. A run of letters is one
    word, a Han or kana character too; digits, symbols and what `_MARKUP` knows (x, \\frac) are none.
    Among languages of one script, words that only one of them has among its frequent ones stand for the rest.
    Source: DeepSeek-R1 v2, equation 7.
    """
    scripts = LANGUAGES.get(lang, set())
    words = [(match.lastgroup, match[0].casefold()) for match in _WORD.finditer(_MARKUP.sub(" ", reasoning(completion)))
             if match.lastgroup != "other" or match[0].isalpha()]   # not ² or ½
    if not words:
        return 1.0
    inside = [word for script, word in words if script in scripts]
    if lang == "ja":                                             # Chinese has no kana; Japanese, one to four Han at least
        kana = sum(script == "kana" for script, _ in words)
        inside = inside[:min(len(inside), 5 * kana)]
    common = COMMON.get(lang, frozenset())
    rival = frozenset().union(*(COMMON[other] for other in COMMON if other != lang and LANGUAGES[other] == scripts))
    own, foreign = sum(word in common - rival for word in inside), sum(word in rival - common for word in inside)
    return len(inside) / len(words) * (own / (own + foreign) if foreign else 1.0)


def reasoning(completion: str) -> str:
    """The text inside <think>, or without one everything before <answer>."""
    before, tag, after = completion.partition("<think>")
    text = after if tag else before
    return text.rpartition("</think>")[0] if "</think>" in text else text.partition("<answer>")[0]


# ---------------------------------------------------------------- what may become training text

def is_readable(problem: Problem, completion: str) -> bool:
    """Whether a finished trace may be shown to a reader: right format, one language, no loop."""
    return not format_fault(completion, "eos") and language_reward(problem.lang, completion) == 1.0 and not is_repetitive(completion)


def is_repetitive(text: str) -> bool:
    """Whether some n-gram of words, said at least four times, fills more than half of a text of 20 words or more."""
    words = _words(text)
    if len(words) < 20:
        return False
    spaced = "".join(f" {word} " for word in words)      # str.count takes what does not overlap itself
    # an n-gram fills n/p of a loop of p words; for every p up to 128 one of these sizes fills two thirds
    for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        if 4 * n > len(words):
            return False
        gram, times = Counter(_grams(words, n)).most_common(1)[0]
        if times < 4:   # then no longer one is said more often
            return False
        if 2 * n * spaced.count("".join(f" {word} " for word in gram)) > len(words):
            return True
    return False


def _words(text: str) -> list[str]:
    """Words, names of commands and numbers; Han and kana by the character."""
    return re.findall(rf"[{SCRIPTS['han']}{SCRIPTS['kana']}]|[^\W_]+", text)


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]


def load_reward(spec: str) -> Reward:
    """The function that `file.py:function` names. UserError: bad spec, no file, file fails to load, no function."""
    path, colon, name = spec.rpartition(":")
    if not colon or not path or not name:
        raise UserError(f"reward {spec!r}: write it as file.py:function")
    if not Path(path).is_file():
        raise UserError(f"reward {spec!r}: there is no file {path!r}")
    if not path.endswith(".py"):
        raise UserError(f"reward {spec!r}: {path!r} is not a Python file")
    try:
        defined = runpy.run_path(path)
    except Exception as error:   # syntax errors included
        raise UserError(f"reward {spec!r}: {path!r} fails to load: {type(error).__name__}: {error}") from error
    if not callable(defined.get(name)):
        names = [n for n, value in defined.items() if callable(value) and not n.startswith("_")]
        raise UserError(f"reward {spec!r}: {path!r} has no function {name!r}{nearest(name, names)}")
    return defined[name]
