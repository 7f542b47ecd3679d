"""What no single key of a config can tell: names that must exist, combinations that make no sense, ranges."""

import dataclasses
import math
from typing import Any

from r1.types import UserError, nearest


def check(config: Any, file: str) -> None:
    """Of a run's Config, read from `file`. Raises UserError."""
    if not config.stages:
        raise UserError(f"{file}: there are no `stages`, so there is nothing to run")
    for name, text in config.templates.items():
        if text.count("{prompt}") != 1 or name == "chat":
            raise UserError(f"{file}: templates.{name} must be a text with one {{prompt}} in it, under a name other than chat")
    names = [s.name for s in config.stages]
    for name in names:
        if names.count(name) > 1 or name in ("", ".", "..") or "/" in name:
            raise UserError(f"{file}: {name!r}: a stage needs a name of its own that can be a folder's")
    before: dict[str, str] = {}                  # name -> kind
    for s in config.stages:
        _check_stage(s, f"{file}: {s.name}", config, before)
        before[s.name] = s.kind
    _check_values(config, f"{file}: ")
    for name, mix in config.evaluate.domains.items():
        _check_mix(mix, f"{file}: evaluate.domains.{name}")


def _check_stage(s: Any, at: str, config: Any, before: dict[str, str]) -> None:
    _check_values(s, f"{at}.")
    later = [o.name for o in config.stages if o.name not in before]
    if s.kind != "pretrain" and not s.init:
        raise UserError(f"{at} needs `init`: an earlier stage ({', '.join(before) or 'none yet'}) or a model folder")
    if s.init.partition("/step")[0] in later:
        raise UserError(f"{at} starts from {s.init!r}, which is not before it")
    if before.get(s.init) in ("reject", "evaluate"):
        raise UserError(f"{at} starts from {s.init!r}, a stage that makes no model")
    for domain in s.domains:
        if domain not in config.evaluate.domains:
            raise UserError(f"{at} is evaluated on {domain!r}{nearest(domain, list(config.evaluate.domains))}")
    template = getattr(s, "template", "chat")
    if template != "chat" and template not in config.templates:
        raise UserError(f"{at} uses the template {template!r}{nearest(template, ['chat', *config.templates])}")
    if hasattr(s, "optim") and s.optim.offload and s.optim.muon_lr:
        raise UserError(f"{at}: optim.offload is for AdamW alone; leave out optim.muon_lr")
    if s.kind == "evaluate" and not config.evaluate.domains:
        raise UserError(f"{at} has nothing to evaluate: name `evaluate.domains`")
    if s.kind == "sft":
        if not s.data:
            raise UserError(f"{at} needs `data`: a list of earlier stages or jsonl files")
        for source in s.data:
            if source in later or before.get(source, "reject") != "reject":
                raise UserError(f"{at} takes data from {source!r}, which is no stage of kind reject before it")
    if s.kind in ("grpo", "reject"):
        _check_mix(s.data, f"{at}.data")
    if s.kind == "reject" and s.others_problems:
        _check_mix(s.others, f"{at}.others")
    if s.kind == "grpo":
        if s.sample.top_p < 1 or s.sample.top_k:
            raise UserError(f"{at}: RL samples from the whole distribution that it trains; remove sample.top_p and sample.top_k")
        if s.sample.temperature == 0:
            raise UserError(f"{at}: RL needs sample.temperature above 0")
        if s.lora.rank and s.kl_coef and s.ref_every < s.steps:
            raise UserError(f"{at}: with lora the reference is the model without adapters and cannot be moved; set ref_every to {s.steps} or more")
        if s.problems % s.minibatches:
            raise UserError(f"{at}: problems ({s.problems}) must be a multiple of minibatches ({s.minibatches})")


def _check_mix(mix: dict[str, float], where: str) -> None:
    if not mix or min(mix.values()) < 0 or not 0 < sum(mix.values()) < math.inf:
        raise UserError(f"{where} must be a mapping of sources to weights, e.g. {{chain: 1, word: 1}}, found {mix}")


# Numbers are at least 0, these at least 1.
COUNTS = frozenset("save_every vocab_size rows row_tokens epochs batch problems group k minibatches inner_epochs ref_every "
                   "max_new_tokens max_rows micro_tokens".split())
CHOICES = {"sandbox": ["strict", "unprotected"],
           "schedule": ["constant", "cosine"], "aggregate": ["sequence", "token", "constant"], "truncated": ["keep", "drop"]}


def _check_values(part: Any, at: str) -> None:
    """Ranges: what would end in a traceback, or be taken in silence for something else."""
    for key, value in vars(part).items():
        if dataclasses.is_dataclass(value):
            _check_values(value, f"{at}{key}.")
        elif key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"{at}{key} is {value!r}{nearest(value, CHOICES[key])}")
        elif key == "timeout" and not value > 0:
            raise UserError(f"{at}timeout must be above 0 seconds, found {value}")
        elif isinstance(value, (int, float)) and key != "seed" and not value >= (key in COUNTS):     # NaN too
            raise UserError(f"{at}{key} must be at least {int(key in COUNTS)}, found {value}")
        elif key == "top_p" and not 0 < value <= 1:
            raise UserError(f"{at}top_p must be above 0 and at most 1, found {value}")
        elif key == "betas" and (len(value) != 2 or not all(0 <= b < 1 for b in value)):
            raise UserError(f"{at}betas must be two numbers from 0 up to 1, found {value}")
