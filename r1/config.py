"""YAML -> dataclasses: strict, typed, overridable from the command line. Knows no torch.

A config is a list of stages. Precedence: field default < the file named by `extends` < the file < `key=value`.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1.config_rules import check
from r1.strict import build, read_yaml
from r1.types import UserError, nearest


@dataclass
class Sample:
    """How completions are drawn."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_rows: int = 512                # sequences decoded at once


@dataclass
class Optim:
    """How weights are moved."""

    lr: float = 3e-6                   # peak
    muon_lr: float = 0.0               # peak of Muon for the matrices inside the blocks; 0: AdamW for all
    schedule: str = "constant"         # "constant" or "cosine"
    final: float = 0.1                 # cosine: last rate, as a share of the peak
    warmup: int = 0                    # steps
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    clip: float = 1.0                  # global gradient norm
    micro_tokens: int = 16384          # per forward, with padding, shared prompts once; changes memory, never the gradient
    offload: bool = False              # moments wait in the host's memory, not the GPU's: 8 bytes less a weight, a little more time
    recompute: bool = False            # keep no activations inside a layer: less memory, a third more time
    bf16: bool = False                 # matrix products of the forward in bfloat16 (weights stay fp32)
    compile: bool = False              # torch.compile of the layers, for training: a minute at the start, then a little faster on a CPU, much on a GPU


@dataclass
class LoRA:
    """Low-rank adapters instead of all weights."""

    rank: int = 0                      # 0: all weights are trained
    alpha: float = 32                  # the adapters count alpha / rank
    targets: list[str] = field(default_factory=lambda: "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())


@dataclass
class Stage:
    """What all stages have."""

    name: str
    kind: str
    init: str = ""                     # a stage before this one, a model folder, a .gguf file or package:NAME
    save_every: int = 50               # steps between states that a killed run continues from ...
    save_minutes: float = 10           # ... and at least so often
    domains: list[str] = field(default_factory=list)     # of `evaluate`, those that it is evaluated on; none: all


@dataclass
class Pretrain(Stage):
    """Next-token prediction on the tiny world's corpus, from random weights."""

    model: dict[str, Any] = field(default_factory=dict)     # fields of r1.model.ModelConfig
    vocab_size: int = 768              # of the tokenizer trained first; with `init`, its tokenizer is taken
    thinks: float = 0.1                # share of the corpus's conversations that think before they answer
    mixes: float = 0.3                 # share of solutions to Chinese problems in English; of the reverse, a quarter of it
    checks: float = 0.3                # share of solutions that check every sum
    steps: int = 1000
    rows: int = 32                     # per step
    row_tokens: int = 192
    optim: Optim = field(default_factory=Optim)


@dataclass
class SFT(Stage):
    """Supervised fine-tuning on conversations."""

    data: list[str] = field(default_factory=list)    # stages of kind `reject`, or jsonl files
    template: str = "chat"
    epochs: int = 2
    batch: int = 64                    # examples per step
    limit: int = 0                     # use only so many examples; 0: all
    lora: LoRA = field(default_factory=LoRA)
    optim: Optim = field(default_factory=Optim)


@dataclass
class GRPO(Stage):
    """Group relative policy optimisation on answers that a rule can check."""

    data: dict[str, float] = field(default_factory=dict)    # source -> weight in the mix
    template: str = "zero"
    reward: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    reward_function: str = ""          # file.py:function, logged as the part "custom"
    steps: int = 100                   # rollout phases
    problems: int = 32                 # Q per phase
    group: int = 16                    # G samples per problem
    sample: Sample = field(default_factory=Sample)
    std: bool = True                   # divide advantages by the group's standard deviation
    leave_one_out: bool = False        # baseline: mean of the others (RLOO)
    aggregate: str = "sequence"        # "sequence" (GRPO), "token" (DAPO), "constant" (Dr. GRPO)
    clip_low: float = 0.2
    clip_high: float = 0.2             # the paper: 10
    kl_coef: float = 0.001
    ref_every: int = 400               # steps between copies of the policy into the reference
    minibatches: int = 1               # optimiser steps per rollout phase and epoch
    inner_epochs: int = 1
    truncated: str = "keep"            # "keep" or "drop": completions cut at the limit, in the loss
    dynamic: int = 0                   # extra sampling rounds that replace groups of one mind (DAPO)
    lora: LoRA = field(default_factory=LoRA)
    snapshots: int = 0                 # keep the model every so many steps, evaluated on the first domain; 0: the last alone
    optim: Optim = field(default_factory=Optim)


@dataclass
class Reject(Stage):
    """Rejection sampling: keep what is right, readable and new; `others` adds problems with the world's own answers."""

    data: dict[str, float] = field(default_factory=dict)
    template: str = "zero"
    problems: int = 512
    group: int = 8
    keep: int = 2                      # completions kept per problem at most
    keep_wrong: bool = False           # of the wrong ones too: what the rule's filter is worth
    others: dict[str, float] = field(default_factory=dict)    # domains whose answers need no sampling
    others_problems: int = 0
    bf16: bool = False                 # matrix products and cache in bfloat16
    sample: Sample = field(default_factory=Sample)


@dataclass
class Measure(Stage):
    """Another look at the model of an earlier stage: it is evaluated in another way, and not trained."""

    template: str = "chat"
    k: int = 16                        # samples per problem
    temperature: float = 0.6
    forbid: list[str] = field(default_factory=list)      # tokens that are never drawn


@dataclass
class Evaluate:
    """How every trained stage is evaluated: the paper's protocol (R1 section 3)."""

    domains: dict[str, dict[str, float]] = field(default_factory=dict)   # domain -> {source: weight}
    problems: int = 200                # per domain
    k: int = 16                        # samples per problem
    bf16: bool = False                 # matrix products and cache in bfloat16
    sample: Sample = field(default_factory=lambda: Sample(temperature=0.6, top_p=0.95))


KINDS = {"pretrain": Pretrain, "sft": SFT, "grpo": GRPO, "reject": Reject, "evaluate": Measure}
to_dict = dataclasses.asdict


@dataclass
class Config:
    """A run."""

    out: str = "runs/run"
    seed: int = 0
    seeds: list[int] = field(default_factory=list)       # several runs, each in a folder of its own below `out`
    threads: int = 0                   # CPU threads; 0: what torch takes
    device: str = "auto"
    timeout: float = 600               # seconds that ranks (torchrun) wait for each other before the run is broken off
    log: list[str] = field(default_factory=list)         # tensorboard, wandb: shows the lines of metrics.jsonl there, too
    sandbox: str = "strict"            # code is run only under a kernel's protection; "unprotected": also without
    templates: dict[str, str] = field(default_factory=dict)   # name -> text with {prompt}; "chat" is the model's own
    evaluate: Evaluate = field(default_factory=Evaluate)
    stages: list[Stage] = field(default_factory=list)


def load(path: str | Path, overrides: list[str] = ()) -> Config:
    """The config of a file, with `key=value` overrides such as `out=runs/x` or `zero.optim.lr=1e-4`.

    Raises UserError with file, key and the nearest valid name."""
    return parse(_read(Path(path)), str(path), overrides)


def parse(raw: dict, file: str, overrides: list[str] = ()) -> Config:
    """The config of a mapping, as `load` reads it; `file` is named in errors."""
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq:
            raise UserError(f"{text!r} is no override: write key=value, e.g. zero.steps=10")
        _set(raw, key, read_yaml(value, f"command line: {key}"), "command line")
    config = build(Config, {k: v for k, v in raw.items() if k != "stages"}, file, "")
    if not isinstance(listed := raw.get("stages", []), list):
        raise UserError(f"{file}: stages must be a list, found {listed!r}")
    for i, item in enumerate(listed):
        known = item if isinstance(item, dict) else {}
        name, kind = str(known.get("name", f"stages[{i}]")), str(known.get("kind"))
        if kind not in KINDS:
            raise UserError(f"{file}: {name} has the kind {kind!r}{nearest(kind, list(KINDS))}")
        config.stages.append(build(KINDS[kind], item, file, name))
    check(config, file)
    return config


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    if path.resolve() in seen:
        raise UserError(f"{path}: `extends` goes in a circle")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        raise UserError(f"{path}: no such config" + (f"; did you mean {path.parent / near[0]}?" if near else "")) from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from e
    if not isinstance(raw := read_yaml(text, str(path)), dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, found {type(raw).__name__}")
    below: dict = {}
    if "extends" in raw:
        below = _read(path.parent / str(raw.pop("extends")), (*seen, path.resolve()))
        changes = raw.pop("set", {})
        if not isinstance(changes, dict):
            raise UserError(f"{path}: set must be a mapping of dotted keys to values, found {changes!r}")
        for key, value in changes.items():
            _set(below, str(key), value, str(path))
    if isinstance(raw.get("stages"), list):
        raw["stages"] = _alike(raw["stages"], below.get("stages"), str(path))
    return {**below, **raw}


def _alike(listed: list, below: Any, file: str) -> list:
    """Stages of the file below by their names; and such as are `like` an earlier one, but for the keys that they give."""
    known, out = {str(s["name"]): s for s in below or [] if isinstance(s, dict) and "name" in s}, []
    for s in listed:
        model = s if isinstance(s, str) else s.get("like") if isinstance(s, dict) else None
        if model is not None and str(model) not in known:
            raise UserError(f"{file}: there is no stage {model!r} to take over{nearest(str(model), list(known))}")
        if model is not None:
            s = {**known[str(model)], **({} if isinstance(s, str) else {k: v for k, v in s.items() if k != "like"})}
        if isinstance(s, dict) and "name" in s:
            known[str(s["name"])] = s
        out.append(s)
    return out


def each_seed(config: Config) -> list[Config]:
    """The runs that a config asks for."""
    return [dataclasses.replace(config, seed=s, seeds=[], out=f"{config.out}/seed{s}") for s in config.seeds] or [config]


def _set(raw: dict, key: str, value: Any, where: str) -> None:
    """Set a dotted key in the raw config; its first part is a stage's name or a key of the run."""
    parts = key.split(".")
    listed = raw.get("stages") if isinstance(raw.get("stages"), list) else []
    stages = {str(s.get("name")): s for s in listed if isinstance(s, dict)}
    names = [f.name for f in dataclasses.fields(Config)]
    if parts[0] in stages and len(parts) > 1:
        at, parts = stages[parts[0]], parts[1:]
    elif parts[0] in names:
        at = raw
    elif parts[0] in stages:
        raise UserError(f"{where}: {key!r} is a stage; name one of its keys, e.g. {key}.save_every=10")
    else:
        raise UserError(f"{where}: unknown key {key!r}{nearest(parts[0], [*names, *stages])}")
    for part in parts[:-1]:
        if not isinstance(at.setdefault(part, {}), dict):
            raise UserError(f"{where}: {key!r} goes into {part!r}, which is not a mapping")
        at[part] = dict(at[part])          # YAML anchors share mappings: change this one alone
        at = at[part]
    at[parts[-1]] = value
