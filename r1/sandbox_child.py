"""Inside the sandbox: gives up every right, then runs a program it does not trust and answers calls to it.

Started as a script by sandbox.py; argv: the control socket's number, the parent's process id. Everything after `ready` is lost
ground: the program can do to this process what it likes, so nothing here decides a verdict and no expected output comes here.
"""
import _ctypes  # ctypes itself, and json, would double the time to start
import marshal
import os
import resource
import sys
from _json import encode_basestring_ascii as quote

# Refused system calls: name, number on x86-64, on aarch64. Landlock leaves chmod, chown, xattr and times alone; SysV and
# POSIX queues outlive a process; prctl could undo the death signal; signals, limits and priorities reach other processes.
DENIED = """fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, socket 41 198, socketpair 53 199, ptrace 101 117, kill 62 129,
tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, setpgid 109 154, setsid 112 157, prctl 157 167,
process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, process_mrelease 448 448, kcmp 312 272,
pidfd_open 434 434, pidfd_send_signal 424 424, pidfd_getfd 438 438, unshare 272 97, setns 308 268, mount 165 40, umount2 166 39,
pivot_root 155 41, chroot 161 51, move_mount 429 429, open_tree 428 428, fsopen 430 430, fsmount 432 432, mount_setattr 442 442,
bpf 321 280, perf_event_open 298 241, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, keyctl 250 219,
add_key 248 217, request_key 249 218, memfd_create 319 279, memfd_secret 447 447, userfaultfd 323 282, setrlimit 160 164,
prlimit64 302 261, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -,
fchownat 260 54, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, setxattrat 463 463, removexattr 197 14, lremovexattr 198 15,
fremovexattr 199 16, removexattrat 466 466, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, truncate 76 45,
shmget 29 194, semget 64 190, msgget 68 186, mq_open 240 180, mq_unlink 241 181, setpriority 141 140, sched_setaffinity 203 122,
sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, ioprio_set 251 30, migrate_pages 256 238,
move_pages 279 239, capset 126 91, open_by_handle_at 304 265, file_setattr 469 469"""
MACHINES = {"x86_64": (0xC000003E, 1, 56, 72, 16), "aarch64": (0xC00000B7, 2, 220, 25, 29)}   # audit, column, clone, fcntl, ioctl
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026


class Long(_ctypes._SimpleCData):
    _type_ = "l"


class Char(_ctypes._SimpleCData):
    _type_ = "c"


class Call(_ctypes.CFuncPtr):
    _flags_, _restype_ = 1, Long


def system(number: int, *args) -> int:
    """A system call; -1 is a refusal. bytes are passed as a pointer."""
    function = Call(_ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall"))
    return function(*(Long(a) if isinstance(a, int) else a for a in (number, *args)))


def words(*pairs) -> bytes:
    """A C structure, from (value, bytes) pairs."""
    return b"".join(value.to_bytes(size, "little") for value, size in pairs)


def own_folder(unshare: int, mount: int) -> bool:
    """A small file system of its own in place of the folder: it cannot fill the disk and is gone with the process."""
    uid, gid, here = os.getuid(), os.getgid(), os.getcwd()
    try:
        if system(unshare, 0x10020000) != 0:                               # namespaces of users and of mounts
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            fd = os.open("/proc/self/" + name, os.O_WRONLY)
            os.write(fd, text.encode())
            os.close(fd)
        mounted = system(mount, b"tmpfs", os.fsencode(here), b"tmpfs", 14, b"size=16m,nr_inodes=1000") == 0
        os.chdir(here)
        return mounted
    except OSError:
        return False


def landlock(readable: list, listable: list, writable: list, folders: bool) -> int:
    """Nothing of the file system but this; the version of the kernel's landlock, 0 if there is none."""
    abi = max(0, system(444, None, 0, 1))
    if not abi:
        return 0
    every = (1 << {1: 13, 2: 14}.get(abi, 15 if abi < 5 else 16)) - 1
    read, write, listing, truncate = 4, 2, 8, 1 << 14
    rules = words((every, 8), (3 if abi >= 4 else 0, 8), (3 if abi >= 6 else 0, 8))[:8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = system(444, rules, len(rules), 0)
    full = every & ~(1 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 15)       # no program, device or socket is made or run in the folder
    full &= ~(0 if folders else 1 << 7)                             # nor a tree, if it is not its own: deleting that takes long
    for paths, rights in ((readable, read | listing), (listable, listing), (writable, read | write | truncate), (["."], full)):
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            mine = rights & every if os.path.isdir(path) else rights & every & ~listing
            system(445, ruleset, 1, words((mine, 8), (fd, 4)), 0)
            os.close(fd)
    done = system(446, ruleset, 0)
    os.close(ruleset)
    return abi if done == 0 else 0


def seccomp(machine: str, numbers: dict) -> bool:
    """No new process or program, no socket, no signal, no way back: see DENIED."""
    audit, column, clone, fcntl, ioctl = MACHINES[machine]
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, audit), (6, 0, 0, KILL), (0x20, 0, 0, 0)]       # the machine, then the call's number
    if column == 1:
        code += [(0x35, 0, 1, 0x40000000), (6, 0, 0, EPERM)]                              # numbers of the x32 ABI
    for number in numbers.values():
        code += [(0x15, 0, 1, number), (6, 0, 0, EPERM)]
    code += [(0x15, 0, 1, 435), (6, 0, 0, ENOSYS)]                                        # clone3: libc then tries clone
    code += [(0x15, 0, 4, clone), (0x20, 0, 0, 16), (0x45, 1, 0, 0x10000), (6, 0, 0, EPERM), (6, 0, 0, ALLOW)]   # threads only
    for number, commands in ((fcntl, (8, 10, 15)), (ioctl, (0x8901, 0x8902, 0x5412))):    # who gets a socket's signal; typing
        code += [(0x15, 0, 2 * len(commands) + 2, number), (0x20, 0, 0, 24)]
        code += [step for c in commands for step in ((0x15, 0, 1, c), (6, 0, 0, EPERM))] + [(6, 0, 0, ALLOW)]
    code += [(6, 0, 0, ALLOW)]
    raw = b"".join(words((op, 2), (yes, 1), (no, 1), (k, 4)) for op, yes, no, k in code)
    kept = type("Filter", (_ctypes.Array,), {"_type_": Char, "_length_": len(raw)}).from_buffer_copy(raw)
    return system(numbers["prctl"], 22, 2, words((len(code), 8), (_ctypes.addressof(kept), 8)), 0, 0) == 0


def protect(parent: int, config: dict) -> list:
    """Gives up what it can; what is in force: landlock's version, seccomp, own folder, limits, death with the parent."""
    machine = os.uname().machine if sys.platform == "linux" and sys.maxsize > 1 << 32 else ""
    abi = filtered = own = dies = 0
    if machine in MACHINES:
        rows = map(str.split, DENIED.split(","))
        column = MACHINES[machine][1]
        numbers = {row[0]: int(row[column]) for row in rows if row[column] != "-"}
        prctl = numbers["prctl"]
        own = int(own_folder(numbers["unshare"], numbers["mount"]))
        system(numbers["capset"], words((0x20080522, 4), (0, 4)), bytes(24))   # root, too, is then held by permissions and limits
        dies = int(system(prctl, 1, 9, 0, 0, 0) == 0 and os.getppid() == parent)
        system(prctl, 4, 0, 0, 0, 0)                                       # not dumpable: nobody of the same user looks inside
        if system(prctl, 38, 1, 0, 0, 0) == 0:                             # no new privileges: asked for by both that follow
            abi = landlock(*config["paths"], own)
    kept = 1
    for name, value in config["limits"].items():
        try:
            which = getattr(resource, name)
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))
        except (AttributeError, OSError, ValueError):            # macOS has no limit of memory
            kept = 0
    if machine in MACHINES:
        filtered = int(seccomp(machine, numbers))
    if not filtered:                             # it counts every process of the user, so it would refuse honest threads, too
        resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
    return [abi, filtered, own, kept, dies]


def encode(x: object, out: list, depth: int = 0) -> None:
    """A flat row of JSON scalars, by exact type; a string says what follows. No bracket is ever needed within it."""
    kind = type(x)
    if depth > 60:
        raise ValueError
    if len(out) > 1 << 19 or kind is int and x.bit_length() > 14400 or kind in (str, bytes) and len(x) > 1 << 20:
        raise OverflowError                      # more than the judge will read; 14,400 bits are Python's own 4,300 digits
    if x is None or kind is bool:
        out.append({None: "null", True: "true", False: "false"}[x])
    elif kind is int:
        out.append(str(x) if -1 << 53 < x < 1 << 53 else f'"i{x:x}"')
    elif kind is float:
        out.append(repr(x) if x - x == 0 else f'"f{x!r}"')
    elif kind is str:
        out.append(quote("'" + x).replace("[", "\\u005b").replace("{", "\\u007b"))
    elif kind is bytes:
        out.append(f'"b{x.hex()}"')
    elif kind is complex:
        out.append(f'"c{x.real!r} {x.imag!r}"')
    elif issubclass(kind, dict):                 # Counter, defaultdict: their data
        out.append(f'"d{dict.__len__(x)}"')
        for pair in dict.items(x):
            encode(pair[0], out, depth + 1)
            encode(pair[1], out, depth + 1)
    else:
        out.append('"' + {list: "l", tuple: "t", set: "s", frozenset: "z"}[kind] + str(len(x)) + '"')
        for item in x:
            encode(item, out, depth + 1)


def receive(fd: int) -> object:
    """The next message of the judge: 4 bytes of length, then marshal."""
    data, need = bytearray(), 4
    while len(data) < need:
        part = os.read(fd, need - len(data))
        if not part:
            os._exit(0)
        data += part
        need = 4 + int.from_bytes(data[:4], "little")
    return marshal.loads(data[4:])


def send(fd: int, line: bytes) -> None:
    line += b"\n"
    while line:
        line = line[os.write(fd, line):]


def main() -> None:
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    send(fd, b"ready " + " ".join(map(str, protect(parent, receive(fd)))).encode())
    program, name = receive(fd)
    sys.setrecursionlimit(3000)
    sys.argv = ["program"]
    module = type(sys)(name)
    module.__dict__.update(exit=sys.exit, quit=sys.exit)          # as without -S
    sys.modules["__child__"], sys.modules[name] = sys.modules["__main__"], module
    if name == "__main__":                       # a whole program, with stdin and stdout: its exit code is all it says here
        exec(compile(program, "<program>", "exec"), module.__dict__)
        return
    nonce, = receive(fd)
    todo = lambda: exec(compile(program, "<program>", "exec"), module.__dict__)  # noqa: E731
    while True:
        try:
            value = todo()
            try:
                encode(value, out := [])
                reply = "=[" + ",".join(out) + "]"
            except OverflowError:
                reply = "#"
            except (KeyError, ValueError):       # data of a kind that is not sent
                reply = "?"
        except BaseException as e:
            reply = "!" + type(e).__name__
        send(fd, nonce + b" " + reply.encode("ascii", "replace"))
        nonce, entry, args, named = receive(fd)
        todo = lambda: module.__dict__[entry](*args, **named)  # noqa: E731


main()
