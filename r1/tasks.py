"""Where problems come from. A source is named by a text:

    chain, word, countdown, fact, translate, rewrite   families of the tiny world; chain:4 is one level of it
    jsonl:FILE                 a user's own problems: {"prompt", "answer"} and optionally kind, lang, level, task, id
    reasoning_gym:TASK         procedural tasks of the optional package, scored by their own verifiers;
                               reasoning_gym:chain_sum:max_terms=3,max_digits=2 sets whole-number options of a task

Every problem is on one side of the train/test split for good: a hash of its id decides.
"""
from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Callable

from r1 import world
from r1.accuracy import check_gold
from r1.files import read_jsonl
from r1.rewards import check_lang
from r1.strict import nearest
from r1.types import Problem, UserError

Source = Callable[[random.Random, bool], Problem]     # (random numbers, test side?) -> a problem


def draw(sources: list[tuple[float, Source]], count: int, seed: str, test: bool = False) -> list[Problem]:
    """`count` problems from weighted sources: a pure function of the seed."""
    rng = random.Random(seed)
    weights = [w for w, _ in sources]
    return [rng.choices(sources, weights)[0][1](rng, test) for _ in range(count)]


def open_sources(mix: dict[str, float]) -> list[tuple[float, Source]]:
    """The sources of {name: weight}, opened and checked. Raises UserError for what cannot be read."""
    return [(float(weight), open_source(name)) for name, weight in mix.items()]


def open_source(name: str) -> Source:
    head, _, rest = name.partition(":")
    if head in world.FAMILIES:
        return _family(head, rest)
    if head == "jsonl":
        return _listed(_read_problems(rest), name)
    if head == "reasoning_gym":
        return _reasoning_gym(rest)
    raise UserError(f"unknown data source {name!r}; there are {', '.join(world.FAMILIES)}, jsonl:FILE and reasoning_gym:TASK")


def _family(family: str, level: str) -> Source:
    levels = world.FAMILIES[family][1]
    if level and level not in map(str, levels):
        raise UserError(f"{family} has the levels {', '.join(map(str, levels))}; found {family}:{level}")
    only = int(level) if level else None
    return lambda rng, test: world.make(family, rng, test, only)[0]


def _listed(problems: list[Problem], name: str) -> Source:
    sides = {t: [p for p in problems if world.is_test(p.id) == t] for t in (False, True)}

    def pick(rng: random.Random, test: bool) -> Problem:
        if not sides[test]:
            raise UserError(f"{name} has no problem on the {'test' if test else 'training'} side of the split "
                            f"({len(problems)} in all; about one in ten is held out)")
        return rng.choice(sides[test])

    return pick


def _read_problems(path: str) -> list[Problem]:
    problems = []
    for number, row in read_jsonl(path, ("prompt", "answer")):
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise UserError(f"{path}:{number}: prompt must be a text that is not empty")
        if isinstance(level := row.get("level", 0), bool) or not isinstance(level, int):
            raise UserError(f"{path}:{number}: level must be a whole number, found {level!r}")
        name = str(row.get("id") or hashlib.sha256(row["prompt"].encode()).hexdigest()[:16])
        problem = Problem(str(row.get("task", "jsonl")), name, row["prompt"], row["answer"],
                          str(row.get("kind", "math")), str(row.get("lang", "en")), level)
        try:
            check_gold(problem)
            check_lang(problem.lang)
        except UserError as e:
            raise UserError(f"{path}:{number}: {e}") from e
        problems.append(problem)
    if not problems:
        raise UserError(f"{path} has no problems in it")
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
