"""Untrusted programs: run them in a process that has given up its rights, and judge what comes back where they cannot reach.

The process only ever returns data. The verdict is computed here, expected outputs never leave, and whatever the process does
(lie, flood, hang, die, attack the protocol) is a failed test. What cannot be judged is "infra" and never a 0.

A gold says how a program is tested:

    {"entry": "f", "calls": [[[args...], expected], ...]}    f is called; the values are compared by `same`
    {"stdin": [[input, output], ...]}                        a fresh process each; every line of stdout, and exit code 0
    {"entry": "f", "check": "def check(candidate): ..."}     HumanEval's form. THE SOURCE RUNS HERE, outside the sandbox, with
                                                             a candidate that asks the process: only for data sets you trust;
                                                             behind "prelude", if there is one: what it needs defined

Not covered: bugs of the kernel, side channels, weak tests, how full the disk gets within the seconds that a program has.
"""
from __future__ import annotations

import json
import marshal
import math
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, lru_cache

from r1.types import UserError

PROGRAM, REPLY, HASHED = 64 << 10, 1 << 20, 5000     # bytes of a program, of a reply; elements of a reply's sets and dicts
TRIES = 3                                            # of what failed through no fault of the program
CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_child.py")


@dataclass(frozen=True)
class Verdict:
    """What became of a program: status "pass", "fail" or "infra", and a reason of one word."""

    status: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """Of one program, all its tests together. A judgement takes at most TRIES * (boot + wall) seconds and a little."""

    wall: float = 5.0            # seconds, from the moment the process is ready
    boot: float = 15.0           # seconds until then: a slow machine is not the program's fault
    cpu: int = 6
    memory: int = 512 << 20      # bytes of address space
    file: int = 4 << 20          # bytes of any one file, and of stdout
    files: int = 64              # open at once


@dataclass(frozen=True)
class Protection:
    """What is in force in the process. The first three are the kernel's; without any of them code is not run."""

    landlock: int                # version of its interface; 0: files are open to the program
    seccomp: bool                # no processes, programs, sockets, signals
    namespaces: bool             # not used
    rlimits: bool
    pdeathsig: bool              # dies with its parent

    @property
    def kernel(self) -> bool:
        return bool(self.landlock or self.seccomp or self.namespaces)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" if name == "landlock" else name for name, value in asdict(self).items() if value)


class _Fail(BaseException):
    """The program failed; no `except Exception` of a data set's check may swallow it."""


class _Raised(Exception):
    """The program raised an exception of this name."""


class _Infra(Exception):
    pass


# ---- the process -------------------------------------------------------------------------------

class _Child:
    """A conversation with one process: bounded in time and size, whatever it sends."""

    def __init__(self, line: socket.socket, process: subprocess.Popen):
        self.line, self.process, self.buffer = line, process, bytearray()
        self.deadline, self.failure, self.calls = math.inf, None, 0

    def left(self) -> float:
        if (left := self.deadline - time.monotonic()) <= 0:
            raise _Fail("timeout")
        return left

    def send(self, message: object) -> None:
        data = marshal.dumps(message)
        self.line.settimeout(self.left())
        try:
            self.line.sendall(len(data).to_bytes(4, "little") + data)
        except TimeoutError:
            raise _Fail("timeout") from None
        except OSError:
            raise _Fail("died") from None

    def read(self) -> bytes:
        """Something of what it sent, b"" at the end."""
        self.line.settimeout(self.left())
        try:
            return self.line.recv(1 << 16)
        except TimeoutError:
            raise _Fail("timeout") from None
        except ConnectionError:
            return b""

    def reply(self) -> bytes:
        seen = 0
        while (end := self.buffer.find(b"\n", seen)) < 0:
            seen = len(self.buffer)
            if seen > REPLY:
                raise _Fail("too_long")
            if not (part := self.read()):
                raise _Fail("died")
            self.buffer += part
        line = bytes(self.buffer[:end])
        del self.buffer[:end + 1]
        if self.buffer:                            # it spoke without being asked
            raise _Fail("bad_reply")
        return line

    def ask(self, *request: object) -> object:
        """The value of one call. After a failure every further call fails at once."""
        if self.failure:
            raise self.failure
        try:
            nonce = secrets.token_hex(8).encode()            # an answer written beforehand cannot know it
            self.send((nonce, *request) if request else nonce)
            line = self.reply()
            if line[:17] != nonce + b" " or line[17:18] not in (b"=", b"!"):
                raise _Fail("bad_reply")
            value = _decode(line[18:]) if line[17:18] == b"=" else None
        except _Fail as e:
            self.failure = e
            raise
        if line[17:18] == b"!":
            raise _Raised(line[18:99].decode("ascii", "replace"))
        return value

    def exited(self) -> None:
        """Waits until it has ended, without reaping it: the number of its group stays taken until that is killed."""
        while self.read():
            pass
        while not (os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) if hasattr(os, "waitid")
                   else self.process.poll() is not None):
            time.sleep(min(self.left(), 0.001))


@contextmanager
def _child(limits: Limits, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL) -> Iterator[_Child]:
    """A process that is ready for a program; nothing of it is left afterwards."""
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="r1-sandbox-")
        stack.callback(_remove, folder)
        ours, theirs = map(stack.enter_context, socket.socketpair())
        # -I would ignore PYTHONHASHSEED, and sets of strings would differ from run to run; the rest of -I is here
        process = subprocess.Popen([sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", CHILD, str(theirs.fileno()), str(os.getpid())],
                                   stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, cwd=folder, env={"PYTHONHASHSEED": "0"},
                                   pass_fds=[theirs.fileno()], start_new_session=True, bufsize=0)
        stack.callback(_kill, process)
        theirs.close()
        child = _Child(ours, process)
        child.deadline = time.monotonic() + limits.boot
        try:
            child.send({"paths": _paths(), "limits": {"RLIMIT_CPU": limits.cpu, "RLIMIT_AS": limits.memory, "RLIMIT_CORE": 0,
                                                      "RLIMIT_FSIZE": limits.file, "RLIMIT_NOFILE": limits.files}})
            ready, landlock, *flags = child.reply().split()
            child.protection = Protection(int(landlock), flags[0] == b"1", False, flags[1] == b"1", flags[2] == b"1")
        except (_Fail, ValueError, IndexError) as e:
            raise _Infra(f"it did not start ({e})") from None
        child.deadline = time.monotonic() + limits.wall
        yield child


def _kill(process: subprocess.Popen) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin:
        process.stdin.close()
    process.wait()


def _remove(folder: str) -> None:
    """Deletes it without recursion: a tree of any depth, of folders that may be shut, is flattened on the way."""
    with suppress(OSError):
        number = 0
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                for inner in list(os.scandir(entry.path)):
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)
                    os.rename(inner.path, os.path.join(folder, f"r1-{(number := number + 1)}"))
                os.rmdir(entry.path)
    shutil.rmtree(folder, ignore_errors=True)


@cache
def _paths() -> tuple[list, list, list]:
    """What the process may read, list and write: the standard library and the system's. No installed packages: data sets lie there."""
    library = os.path.realpath(sysconfig.get_paths()["stdlib"])
    listable, readable = [library], ["/dev/urandom", "/etc/localtime", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    readable += [e.path for e in os.scandir(library) if e.name not in ("site-packages", "dist-packages", "test")]
    for folder in {os.path.realpath(p) for p in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", sys.base_prefix + "/lib")}:
        with suppress(OSError):
            readable += [e.path for e in os.scandir(folder) if ".so" in e.name or "linux" in e.name]      # x86_64-linux-gnu
    return readable, listable, ["/dev/null"]


# ---- values ------------------------------------------------------------------------------------

def _decode(text: bytes) -> object:
    """The value of a reply: a flat row of JSON scalars, so that no depth of brackets can harm the parser."""
    budget = [HASHED]

    def number(digits: str) -> int:
        if len(digits) > 4300:
            raise ValueError
        return int(digits)

    def build(depth: int) -> object:
        token = next(tokens)
        if type(token) is not str:
            return token
        kind, rest = token[:1], token[1:]
        if kind == "'":
            return rest
        if kind == "i" and len(rest) <= 3600:               # hexadecimal; about 4,300 digits, as Python itself has it
            return int(rest, 16)
        if kind == "b":
            return bytes.fromhex(rest)
        if kind == "f":
            return float(rest)
        if kind == "c":
            return complex(*map(float, rest.split(" ")))
        size = int(rest[:8])
        if kind in "szd":                                   # equal hashes in their thousands would take minutes
            budget[0] -= size
        if depth == 0 or size < 0 or budget[0] < 0:
            raise ValueError
        if kind == "d":
            value = dict((build(depth - 1), build(depth - 1)) for _ in range(size))
        else:
            value = {"l": list, "t": tuple, "s": set, "z": frozenset}[kind]([build(depth - 1) for _ in range(size)])
        if len(value) != size:
            raise ValueError
        return value

    try:
        if text.count(b"[") != 1 or b"{" in text:
            raise ValueError
        tokens = iter(json.loads(text.decode("ascii"), parse_int=number, parse_constant=number))
        value = build(64)
        if next(tokens, tokens) is not tokens:
            raise ValueError
    except (ValueError, TypeError, KeyError, RuntimeError, StopIteration):
        raise _Fail("bad_reply") from None
    return value


def same(want: object, got: object) -> bool:
    """Whether a program's value is the expected one: by exact types, but 1 is 1.0, floats agree to 1e-9 of their size, and a
    tuple is a list, since JSON has none. True is not 1, the keys of a dict are not converted, nan is nan."""
    if type(want) is bool or type(got) is bool:
        return want is got
    if type(want) in (int, float) and type(got) in (int, float):
        if want == got or want != want and got != got:
            return True
        with suppress(OverflowError):
            return float in (type(want), type(got)) and math.isclose(want, got, rel_tol=1e-9)
        return False
    if type(want) in (list, tuple) and type(got) in (list, tuple):
        return len(want) == len(got) and all(map(same, want, got))
    if type(want) is not type(got):
        return False
    if type(want) is dict:
        return same(set(want), set(got)) and all(same(want[key], got[key]) for key in want)
    if type(want) in (set, frozenset):
        return {(type(x) is bool, x) for x in want} == {(type(x) is bool, x) for x in got}
    return want == got


# ---- the three forms ---------------------------------------------------------------------------

def _calls(program: str, gold: dict, limits: Limits) -> None:
    with _ready(limits) as child:
        child.send((program, "__program__"))
        child.ask()
        for args, expected in gold["calls"]:
            if not same(expected, child.ask(gold["entry"], args, {})):
                raise _Fail("wrong")


@lru_cache(256)
def _compiled(source: str) -> object:
    return compile(source, "<check>", "exec")


def _trusted(gold: dict) -> dict:
    """What the source of a trusted data set defines. The one place outside the sandbox where text is run; a program never comes here."""
    space = {"__name__": "__check__"}
    exec(_compiled(gold.get("prelude", "") + gold["check"]), space)
    return space


def _check(program: str, gold: dict, limits: Limits) -> None:
    with _ready(limits) as child:
        child.send((program, "__program__"))
        child.ask()

        def candidate(*args: object, **named: object) -> object:
            child.calls += 1
            return child.ask(gold["entry"], args, named)

        space = _trusted(gold)
        space[gold["entry"]] = candidate            # some checks call the function by its name
        try:
            space["check"](candidate)
        except _Raised:
            raise
        except Exception:
            raise _Fail("wrong") from None
        if child.failure or not child.calls:
            raise child.failure or _Infra("the check calls nothing")


def _stdin(program: str, gold: dict, limits: Limits) -> None:
    deadline = math.inf
    for text, expected in gold["stdin"]:
        with tempfile.TemporaryFile() as out:
            with _ready(limits, subprocess.PIPE, out.fileno()) as child:
                child.deadline = deadline = min(deadline, child.deadline)
                child.send((program, "__main__"))
                _feed(child, memoryview(text.encode("utf-8", "surrogatepass")))
                child.exited()
            if code := child.process.returncode:
                raise _Fail("raised" if code > 0 else "too_long" if code == -signal.SIGXFSZ else "died")
            out.seek(0)
            found = out.read(limits.file + 1)
        if len(found) >= limits.file:
            raise _Fail("too_long")
        if _lines(found.decode("utf-8", "surrogateescape")) != _lines(expected):
            raise _Fail("wrong")


def _feed(child: _Child, data: memoryview) -> None:
    """Its input by a pipe that it may not read."""
    pipe = child.process.stdin
    os.set_blocking(pipe.fileno(), False)
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    with pipe, suppress(BrokenPipeError):
        while data:
            poll.poll(child.left() * 1000)
            with suppress(BlockingIOError):
                data = data[os.write(pipe.fileno(), data):]


def _lines(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n").split("\n")


def judge(program: str, gold: dict, limits: Limits = Limits()) -> Verdict:
    """Never raises; may be called from many threads."""
    with suppress(Exception):
        run = _calls if "calls" in gold else _check if "check" in gold else _stdin
        if len(program.encode("utf-8", "surrogatepass")) > PROGRAM:
            return Verdict("fail", "too_long")
        for n in range(TRIES):
            try:
                run(program, gold, limits)
                return Verdict("pass", "ok")
            except _Fail as e:
                return Verdict("fail", str(e))
            except _Raised:
                return Verdict("fail", "raised")
            except (_Infra, OSError):
                time.sleep(0.1 * n)
    return Verdict("infra", "infra")


def judge_all(jobs: Iterable[tuple[str, dict]], workers: int = 0) -> list[Verdict]:
    """In threads, one for each core; within ceil(jobs / workers) times what one may take."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            return list(pool.map(lambda job: judge(*job), jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def is_gold(gold: object) -> bool:
    """Whether it is one of the three forms, with something in it to be tested."""
    def pairs(name: str, first: type) -> bool:
        rows = gold[name]
        return (isinstance(rows, list) and 0 < len(rows) <= 1000
                and all(isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], first) for row in rows))

    if not isinstance(gold, dict) or len({"calls", "stdin", "check"} & set(gold)) != 1:
        return False
    try:
        if "stdin" in gold:
            return pairs("stdin", str) and all(isinstance(row[1], str) for row in gold["stdin"]) and any(
                row[1].strip() for row in gold["stdin"])
        if not isinstance(gold.get("entry"), str) or not gold["entry"].isidentifier():
            return False
        if "calls" in gold:
            return pairs("calls", (list, tuple)) and bool(marshal.dumps(gold["calls"]))
        return "def check(" in gold["check"] and bool(_compiled(gold.get("prelude", "") + gold["check"]))
    except (TypeError, ValueError, SyntaxError):
        return False


# ---- what is in force --------------------------------------------------------------------------

_PROBE = """
import os
def probe():
    seen = []
    for action in (lambda: os.listdir("/"), os.fork):
        try:
            action()
            seen.append(True)
        except OSError:
            seen.append(False)
    return seen
"""
_unprotected, _said, _lock = threading.Event(), threading.Event(), threading.Lock()


@cache
def _probed() -> Protection:
    """From a process that says what it did, and then tries what should fail."""
    with _child(Limits()) as child:
        child.send((_PROBE, "__program__"))
        try:
            child.ask()
            files, forks = child.ask("probe", (), {})
        except _Fail as e:
            raise _Infra(str(e)) from None
        said = child.protection
        return Protection(0 if files else said.landlock, said.seccomp and not forks, False, said.rlimits, said.pdeathsig)


def protection() -> Protection:
    """What holds in every process, or nothing of it is judged."""
    with _lock:
        return _probed()


@contextmanager
def _ready(limits: Limits, *streams: int) -> Iterator[_Child]:
    """A process under all that was found in force."""
    if not (protection().kernel or _unprotected.is_set()):
        raise _Infra("unprotected")
    with _child(limits, *streams) as child:
        if child.protection != protection():
            raise _Infra("a protection was lost")
        yield child


def allow_unprotected() -> None:
    """Programs may be run where the kernel offers nothing."""
    _unprotected.set()


def require() -> None:
    """Says once what protects this machine; refuses where nothing does."""
    try:
        found = protection()
    except (_Infra, OSError) as e:
        raise UserError(f"the sandbox for programs could not start a process: {e}") from None
    if not (found.kernel or _unprotected.is_set()):
        raise UserError("programs of a model would run without a protection of the kernel (no landlock, seccomp or namespace here): "
                        "use Linux 5.13 or later, or accept it with `sandbox: unprotected` in the config (sample.py: --sandbox unprotected)")
    if not _said.is_set():
        _said.set()
        print(f"sandbox: {found}" + ("" if found.kernel else " ONLY: programs may read and write files"), file=sys.stderr)
