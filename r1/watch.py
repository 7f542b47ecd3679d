"""The lines of metrics.jsonl, shown as they come: TensorBoard and Weights & Biases, each an extra package, behind the config's `log`."""

import importlib.util
import secrets
from collections.abc import Callable
from pathlib import Path

from r1.files import write_text
from r1.types import UserError


def check(names: list[str]) -> None:
    """Raises UserError for one that is not known, or whose package is not there."""
    for name in names:
        if name not in SHOW:
            raise UserError(f"log: {name!r} is not known; there are {', '.join(SHOW)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log: {name} needs `pip install {name}`")


def _numbers(line: dict) -> dict[str, float]:
    return {k: v for k, v in line.items() if isinstance(v, (int, float)) and k != "step"}


def _tensorboard(path: Path, step: int) -> Callable[[dict], None]:
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(str(path / "tensorboard"), purge_step=step)

    def show(line: dict) -> None:
        for name, value in _numbers(line).items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()
    return show


def _wandb(path: Path, step: int) -> Callable[[dict], None]:
    """A stage is a run, a run's folder their group; a stage that goes on goes on there, too."""
    import wandb
    file = path / "wandb_id"
    if not step:
        write_text(file, secrets.token_hex(4))
    run = wandb.init(project="r1", group=path.parent.name, name=path.name, id=file.read_text(), resume="allow", dir=str(path), reinit="finish_previous")
    run.define_metric("*", step_metric="step")       # its own counter cannot go back to a state
    return lambda line: run.log({"step": line["step"], **_numbers(line)})


SHOW = {"tensorboard": _tensorboard, "wandb": _wandb}       # by its package: (stage's folder, step from which on all is void) -> what takes a line
