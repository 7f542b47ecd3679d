"""The list of stages: run what is not done, evaluate what was trained, write down what came out."""

import json
import os
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from r1 import config as cfgs, evaluate as evaluation, hub, plan as memory, ranks, sandbox, stop, watch
from r1.files import load_json, write_text
from r1.grpo import grpo
from r1.hf_config import load_config
from r1.reject import reject
from r1.model import ModelConfig, fast_bf16
from r1.report import write_report
from r1.rewards import check_weights, load_reward
from r1.runtime import Folder, hardware, locked, pick_device
from r1.supervised import pretrain, sft, shape
from r1.tasks import draw, evaluated, open_sources
from r1.tokenizer import Tokenizer
from r1.types import UserError, nearest

STAGES = {"pretrain": pretrain, "sft": sft, "grpo": grpo, "reject": reject}
FREE = ("save_every", "save_minutes", "domains", *(f"optim.{key}" for key in ("micro_tokens", "recompute", "offload", "compile")),
        "sample.max_rows")      # cost, not the result but for rounding


def run(cfg: cfgs.Config, only: str = "") -> None:
    """Run the stages in order; those that are done are skipped. Raises UserError for what the user can mend, and
    Stopped after a signal, when everything is saved."""
    if only and only not in [s.name for s in cfg.stages]:
        raise UserError(f"no stage {only!r}; there are {', '.join(s.name for s in cfg.stages)}")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.sandbox == "unprotected":
        sandbox.allow_unprotected()
    device, root = pick_device(cfg.device), Path(cfg.out)
    stages = [s for s in cfg.stages if only in ("", s.name)]
    with ranks.joined(device, cfg.timeout):
        refuse_changes(cfg, root)
        watch.check(cfg.log)
        held = evaluated(list(cfg.evaluate.domains.values()))
        check_ahead(cfg, [s for s in stages if not (root / s.name / "done.json").is_file()], held)
        if any(getattr(at, "bf16", False) for at in (cfg.evaluate, *(getattr(s, "optim", s) for s in stages))) and not fast_bf16(device):
            stop.tell("note: bf16 is left out: this CPU has no instructions for it, and is faster in float32", sys.stderr)
        with locked(root):
            ranks.lead(lambda: write_results(cfg, root))
            for stage in stages:
                run_stage(cfg, stage, Folder(root, stage.name, cfg.seed, device, cfg.templates, held, cfg.log))
        stop.tell(f"Report: {root / 'report.html'}")


def show_plan(cfg: cfgs.Config) -> None:
    """What every stage takes of this device, and what to change where it does not fit."""
    if cfg.sandbox == "unprotected":
        sandbox.allow_unprotected()
    device, shapes = pick_device(cfg.device), {}
    for s in (s for s in cfg.stages if s.kind != "evaluate"):
        folder = Folder(Path(cfg.out), s.name, cfg.seed, device, cfg.templates)
        shapes[s.name] = s.kind != "pretrain" and shapes.get(s.init.partition("/step")[0]) or shape_of(s, folder, weights=False)
        tell_plan(cfg, s, shapes[s.name], folder)


def shape_of(stage: cfgs.Stage, folder: Folder, weights: bool = True) -> ModelConfig:
    return shape(stage, stage.vocab_size) if isinstance(stage, cfgs.Pretrain) else load_config(folder.find_model(stage.init, weights))


def tell_plan(cfg: cfgs.Config, stage: cfgs.Stage, m: ModelConfig, folder: Folder) -> None:
    n, prompt = max(ranks.world(), int(os.environ.get("WORLD_SIZE", 1))), prompt_tokens(stage, folder)
    about = (folder.device == "cpu", n, prompt)
    phases, free = memory.plan(stage, m, *about, cfg.evaluate), memory.available(folder.device)
    stop.tell(memory.describe(stage.name, m, phases, free))
    if memory.peak(phases) > free:
        stop.tell(f"  that is more than there is; {memory.advice(stage, m, free, *about)}")


def prompt_tokens(stage: cfgs.Stage, folder: Folder) -> int:
    """Of the longest of some prompts; where there is no tokenizer yet, a token is taken for three letters."""
    if not isinstance(stage, (cfgs.GRPO, cfgs.Reject)):
        return memory.DEFAULT_PROMPT
    problems, template = draw(open_sources(stage.data), 64, "plan"), folder.template(stage.template)
    try:
        tokenizer = Tokenizer.load(folder.find_model(stage.init, weights=False)).with_template(template)
    except UserError:                              # a stage that has not run
        return max(len((template or 120 * " ").replace("{prompt}", "") + p.prompt) for p in problems) // 3
    return max(len(tokenizer.encode(tokenizer.render_prompt([{"role": "user", "content": p.prompt}]))) for p in problems)


def run_stage(cfg: cfgs.Config, stage: cfgs.Stage, folder: Folder) -> None:
    """Train what is not trained, evaluate what is not evaluated, write down both."""
    ranks.at("the beginning", stage.name)
    try:
        if not folder.done():
            folder.write("config.yaml", yaml.safe_dump(settings(cfg, stage), sort_keys=False, allow_unicode=True))
            if stage.kind != "evaluate":
                train(cfg, stage, folder)
        domains = {d: mix for d, mix in cfg.evaluate.domains.items() if d in (stage.domains or cfg.evaluate.domains)}
        for each in folder.snapshots() if domains else []:
            run_evaluation(replace(cfg.evaluate, domains=dict([*domains.items()][:1])), stage, each)
            each.clear()
        if stage.kind != "reject" and domains:
            run_evaluation(replace(cfg.evaluate, domains=domains), stage, folder)
            if not folder.done():                  # of kind `evaluate`
                folder.finish()
        folder.clear()
    except torch.OutOfMemoryError as e:
        raise UserError(f"{stage.name}: no memory is left on the GPU ({str(e).splitlines()[0]}). Lower sample.max_rows or optim.micro_tokens, or set optim.recompute=true, "
                        f"which change the cost and not the result; then the same command continues") from e
    except RuntimeError as e:
        compiler = sys.modules.get("torch._dynamo.exc")
        if compiler is None or not isinstance(e, compiler.BackendCompilerFailed):
            raise
        raise UserError(f"{stage.name}: the layers cannot be compiled here ({str(e.inner_exception).splitlines()[0]}). On a CPU that needs a C++ compiler. Or leave "
                        f"optim.compile out, which changes the cost and not the result; then the same command continues") from e
    ranks.lead(lambda: (write_results(cfg, folder.root), write_report(folder.root)))


def train(cfg: cfgs.Config, stage: cfgs.Stage, folder: Folder) -> None:
    tell_plan(cfg, stage, shape_of(stage, folder), folder)
    STAGES[stage.kind](stage, folder)
    stop.tell(f"{stage.name}: done in {folder.finish():.0f} s")


def run_evaluation(cfg: cfgs.Evaluate, stage: cfgs.Stage, folder: Folder) -> None:
    """Evaluate, unless that is done with these very settings, of which a stage of kind `evaluate` brings its own."""
    if isinstance(stage, cfgs.Measure):
        cfg = replace(cfg, k=stage.k, sample=replace(cfg.sample, temperature=stage.temperature))
    template = getattr(stage, "template", "zero" if "zero" in folder.templates else "chat")
    if ranks.lead(lambda: load_json(folder.path / "eval.json")).get("settings") == evaluation.settings(cfg, folder, template):
        return
    source = folder.find_model(stage.init) if isinstance(stage, cfgs.Measure) else folder.model
    result = evaluation.evaluate(cfg, folder, template, source, getattr(stage, "forbid", []))
    stop.tell(f"{folder.name}: " + "; ".join(
        f"{domain} {result[domain]['pass@1']:.1%} +- {result[domain]['se']:.1%}, length {result[domain]['length']:.0f}, "
        f"language {result[domain]['language']:.2f}" for domain in cfg.domains))


def settings(cfg: cfgs.Config, stage: cfgs.Stage) -> dict:
    """What decides a stage's result."""
    own = {k: v for k, v in cfg.templates.items() if k == getattr(stage, "template", "")}
    return {**cfgs.to_dict(stage), "seed": cfg.seed, "templates": own}


def check_ahead(cfg: cfgs.Config, stages: list[cfgs.Stage], held: set[str]) -> None:
    """What would end one of these stages hours later, found before the first begins."""
    names = [s.name for s in cfg.stages]
    for s in stages:
        for key, why in (("offload", "is for one GPU: several share the moments as it is"), ("compile", "has not been tried under torchrun")):
            if ranks.world() > 1 and hasattr(s, "optim") and getattr(s.optim, key):
                raise UserError(f"{s.name}: optim.{key} {why}; leave it out")
        if s.init and re.sub(r"/step\d+$", "", s.init) not in names and not s.init.startswith("package:") and not Path(s.init).exists() and (
                not hub.is_id(s.init) or s.init.split("/")[0] in names):
            raise UserError(f"{s.name} starts from {s.init!r}: no such folder or file, and no stage{nearest(s.init, names)}")
        if isinstance(s, cfgs.Pretrain):
            shape(s, s.vocab_size)
        if isinstance(s, cfgs.SFT):
            for source in s.data:
                if source not in names and not Path(source).is_file():
                    raise UserError(f"{s.name} takes data from {source!r}: no such file, and no stage{nearest(source, names)}")
        if isinstance(s, cfgs.GRPO):
            check_weights(s.reward, bool(s.reward_function))
            if s.reward_function:
                load_reward(s.reward_function)
    mixes = [({**s.data, **getattr(s, "others", {})}, False, held) for s in stages if isinstance(s, (cfgs.GRPO, cfgs.Reject))]
    for mix, test, known in mixes + [(mix, True, set()) for mix in cfg.evaluate.domains.values()]:
        for _, source in open_sources(mix, known):
            source(random.Random(0), test)                 # it must open, and have a problem on this side of the split


def refuse_changes(cfg: cfgs.Config, root: Path) -> None:
    """A stage that is done or half done keeps its config: changed keys are refused by name."""
    for stage in cfg.stages:
        file = root / stage.name / "config.yaml"
        if not file.is_file():
            continue
        old, new = _flat(yaml.safe_load(file.read_text()) or {}), _flat(settings(cfg, stage))
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in FREE]
        if changed:
            what = ", ".join(f"{k} ({old.get(k)!r} -> {new.get(k)!r})" for k in changed[:5])
            raise UserError(f"{root / stage.name} was made with another config: {what}; take another out=DIR, or delete "
                            f"that folder and those of the stages after it")


def _flat(tree, head: str = "") -> dict:
    if not isinstance(tree, dict) or not tree:
        return {head: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{head}.{key}" if head else str(key)).items()}


def write_results(cfg: cfgs.Config, root: Path) -> None:
    """results.json: every stage's evaluation and time, in order."""
    found = [{"name": s.name, "kind": s.kind, "init": s.init}
             | {key: made for key in ("done", "eval") if (made := load_json(root / s.name / f"{key}.json"))} for s in cfg.stages]
    out = {"seed": cfg.seed, "hardware": hardware(), "stages": [s for s in found if "done" in s]}
    write_text(root / "results.json", json.dumps(out, indent=1, ensure_ascii=False))
