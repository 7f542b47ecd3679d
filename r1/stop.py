"""How a script ends: a signal finishes the step and saves, an error that a user can mend is one sentence."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable

from r1.types import UserError

wanted = 0          # the signal that has asked this process to stop
patient = False     # inside a training step: it is finished and saved first


class Stopped(BaseException):
    """A signal asked to stop, and everything is saved that should be."""


def first() -> bool:
    """Whether this is the one of torchrun's processes that speaks where all would say the same."""
    return os.environ.get("RANK", "0") == "0"


def ends(work: Callable[[], None]) -> int:
    """Run `work` to the script's exit status: 0, 2 for a mistake or a full disk, 130 and 143 for SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:             # a shell's "&" and nohup mean it
            signal.signal(number, _asked)
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))     # closed: a progress bar would end on it
    try:
        work()
    except UserError as e:
        if not first():                                            # rank 0 says the same, and torchrun then ends the others
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(10)
        say(f"error: {e}", sys.stderr)
        return 2
    except Stopped:
        command = "" if "RANK" in os.environ else f": python {shlex.join(sys.argv)}"
        tell(f"\nstopped; the same command continues{command}", sys.stderr)
        return 128 + wanted
    return 0


def _asked(number: int, frame) -> None:
    global wanted
    if wanted:
        os._exit(128 + number)
    wanted = number
    if not patient:
        raise Stopped
    tell("\nstopping after this step; once more leaves at once", sys.stderr)


def tell(text: str, where=None) -> None:
    """`say`, where all of torchrun's processes would say the same."""
    if first():
        say(text, where)


def say(text: str, where=None) -> None:
    """Print a line, also where nobody reads any more (`| head`) or the disk is full: a run does not end for that."""
    where = where or sys.stdout
    try:
        print(text, file=where, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), where.fileno())
