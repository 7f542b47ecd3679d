"""A process that has given up its rights: started, spoken with, killed, and its replies read as data. It may send anything.

sandbox.py judges by it; sandbox_child.py is what runs inside.
"""
from __future__ import annotations

import json
import marshal
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from subprocess import DEVNULL

REPLY, HASHED = 1 << 20, 5000        # bytes of a reply; elements of its sets and dicts
CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_child.py")
KINDS = {"l": list, "t": tuple, "s": set, "z": frozenset, "d": dict}


@dataclass(frozen=True)
class Limits:
    """Of one program. Judging it takes at most TRIES * (wall + boot for each process) seconds; it is killed, so no longer."""

    wall: float = 5.0            # seconds of all its tests, from the moment that the process is ready
    boot: float = 15.0           # seconds until then: a slow machine is not the program's fault
    cpu: int = 6
    memory: int = 512 << 20      # bytes of address space
    file: int = 4 << 20          # bytes of any one file, and of stdout
    files: int = 64              # open at once


@dataclass(frozen=True)
class Protection:
    """What is in force in the process. The first two are the kernel's; without either of them code is not run."""

    landlock: int                # version of its interface; 0: files are open to the program
    seccomp: bool                # no processes, programs, sockets, signals
    namespaces: bool             # its folder is a small file system of its own
    rlimits: bool
    pdeathsig: bool              # dies with its parent

    @property
    def kernel(self) -> bool:
        return bool(self.landlock or self.seccomp)

    def __str__(self) -> str:
        names = {"landlock": f"landlock {self.landlock}"}
        return ", ".join(names.get(name, name) for name, value in asdict(self).items() if value) or "nothing"


class Fail(BaseException):
    """The program failed; no `except Exception` of a data set's check may swallow it."""


class Raised(Exception):
    """The program raised an exception of this name."""


class Infra(Exception):
    pass


class Child:
    """A conversation with one process: bounded in time and size, whatever it sends."""

    def __init__(self, line: socket.socket, process: subprocess.Popen, seconds: float):
        self.line, self.process, self.buffer = line, process, bytearray()
        self.deadline, self.failure, self.calls = time.monotonic() + seconds, None, 0

    def left(self) -> float:
        if (left := self.deadline - time.monotonic()) <= 0:
            raise Fail("timeout")
        return left

    def transfer(self, action: Callable, data: object) -> object:
        self.line.settimeout(self.left())
        try:
            return action(data)
        except TimeoutError:
            raise Fail("timeout") from None
        except ConnectionError:
            return b""

    def send(self, message: object) -> None:
        data = marshal.dumps(message)
        self.transfer(self.line.sendall, len(data).to_bytes(4, "little") + data)      # if it is dead, there will be no reply

    def reply(self) -> bytes:
        seen = 0
        while (end := self.buffer.find(b"\n", seen)) < 0:
            if (seen := len(self.buffer)) > REPLY:
                raise Fail("too_long")
            if not (part := self.transfer(self.line.recv, 1 << 16)):
                raise Fail("died")
            self.buffer += part
        line = bytes(self.buffer[:end])
        del self.buffer[:end + 1]
        if self.buffer:                                          # it spoke without being asked
            raise Fail("bad_reply")
        return line

    def ask(self, *request: object) -> object:
        """The value of one call. After a failure every further call fails at once."""
        if self.failure:
            raise self.failure
        nonce = secrets.token_hex(8).encode()                    # an answer written beforehand cannot know it
        try:
            self.send((nonce, *request))
            line = self.reply()
            if line[:17] != nonce + b" " or line[17:18] not in (b"=", b"!"):
                raise Fail("too_long" if line == nonce + b" #" else "bad_reply")
            if line[17:18] == b"=":
                return decode(line[18:])
        except Fail as e:
            self.failure = e
            raise
        raise Raised(line[18:99].decode("ascii", "replace"))

    def feed(self, data: memoryview) -> None:
        """Its input, by a pipe that it may not read."""
        poll, pipe = select.poll(), self.process.stdin
        poll.register(pipe, select.POLLOUT)
        os.set_blocking(pipe.fileno(), False)
        with pipe, suppress(BrokenPipeError):
            while data:
                poll.poll(self.left() * 1000)
                with suppress(BlockingIOError):
                    data = data[os.write(pipe.fileno(), data):]

    def exited(self) -> None:
        """Waits until it has ended, without reaping it: the number of its group stays taken until that is killed."""
        while self.transfer(self.line.recv, 1 << 16):
            pass
        while not (os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) if hasattr(os, "waitid")
                   else self.process.poll() is not None):
            time.sleep(min(self.left(), 0.001))


@contextmanager
def start(limits: Limits, stdin: int = DEVNULL, stdout: int = DEVNULL) -> Iterator[tuple[Child, Protection]]:
    """A process that is ready for a program, and its own word on what protects; nothing of it is left afterwards."""
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="r1-sandbox-")
        stack.callback(_remove, folder)
        ours, theirs = map(stack.enter_context, socket.socketpair())
        # -I would ignore PYTHONHASHSEED, and sets of strings would differ from run to run; the rest of -I is here
        command = [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", CHILD, str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=DEVNULL, cwd=folder, bufsize=0,
                                   env={"PYTHONHASHSEED": "0"}, pass_fds=[theirs.fileno()], start_new_session=True)
        stack.callback(_kill, process)
        theirs.close()
        made = Child(ours, process, limits.boot)
        try:
            made.send({"paths": _paths(), "limits": {"RLIMIT_CPU": limits.cpu, "RLIMIT_AS": limits.memory, "RLIMIT_CORE": 0,
                                                      "RLIMIT_FSIZE": limits.file, "RLIMIT_NOFILE": limits.files}})
            landlock, *flags = map(int, made.reply().removeprefix(b"ready ").split())
            said = Protection(landlock, *map(bool, flags))
        except (Fail, ValueError, TypeError) as e:
            raise Infra(f"it did not start ({e})") from None
        made.deadline = time.monotonic() + limits.wall
        yield made, said


def _kill(process: subprocess.Popen) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin:
        process.stdin.close()
    process.wait()


def _remove(folder: str) -> None:
    """Deletes it without recursion and without long paths: a tree may be of any depth, and its folders shut."""
    with suppress(OSError):
        fd, above = os.open(folder, os.O_RDONLY), []
        try:
            while True:
                for entry in os.scandir(fd):
                    if entry.is_dir(follow_symlinks=False):
                        os.chmod(entry.name, 0o700, dir_fd=fd)
                        above.append(entry.name)
                        fd, old = os.open(entry.name, os.O_RDONLY, dir_fd=fd), fd
                        break
                    os.unlink(entry.name, dir_fd=fd)
                else:
                    if not above:
                        break
                    fd, old = os.open("..", os.O_RDONLY, dir_fd=fd), fd
                    os.rmdir(above.pop(), dir_fd=fd)
                os.close(old)
        finally:
            os.close(fd)
        os.rmdir(folder)


@cache
def _paths() -> tuple[list, list, list]:
    """What it may read, list, write: the standard library and the system's. No installed packages: data sets lie there."""
    library = os.path.realpath(sysconfig.get_paths()["stdlib"])
    readable = ["/dev/urandom", "/etc/localtime", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    readable += [e.path for e in os.scandir(library) if e.name not in ("site-packages", "dist-packages", "test")]
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", sys.base_prefix + "/lib"]
    for folder in set(map(os.path.realpath, libraries)):
        with suppress(OSError):
            readable += [e.path for e in os.scandir(folder) if ".so" in e.name or "linux" in e.name]      # x86_64-linux-gnu
    return readable, [library], ["/dev/null"]


def decode(text: bytes) -> object:
    """The value of a reply: a flat row of JSON scalars, so that no depth of brackets can harm the parser."""
    budget = HASHED

    def build(depth: int) -> object:
        nonlocal budget
        token = next(tokens)
        if type(token) is not str:
            return token
        kind, rest = token[:1], token[1:]
        if kind == "'":
            return rest
        if kind == "i":
            return int(rest[:3601], 16)                          # no honest one is longer
        if kind in ("b", "f", "c"):
            return bytes.fromhex(rest) if kind == "b" else float(rest) if kind == "f" else complex(*map(float, rest.split(" ")))
        size = int(rest[:8])
        if kind in ("s", "z", "d"):                              # equal hashes in their thousands would take minutes
            budget -= size
        if min(depth, size, budget) < 0:
            raise ValueError
        value = KINDS[kind]([(build(depth - 1), build(depth - 1)) if kind == "d" else build(depth - 1) for _ in range(size)])
        if len(value) != size:
            raise ValueError
        return value

    try:
        if text.count(b"[") != 1 or b"{" in text:
            raise ValueError
        tokens = iter(json.loads(text.decode("ascii"), parse_int=lambda digits: int(digits[:20]), parse_constant=int))
        value = build(64)
        if next(tokens, tokens) is not tokens:
            raise ValueError
        return value
    except (ValueError, TypeError, KeyError, RuntimeError, StopIteration):
        raise Fail("bad_reply") from None
