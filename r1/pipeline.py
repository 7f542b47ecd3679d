"""The list of stages: run what is not done, evaluate what was trained, write down what came out."""
from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import yaml

from r1 import config as cfgs
from r1.evaluate import evaluate
from r1.grpo import grpo
from r1.reject import reject
from r1.report import write_report
from r1.runtime import Folder, hardware, pick_device
from r1.supervised import pretrain, sft
from r1.types import UserError

STAGES = {"pretrain": pretrain, "sft": sft, "grpo": grpo, "reject": reject}


def run(cfg: cfgs.Config, only: str = "") -> None:
    """Run the stages in order; those that are done are skipped. Raises UserError for what the user can mend."""
    if only and only not in [s.name for s in cfg.stages]:
        raise UserError(f"no stage {only!r}; there are {', '.join(s.name for s in cfg.stages)}")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device, root = pick_device(cfg.device), Path(cfg.out)
    refuse_changes(cfg, root)
    for stage in cfg.stages:
        if only and stage.name != only:
            continue
        folder = Folder(root, stage.name, cfg.seed, device, cfg.templates)
        if not is_done(root, stage.name):
            run_stage(stage, folder)
        if folder.model.is_dir() and cfg.evaluate.domains and not (folder.path / "eval.json").is_file():
            result = evaluate(cfg.evaluate, folder, getattr(stage, "template", "zero" if "zero" in cfg.templates else "chat"))
            print(f"{stage.name}: " + "; ".join(
                f"{domain} {result[domain]['pass@1']:.1%} +- {result[domain]['se']:.1%}, length {result[domain]['length']:.0f}, "
                f"language {result[domain]['language']:.2f}" for domain in cfg.evaluate.domains))
        write_results(cfg, root)
        write_report(root)
    print(f"Report: {root / 'report.html'}")


def run_stage(stage: cfgs.Stage, folder: Folder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "config.yaml").write_text(yaml.safe_dump(settings(stage, folder), sort_keys=False, allow_unicode=True))
    began = time.perf_counter()
    STAGES[stage.kind](stage, folder)
    seconds = time.perf_counter() - began
    (folder.path / "done.json").write_text(json.dumps({"seconds": round(seconds, 1), **hardware()}))
    print(f"{stage.name}: done in {seconds:.0f} s")


def settings(stage: cfgs.Stage, folder: Folder) -> dict:
    """What decides a stage's result."""
    return {**cfgs.to_dict(stage), "seed": folder.seed, "templates": folder.templates}


FREE = ("save_every", "optim.micro_tokens", "sample.max_rows")     # these change cost, never the result


def refuse_changes(cfg: cfgs.Config, root: Path) -> None:
    """A stage that is done or half done keeps its config: changed keys are refused by name."""
    for stage in cfg.stages:
        file = root / stage.name / "config.yaml"
        if not file.is_file():
            continue
        folder = Folder(root, stage.name, cfg.seed, "", cfg.templates)
        old, new = _flat(yaml.safe_load(file.read_text()) or {}), _flat(settings(stage, folder))
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in FREE]
        if changed:
            what = ", ".join(f"{k} ({old.get(k)!r} -> {new.get(k)!r})" for k in changed[:5])
            raise UserError(f"{root / stage.name} was made with another config: {what}; take another out=DIR, or delete "
                            f"that folder and those of the stages after it")


def _flat(tree, head: str = "") -> dict:
    if not isinstance(tree, dict) or not tree:
        return {head: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{head}.{key}" if head else str(key)).items()}


def is_done(root: Path, name: str) -> bool:
    return (root / name / "done.json").is_file()


def list_stages(cfg: cfgs.Config) -> None:
    for s in cfg.stages:
        print(f"{'done' if is_done(Path(cfg.out), s.name) else '    '}  {s.name:12} {s.kind:9} {'from ' + s.init if s.init else ''}")


def write_results(cfg: cfgs.Config, root: Path) -> None:
    """results.json: every stage's evaluation and time, in order."""
    out = {"seed": cfg.seed, "hardware": hardware(), "stages": []}
    for s in cfg.stages:
        entry = {"name": s.name, "kind": s.kind, "init": s.init}
        for key, file in (("done", "done.json"), ("eval", "eval.json")):
            path = root / s.name / file
            if path.is_file():
                entry[key] = json.loads(path.read_text())
        if "done" in entry:
            out["stages"].append(entry)
    aside = root / "results.json.tmp"
    aside.write_text(json.dumps(out, indent=1, ensure_ascii=False))
    aside.replace(root / "results.json")
