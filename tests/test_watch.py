"""What is shown elsewhere is what stands in metrics.jsonl, also after a run that was broken off."""
import importlib.machinery
import json
import sys
import types

import pytest

from r1 import config, pipeline, watch
from r1.runtime import Folder
from r1.types import UserError


def broken_off_and_gone_on(tmp_path, where):
    """Steps 0 to 4, of which the state knows three; then 3 to 5 of another process."""
    for first, steps in ((0, range(5)), (3, range(3, 6))):
        folder = Folder(tmp_path, "zero", 0, "cpu", {}, shown=[where])
        folder.start_logs(first)
        for step in steps:
            folder.log(step=step, reward=step / 3 + first, note="a word")
    return [json.loads(line) for line in (tmp_path / "zero/metrics.jsonl").read_text().splitlines()]


def test_tensorboard(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = broken_off_and_gone_on(tmp_path, "tensorboard")
    shown = events.EventAccumulator(str(tmp_path / "zero/tensorboard"))
    shown.Reload()
    assert shown.Tags()["scalars"] == ["reward"]
    assert [(e.step, pytest.approx(e.value)) for e in shown.Scalars("reward")] == [(m["step"], m["reward"]) for m in lines]
    assert [m["step"] for m in lines] == [0, 1, 2, 3, 4, 5]


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    runs = []

    class Run:
        def __init__(self, **asked):
            self.asked, self.lines = asked, []
            runs.append(self)
            self.log, self.define_metric = self.lines.append, lambda *a, **kw: None

    fake = types.ModuleType("wandb")
    fake.init = Run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    lines = broken_off_and_gone_on(tmp_path, "wandb")
    first, then = runs
    assert first.asked["id"] == then.asked["id"] and (first.asked["name"], first.asked["group"]) == ("zero", tmp_path.name)
    numbers = [{k: v for k, v in m.items() if k != "note"} for m in lines]
    assert first.lines[:3] + then.lines == numbers


@pytest.mark.parametrize("name, there, says", [("tensorbord", True, "'tensorbord' is not known; there are tensorboard, wandb"),
                                               ("wandb", False, "wandb needs `pip install wandb`")])
def test_what_cannot_be_shown_is_said_before_the_run(tmp_path, monkeypatch, name, there, says):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda n: importlib.machinery.ModuleSpec(n, None) if there else None)
    cfg = config.parse({"out": str(tmp_path / "run"), "log": [name], "stages": [{"name": "b", "kind": "pretrain"}]}, "c.yaml")
    with pytest.raises(UserError, match=says):
        pipeline.run(cfg)
    assert not (tmp_path / "run/b").exists()
