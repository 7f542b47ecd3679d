"""Where and on what a stage runs: device, threads, its folder, metrics lines, and states to continue from."""
from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from r1 import checkpoint
from r1.files import write_text
from r1.gguf import import_gguf
from r1.optim import Pair
from r1.types import UserError


@dataclass
class Folder:
    """One stage of one run: `root`/`name`, and what it may know of the run."""

    root: Path
    name: str
    seed: int
    device: str
    templates: dict[str, str]
    began: float = field(default_factory=time.perf_counter)     # moved back by what an interrupted run has spent

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def model(self) -> Path:
        return self.path / "model"

    def find_model(self, init: str) -> Path:
        """The model of an earlier stage by its name, else a folder on disk, else what a GGUF file holds: FILE.gguf, or
        package:NAME for the one in an installed package. It is imported once per run."""
        stage = self.root / init / "model"
        if stage.is_dir():
            return stage
        if Path(init).is_dir():
            return Path(init)
        if init.startswith("package:") or init.endswith(".gguf"):
            name = init.removeprefix("package:") if init.startswith("package:") else (
                f"{Path(init).stem}-{hashlib.sha256(os.path.realpath(init).encode()).hexdigest()[:8]}")
            imported = self.root / "imported" / name
            return imported if imported.is_dir() else import_gguf(init, imported)
        raise UserError(f"{self.name} starts from {init!r}: no stage of {self.root} has made it, and no such folder exists")

    def template(self, name: str) -> str | None:
        """The text of a named template; None stands for the model's own chat template."""
        return None if name == "chat" else self.templates[name]

    def log(self, **metrics) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as f:
            f.write(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()}) + "\n")

    def log_samples(self, rows: list[dict]) -> None:
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | Pair, more: dict[str, Tensor] = {}) -> None:
        """State after `step` steps: weights, optimiser and `more` tensors. Random numbers derive from the step."""
        tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
        for part, names in _parts(model, optimizer):
            tensors |= {f"optim.{k}": v for k, v in checkpoint.optimizer_tensors(part, names).items()}
        checkpoint.save_state(self.path / "state", step, tensors | {f"more.{k}": v for k, v in more.items()},
                              {"seconds": time.perf_counter() - self.began})

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer | Pair) -> tuple[int, dict[str, Tensor]]:
        """Steps done and the `more` tensors of the newest whole state; (0, {}) at a fresh start.

        Metrics and samples are cut back to that step, so that no step stands twice."""
        found = checkpoint.load_state(self.path / "state")
        step, tensors, meta = found if found else (0, {}, {})
        self.began -= meta.get("seconds", 0.0)
        for name in ("metrics.jsonl", "samples.jsonl"):
            _cut(self.path / name, step)
        if not found:
            return 0, {}
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(tensors[f"model.{n}"])
        below = lambda head: {k[len(head):]: v for k, v in tensors.items() if k.startswith(head)}  # noqa: E731
        for part, names in _parts(model, optimizer):
            checkpoint.load_optimizer(part, names, below("optim."))
        return step, below("more.")


def _parts(model: nn.Module, optimizer: torch.optim.Optimizer | Pair) -> list[tuple[torch.optim.Optimizer, list[str]]]:
    """Each optimiser with the names of its parameters, in its own order."""
    name_of = {id(p): n for n, p in model.named_parameters()}
    return [(o, [name_of[id(p)] for group in o.param_groups for p in group["params"]])
            for o in getattr(optimizer, "parts", (optimizer,))]


def _cut(file: Path, step: int) -> None:
    """Keep the lines of steps before `step`; a half-written last line goes too."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    write_text(file, "".join(kept))


def pick_device(wanted: str) -> str:
    """"auto" takes a CUDA GPU, else the CPU. Raises UserError for a device that is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device {wanted!r} cannot be used here: {str(e).splitlines()[0]}") from e
    return wanted


def hardware() -> dict:
    """What the figures of a run were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d")}
