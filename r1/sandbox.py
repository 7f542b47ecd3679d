"""Untrusted programs: run them in a process that has given up its rights, and judge what comes back where they cannot reach.

The process only ever returns data. The verdict is computed here, expected outputs never leave, and whatever the process does
(lie, flood, hang, die, attack the protocol) is a failed test. What cannot be judged is "infra" and never a 0. Forms of gold:

    {"entry": "f", "calls": [[[args...], expected], ...]}    f is called; the values are compared by `same`
    {"stdin": [[input, output], ...]}                        a fresh process each; every line of stdout, and exit code 0
    {"entry": "f", "check": "def check(candidate): ..."}     HumanEval's form, behind an optional "prelude": source
                                                             THAT RUNS HERE, in the judge: trusted data sets only

Not covered: bugs of the kernel, side channels, weak tests; without namespaces, the disk that many files take in those seconds.
"""
from __future__ import annotations

import marshal
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from keyword import iskeyword

from r1 import stop
from r1.sandbox_process import REPLY, Child, Fail, Infra, Limits, Protection, Raised, start
from r1.types import UserError

PROGRAM = 64 << 10       # bytes
TRIES = 3                # of what failed through no fault of the program


@dataclass(frozen=True)
class Verdict:
    """What became of a program: status "pass", "fail" or "infra", and a reason of one word."""

    status: str
    reason: str


def same(want: object, got: object) -> bool:
    """Whether a program's value is the expected one: by exact types, but 1 is 1.0, floats agree to 1e-9 of their size, and a
    tuple is a list, since JSON has none. True is not 1, the keys of a dict are not converted, nan is nan."""
    kinds = type(want), type(got)
    if bool in kinds:
        return want is got
    if set(kinds) <= {int, float}:
        with suppress(OverflowError):
            return want == got or want != want and got != got or float in kinds and math.isclose(want, got, rel_tol=1e-9)
        return False
    if set(kinds) <= {list, tuple}:
        return len(want) == len(got) and all(map(same, want, got))
    if kinds[0] is not kinds[1]:
        return False
    if kinds[0] is dict:
        return same(set(want), set(got)) and all(same(want[key], got[key]) for key in want)
    if kinds[0] in (set, frozenset):
        return set(map(_told_apart, want)) == set(map(_told_apart, got))
    return want == got


def _told_apart(x: object) -> object:
    """A member of a set, with True no longer equal to 1, however deep."""
    return tuple(map(_told_apart, x)) if type(x) is tuple else frozenset(map(_told_apart, x)) if type(x) is frozenset else (type(x) is bool, x)


# ---- the three forms ---------------------------------------------------------------------------

@contextmanager
def _ready(limits: Limits, *streams: int) -> Iterator[Child]:
    """A process under all that was found in force."""
    if not (protection().kernel or _UNPROTECTED.is_set()):
        raise Infra("unprotected")
    with start(limits, *streams) as (child, said):
        if said != protection():
            raise Infra("a protection was lost")
        yield child


@lru_cache(256)
def _compiled(source: str) -> object:
    return compile(source, "<check>", "exec")


def _trusted(gold: dict) -> dict:
    """What the source of a trusted data set defines. Text is run here and nowhere else; a program never comes here."""
    space = {"__name__": "__check__"}
    exec(_compiled(gold.get("prelude", "") + gold["check"]), space)
    return space


def _function(program: str, gold: dict, limits: Limits) -> None:
    with _ready(limits) as child:
        child.send((program, "__program__"))
        child.ask()

        def candidate(*args: object, **named: object) -> object:
            child.calls += 1
            return child.ask(gold["entry"], args, named)

        for args, expected in gold.get("calls", ()):
            if not same(expected, candidate(*args)):
                raise Fail("wrong")
        if "check" in gold:
            space = _trusted(gold)
            space[gold["entry"]] = candidate                     # some checks call it by its name
            try:
                space["check"](candidate)
            except Raised:
                raise
            except Exception:
                raise Fail("wrong") from None
        if child.failure or not child.calls:
            raise child.failure or Infra("it is never called")


def _stdin(program: str, gold: dict, limits: Limits) -> None:
    left = limits.wall
    for text, expected in gold["stdin"]:
        with tempfile.TemporaryFile() as out:
            with _ready(limits, subprocess.PIPE, out.fileno()) as child:
                start = time.monotonic()
                child.deadline = start + left
                child.send((program, "__main__"))
                child.feed(memoryview(text.encode("utf-8", "surrogatepass")))
                child.exited()
                left -= time.monotonic() - start
            try:
                found = os.pread(out.fileno(), limits.file, 0)
            except OSError:                                      # the program may set the file's flags, O_DIRECT among them
                raise Fail("bad_reply") from None
        if len(found) >= limits.file:
            raise Fail("too_long")
        if code := child.process.returncode:
            raise Fail("raised" if code > 0 else "died")
        if _lines(found.decode("utf-8", "surrogateescape")) != _lines(expected):
            raise Fail("wrong")


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


def judge(program: str, gold: dict, limits: Limits = Limits()) -> Verdict:
    """Never raises; may be called from many threads."""
    with suppress(Exception):
        if len(program.encode("utf-8", "surrogatepass")) > PROGRAM:
            return Verdict("fail", "too_long")
        for n in range(TRIES):
            try:
                (_stdin if "stdin" in gold else _function)(program, gold, limits)
                return Verdict("pass", "ok")
            except Fail as e:
                return Verdict("fail", str(e))
            except Raised:
                return Verdict("fail", "raised")
            except (Infra, OSError):
                time.sleep(0.1 * n)
    return Verdict("infra", "infra")


def side_by_side(function: Callable, jobs: Iterable[tuple], workers: int = 0) -> list:
    """`function(*job)` of every job, in threads, one for each core (shared with the node's other ranks); an interruption cancels what has not begun."""
    with ThreadPoolExecutor(workers or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))) as pool:
        try:
            return list(pool.map(lambda job: function(*job), jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def judge_all(jobs: Iterable[tuple[str, dict]], workers: int = 0) -> list[Verdict]:
    """Within jobs / workers, rounded up, times what one may take."""
    return side_by_side(lambda *job: judge(*job), jobs, workers)


def is_gold(gold: object) -> bool:
    """Whether it is one of the three forms, with something in it to be tested."""
    try:
        (form,) = {"calls", "stdin", "check"} & set(gold)
        prelude, entry = gold.get("prelude", ""), gold.get("entry", "f")
        if set(gold) - {form, "entry", "prelude", "example"} or form != "stdin" and "entry" not in gold:
            return False
        if not entry.isidentifier() or iskeyword(entry) or not _compiled(prelude):
            return False
        if form == "check":
            return "def check(" in gold["check"] and bool(_compiled(prelude + gold["check"]))
        first, rows = (str if form == "stdin" else (list, tuple)), gold[form]
        return (isinstance(rows, list) and 0 < len(rows) <= 1000 and bool(marshal.dumps(rows))
                and max(len(marshal.dumps(row[-1])) for row in rows) < REPLY // 2
                and all(isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], first) for row in rows)
                and (form == "calls" or any(row[1].strip() for row in rows)))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, SyntaxError):
        return False


# ---- what is in force --------------------------------------------------------------------------

_UNPROTECTED, _SAID, _LOCK = threading.Event(), threading.Event(), threading.Lock()
_PROBE = """
import os
def refuses(name, *args):
    try:
        if getattr(os, name)(*args) == 0:
            os._exit(0)      # the other side of a fork that nothing refused
    except OSError:
        return True
"""


@cache
def _probed() -> Protection:
    """From a process that says what it did, and then tries what should be refused."""
    with start(Limits()) as (child, said):
        try:
            child.send((_PROBE, "__program__"))
            child.ask()
            files, forks = child.ask("refuses", ("listdir", "/"), {}), child.ask("refuses", ("fork",), {})
        except (Fail, Raised) as e:
            raise Infra(f"the probe failed ({e})") from None
    return replace(said, landlock=said.landlock if files else 0, seccomp=said.seccomp and bool(forks))


def protection() -> Protection:
    """What holds in every process, or nothing of it is judged."""
    with _LOCK:
        return _probed()


def allow_unprotected() -> None:
    """Programs may be run where the kernel offers nothing."""
    _UNPROTECTED.set()


def require() -> None:
    """Says once what protects this machine; refuses where nothing does."""
    try:
        found = protection()
    except (Infra, OSError) as e:
        raise UserError(f"the sandbox for programs could not start a process: {e}") from None
    if not (found.kernel or _UNPROTECTED.is_set()):
        raise UserError("this kernel offers neither landlock nor seccomp to keep a model's programs off your files: use Linux "
                        "5.13 or later, or accept it by `sandbox: unprotected` in the config (sample.py: --sandbox unprotected)")
    if not _SAID.is_set():
        _SAID.set()
        if stop.first():
            stop.say(f"sandbox: {found}" + ("" if found.kernel else " ONLY: programs may read and write files"), sys.stderr)
