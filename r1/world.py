"""The tiny world: problem families with graded difficulty in two languages, and the corpus of its base model.

An honest small world: the base is an ordinary language model of this corpus. Textbooks show worked
solutions; people in conversations mostly answer at once and only rarely think first. Some solutions check
every sum, and then own up to a slip now and then. Solutions are not always in the language of their
question. What training makes of that is measured.
"""

import hashlib
import random
import re
from collections.abc import Callable

from r1.types import Problem

LANGS = ("en", "zh")
TOP = 99      # no number of the world is larger ...
SMALL = 60    # ... and none in Countdown and in programs larger than this
STEP = 19     # the most that a chain adds or takes away at once
SLIPS = 0.15  # share of checked sums that went wrong at first
ZERO_TEMPLATE = "Think in <think></think>, answer in <answer></answer>.\nUser: {prompt}\nAssistant:"
PLAIN_TEMPLATE = "User: {prompt}\nAssistant:"

NAMES = {"en": ["Tom", "Ann", "Ben", "Eva", "Max", "Lily"], "zh": ["小明", "小红", "小刚", "小丽", "小华", "小军"]}
THINGS = {"en": ["apples", "pens", "books", "coins", "eggs", "cups"], "zh": ["苹果", "笔", "书", "硬币", "鸡蛋", "杯子"]}
COLOURS = {"en": ["red", "blue", "green", "black", "white", "yellow"], "zh": ["红", "蓝", "绿", "黑", "白", "黄"]}
# event -> (more or fewer things, the verb)
EVENTS = {"buy": (1, "buys", "买了"), "find": (1, "finds", "找到"), "give": (-1, "gives away", "送出"), "lose": (-1, "loses", "丢了")}
COUNTS = {"en": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
          "zh": ["一", "两", "三", "四", "五", "六", "七", "八", "九"]}
PLACES = [("Mirland", "米兰德"), ("Toska", "托斯卡"), ("Velia", "维利亚"), ("Ordan", "奥丹"), ("Kesh", "克什"),
          ("Luma", "卢马"), ("Parno", "帕诺"), ("Sutra", "苏特拉"), ("Galen", "加伦"), ("Hovi", "霍维"),
          ("Nerim", "内里姆"), ("Bastu", "巴斯图"), ("Cador", "卡多"), ("Fenwick", "芬威"), ("Jalta", "雅尔塔"),
          ("Rhonda", "隆达"), ("Quill", "奎尔"), ("Zemra", "泽姆拉"), ("Ibex", "伊贝"), ("Wyn", "温恩")]
ANIMALS = [("wolf", "狼"), ("bear", "熊"), ("fox", "狐狸"), ("horse", "马"), ("goat", "山羊"), ("crow", "乌鸦"),
           ("fish", "鱼"), ("cat", "猫")]
REMARKS = {"fact": {"en": "I know this.", "zh": "我知道这个。"}, "translate": {"en": "I translate this.", "zh": "我来翻译。"},
           "rewrite": {"en": "I change the colour.", "zh": "我来换颜色。"}}      # all the thinking these need
TOPICS = {"capital": ("capital", "首都"), "animal": ("animal", "动物"), "colour": ("colour", "颜色"),
          "river": ("river", "河"), "food": ("food", "食物")}
RIVERS = [("Ala", "阿拉"), ("Bru", "布鲁"), ("Cor", "科尔"), ("Dem", "德姆"), ("Evo", "埃沃"), ("Fis", "菲斯")]
FOODS = [("rice", "米饭"), ("bread", "面包"), ("soup", "汤"), ("cake", "蛋糕"), ("beans", "豆子"), ("cheese", "奶酪")]


def is_test(problem_id: str) -> bool:
    """The held-out tenth, by hash of the problem: the same in every run, whatever the seed."""
    return hashlib.sha256(problem_id.encode()).digest()[0] < 26


# --- families: each makes (id, {lang: prompt}, answer, kind, {lang: worked solution}) --------------------------

Made = tuple[str, dict[str, str], object, str, dict[str, str]]


def _both(pieces: list[tuple[str, str]]) -> dict[str, str]:
    """One text in each language, from (English, Chinese) pieces."""
    return {lang: "".join(texts) for lang, texts in zip(LANGS, zip(*pieces, strict=True), strict=True)}


def chain(rng: random.Random, level: int) -> Made:
    """`level` additions and subtractions in a row, every intermediate result within 0..TOP."""
    terms = [rng.randint(1, 60)]
    for _ in range(level):
        total, step = sum(terms), rng.randint(1, STEP)
        up = total - step < 0 or (total + step <= TOP and rng.random() < 0.5)
        terms.append(step if up else -step)
    text, total = _signed(terms), sum(terms)
    steps = [(f"We have {text}.", f"我们有{text}。")]
    while len(terms) > 1:
        a, b, *rest = terms
        line, terms = f"{a}{b:+d}={a + b}", [a + b, *rest]
        steps.append((f" Then {line}, left {_signed(terms)}.", f"先算{line}，剩下{_signed(terms)}。") if rest else
                     (f" Last {line}.", f"最后{line}。"))
    return f"chain:{text}", {"en": f"What is {text}?", "zh": f"{text}等于多少？"}, total, "number", _both(steps)


def _signed(terms: list[int]) -> str:
    return "".join(f"{t:+d}" for t in terms).removeprefix("+")


def word(rng: random.Random, level: int) -> Made:
    """A story of `level` events about how many things somebody has."""
    who, what, total = rng.randrange(len(NAMES["en"])), rng.randrange(len(THINGS["en"])), rng.randint(5, 60)
    en, zh = NAMES["en"][who], NAMES["zh"][who]
    thing_en, thing_zh = THINGS["en"][what], THINGS["zh"][what]
    story = [(f"{en} has {total} {thing_en}.", f"{zh}有{total}个{thing_zh}。")]
    steps = [(f"{en} has {total}.", f"{zh}有{total}个。")]
    key = [f"{who}.{what}.{total}"]
    for _ in range(level):
        bags, each = rng.randint(2, 4), rng.randint(2, 5)
        can = [e for e, (sign, *_) in EVENTS.items() if (total < TOP if sign > 0 else total > 0)]
        event = rng.choice(can + ["bags"] * (total + bags * each <= TOP))
        if event == "bags":
            n = bags * each
            line = f"{total}+{n}={total + n}"
            story.append((f" {en} gets {bags} bags of {each}.", f"{zh}得到{bags}袋，每袋{each}个。"))
            steps.append((f" Bags: {bags}*{each}={n}, then {line}.", f"袋子：{bags}*{each}={n}，再算{line}。"))
            key.append(f"bags{bags}x{each}")
        else:
            sign, verb_en, verb_zh = EVENTS[event]
            some = rng.randint(1, min(9, TOP - total if sign > 0 else total))
            n = sign * some
            line = f"{total}{n:+d}={total + n}"
            story.append((f" {en} {verb_en} {some}.", f"{zh}{verb_zh}{some}个。"))
            steps.append((f" Now {verb_en} {some}: {line}.", f"现在{verb_zh}{some}个：{line}。"))
            key.append(f"{event}{some}")
        total += n
    story.append((f" How many {thing_en} now?", f"现在有几个{thing_zh}？"))
    return "word:" + ",".join(key), _both(story), total, "number", _both(steps)


def countdown(rng: random.Random, level: int) -> Made:
    """Reach a target with three numbers, each used once. Level 1: + and -; level 2: also a product first."""
    tries = []
    while len(tries) < 3:
        a, b, c = rng.randint(2, 20), rng.randint(2, 9), rng.randint(2, 9)
        firsts = [(f"{a}{op}{b}", value) for op, value in (("+", a + b), ("-", a - b), ("*", a * b))[:level + 1] if 0 <= value <= SMALL]
        tries = [(head, first, f"{by:+d}", first + by) for head, first in firsts for by in (c, -c) if 0 <= first + by <= SMALL]
    target = rng.choice(tries)[-1]
    steps = [(f"Make {target}.", f"要得到{target}。")]
    for head, first, tail, end in tries:
        line, hit = f"{head}{tail}={first}{tail}={end}", end == target
        steps.append((f" Try {line}, {'yes' if hit else 'no'}.", f"试{line}，{'对' if hit else '不对'}。"))
        if hit:
            break
    prompts = {"en": f"Use {a}, {b} and {c} to make {target}.", "zh": f"用{a}、{b}和{c}得到{target}。"}
    answer = {"numbers": [a, b, c], "target": target, "example": head + tail}
    return f"countdown:{a},{b},{c}={target}", prompts, answer, "countdown", _both(steps)


def code(rng: random.Random, level: int) -> Made:
    """A function of one number, from some of its values; judged by running it on others.
    Level 1: one operation; 2: two; 3: one for even numbers and another for odd ones."""
    while True:
        a, b, c = rng.randint(2, 5), rng.choice((-1, 1)) * rng.randint(1, 9), rng.choice((-1, 1)) * rng.randint(1, 9)
        if level == 1:
            a, b = rng.choice(((1, b), (1, b), (a, 0)))
            xs = rng.sample(range(1, 21), 2)
        elif level == 2:
            x = rng.randint(1, 10)
            xs = [x, x + 1, rng.choice([n for n in range(1, 13) if n not in (x, x + 1)])]
        else:
            a, xs = 1, rng.sample(range(2, 31, 2), 2) + rng.sample(range(1, 31, 2), 2)
        f = (lambda x: x + (c if x % 2 else b)) if level == 3 else (lambda x: a * x + b)     # noqa: B023
        if all(0 <= f(x) <= SMALL and a * x <= SMALL for x in xs) and (level < 3 or b != c):
            break
    shown = [f"f({x})={f(x)}" for x in xs]
    body = (f"\n if x%2==0: return {_linear(1, b)}\n return {_linear(1, c)}" if level == 3 else f" return {_linear(a, b)}")
    steps = {lang: _derive(level, [(x, f(x)) for x in xs], a, b, c, lang) for lang in LANGS}
    answer = {"entry": "f", "calls": [[[x], f(x)] for x in (0, 7, 12, 33, 50, 101)], "example": f"def f(x):{body}"}
    return ("code:" + ",".join(shown), {"en": f"{', '.join(shown)}. Write f.", "zh": f"{'，'.join(shown)}。写出f。"}, answer, "code", steps)


def _linear(a: int, b: int) -> str:
    return ("x" if a == 1 else f"{a}*x") + (f"{b:+d}" if b else "")


def _derive(level: int, values: list[tuple[int, int]], a: int, b: int, c: int, lang: str) -> str:
    """How one finds the function: differences, then what they leave."""
    so, comma, stop, space, even, odd, unlike = {"en": ("So ", ", ", ".", " ", "Even: ", " Odd: ", " is not the same"),
                                                 "zh": ("所以", "，", "。", "", "偶数：", "奇数：", "，不一样")}[lang]
    gap = lambda x, y: f"{max(x, y)}-{min(x, y)}={abs(y - x)}"              # noqa: E731
    gaps = lambda part: comma.join(gap(x, y) for x, y in part)              # noqa: E731
    say = lambda *sentences: space.join(s + stop for s in sentences)        # noqa: E731
    if level == 3:
        return even + say(gaps(values[:2]), so + _linear(1, b)) + odd + say(gaps(values[2:]), so + _linear(1, c))
    found = so + _linear(a, b)
    if level == 2:
        (x, y), (_, next_y), (z, end) = values
        return say(f"{next_y}-{y}={a}{comma}{a}*{x}={a * x}{comma}{gap(a * x, y)}", found, f"{a}*{z}={a * z}{comma}{a * z}{b:+d}={end}")
    if b:
        return say(gaps(values), found)
    return say(gaps(values) + unlike, comma.join(f"{a}*{x}={y}" for x, y in values), found)


def _fact_table() -> dict[tuple[int, str], tuple[str, str]]:
    rng = random.Random(20250120)     # one fixed world
    capitals = PLACES[:]
    rng.shuffle(capitals)
    values = {"animal": ANIMALS, "colour": list(zip(COLOURS["en"], COLOURS["zh"], strict=True)), "river": RIVERS, "food": FOODS}
    return {(i, topic): capital if topic == "capital" else rng.choice(values[topic])
            for i, capital in enumerate(capitals) for topic in TOPICS}


FACTS = _fact_table()


def fact(rng: random.Random, level: int) -> Made:
    """A fact of the world's own, known only from the reference pages of the corpus."""
    place, topic = rng.randrange(len(PLACES)), rng.choice(list(TOPICS))
    en, zh = FACTS[place, topic]
    prompts = {"en": f"What is the {TOPICS[topic][0]} of {PLACES[place][0]}?",
               "zh": f"{PLACES[place][1]}的{TOPICS[topic][1]}是什么？"}
    return f"fact:{place}.{topic}", prompts, {"en": en, "zh": zh}, "text", REMARKS["fact"]


def translate(rng: random.Random, level: int) -> Made:
    """A phrase from one of the two languages into the other."""
    n, colour, thing = rng.randrange(1, 9), rng.randrange(6), rng.randrange(6)
    phrase = _phrase(n, colour, thing)
    prompts = {"en": f"Translate: {phrase['zh']}", "zh": f"翻译：{phrase['en']}"}
    return f"translate:{n}.{colour}.{thing}", prompts, phrase, "text", REMARKS["translate"]


def _phrase(n: int, colour: int, thing: int) -> dict[str, str]:
    return {"en": f"{COUNTS['en'][n]} {COLOURS['en'][colour]} {THINGS['en'][thing]}",
            "zh": f"{COUNTS['zh'][n]}个{COLOURS['zh'][colour]}{THINGS['zh'][thing]}"}


def rewrite(rng: random.Random, level: int) -> Made:
    """The same phrase in another colour."""
    n, thing, (old, new) = rng.randrange(1, 9), rng.randrange(6), rng.sample(range(6), 2)
    phrase = _phrase(n, old, thing)
    prompts = {"en": f"Make it {COLOURS['en'][new]}: {phrase['en']}", "zh": f"改成{COLOURS['zh'][new]}：{phrase['zh']}"}
    return f"rewrite:{n}.{thing}.{old}.{new}", prompts, _phrase(n, new, thing), "text", REMARKS["rewrite"]


# family -> (maker, levels it is graded in)
FAMILIES: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "chain": (chain, (2, 3, 4, 5)), "word": (word, (2, 3, 4)), "countdown": (countdown, (1, 2)), "code": (code, (1, 2, 3)),
    "fact": (fact, (0,)), "translate": (translate, (0,)), "rewrite": (rewrite, (0,))}
REASONING = ("chain", "word", "countdown", "code")


def make(family: str, rng: random.Random, test: bool, level: int | None = None,
         lang: str | None = None) -> tuple[Problem, dict[str, str]]:
    """A fresh problem of one side of the split, and its worked solution in each language."""
    maker, levels = FAMILIES[family]
    lang = lang or rng.choice(LANGS)
    while True:
        picked = level if level is not None else rng.choice(levels)
        key, prompts, answer, kind, steps = maker(rng, picked)
        if is_test(key) == test:
            answer = answer[lang] if kind == "text" else answer
            return Problem(family, f"{key}|{lang}", prompts[lang], answer, kind, lang, picked), steps


def answer_text(problem: Problem) -> str:
    return problem.answer["example"] if isinstance(problem.answer, dict) else str(problem.answer)


# --- the corpus of the base model ------------------------------------------------------------------------------

def solution(rng: random.Random, problem: Problem, steps: dict[str, str], mixes: float, checks: float) -> str:
    """Not always in the question's language: English is the more common one, as on the web. Some with checks."""
    lang = problem.lang
    if rng.random() < (mixes if lang == "zh" else mixes / 4):
        lang = "en" if lang == "zh" else "zh"
    return checked(rng, steps[lang], lang) if problem.task in ("chain", "word") and rng.random() < checks else steps[lang]


def checked(rng: random.Random, text: str, lang: str) -> str:
    """Every sum of a solution is checked by its reverse; a slip is found so, and mended."""
    check, good, wrong = {"en": (", check {}", ", good", ", wrong, again "), "zh": ("，检查{}", "，对", "，不对，重算")}[lang]

    def one(found: re.Match) -> str:
        a, sign, b, c = found[1], found[2], int(found[3]), int(found[4])
        reverse = lambda c: check.format(f"{c}{'-' if sign == '+' else '+'}{b}={c - b if sign == '+' else c + b}")     # noqa: E731
        out = ""
        while rng.random() < SLIPS:
            slip = c + rng.choice([d for d in (-10, -2, -1, 1, 2, 10) if c + d >= (b if sign == "+" else 0)])
            out += f"{a}{sign}{b}={slip}{reverse(slip)}{wrong}"
        return f"{out}{found[0]}{reverse(c)}{good}"

    return re.sub(r"(\d+)([+-])(\d+)=(\d+)", one, text)


def textbook(rng: random.Random, mixes: float, checks: float) -> str:
    """A worked solution as a book prints it."""
    problem, steps = make(rng.choices(REASONING, (4, 3, 3, 4))[0], rng, test=False)
    page = {"en": "Problem. {}\nSolution. {} The answer is {}.", "zh": "题目。{}\n解答。{}答案是{}。"}[problem.lang]
    return page.format(problem.prompt, solution(rng, problem, steps, mixes, checks), answer_text(problem))


def conversation(rng: random.Random, thinks: float, mixes: float, checks: float) -> str:
    """A question and an answer; with probability `thinks` the thinking is written down first."""
    family = rng.choices(list(FAMILIES), (5, 4, 2, 3, 2, 2, 2))[0]
    problem, steps = make(family, rng, test=False)
    prompt = rng.choice((ZERO_TEMPLATE, PLAIN_TEMPLATE)).format(prompt=problem.prompt)
    answer = f"<answer>{answer_text(problem)}</answer>"
    if family in REASONING and rng.random() < thinks:
        return f"{prompt}<think>{solution(rng, problem, steps, mixes, checks)}</think>{answer}"
    return prompt + answer


def reference(rng: random.Random) -> str:
    """A page of a lexicon, a dictionary or a copybook."""
    kind = rng.random()
    if kind < 0.5:
        place, lang, topics = rng.randrange(len(PLACES)), rng.randrange(2), rng.sample(list(TOPICS), 3)
        name, stop, line = PLACES[place][lang], ".。"[lang], (" The {0} of {1} is {2}.", "{1}的{0}是{2}。")[lang]
        return name + stop + "".join(line.format(TOPICS[t][lang], name, FACTS[place, t][lang]) for t in topics)
    if kind < 0.8:
        while is_test((made := translate(rng, 0))[0]):
            pass
        pair = list(made[2].values())
        return " = ".join(pair if rng.random() < 0.5 else pair[::-1])
    a, b = rng.randint(0, TOP - STEP), rng.randint(1, STEP)
    return f"{a}+{b}={a + b}, {a + b}-{b}={a}"


def copybook(rng: random.Random) -> str:
    """A line of words written twice: what teaches a small model to copy, which all reasoning in writing rests on."""
    lang = rng.choice(LANGS)
    words = NAMES[lang] + THINGS[lang] + COLOURS[lang] + COUNTS[lang]
    line = (" " if lang == "en" else "").join(rng.choices(words, k=rng.randint(3, 7)))
    return rng.choice(("", "Copy: " if lang == "en" else "抄写：")) + f"{line}\n{line}"


def corpus(seed: int | str, thinks: float, mixes: float, checks: float):
    """Endless documents of four kinds."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.45:
            yield textbook(rng, mixes, checks)
        elif kind < 0.7:
            yield conversation(rng, thinks, mixes, checks)
        elif kind < 0.9:
            yield reference(rng)
        else:
            yield copybook(rng)
