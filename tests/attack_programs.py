"""Programs that try to pass without solving, to get out, or to harm the judge. Each fails; a pass would mean that it worked.

FUNCTION is judged as f(a, b) = a + b, STDIN as a program that reads two numbers and prints their sum and then their product.
HARMLESS looks odd and is right. GOLD and STDIN_GOLD are small golds for them.
"""
GOLD = {"entry": "f", "calls": [[[2, 3], 5], [[10, -4], 6], [[0, 0], 0]]}
CHECK_GOLD = {"entry": "f", "check": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(10, -4) == 6\n"}
STDIN_GOLD = {"stdin": [["2 3\n", "5\n6\n"], ["10 -4\n", "6\n-40\n"]]}


def first(action: str, before: str = "import ctypes, os, sys\nlibc = ctypes.CDLL(None)") -> str:
    """The right answer, if only the action comes off."""
    return f"{before}\ndef f(a, b):\n" + "".join(f"    {line}\n" for line in action.splitlines()) + "    return a + b\n"


def spoken(payload: str) -> str:
    """Finds the number of the request in the frames and answers with bytes of its own."""
    return ("import os, sys, time\ndef f(a, b):\n    frame = sys._getframe()\n    while 'nonce' not in frame.f_locals:\n"
            "        frame = frame.f_back\n    line, nonce = frame.f_locals['fd'], frame.f_locals['nonce']\n"
            f"    data = nonce + b' ' + {payload}\n    while data:\n        data = data[os.write(line, data):]\n    time.sleep(9)\n")


EQUAL = "    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __hash__(self): return 0\n"
VERDICT = {
    "exit at import": "import sys\nsys.exit(0)",
    "SystemExit inside": "def f(a, b): raise SystemExit(0)",
    "_exit at import": "import os\nos._exit(0)",
    "_exit inside": "import os\ndef f(a, b): os._exit(0)",
    "always equal": f"class A:\n{EQUAL}def f(a, b): return A()",
    "int that is always equal": f"class A(int):\n{EQUAL}def f(a, b): return A(7)",
    "list that is always equal": f"class A(list):\n{EQUAL}def f(a, b): return A([7])",
    "dict that is always equal": f"class A(dict):\n{EQUAL}def f(a, b): return A()",
    "settrace replaces check": "import sys\ndef t(frame, event, arg):\n    for name in ('check', 'candidate', 'same'):\n"
                               "        frame.f_globals[name] = lambda *a: True\n    return t\nsys.settrace(t)\ndef f(a, b): return None",
    "settrace exits": "import os, sys\ndef t(frame, event, arg):\n    if frame.f_code.co_name == 'check': os._exit(0)\n"
                      "    return t\nsys.settrace(t)\ndef f(a, b): return None",
    "frames for a result list": "import sys\ndef f(a, b):\n    frame = sys._getframe()\n    while frame:\n"
                                "        for v in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
                                "            if type(v) is list: v.append('passed')\n        frame = frame.f_back",
    "gc for a result list": "import gc\ndef f(a, b):\n    for o in gc.get_objects():\n        if hasattr(o, 'append'):\n"
                            "            try: o.append('passed')\n            except Exception: pass",
    "frames for the tests": "import sys\ndef f(a, b):\n    frame = sys._getframe()\n    while frame:\n        text = repr(frame.f_locals)\n"
                            "        if 'candidate' + '(' in text or '10,' + ' -4' in text: return a + b\n        frame = frame.f_back",
    "gc for the tests": "import gc\ndef f(a, b):\n    if any(type(o) is dict and ('calls' in o or 'expected' in o) for o in gc.get_objects()): return a + b",
    "tests from cmdline": "def f(a, b): return a + b if 'calls' in open('/proc/self/cmdline').read() else None",
    "tests from argv": "import sys\ndef f(a, b): return a + b if 'calls' in str(sys.orig_argv) else None",
    "excepthook exits": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(a, b): raise ValueError",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(a, b): return None",
    "pass marker": "print('passed', 'OK', 'All tests passed', flush=True)\ndef f(a, b): print('passed')",
    "patched encoder": "import sys\nm = sys.modules.get('__child__')\nif m: m.encode = lambda v, out, depth=0: out.append('true')\ndef f(a, b): return None",
    "one right of three": "seen = []\ndef f(a, b):\n    seen.append(1)\n    return 5 if len(seen) == 1 else None",
    "a bool for a number": "def f(a, b): return a + b if a + b else False",
    "no function": "g = 1",
    "not callable": "f = 5",
    "syntax": "def f(a, b: return",
    "NUL": "def f(a, b): return a + b\0",
    "lone surrogate": "def f(a, b): return a + b\nx = '\ud800'",
    "surrogate for an answer": "def f(a, b): return '\\ud800'",
    "too long": "def f(a, b): return a + b\n" + "#" * (1 << 16),
    "an object": "def f(a, b): return object()",
    "itself": "def f(a, b):\n    x = []\n    x.append(x)\n    return x",
}

PROCESS = {
    "daemon by posix_spawn": first("os.posix_spawn('/bin/sleep', ['sleep', '31.4159'], {})"),
    "subprocess": first("import subprocess\nsubprocess.Popen(['/bin/sleep', '31.4159'])"),
    "execv": first("os.execv('/bin/true', ['true'])"),
    "fork": first("if os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(31)"),
    "posix.fork after os.fork = None": first("os.fork = None\nimport posix\nif posix.fork() == 0:\n    import time\n    time.sleep(31)"),
    "fork by ctypes": first("pid = libc.fork()\nassert pid >= 0\nif pid == 0:\n    import time\n    time.sleep(31)"),
    "clone": first("assert libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 17, 0, 0, 0, 0) > 0"),
    "clone3": first("a = (ctypes.c_uint64 * 11)()\na[4] = 17\nassert libc.syscall(435, a, 88) > 0"),
    "vfork": first("assert libc.syscall(58, 0) > 0 and os.uname().machine == 'x86_64'"),
    "x32 numbers": first("assert libc.syscall(0x40000000 + 57) > 0"),
    "own session": first("os.setsid()"),
    "own group": first("os.setpgid(0, 0)"),
    "write outside": first("open('../r1-attack', 'w').write('x')"),
    "write by a link": first("if not os.path.lexists('l'): os.symlink('../r1-attack', 'l')\nopen('l', 'w').write('x')"),
    "hard link out": first("os.link(os.__file__, 'copy')\nos.rename('copy', '../r1-attack')"),
    "folder outside": first("os.makedirs('../r1-attack', exist_ok=True)"),
    "truncate outside": first("os.truncate(os.__file__, os.path.getsize(os.__file__))"),
    "chmod outside": first("os.chmod('..', os.stat('..').st_mode)"),
    "times outside": first("os.utime('..')"),
    "xattr outside": first("os.setxattr('..', 'user.r1', b'x')"),
    "list the root": first("os.listdir('/')"),
    "read a file": first("open('/etc/passwd').read()"),
    "read the data set": first("import glob, sysconfig\npath = DATA\nopen(path, 'rb').read()"),
    "read installed packages": first("import sysconfig\nfolder = sysconfig.get_paths()['purelib']\n"
                                     "open(folder + '/README.txt')\nopen(os.path.join(folder, os.listdir(folder)[0], '__init__.py'))"),
    "socket": first("import socket\nsocket.socket()"),
    "socketpair": first("import socket\nsocket.socketpair()"),
    "own limits raised": first("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))"),
    "limits of the judge": first("import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE)"),
    "signal the judge": first("os.kill(os.getppid(), 0)"),
    "signal by queue": first("assert libc.syscall(129 if os.uname().machine == 'x86_64' else 138, os.getppid(), 0, bytes(128)) == 0"),
    "signal by thread": first("assert libc.syscall(234 if os.uname().machine == 'x86_64' else 131, os.getppid(), os.getppid(), 0) == 0"),
    "signal by pidfd": first("os.pidfd_open(os.getppid())"),
    "signal by a socket's owner": first("import fcntl\nfor fd in range(3, 64):\n    try: os.fstat(fd)\n    except OSError: continue\n"
                                        "    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid())"),
    "signal by ioctl": first("import fcntl\nfor fd in range(3, 64):\n    try: os.fstat(fd)\n    except OSError: continue\n"
                             "    fcntl.ioctl(fd, 0x8901, os.getppid().to_bytes(4, 'little'))"),
    "slow the judge": first("os.setpriority(os.PRIO_PROCESS, os.getppid(), 0)"),
    "cores of the judge": first("os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))"),
    "no death signal": first("assert libc.prctl(1, 0, 0, 0, 0) == 0"),
    "memory of the judge": first("open(f'/proc/{os.getppid()}/mem', 'rb').read(0)"),
    "memory by a call": first("b = ctypes.create_string_buffer(8)\nv = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)\n"
                              "assert libc.syscall(310 if os.uname().machine == 'x86_64' else 270, os.getppid(), v, 1, v, 1, 0) >= 0 or "
                              "ctypes.get_errno() not in (0, 1)"),
    "ptrace": first("assert libc.ptrace(0x4206, os.getppid(), 0, 0) == 0"),
    "environ of the judge": first("open(f'/proc/{os.getppid()}/environ', 'rb').read()"),
    "cmdline of the judge": first("open(f'/proc/{os.getppid()}/cmdline', 'rb').read()"),
    "files of the judge": first("os.listdir(f'/proc/{os.getppid()}/fd')"),
    "shared memory": first("assert libc.shmget(0x7231, 4096, 0o1600) >= 0"),
    "shared memory by name": first("os.close(os.open('/dev/shm/r1-attack', os.O_CREAT | os.O_RDWR))"),
    "memfd": first("os.memfd_create('x')"),
    "namespace": first("assert libc.unshare(0x10000000) == 0"),
    "io_uring": first("assert libc.syscall(425, 4, bytearray(256) and ctypes.create_string_buffer(256)) >= 0"),
    "landlock off": first("assert libc.syscall(317 if os.uname().machine == 'x86_64' else 277, 1, 0, None) == 0"),
    "device": first("os.mknod('null', 0o20666, os.makedev(1, 3))"),
    "garbage on every fd": "import os\nfor fd in range(1, 64):\n    try: os.write(fd, bytes(range(256)) * 40)\n    except OSError: pass\n"
                           "def f(a, b): return None",
    "replies on every fd": "import os\nfor fd in range(1, 64):\n    try: os.write(fd, b'0123456789abcdef =[5]\\n' * 9)\n"
                           "    except OSError: pass\ndef f(a, b): return None",
    "ready again": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'ready 7 1 1 1 1\\n')\n    except OSError: pass\n"
                   "def f(a, b): return a + b",
    "50 MB reply": "def f(a, b): return 'x' * 50_000_000",
    "a million numbers": "def f(a, b): return list(range(1_000_000))",
    "100 000 deep": "def f(a, b):\n    x = []\n    for _ in range(100_000): x = [x]\n    return x",
    "a set of ten thousand": "def f(a, b): return set(range(10_000))",
    "a power": "def f(a, b): return 9 ** 9 ** 9",
    "a smaller power": "def f(a, b): return 9 ** 9 ** 8",
    "a number of 20 000 digits": "def f(a, b): return 10 ** 20_000",
    "4 GB": first("x = bytearray(4 << 30)"),
    "600 MB": first("x = bytearray(600 << 20)"),
    "4 GB in pieces": "def f(a, b):\n    x = []\n    while True: x.append(bytearray(1 << 20))",
    "stdout flood": "def f(a, b):\n    while True: print('x' * 1_000_000)",
    "40 MB file": first("open('big', 'wb').write(bytes(40 << 20))"),
    "a growing file": first("with open('big', 'wb', 0) as file:\n    for _ in range(40): assert file.write(bytes(1 << 20)) == 1 << 20"),
    "fills the disk": "import os\nfor i in range(40):\n    with open(str(i), 'wb', 0) as file:\n        if file.write(bytes(1 << 20)) < 1 << 20: break\n"
                      "else:\n    def f(a, b): return a + b",
    "many files": "for i in range(5000): open(str(i), 'w').close()\ndef f(a, b): return a + b",
    "open files": first("keep = [open(f'{i}', 'w') for i in range(200)]"),
    "a deep tree": "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\ndef f(a, b): return None",
    "a shut folder": "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.mkdir('shut', 0)\nos.mkdir('half', 0o300)\n"
                     "open('half/x', 'w').close()\nos.mkdir('half/y', 0)\ndef f(a, b): return None",
    "swallows everything": "def f(a, b):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "ignores signals": "import signal\nfor s in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGXCPU): signal.signal(s, signal.SIG_IGN)\n"
                       "def f(a, b):\n    while True: pass",
    "sleeps": "import time\ndef f(a, b): time.sleep(1000)",
    "hangs at import": "while True: pass",
    "closes all": "import os\nos.closerange(0, 64)\ndef f(a, b): return a + b",
    "deep recursion": "def f(a, b): return f(a, b)",
    "boundless recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __getattr__(self, n): return getattr(self, n + 'x')\n"
                           "def f(a, b): return A().x",
    "left-over thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(a, b): return None",
    "many threads": "import threading, time\nfor _ in range(1000): threading.Thread(target=time.sleep, args=(60,)).start()\ndef f(a, b): return None",
    "kills itself": "import ctypes\ndef f(a, b): ctypes.string_at(0)",
    "abort": "import os\ndef f(a, b): os.abort()",
    "ends its reader": "import os\ndef f(a, b):\n    os.close(int(__import__('sys')._getframe(2).f_locals['fd']))\n    return a + b",
    "nonce, then depth": spoken("b'=' + b'[' * 500_000 + b'\\n'"),
    "nonce, then braces": spoken("b'=[' + b'{\"a\":' * 100_000 + b'\\n'"),
    "nonce, then nan": spoken("b'=[NaN]\\n'"),
    "nonce, then a long number": spoken("b'=[' + b'9' * 900_000 + b']\\n'"),
    "nonce, then a false size": spoken("b'=[\"l9999999\"]\\n'"),
    "nonce, then a negative size": spoken("b'=[\"l-5\"]\\n'"),
    "nonce, then equal keys": spoken("b'=[\"d2\",1,1,1,1]\\n'"),
    "nonce, then equal hashes": spoken("b'=[\"s5000\",' + b','.join(b'\"i%x\"' % (i * (2 ** 61 - 1)) for i in range(5000)) + b']\\n'"),
    "nonce, then a list as key": spoken("b'=[\"d1\",\"l0\",1]\\n'"),
    "nonce, then two values": spoken("b'=[5,5]\\n'"),
    "nonce, then none": spoken("b'=[]\\n'"),
    "nonce, then no JSON": spoken("b'=\\xff\\xfe[5]\\n'"),
    "nonce, then two replies": spoken("b'=[5]\\n' * 2"),
    "nonce, then half a line": spoken("b'=[5]'"),
    "nonce, then no end": spoken("b'=' + b' ' * 50_000_000"),
    "nonce, then a long error": spoken("b'!' + b'E' * 900_000 + b'\\n'"),
    "drop by drop": "import os\ndef f(a, b):\n    while True: os.write(__import__('sys')._getframe(2).f_locals['fd'], b'x')",
}
FUNCTION = VERDICT | PROCESS

STDIN = {
    "nothing": "pass",
    "exits with 0": "import sys\nsys.exit(0)",
    "only the first line": "a, b = map(int, input().split())\nprint(a + b)",
    "one line more": "a, b = map(int, input().split())\nprint(a + b, a * b, 1, sep='\\n')",
    "a blank line between": "a, b = map(int, input().split())\nprint(a + b, a * b, sep='\\n\\n')",
    "right, exit code 1": "import sys\na, b = map(int, input().split())\nprint(a + b, a * b, sep='\\n')\nsys.exit(1)",
    "right, then raises": "a, b = map(int, input().split())\nprint(a + b, a * b, sep='\\n', flush=True)\n1 / 0",
    "right, then dies": "import ctypes\na, b = map(int, input().split())\nprint(a + b, a * b, sep='\\n', flush=True)\nctypes.string_at(0)",
    "right, then hangs": "a, b = map(int, input().split())\nprint(a + b, a * b, sep='\\n', flush=True)\nwhile True: pass",
    "right, and a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
                           "a, b = map(int, input().split())\nprint(a + b, a * b, sep='\\n', flush=True)",
    "right for the first test": "print(5, 6, sep='\\n')",
    "pass marker": "print('passed')",
    "flood": "while True: print('x' * 1_000_000)",
    "50 MB": "import os\nfor _ in range(50):\n    try: os.write(1, bytes(1 << 20))\n    except OSError: pass",
    "control": "import os\nfor fd in range(3, 64):\n    try:\n        while True: os.write(fd, b'0' * 65536)\n    except OSError: pass",
    "closes all, stays": "import os, time\nos.closerange(0, 64)\ntime.sleep(60)",
    "not UTF-8": "import os\nos.write(1, bytes(range(128, 256)))",
    "flags of stdout": "import fcntl, os\nos.write(1, b'x' * 5)\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_DIRECT | os.O_APPEND | os.O_NONBLOCK)",
    "small pipe, read slowly": "import fcntl, os, time\ntry: fcntl.fcntl(0, 1031, 4096)\nexcept OSError: pass\nos.read(0, 1)\ntime.sleep(60)",
    "fork": "import os\nos.fork()\na, b = map(int, input().split())\nprint(a + b, a * b, sep='\\n')",
    "NUL": "print(5)\0",
    "surrogate": "print('\ud800')",
}

HARMLESS = {
    "plain": "def f(a, b): return a + b",
    "stdout that is not UTF-8": "import os\nos.write(1, b'\\xff\\xfe')\ndef f(a, b): return a + b",
    "a file": "def f(a, b):\n    with open('x', 'w') as file: file.write(str(a + b))\n    with open('x') as file: return int(file.read())",
    "a folder": "import os, shutil, tempfile\ndef f(a, b):\n    os.makedirs('p/q')\n    shutil.rmtree('p')\n    return a + b",
    "prints, reads nothing": "import sys\ndef f(a, b):\n    print('debug', file=sys.stderr)\n    return sys.stdin.read() and 0 or a + b",
    "a float": "def f(a, b): return float(a + b)",
    "a thread": "from concurrent.futures import ThreadPoolExecutor\ndef f(a, b):\n    with ThreadPoolExecutor(4) as p: return p.submit(int, a + b).result()",
    "the library": "import bisect, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools, hashlib, heapq, itertools, json\n"
                   "import math, operator, random, re, statistics, string, typing, uuid, zlib, bz2, lzma\ndef f(a, b): return a + b",
    "a data class": "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
                    "def f(a, b): return A(a + b).x",
    "recursion": "def g(n): return n and g(n - 1)\ndef f(a, b): return a + b + g(2000)",
    "a main part": "def f(a, b): return a + b\nif __name__ == '__main__': 1 / 0",
    "state of its own": "import random\ncalls = 0\ndef f(a, b):\n    global calls\n    calls += 1\n    return a + b",
}
