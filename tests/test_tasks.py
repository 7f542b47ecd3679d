"""Problems: worked solutions that are true, a split that holds out what it says, sources that say what is wrong."""
import hashlib
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from r1 import world
from r1.accuracy import accuracy
from r1.rewards import score
from r1.tasks import draw, open_source, open_sources
from r1.types import Problem, UserError

ROOT = Path(__file__).parent.parent
GRADED = [(f, level) for f in world.REASONING for level in world.FAMILIES[f][1]]


def held_out(key: str) -> bool:
    """The rule of the split written again: 26 of the 256 first bytes of the SHA-256."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:2], 16) < 26


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def value(text: str) -> int:
    """A sum of products, by hand: "3*4-2" is 10."""
    return sum((-1 if sign == "-" else 1) * math.prod(map(int, term.split("*")))
               for sign, term in re.findall(r"([+-]?)(\d+(?:\*\d+)*)", text))


# ---- worked solutions --------------------------------------------------------------------------

def function(program: str):
    """The f of one of the world's own programs."""
    names = {}
    exec(program, names)
    return names["f"]


EQUATION = re.compile(r"\d+(?:[-+*]\d+)*(?:=-?\d+(?:[-+*]\d+)*)+")
GAIN = r"buys (\d+)|finds (\d+)|买了(\d+)个|找到(\d+)个"
LOSS = r"gives away (\d+)|loses (\d+)|送出(\d+)个|丢了(\d+)个"
BAGS = r"(\d+) bags of (\d+)|得到(\d+)袋，每袋(\d+)个"


def told(story: str) -> int:
    """What a word problem asks for, from its text alone: the first number, then one event after another."""
    total, events = numbers(story)[0], 0
    for m in re.finditer("|".join((GAIN, LOSS, BAGS)), story):
        found, events = [int(g) if g else 0 for g in m.groups()], events + 1
        total += sum(found[:4]) - sum(found[4:8]) + found[8] * found[9] + found[10] * found[11]
        assert 0 <= total <= world.TOP
    return total if events else -1


@pytest.mark.parametrize("family, level", GRADED)
def test_every_step_of_a_worked_solution_is_true(family, level):
    """Every equation holds, no number leaves 0..TOP, the end is the answer, and both languages tell the same."""
    rng = random.Random(f"{family}/{level}")
    for _ in range(300):
        key, prompts, answer, _, steps = world.FAMILIES[family][0](rng, level)
        assert numbers(prompts["en"]) == numbers(prompts["zh"]) and numbers(steps["en"]) == numbers(steps["zh"])
        for text in steps.values():
            assert all(0 <= n <= world.TOP for n in numbers(text)) and "=-" not in text
            equations = EQUATION.findall(text)
            assert len(equations) >= (1 if family == "countdown" else level)
            for e in equations:
                assert len({value(side) for side in e.split("=")}) == 1, (key, e)
        last = [value(e.split("=")[-1]) for e in EQUATION.findall(steps["en"])]
        if family == "chain":
            expression = re.search(r"\d+(?:[+-]\d+)+", prompts["en"]).group()
            assert value(expression) == answer == last[-1] and len(re.findall("[+-]", expression)) == level
            for rest in re.findall(r"(?:left |剩下)(\d+(?:[+-]\d+)*)", steps["en"] + steps["zh"]):
                assert value(rest) == answer             # what is left to do never changes the answer
        elif family == "word":
            assert told(prompts["en"]) == told(prompts["zh"]) == answer == last[-1]
        elif family == "code":
            f = function(answer["example"])
            shown = {int(x): int(y) for x, y in re.findall(r"f\((\d+)\)=(\d+)", prompts["en"])}
            assert len(shown) >= 2 and all(f(x) == y for x, y in shown.items())
            assert all(f(*args) == y for args, y in answer["calls"]) and len({x for (x,), _ in answer["calls"]} - shown.keys()) >= 4
            assert answer["example"].split("return ")[-1] in steps["en"] and answer["example"].split("return ")[1][:3] in steps["zh"]
        else:
            assert numbers(prompts["en"]) == [*answer["numbers"], answer["target"]]
            assert value(answer["example"]) == answer["target"] == last[-1]
            assert sorted(numbers(answer["example"])) == sorted(answer["numbers"])
            assert re.findall("yes|no", steps["en"]) == ["yes" if v == answer["target"] else "no" for v in last]
            assert [w == "对" for w in re.findall("不对|对", steps["zh"])] == [v == answer["target"] for v in last]


@pytest.mark.parametrize("family", ["chain", "word"])
@pytest.mark.parametrize("lang", world.LANGS)
def test_checks_find_every_slip_and_mend_it(family, lang):
    """Without its checks a solution is the plain one; every check is true, finds fault where there is one, and nowhere else."""
    rng, slips, sums = random.Random(f"{family}/{lang}"), 0, 0
    check, good, wrong = {"en": (", check ", ", good", ", wrong, again "), "zh": ("，检查", "，对", "，不对，重算")}[lang]
    for _ in range(300):
        plain = world.make(family, rng, False)[1][lang]
        text = world.checked(rng, plain, lang)
        assert re.sub(rf"\d+[+-]\d+=\d+{check}\d+[+-]\d+=\d+{wrong}", "", re.sub(rf"{check}\d+[+-]\d+=\d+{good}", "", text)) == plain
        for a, op, b, c, back, verdict in re.findall(rf"(\d+)([+-])(\d+)=(\d+){check}(\d+[+-]\d+=\d+)({good}|{wrong})", text):
            first, last = back.split("=")
            assert value(first) == int(last) and first == f"{c}{'-' if op == '+' else '+'}{b}"
            assert (verdict == good) == (last == a) == (value(f"{a}{op}{b}") == int(c))
            slips, sums = slips + (verdict == wrong), sums + 1
    assert slips / sums == pytest.approx(world.SLIPS, abs=0.04)


@pytest.mark.parametrize("family", world.FAMILIES)
@pytest.mark.parametrize("test", [False, True])
def test_gold_answers_are_accepted_and_wrong_ones_are_not(family, test):
    """The worked solution scores full marks in its language; near misses and the other language's word do not."""
    rng = random.Random(f"{family}/{test}")
    for lang in 60 * world.LANGS:
        p, steps = world.make(family, rng, test, lang=lang)
        s = score(p, f"<think>{steps[lang]}</think><answer>{world.answer_text(p)}</answer>", "eos", {"accuracy": 1.0})
        assert all(s.parts[part] == 1.0 for part in ("accuracy", "format", "language")) and s.reason == "ok", (p, steps)
        if p.kind == "number":
            wrong = [f"{p.answer}+0", f"{p.answer + 1}-1", *re.findall(r"\d+(?:[-+]\d+)+", p.prompt), p.answer + 1, p.answer - 1, p.answer * 10 + 1, -p.answer - 1, "", "?"]
        elif p.kind == "countdown":
            a, b, c = p.answer["numbers"]
            wrong = [f"{a}{x}{b}{y}{c}" for x in "+-*" for y in "+-*" if value(f"{a}{x}{b}{y}{c}") != p.answer["target"]]
            wrong += [p.answer["target"], f"{world.answer_text(p)}+1-1", f"{world.answer_text(p)}={p.answer['target'] + 1}"]
        elif p.kind == "code":
            shown = dict(re.findall(r"f\((\d+)\)=(\d+)", p.prompt))
            wrong = ["def f(x): return {%s}.get(x)" % ",".join(map(":".join, shown.items())), "def f(x): return x", "def g(x): return 1",
                     world.answer_text(p) + "+1", world.answer_text(p)[:-1]] if lang == "en" else ["def f(x): return None"]
        else:
            assert p.answer.isascii() == (lang == "en")
            wrong = [steps[lang], p.prompt, f"{p.answer} {p.answer}", p.answer[:-1]]
        for w in wrong:
            assert not accuracy(p, f"<think>{world.answer_text(p)}</think><answer>{w}</answer>")[0], (p, w)


WORDS = dict(zip(  # an own dictionary
    "one two three four five six seven eight nine red blue green black white yellow apples pens books coins eggs cups".split(),
    "一 两 三 四 五 六 七 八 九 红 蓝 绿 黑 白 黄 苹果 笔 书 硬币 鸡蛋 杯子".split(), strict=True))


def in_chinese(phrase: str) -> str:
    count, colour, thing = (WORDS[w] for w in phrase.split())
    return f"{count}个{colour}{thing}"


def test_phrases_are_translated_and_recoloured_word_by_word():
    rng = random.Random(0)
    for _ in range(300):
        _, prompts, answer, _, _ = world.translate(rng, 0)
        assert prompts == {"en": f"Translate: {answer['zh']}", "zh": f"翻译：{answer['en']}"}
        assert in_chinese(answer["en"]) == answer["zh"]
        _, prompts, answer, _, _ = world.rewrite(rng, 0)
        new, old = re.fullmatch(r"Make it (\w+): (.+)", prompts["en"]).groups()
        count, colour, thing = old.split()
        assert answer["en"] == f"{count} {new} {thing}" and new != colour
        assert prompts["zh"] == f"改成{WORDS[new]}：{in_chinese(old)}" and answer["zh"] == in_chinese(answer["en"])


# ---- held-out is held out ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(itertools.islice(world.corpus(5, 0.5, 0.3, 0.1), 30_000))


def test_facts_are_those_of_the_reference_pages(documents):
    """All hundred are stated in both languages, each one way, and that is the gold answer."""
    zh = dict(world.TOPICS.values())
    said = {(m[1], m[0], m[2]) for d in documents for m in re.findall(r"The (\w+) of (\w+) is (\w+)\.", d)}
    said |= {m for d in documents for m in re.findall(rf"([^。\n]+)的({'|'.join(zh.values())})是([^。\n]+)。", d)}
    gold = set()
    rng = random.Random(1)
    for _ in range(3000):
        key, _, answer, _, _ = world.fact(rng, 0)
        place, topic = key.removeprefix("fact:").split(".")
        names = world.PLACES[int(place)]
        gold |= {(names[0], topic, answer["en"]), (names[1], zh[topic], answer["zh"])}
    assert said == gold and len(said) == 200


@pytest.mark.parametrize("family", world.FAMILIES)
def test_no_test_question_stands_anywhere_in_the_corpus(family, documents):
    """In neither language, whatever surrounds it."""
    text = "\0".join(documents)
    rng, maker, levels = random.Random(f"held out/{family}"), *world.FAMILIES[family]
    made = {}
    for i in range(5000):
        key, prompts, *_ = maker(rng, levels[i % len(levels)])
        made[key] = prompts
    outside = [p for key, prompts in made.items() if not held_out(key) for p in prompts.values()]
    inside = [p for key, prompts in made.items() if held_out(key) for p in prompts.values()]
    assert len(inside) >= (6 if family == "fact" else 50)    # of the hundred facts three are held out
    for p in inside:                                     # not behind a digit or sign: 12+3=? ends with 2+3=?
        at = text.find(p)                                # nor behind more values of a function, which make it another one
        while at >= 0:
            assert text[at - 1] in "0123456789+-" or family == "code" and text[:at].endswith((", ", "，")), (p, text[at - 40:at + 60])
            at = text.find(p, at + 1)
    if family == "word":                                 # the most various: that one is told twice takes many
        outside = set(ASKED.findall(text)) & {maker(rng, 2)[1]["en"] for _ in range(150_000)}
    assert any(p in text for p in outside)               # the search does find what is there


ASKED = re.compile(r"(?:User: |Problem\. |题目。)(.+)\n(?:Assistant:|Solution\. |解答。)")


PARTS = [world.COUNTS["en"], world.COLOURS["en"], world.THINGS["en"]]
PHRASES = {text: [part.index(word) for part, word in zip(PARTS, words, strict=True)] for words in itertools.product(*PARTS)
           for text in (" ".join(words), in_chinese(" ".join(words)))}


def key_of(question: str) -> str | None:
    """The id of a problem, read off its question; None for a story."""
    if m := re.fullmatch(r"What is (\d[-+\d]*)\?|(\d[-+\d]*)等于多少？", question):
        return f"chain:{m[1] or m[2]}"
    if m := re.fullmatch(r"Use (\d+), (\d+) and (\d+) to make (\d+)\.|用(\d+)、(\d+)和(\d+)得到(\d+)。", question):
        a, b, c, target = (g for g in m.groups() if g)
        return f"countdown:{a},{b},{c}={target}"
    if m := re.fullmatch(r"What is the (\w+) of (\w+)\?|(.+)的(.+)是什么？", question):
        place = next(i for i, names in enumerate(world.PLACES) if (m[2] or m[3]) in names)
        topic = next(t for t, names in world.TOPICS.items() if (m[1] or m[4]) in names)
        return f"fact:{place}.{topic}"
    if m := re.fullmatch(r"(?:Translate: |翻译：)(.+)", question):
        return "translate:{}.{}.{}".format(*PHRASES[m[1]])
    if m := re.fullmatch(r"(?:Make it |改成)(\w+)(?:: |：)(.+)", question):
        n, old, thing = PHRASES[m[2]]
        new = (world.COLOURS["en"] + world.COLOURS["zh"]).index(m[1]) % 6
        return f"rewrite:{n}.{thing}.{old}.{new}"
    if m := re.fullmatch(r"(f\(.+\d)(?:\. Write f\.|。写出f。)", question):
        return "code:" + re.sub(", |，", ",", m[1])
    assert re.search(r"How many \w+ now\?$|现在有几个.+？$", question), question
    return None


def test_what_the_documents_ask_is_on_the_training_side(documents):
    """Every question of the corpus, read back into its id, and every pair of the dictionary pages."""
    questions = {q for d in documents for q in ASKED.findall(d)}
    keys = Counter()
    for q in questions:
        key = key_of(q)
        assert key is None or not held_out(key), q
        keys[key and key.split(":")[0]] += 1
    assert keys["chain"] > 3000 and keys["countdown"] > 2000 and keys["rewrite"] > 300 and keys["translate"] > 100
    assert keys["fact"] > 100 and keys[None] > 2500 and keys["code"] > 1500
    pairs = [m.groups() for d in documents if (m := re.fullmatch(r"(.+) = (.+)", d))]
    assert len(pairs) > 500
    for pair in pairs:
        english = min(pair)                              # ASCII comes before Han
        assert sorted(pair) == [english, in_chinese(english)]
        assert not held_out(key_of(f"翻译：{english}")) and not held_out(key_of(f"Translate: {max(pair)}"))


@pytest.mark.parametrize("source", [
    "chain:2", "word:2", "countdown", "fact", "translate", "rewrite"])
def test_the_same_question_is_never_on_both_sides(source):
    sources = open_sources({source: 1})
    train = {p.prompt: p.id for p in draw(sources, 20_000, "train")}
    test = {p.prompt: p.id for p in draw(sources, 8_000, "test", test=True)}
    assert not train.keys() & test.keys(), [(train[q], test[q]) for q in train.keys() & test.keys()][:3]
    assert not any(held_out(i.split("|")[0]) for i in train.values())
    assert all(held_out(i.split("|")[0]) for i in test.values())


def test_a_tenth_is_held_out_by_the_rule():
    """is_test is the rule itself; 26/256 of ids of any form, within five standard deviations."""
    rng = random.Random(2)
    forms = {"chain": {world.chain(rng, 5)[0] for _ in range(8000)}, "counted": {str(i) for i in range(8000)},
             "countdown": {world.countdown(rng, 2)[0] for _ in range(8000)},
             "translate": {f"translate:{n}.{c}.{t}" for n in range(1, 9) for c in range(6) for t in range(6)},
             "fact": {f"fact:{p}.{t}" for p in range(20) for t in world.TOPICS}}
    for name, ids in forms.items():
        assert all(world.is_test(i) == held_out(i) for i in ids)
        share, expected = sum(map(held_out, ids)) / len(ids), 26 / 256
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / len(ids)), (name, share)
        assert share > 0


SHOW = """
import itertools, sys, hashlib
sys.path.insert(0, {root!r})
from r1 import world
from r1.tasks import draw, open_sources
mix = open_sources({{f: 1 for f in world.FAMILIES}})
out = [draw(mix, 200, "s", test) for test in (False, True)], list(itertools.islice(world.corpus(3, .2, .3, 0.1), 300))
print(hashlib.sha256(repr(out).encode()).hexdigest(), [world.is_test(str(i)) for i in range(200)].count(True))
"""


def test_problems_and_corpus_are_the_same_in_every_process(tmp_path, capsys):
    """Whatever Python's hash seed, the working directory and the state of the global generator."""
    code = SHOW.format(root=str(ROOT))
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONHASHSEED": s, "OMP_NUM_THREADS": "1"}) for s in ("1", "2")]
    random.seed(7)
    exec(code, {})
    here = capsys.readouterr().out
    assert here == started[0].communicate(timeout=60)[0] == started[1].communicate(timeout=60)[0] and len(here) > 64


# ---- drawing -----------------------------------------------------------------------------------

def test_draw_is_a_function_of_its_seed():
    mix = {"chain": 1, "word": 2, "fact": 1}
    first = draw(open_sources(mix), 50, "a")
    random.seed(3)
    random.random()
    sources = open_sources(mix)
    draw(sources, 7, "between")
    assert draw(sources, 50, "a") == first
    assert len(set(first) & set(draw(sources, 50, "b"))) < 10


def test_weights_are_the_shares_of_the_mix():
    """1 : 3 : 0.5 in 4,500 draws (chi-square with 2 degrees of freedom, p = 1e-4), also doubled; 0 never."""
    counts = Counter(p.task for p in draw(open_sources({"chain": 1, "word": 3, "fact": 0.5, "rewrite": 0}), 4500, "w"))
    expected = {"chain": 1000, "word": 3000, "fact": 500}
    assert counts.keys() == expected.keys()
    assert sum((counts[k] - n) ** 2 / n for k, n in expected.items()) < 18.4
    doubled = [draw(open_sources({"chain": a, "word": 3 * a}), 50, "d") for a in (1, 2)]
    assert doubled[0] == doubled[1]


@pytest.mark.parametrize("test", [False, True])
def test_a_source_may_name_a_level(test):
    problems = draw(open_sources({"chain:4": 1, "countdown:1": 1}), 60, "levels", test)
    assert {(p.task, p.level) for p in problems} == {("chain", 4), ("countdown", 1)}
    assert all(len(re.findall(r"[+-]\d", p.prompt)) == 4 for p in problems if p.task == "chain")
    assert {p.level for p in draw(open_sources({"chain": 1}), 60, "all", test)} == {2, 3, 4, 5}


@pytest.mark.parametrize("name, says", [
    ("chian", "unknown data source 'chian'.*chain"), ("", "unknown data source ''.*jsonl:FILE"), ("Chain", "unknown data source"),
    ("json:x", "unknown data source 'json:x'.*jsonl:FILE"), ("chain:9", "chain has the levels 2, 3, 4, 5; found chain:9"),
    ("fact:1", "fact has the levels 0"), ("chain:-2", "levels"), ("chain:2.0", "levels")])
def test_a_wrong_name_is_answered_with_the_right_ones(name, says):
    with pytest.raises(UserError, match=says):
        open_source(name)


# ---- a user's own file -------------------------------------------------------------------------

def mine(tmp_path, *rows) -> str:
    """The source of a file of these rows: objects, or raw bytes."""
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in rows))
    return f"jsonl:{file}"


def everything(source: str) -> list[Problem]:
    """What a source draws on the sides that have something."""
    out = {}
    for test in (False, True):
        try:
            out |= {p.id: p for p in draw(open_sources({source: 1}), 400, "x", test)}
        except UserError as e:
            assert f"no problem on the {'test' if test else 'training'} side" in str(e)
    return list(out.values())


def test_a_file_of_problems_with_and_without_the_optional_fields(tmp_path):
    """An id is that of the prompt where none is given; the named kind judges."""
    full = {"prompt": "他的车是什么颜色？", "answer": "红", "kind": "text", "lang": "zh", "level": 3, "task": "cars", "id": "c7"}
    numbers_ = {"prompt": "Make 7 of 2, 3, 2.", "answer": {"numbers": [2, 3, 2], "target": 7}, "kind": "countdown"}
    found = {p.prompt: p for p in everything(mine(tmp_path, {"prompt": "1/2 + 1/4?", "answer": "3/4"}, full, numbers_))}
    assert found["1/2 + 1/4?"] == Problem("jsonl", hashlib.sha256(b"1/2 + 1/4?").hexdigest()[:16], "1/2 + 1/4?", "3/4", "math", "en", 0)
    assert found[full["prompt"]] == Problem("cars", "c7", full["prompt"], "红", "text", "zh", 3)
    say = lambda p, a: accuracy(found[p], f"<answer>{a}</answer>")[0]  # noqa: E731
    assert say("1/2 + 1/4?", "0.75") and not say("1/2 + 1/4?", "0.7")
    assert say(full["prompt"], "红") and not say(full["prompt"], "绿")
    assert say(numbers_["prompt"], "2*2+3") and not say(numbers_["prompt"], "2+3+2+0") and not say(numbers_["prompt"], "7")


def test_a_file_is_split_by_the_hash_of_the_id(tmp_path):
    """Every problem is on one side, all of that side are drawn, and the order of the lines decides nothing."""
    rows = [{"prompt": f"What is {i}+{i}?", "answer": 2 * i, **({"id": f"q{i}"} if i % 2 else {})} for i in range(200)]
    source = mine(tmp_path, *rows)
    name = lambda r: r.get("id") or hashlib.sha256(r["prompt"].encode()).hexdigest()[:16]  # noqa: E731
    sides = [{p.prompt for p in draw(open_sources({source: 1}), 3000, "x", t)} for t in (False, True)]
    assert sides == [{r["prompt"] for r in rows if held_out(name(r)) == t} for t in (False, True)]
    assert 5 < len(sides[1]) < 40
    again = mine(tmp_path, *reversed(rows))
    assert [{p.prompt for p in draw(open_sources({again: 1}), 3000, "x", t)} for t in (False, True)] == sides


def test_windows_line_ends_and_empty_lines_are_read(tmp_path):
    source = mine(tmp_path, b'\r\n{"prompt": "1+1?", "answer": 2}\r\n\r\n  \r\n{"prompt": "1+2?", "answer": 3}\r')
    assert {(p.prompt, p.answer) for p in everything(source)} == {("1+1?", 2), ("1+2?", 3)}


def test_a_byte_order_mark_is_read_or_named(tmp_path):
    """It must not become part of the first line's text."""
    source = mine(tmp_path, b'\xef\xbb\xbf{"prompt": "1+1?", "answer": 2}')
    try:
        open_source(source)
    except UserError as e:
        assert str(e).startswith(f"{tmp_path}/mine.jsonl:1: ") and "BOM" in str(e)
    else:
        assert [p.prompt for p in everything(source)] == ["1+1?"]


@pytest.mark.parametrize("line, says", [
    (b'{"prompt": "2+2?", ', "not a JSON object"), (b'["2+2?", 4]', "expected a JSON object, found list"),
    (b'{"prompt": "\xff", "answer": 4}', "not a JSON object in UTF-8"),
    ({"prompt": "2+2?"}, "field 'answer' is missing"), ({"answer": 4, "promt": "2+2?"}, "field 'prompt' is missing.*promt"),
    ({"prompt": "  ", "answer": 4}, "prompt must be a text"), ({"prompt": 4, "answer": 4}, "prompt must be a text"),
    ({"prompt": "2+2?", "answer": None}, "gold answer 'None' cannot be read as kind 'math'"),
    ({"prompt": "2+2?", "answer": ""}, "gold answer '' cannot be read"), ({"prompt": "2+2?", "answer": True}, "gold answer 'True'"),
    ({"prompt": "2+2?", "answer": math.nan}, "gold answer 'nan'"), ({"prompt": "2+2?", "answer": [4]}, "gold answer"),
    ({"prompt": "2+2?", "answer": 4, "kind": "text"}, "gold answer '4' cannot be read as kind 'text'"),
    ({"prompt": "2+2?", "answer": 4, "kind": "maths"}, "unknown kind 'maths'; did you mean 'math'"),
    ({"prompt": "2+2?", "answer": {"numbers": [2, 2]}, "kind": "countdown"}, "cannot be read as kind 'countdown'"),
    ({"prompt": "2+2?", "answer": 4, "level": "hard"}, "level"),
    ({"prompt": "2+2?", "answer": 4, "level": None}, "level"),
    (b'{"prompt": "\\ud800", "answer": 4}', "surrogates"),
    (b'{"prompt": "2+2?", "answer": 1' + b"0" * 5000 + b"}", "digits")])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, says):
    source = mine(tmp_path, {"prompt": "1+1?", "answer": 2}, b"", line, {"prompt": "1+2?", "answer": 3})
    with pytest.raises(UserError, match=says) as e:
        open_source(source)
    assert str(e.value).startswith(f"{tmp_path}/mine.jsonl:3: ") and "\n" not in str(e.value)


def test_a_file_without_problems_or_without_a_side(tmp_path):
    for rows in ([], [b"", b"  "]):
        with pytest.raises(UserError, match="mine.jsonl has no problems"):
            open_source(mine(tmp_path, *rows))
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        open_source(f"jsonl:{tmp_path}/none.jsonl")
    one = next(str(i) for i in range(1000) if not held_out(str(i)))
    source = open_sources({mine(tmp_path, {"prompt": "1+1?", "answer": 2, "id": one}): 1})
    assert draw(source, 1, "x")[0].id == one
    with pytest.raises(UserError, match=r"mine.jsonl has no problem on the test side of the split \(1 in all"):
        draw(source, 1, "x", test=True)


# ---- reasoning_gym -----------------------------------------------------------------------------

GYM = ["chain_sum", "gcd", "number_sorting", "prime_factorization", "chain_sum:max_terms=3,max_digits=2"]


@pytest.fixture(scope="module")
def gym():
    return pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("task", GYM)
def test_gym_problems_are_judged_by_their_own_verifier(gym, task):
    """The task's gold answer is right, nonsense and an empty answer are wrong; the same seed draws the same."""
    sources = open_sources({f"reasoning_gym:{task}": 1})
    sides = [draw(sources, 15, "gym", test) for test in (False, True)]
    random.seed(11)
    assert sides == [draw(open_sources({f"reasoning_gym:{task}": 1}), 15, "gym", test) for test in (False, True)]
    assert not {p.prompt for p in sides[0]} & {p.prompt for p in sides[1]}
    own = gym.create_dataset(task.split(":")[0], size=1, seed=0)
    for test, problems in zip((False, True), sides, strict=True):
        for p in problems:
            assert p.id == hashlib.sha256(p.prompt.encode()).hexdigest()[:16] and held_out(p.id) == test
            gold = p.answer["entry"]["answer"]
            assert own.score_answer(gold, p.answer["entry"]) == 1.0
            assert score(p, f"<think>x</think><answer>{gold}</answer>", "eos", {"accuracy": 1.0}).total == 1.0
            for wrong in ("banana", "", "-123456789", gold + "1"):
                assert score(p, f"<think>{gold}</think><answer>{wrong}</answer>", "eos", {"accuracy": 1.0}).total == 0.0


def test_gym_options_reach_the_task(gym):
    """At most three terms of at most two digits, where the default goes to six of four."""
    sizes = [[numbers(p.prompt) for p in draw(open_sources({f"reasoning_gym:chain_sum{o}": 1}), 60, "o")]
             for o in ("", ":max_terms=3,max_digits=2")]
    assert max(map(len, sizes[1])) == 3 and max(map(max, sizes[1])) <= 99
    assert max(map(len, sizes[0])) > 3 and max(map(max, sizes[0])) > 99


@pytest.mark.parametrize("name, says", [
    ("chain_sm", "chain_sm"), ("chain_sm", "'chain_sum'"), ("", "reasoning_gym:"),
    ("chain_sum:max_trems=3", "max_trems"), ("chain_sum:max_trems=3", "'max_terms'"),
    ("chain_sum:max_terms", "write name=number"), ("chain_sum:max_terms=", "write name=number"), ("chain_sum:=3", "write name=number"),
    ("chain_sum:max_terms=many", "write name=number"), ("chain_sum:max_terms=3,,", "write name=number"),
    ("chain_sum:min_terms=9,max_terms=2", "max_terms"), ("chain_sum:seed=3", "seed"),
    ("chain_sum:min_terms=--5", "write name=number"),
    ("countdown", "cannot be trusted"), ("puzzle24", "cannot be trusted")])
def test_gym_names_that_cannot_be_made(gym, name, says):
    with pytest.raises(UserError, match=says) as e:
        open_source(f"reasoning_gym:{name}")
    assert "\n" not in str(e.value)
