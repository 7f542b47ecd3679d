"""The rewards: what each part pays for, and what it refuses to pay for."""
import itertools
import random
import time

import pytest

from r1.rewards import (check_weights, format_fault, is_readable, is_repetitive, language_reward,
                        load_reward, overlong_penalty, reasoning, repetition_penalty, score, score_all)
from r1.types import Problem, UserError

GOOD = "<think>3 times 5 is 15 and 15 + 7 is 22</think> So: <answer>22</answer>"


def problem(lang="en", answer="22"):
    return Problem(task="t", id="p1", prompt="?", answer=answer, lang=lang)


# ---------------------------------------------------------------- format

@pytest.mark.parametrize("completion, expected", [
    (GOOD, 1.0),
    ("<think>a</think><answer>b</answer>", 1.0),
    ("  \n<think>\na\n\n</think>\n\n<answer>\nb\n</answer>\n", 1.0),
    ("<think>a < b</think><answer>\\boxed{2}</answer>", 1.0),
    ("<think>a</think><answer>b</answer> and more", 0.0),
    ("<think>a</think><answer>b</answer>\n.", 0.0),
    ("hello <think>a</think><answer>b</answer>", 0.0),
    ("<think>a</think><think>c</think><answer>b</answer>", 0.0),
    ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0),
    ("<think>a<answer>b</answer></think>", 0.0),
    ("<think>a<answer>b</answer></think><answer>b</answer>", 0.0),
    ("<answer>b</answer><think>a</think>", 0.0),
    ("</think>a<think><answer>b</answer>", 0.0),
    ("<think>a</think></answer>b<answer>", 0.0),
    ("<think>a<answer></think>b</answer>", 0.0),
    ("<think></think><answer>b</answer>", 0.0),
    ("<think> \n\t</think><answer>b</answer>", 0.0),
    ("<think>a</think><answer>  </answer>", 0.0),
    ("<think>a</think>b", 0.0),
    ("a</think><answer>b</answer>", 0.0),
    ("<think>a</think><answer>b", 0.0),
    ("<think><think>a</think><answer>b</answer>", 0.0),
    ("<THINK>a</THINK><answer>b</answer>", 0.0),
    ("<think >a</think><answer>b</answer>", 0.0),
    ("", 0.0),
])
def test_format(completion, expected):
    assert (not format_fault(completion, "eos")) == expected


def test_only_a_completion_that_ends_has_the_format():
    assert [not format_fault(GOOD, finish) for finish in ("eos", "length", "stop")] == [True, False, False]


# ---------------------------------------------------------------- language

@pytest.mark.parametrize("lang, text, expected", [
    ("en", "three and five", 1.0), ("zh", "三加五", 1.0), ("en", "三加五", 0.0), ("zh", "three", 0.0),
    ("zh", "我们 have 3 个 x", 3 / 4),                  # every Han character is a word; x alone is none
    ("zh", "所以f(x)=x+5", 1.0), ("en", "so f(x)=x+5", 1.0), ("en", "x", 1.0),
    ("en", "we have 三", 2 / 3), ("en", "don't café", 1.0), ("en", "don't 三", 1 / 2),
    ("en", "3*5+7=22", 1.0), ("zh", "3*5+7=22", 1.0), ("zh", "", 1.0),      # no word is in a wrong language
    ("zh", "\\frac{1}{2} 是 ½ 或 x²", 1.0), ("en", "x² + 2π ≥ ℝ", 1.0), ("en", "так π", 0.0),
    ("en", "hello สวัสดี", 1 / 5),                       # letters of scripts in no list are in no language
    ("ru", "три и пять", 1.0), ("el", "τρία και πέντε", 1.0), ("ar", "ثلاثة", 1.0), ("he", "שלוש", 1.0),
    ("hi", "तीन और पाँच", 1.0), ("ja", "三つのりんご", 1.0), ("ja", "リンゴ", 1.0), ("zh", "三つ", 1 / 2), ("ko", "세 개", 1.0),
    ("en", "три", 0.0), ("xx", "three", 0.0),
])
def test_language(lang, text, expected):
    assert language_reward(lang, f"<think>{text}</think>") == pytest.approx(expected)


@pytest.mark.parametrize("completion, inside", [
    ("<think>a</think>b<answer>c</answer>", "a"), ("a<answer>c</answer>", "a"), ("a", "a"), ("", ""),
    ("a</think>b<answer>c</answer>", "a"), ("<think>a", "a"), ("<think>a<answer>c", "a"),
    ("<think>a</think><think>b</think>c", "a</think><think>b"),             # a second block is read as well
    ("</think>a<think>b", "b"),
])
def test_reasoning(completion, inside):
    assert reasoning(completion) == inside


def test_only_the_reasoning_is_read():
    assert language_reward("en", "<think>three</think>三<answer>五</answer>") == 1.0
    assert language_reward("zh", "三<answer>three</answer>") == 1.0


@pytest.mark.parametrize("lang, text, expected", [       # one script: frequent words decide, by hand
    ("en", "we have the sum of all of them", 1.0), ("de", "wir haben die Summe und das ist nicht alles", 1.0),
    ("en", "wir nehmen das und das ist nicht alles", 0.0), ("de", "we take the sum and then it is all", 0.0),
    ("en", "the sum und der Rest", 1 / 3),                   # the | und der; what is in no list goes with them
    ("fr", "donc nous avons le reste", 1.0), ("es", "entonces nosotros tenemos los dos", 1.0), ("es", "donc nous avons le reste", 0.0),
    ("ru", "так как это если был", 1.0), ("uk", "тому що це якщо було", 1.0), ("ru", "тому якщо це", 0.0), ("ru", "на що", 0.0),
    ("en", "Mirland three apples", 1.0), ("fr", "Mirland trois pommes", 1.0),              # no frequent word: nothing to hold against it
    ("en", "the sum 是 42 und", 3 / 4 * 1 / 2),
])
def test_languages_of_one_script(lang, text, expected):
    assert language_reward(lang, f"<think>{text}</think>") == pytest.approx(expected)


# ---------------------------------------------------------------- penalties

@pytest.mark.parametrize("spent, expected", [(0.0, 0.0), (0.8, 0.0), (0.9, -0.5), (0.95, -0.75), (1.0, -1.0), (2.0, -1.0)])
def test_overlong(spent, expected):
    """DAPO's figures: of 20,480 tokens 16,384 are free, 18,432 cost half."""
    assert overlong_penalty(spent) == pytest.approx(expected)
    assert overlong_penalty(16384 / 20480) == pytest.approx(0) and overlong_penalty(18432 / 20480) == pytest.approx(-0.5)


@pytest.mark.parametrize("text, expected", [
    ("", 0.0), ("a b c", 0.0), ("1 2 3 4 5", 0.0), ("1 2 3 4 1 2 3 4", -1 / 5), ("wait wait wait wait wait", -1 / 2), ("一二三四一二三四", -1 / 5)])
def test_repetition(text, expected):
    assert repetition_penalty(text) == pytest.approx(expected)


@pytest.mark.parametrize("thought", [
    "<we><have><two><numbers>", "\\we\\have\\two\\numbers", "w e h a v e t w o", "\U0001d430\U0001d41e \U0001d421\U0001d41a\U0001d42f\U0001d41e"])
def test_a_thought_cannot_hide_from_the_language(thought):
    """What only looks like a tag, a command or a variable is words."""
    assert language_reward("zh", f"<think>{thought} 1+1=2</think>") == 0.0


def test_ordinary_mathematics_is_in_no_language():
    for text in ("x+y=2", "\\frac{a}{b} \\leq \\sqrt{2}", "\\begin{align} x &= 1 \\end{align}", "f(x), g(x)", "\u211d \u2264 \U0001d465"):
        assert language_reward("zh", f"<think>{text}</think>") == language_reward("en", f"<think>{text}</think>") == 1.0, text


@pytest.mark.parametrize("text, expected", [("三个苹果", 0.0), ("りんごは三つ", 1.0), ("の中国人民共和国", 5 / 8)])
def test_chinese_is_not_japanese(text, expected):
    assert language_reward("ja", f"<think>{text}</think>") == pytest.approx(expected)


def test_an_empty_block_is_empty_whatever_it_is_filled_with():
    for nothing in ("", " \n", "\u200b", "\u00ad\ufeff", "\u3000"):
        assert format_fault(f"<think>a</think><answer>{nothing}</answer>", "eos")
        assert format_fault(f"<think>{nothing}</think><answer>1</answer>", "eos")


def test_problems_of_one_id_are_judged_apart():
    """An id of a user's file may stand twice; each completion is judged by its own problem."""
    text = "<answer>def f(x): return 1</answer>"
    right, wrong = (Problem("t", "1", "?", {"entry": "f", "calls": [[[0], value]]}, "code") for value in (1, 2))
    maths = Problem("t", "1", "?", 1)
    for order in itertools.permutations((right, wrong, maths)):
        scores = score_all([(p, text, "eos", 0.0) for p in order], {"accuracy": 1.0})
        assert [s.total for s in scores] == [float(p is right) for p in order]
        assert [s.parts for s in scores] == [score(p, text, "eos", {"accuracy": 1.0}).parts for p in order]


def test_penalties_count_only_with_a_weight():
    loop = "<think>" + "so it is and " * 20 + "</think><answer>22</answer>"
    assert score(problem(), loop, "eos", {"accuracy": 1.0}, spent=1.0).total == 1.0
    got = score(problem(), loop, "eos", {"accuracy": 1.0, "overlong": 0.5, "repetition": 1.0}, spent=0.9)
    assert got.total == pytest.approx(1.0 + 0.5 * got.parts["overlong"] + got.parts["repetition"]) and got.parts["repetition"] < -0.85


# ---------------------------------------------------------------- total and weights

def test_score_has_every_part_and_weighs_some():
    got = score(problem(), GOOD, "eos", {"accuracy": 1.0, "format": 0.1})
    assert got.parts == {"accuracy": 1.0, "format": 1.0, "language": 1.0, "overlong": 0.0, "repetition": 0.0}
    assert got.total == pytest.approx(1.1) and got.reason == "ok"
    assert score(problem(), GOOD, "length", {"accuracy": 1.0, "format": 0.1}).total == 1.0
    assert score(problem("zh"), GOOD, "eos", {"language": 2.0}).total == 0.0
    assert score(problem(answer="23"), GOOD, "eos", {"accuracy": 1.0}).reason == "wrong"
    assert score(problem(), GOOD, "eos", {}).total == 0.0


def test_own_reward():
    weights = {"accuracy": 1.0, "custom": 0.5}
    got = score(problem(), GOOD, "eos", weights, extra=lambda problem, completion: len(completion) > 3)
    assert got.parts["custom"] == 1.0 and got.total == 1.5 and got.reason == "ok"
    for value in (float("nan"), float("inf"), -float("inf")):
        got = score(problem(), GOOD, "eos", weights, extra=lambda problem, completion: value)
        assert got.parts["custom"] == 0.0 and got.total == 1.0
    got = score(problem(), GOOD, "eos", weights, extra=lambda problem, completion: [][0])
    assert got.parts["custom"] == 0.0 and got.total == 1.0 and got.reason == "custom_error:IndexError"
    for value, kind in (("much", "ValueError"), (None, "TypeError"), ([1.0, 0.0], "TypeError")):
        got = score(problem(), GOOD, "eos", weights, extra=lambda problem, completion: value)
        assert got.parts["custom"] == 0.0 and got.reason == f"custom_error:{kind}"


def test_check_weights():
    check_weights({"accuracy": 1, "format": 0.1, "language": 0.0, "custom": -1.0})
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        check_weights({"acuracy": 1.0})
    with pytest.raises(UserError, match="custom"):
        check_weights({"custom": 1.0}, has_custom=False)
    for value in ("1", None, True, float("nan")):
        with pytest.raises(UserError, match="finite number"):
            check_weights({"accuracy": value})


def test_load_reward(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("LIMIT = 5\ndef short(problem, completion):\n    return 1.0 if len(completion) < LIMIT else 0.0\n")
    assert load_reward(f"{file}:short")(problem(), "abc") == 1.0
    (tmp_path / "broken.py").write_text("def short(:\n")
    (tmp_path / "notes.txt").write_text("short")
    for spec, message in [(f"{file}:shrot", "did you mean 'short'"), (f"{file}:LIMIT", "no function"),
                          (f"{file}", "file.py:function"),
                          (f"{tmp_path}/none.py:short", "no file"), (f"{tmp_path}/broken.py:short", "SyntaxError"),
                          (f"{tmp_path}/notes.txt:short", "not a Python file"), ("short", "file.py:function"),
                          ("", "file.py:function")]:
        with pytest.raises(UserError, match=message):
            load_reward(spec)


# ---------------------------------------------------------------- readable

WORDS = [f"w{i}" for i in range(400)]


@pytest.mark.parametrize("text, expected", [
    ("again and again " * 20, True), ("no " * 100, True), ("好的" * 50, True),
    (" ".join(WORDS[:30]) + " wait " * 60, True),
    (" ".join(WORDS[:37] * 6), True), (" ".join(WORDS[:100] * 5), True),          # loops of long sentences
    (" ".join(WORDS[:47] * 8 + WORDS[100:180]), True),
    (" ".join(WORDS), False), ("no " * 5, False), ("", False),
    (" ".join(WORDS[:60]) + " wait" * 30, False),                                 # a third of the text only
    ("so 3 + 4 = 7; 7 + 5 = 12; 12 + 8 = 20; 20 - 1 = 19; 19 + 30 = 49; 49 + 2 = 51; the sum is 51", False),
])
def test_is_repetitive(text, expected):
    assert is_repetitive(text) is expected


def test_every_loop_up_to_its_length_is_seen():
    assert all(is_repetitive(" ".join(WORDS[:length] * 8)) for length in range(3, 129))


def test_is_readable():
    assert is_readable(problem(), GOOD)
    assert not is_readable(problem(), GOOD + "!")
    assert not is_readable(problem("zh"), GOOD)
    assert not is_readable(problem(), GOOD.replace("times", "乘"))
    assert not is_readable(problem(), "<think>" + "wait " * 50 + "</think><answer>22</answer>")


def test_fuzz_never_raises_and_is_bounded():
    rng = random.Random(1)
    pieces = [GOOD, "<think>", "</think>", "<answer>", "</answer>", " ", "\n", "三", "\\boxed{22}", "\\", "{", "}", "wait ", "π", "\ud800",
              "don't",
              "\0", "½", "a" * 500, "'" * 500, "<" * 500]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 30)))
        start = time.perf_counter()
        got = score(problem(rng.choice(["en", "zh", "??"])), text, "eos", {"accuracy": 1.0, "format": 0.5, "language": 0.5})
        is_repetitive(text)
        assert time.perf_counter() - start < 0.2 and got.reason != "error"
        assert all(-1.0 <= part <= 0.0 if name in ("overlong", "repetition") else 0.0 <= part <= 1.0 for name, part in got.parts.items())
