"""Where and on what a stage runs: device, threads, its folder, its steps, metrics lines, and states to continue from."""
from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from r1 import checkpoint, hub, ranks, stop, watch
from r1.config import Stage
from r1.files import append_text, digest, digests, jsonl, load_json, sync, write_text, writing
from r1.gguf import import_gguf
from r1.model import fast_bf16
from r1.optim import Several
from r1.types import UserError

GIVE_UP = 10        # steps in a row without a finite gradient


@dataclass
class Folder:
    """One stage of one run: `root`/`name`, and what it may know of the run."""

    root: Path
    name: str
    seed: int
    device: str
    templates: dict[str, str]
    evaluated: set[str] = field(default_factory=set, repr=False)     # runs of words in the problems that are evaluated: not trained on
    shown: list[str] = field(default_factory=list)              # where metrics are shown as they come: the config's `log`
    watchers: list[Callable[[dict], None]] = field(default_factory=list, repr=False)
    began: float = field(default_factory=time.perf_counter)     # moved back by what an interrupted run has spent
    saving: float = 0.0                                         # seconds in it
    models: dict[str, nn.Module] = field(default_factory=dict)  # what a state is of
    optimizer: torch.optim.Optimizer | Several | None = None
    bar: tqdm | None = None                                     # of the steps
    skipped: int = 0                                            # steps in a row whose gradient was not finite

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def model(self) -> Path:
        return self.path / "model"

    def snapshot(self, step: int) -> Folder:
        """Of the model after so many steps."""
        return Folder(self.root, f"{self.name}/step{step}", self.seed, self.device, self.templates)

    def snapshots(self) -> list[Folder]:
        found = ranks.lead(lambda: sorted(int(p.name[4:]) for p in self.path.glob("step*") if (p / "model").is_dir()))
        return [self.snapshot(step) for step in found]

    def find_model(self, init: str, weights: bool = True) -> Path:
        """The model of an earlier stage by its name, else a folder on disk, else an id of the hub, else what a GGUF file holds: FILE.gguf,
        or package:NAME for the one in an installed package. It is imported once per run."""
        ranks.at("finding the model", self.name)
        return ranks.lead(lambda: self._find_model(init, weights))

    def _find_model(self, init: str, weights: bool) -> Path:
        stage = self.root / init / "model"
        if stage.is_dir():
            for name, written in load_json(self.root / init / "done.json").get("sha256", {}).items():
                if not (stage / name).is_file() or digest(stage / name) != written:
                    raise UserError(f"{stage / name} is not as the stage {init} wrote it; put it back from a copy, or delete "
                                    f"{self.root / init} to train it again")
            return stage
        if Path(init).is_dir():
            return Path(init)
        if hub.is_id(init) and init.split("/")[0] not in {p.name for p in self.root.glob("*")}:
            return hub.fetch_model(init, weights)
        if init.startswith("package:") or init.endswith(".gguf"):
            name = init.removeprefix("package:") if init.startswith("package:") else (
                f"{Path(init).stem}-{hashlib.sha256(os.path.realpath(init).encode()).hexdigest()[:8]}")
            imported = self.root / "imported" / name
            return imported if imported.is_dir() else import_gguf(init, imported)
        raise UserError(f"{self.name} starts from {init!r}: no stage of {self.root} has made it, and no such folder exists")

    def bf16(self, wanted: bool) -> bool:
        """Whether products run in bfloat16: where the config wants it and every rank has instructions for it."""
        return wanted and all(ranks.together(lambda: fast_bf16(self.device)))

    def template(self, name: str) -> str | None:
        """The text of a named template; None stands for the model's own chat template."""
        return None if name == "chat" else self.templates[name]

    def write(self, name: str, text: str) -> None:
        """A whole file of the stage."""
        ranks.lead(lambda: write_text(self.path / name, text))

    def log(self, **metrics) -> None:
        """Append one line to metrics.jsonl. Raises UserError when step after step is skipped."""
        line = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}
        ranks.lead(lambda: append_text(self.path / "metrics.jsonl", jsonl([line])))
        for show in self.watchers:
            show(line)
        self.skipped = self.skipped + 1 if metrics.get("skipped") == 1 else 0
        if self.skipped == GIVE_UP:
            raise UserError(f"{self.name}: the gradient was not finite in {GIVE_UP} steps in a row, the last was step {metrics['step']}; "
                            f"the weights are those of before. Start the stage again with a lower learning rate")

    def log_samples(self, rows: list[dict]) -> None:
        ranks.lead(lambda: append_text(self.path / "samples.jsonl", jsonl(rows)))

    def steps(self, cfg: Stage, done: int, total: int) -> Iterator[int]:
        """The steps from `done` on. After each, the state is saved if it is time, or if a signal asks to stop."""
        stop.patient, saved = True, time.monotonic()
        self.bar = tqdm(range(done, total), desc=self.name, initial=done, total=total, disable=ranks.rank() > 0 or None)
        try:
            for step in self.bar:
                ranks.at("the beginning", f"{self.name} step {step}")
                yield step
                due = (step + 1) % cfg.save_every == 0 or time.monotonic() - saved > 60 * cfg.save_minutes
                asked, due = map(max, zip(*ranks.together(lambda: (stop.wanted, due and step + 1 < total))))
                if asked or due:
                    self.save(step + 1)
                    saved = time.monotonic()
                if asked:
                    break
            stop.patient = False
            stop.wanted = max(ranks.together(lambda: stop.wanted))           # also one that came after the last step
            if stop.wanted:
                raise stop.Stopped
        finally:
            stop.patient = False

    def save(self, step: int) -> None:
        """State after `step` steps: what `resume` was given. Random numbers derive from the step."""
        ranks.at("saving")
        began = time.perf_counter()
        tensors = {f"{which}.{n}": ranks.local(p.detach()) for which, model in self.models.items() for n, p in model.named_parameters()}
        tensors |= checkpoint.optimizer_tensors(self.models["model"], self.optimizer)
        for name in ("metrics.jsonl", "samples.jsonl"):            # no state may be ahead of its log when the power fails
            if ranks.rank() == 0 and (self.path / name).is_file():
                sync(self.path / name)
        meta = {"seconds": time.perf_counter() - self.began, "saving": self.saving, "made_on": {**hardware(), "ranks": ranks.world()}}
        checkpoint.save_state(self.path / "state", step, tensors, meta)
        self.saving += time.perf_counter() - began

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer | Several, reference: nn.Module | None = None) -> int:
        """Steps done: 0 at a fresh start, else those of the newest whole state, which is put back into what is given.

        Metrics and samples are cut back to that step, so that no step stands twice."""
        self.models, self.optimizer = {"model": model} | ({"reference": reference} if reference else {}), optimizer
        ranks.at("loading the state", self.name)
        step, tensors, meta = checkpoint.load_state(self.path / "state") or (0, {}, {})
        self.began, self.saving = self.began - meta.get("seconds", 0.0), meta.get("saving", 0.0)
        self.start_logs(step)
        if not step:
            return 0
        with torch.no_grad():
            for which, each in self.models.items():
                for n, p in each.named_parameters():
                    ranks.local(p).copy_(tensors[f"{which}.{n}"])
        checkpoint.load_optimizer(model, optimizer, tensors)
        now, then = {**hardware(), "ranks": ranks.world()}, meta.get("made_on", {})
        other = [f"{k} {then.get(k)} -> {now[k]}" for k in ("torch", "threads", "gpu", "bf16", "ranks") if now[k] != then.get(k, now[k])]
        if other:
            stop.tell(f"note: {self.name} goes on with {', '.join(other)}: right, but not to the same bits", sys.stderr)
        return step

    def remember(self, name: str, work: Callable[[], Any], setting: Any = None) -> Any:
        """work(), or its result (JSON) if it is there already, from a run that was broken off, with the same `setting`."""
        file = self.path / "state" / f"{name}.json"
        found = ranks.lead(lambda: _recall(file, setting))
        if not found:
            found = [work()]
            text = json.dumps([setting, found])
            ranks.lead(lambda: write_text(file, hashlib.sha256(text.encode()).hexdigest() + "\n" + text))
        return found[0]

    def start_logs(self, step: int) -> None:
        """Cut metrics and samples back to what was before `step`."""
        ranks.lead(lambda: [_cut(self.path / name, step) for name in ("metrics.jsonl", "samples.jsonl")])
        ranks.lead(lambda: self.watchers.extend(watch.SHOW[name](self.path, step) for name in self.shown))

    def clear(self) -> None:
        """Remove what only a broken-off run needs: it is three times the model's size."""
        ranks.lead(lambda: shutil.rmtree(self.path / "state", ignore_errors=True))

    def finish(self) -> float:
        """Write done.json: the seconds it took, of those in saving, and what the weights are. Returns the seconds."""
        seconds = time.perf_counter() - self.began
        self.write("done.json", json.dumps({"seconds": round(seconds, 1), "saving": round(self.saving, 2), **hardware(),
                                            "ranks": ranks.world(), "sha256": ranks.lead(lambda: digests(self.model))}))
        self.clear()
        return seconds

    def save_model(self, model: nn.Module, tokenizer, eos: list[int]) -> None:
        """The stage's result."""
        ranks.at("saving the model", self.name)
        checkpoint.save_model(self.model, model, tokenizer, eos, eos[0])

    def done(self) -> bool:
        return ranks.lead((self.path / "done.json").is_file)


def _recall(file: Path, setting: Any) -> list | None:
    if not file.is_file():
        return None
    digest, _, text = file.read_bytes().partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        stop.say(f"warning: {file} is damaged; it is made again", sys.stderr)
        return None
    then, found = json.loads(text)
    return found if then == setting else None


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """`root` is this run's alone meanwhile; UserError names the process that has it. The system lets go of the lock
    with the process, however it ends, so that a lock file left behind is of no account."""
    held = []
    ranks.lead(lambda: held.append(_lock(root / "lock")))
    try:
        yield
    finally:
        for file in held:
            file.close()


def _lock(path: Path):
    with writing(path, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(f"{path.parent} is in use by {file.read().strip() or 'another process'}; wait for its end or take another "
                        f"out=DIR") from None
    except (ImportError, OSError):                                 # a system or a file system without locks
        return file
    with suppress(OSError):                                        # on a full disk the lock holds too
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _cut(file: Path, step: int) -> None:
    """Keep the lines of steps before `step`; a half-written last line goes too."""
    if not file.is_file():
        return
    kept = []
    with file.open("rb") as f:                         # bytes: it may break off within a letter, and U+2028 ends no line
        for line in f:
            with suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] < step:
                    kept.append(line.decode())
    write_text(file, "".join(kept))


def pick_device(wanted: str) -> str:
    """"auto" takes a CUDA GPU, else the CPU. Raises UserError for a device that is not there."""
    keep_freed_memory()
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device {wanted!r} cannot be used here: {str(e).splitlines()[0]}") from e
    return wanted


def keep_freed_memory() -> None:
    """glibc gives every large tensor's memory back to the kernel, which then clears it page by page for the next one: a quarter of
    a training step on a CPU. Elsewhere than on glibc nothing happens."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)                  # M_MMAP_MAX: no mappings of their own
        libc.mallopt(-1, -1)                 # M_TRIM_THRESHOLD: what is free at the end stays


def hardware() -> dict:
    """What the figures of a run were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu, "bf16": fast_bf16("cuda" if gpu else "cpu"), "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d")}
