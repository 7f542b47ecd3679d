"""How much memory a stage takes at its worst, before its first step: `train.py CONFIG --plan`, and a line at the start of every stage.

Counted in bytes, per device, with prompts and completions at their longest. SLACK is what the allocator adds on a CPU
(tests/test_plan.py; a GPU's figures are held against docs/results/performance/cuda.json there).
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import torch

from r1.config import GRPO, SFT, Evaluate, Pretrain, Reject, Sample, Stage
from r1.context import CHUNK, READ, SCORES, SHORT, copied
from r1.losses import at_once
from r1.model import ModelConfig, fast_bf16

SLACK, LIBRARIES = 1.2, 260e6
DEFAULT_PROMPT = 128      # tokens, where nothing says how long prompts are


Phases = dict[str, dict[str, float]]      # bytes of each part in update, sampling and evaluation


def peak(phases: Phases) -> float:
    return max(sum(parts.values()) for parts in phases.values())


def parameters(m: ModelConfig) -> int:
    """Of the whole model; a tied head counts once."""
    h, k, d, c = m.num_attention_heads, m.num_key_value_heads, m.head_dim, m.hidden_size
    layer = c * d * (2 * h + 2 * k) + 3 * c * m.intermediate_size + 2 * c + m.attention_bias * d * (h + 2 * k) + m.qk_norm * 2 * d
    return layer * m.num_hidden_layers + c + m.vocab_size * c * (1 if m.tie_word_embeddings else 2)


def plan(stage: Stage, m: ModelConfig, cpu: bool = True, ranks: int = 1, prompt: int = DEFAULT_PROMPT, evaluate: Evaluate | None = None) -> Phases:
    """Of a stage that trains or samples with a model of this shape, and is evaluated."""
    P, o, able = parameters(m), getattr(stage, "optim", None), fast_bf16("cpu" if cpu else "cuda")
    o = o and replace(o, bf16=o.bf16 and able)
    trained = P if o else 0
    if getattr(stage, "lora", None) and stage.lora.rank:
        trained = lora_parameters(m, stage.lora)
    held = {"libraries": LIBRARIES if cpu else 0, "weights": 4 * (P + (trained if trained < P else 0)) / ranks, "optimiser": 0 if o and o.offload and not cpu else 8 * trained / ranks}
    if isinstance(stage, GRPO) and stage.kl_coef and not stage.lora.rank:
        held["reference"] = 4 * P / ranks
    phases = {}
    if o:
        rows, length, learned = batch(stage, prompt)
        update = {"gradients": 4 * trained / ranks} | activations(m, o, max(length, min(rows * length, o.micro_tokens)), length, learned / length, cpu, not isinstance(stage, Pretrain))
        update["activations"] *= 1 if trained == P else 1.15                     # of adapters beside their layers; measured
        if ranks > 1 or o.bf16:
            update["weights of a pass"] = 2 * P if o.bf16 else 4 * P / m.num_hidden_layers
        phases["update"] = held | update
    if isinstance(stage, (GRPO, Reject)):
        whole = {"weights gathered": 4 * P} if ranks > 1 else {}
        phases["sampling"] = held | whole | sample(m, stage.sample, stage.problems, stage.group, prompt, ranks, o.bf16 if o else stage.bf16 and able, cpu)
    if evaluate and evaluate.domains and not isinstance(stage, Reject):
        alone = {"libraries": held["libraries"], "weights": 4 * P}
        phases["evaluation"] = alone | sample(m, evaluate.sample, evaluate.problems, evaluate.k, prompt, ranks, evaluate.bf16 and able, cpu)
    return phases


def lora_parameters(m: ModelConfig, lora) -> int:
    c, f, h, k = m.hidden_size, m.intermediate_size, m.num_attention_heads * m.head_dim, m.num_key_value_heads * m.head_dim
    ends = {"q_proj": c + h, "k_proj": c + k, "v_proj": c + k, "o_proj": h + c, "gate_proj": c + f, "up_proj": c + f, "down_proj": f + c}
    return lora.rank * m.num_hidden_layers * sum(ends.get(t, 0) for t in lora.targets)


def batch(stage: Stage, prompt: int) -> tuple[int, int, int]:
    """Rows of a step, their longest length, and how much of it is learned."""
    if isinstance(stage, Pretrain):
        return stage.rows, stage.row_tokens, stage.row_tokens
    if isinstance(stage, SFT):
        return stage.batch, 2 * prompt, prompt           # as long as the prompt again; the data tell, once they are there
    return stage.problems * stage.group // stage.minibatches, prompt + stage.sample.max_new_tokens, stage.sample.max_new_tokens


def activations(m: ModelConfig, o, tokens: int, length: int, learned: float, cpu: bool, varied: bool) -> dict[str, float]:
    """What one micro-batch keeps for its backward, of rows of this length or of lengths up to it (`varied`). C, F, H D and so on as in
    r1/model.py; b bytes of what products see."""
    b, c, f = 2 if o.bf16 else 4, m.hidden_size, m.intermediate_size
    h, k = m.num_attention_heads * m.head_dim, m.num_key_value_heads * m.head_dim
    norms, slack = (16, SLACK) if cpu else (8, 1)                            # in fp32; a GPU's kernel keeps no result
    layer = norms * c + b * (2 * c + (h + 2 * k) + (h + k) + 2 * h + 3 * f)    # q, k, v, turned, attended; the MLP
    scores = m.num_attention_heads * min(length, SHORT) * tokens            # which plain products keep of short rows
    if cpu and (varied or length <= SHORT and scores <= SCORES):
        layer += b * min(scores, SCORES) / tokens
    kept = 4 * c * m.num_hidden_layers if o.recompute else layer * m.num_hidden_layers
    passing = layer * ((2.6 * slack if o.recompute else 0) + 0.7) * tokens
    logits = 16 * min(tokens * learned, at_once(m.vocab_size, cpu)) * m.vocab_size
    return {"activations": slack * kept * tokens + (passing if cpu else max(0, passing - logits)), "logits": logits}     # on a GPU one after the other


def sample(m: ModelConfig, s: Sample, problems: int, group: int, prompt: int, ranks: int, bf16: bool, cpu: bool) -> dict[str, float]:
    """The copy of the weights that is laid out, keys and values of all rows, the draw."""
    rows, b = min(s.max_rows, -(-problems // ranks) * group), 2 if bf16 else 4
    column = 2 * m.num_hidden_layers * m.num_key_value_heads * m.head_dim * b
    prompts = -(-rows // group) * prompt                     # tokens of them, which are read and then put beside each other: twice there
    cache = column * (rows * max(2 * s.max_new_tokens, CHUNK[cpu]) + 2 * (rows * prompt if copied(m, rows, prompt) else prompts))      # when rows leave, the others move to a new one
    read = min(prompts, max(READ, prompt)) * 4 * (m.intermediate_size + m.hidden_size) * b
    if cpu and prompt <= SHORT:
        read += 8 * min(SCORES, m.num_attention_heads * prompts * prompt)
    return {"weights laid out": b * parameters(m), "keys and values": cache, "draw": 16 * rows * m.vocab_size, "reading prompts": read}


def available(device: str) -> float:
    """Bytes that this process may have: what is free, and what it holds already."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        read = lambda file, key: int(re.search(rf"{key}:\s+(\d+)", Path(file).read_text())[1]) * 1024  # noqa: E731
        return read("/proc/meminfo", "MemAvailable") + read("/proc/self/status", "VmRSS")
    except (OSError, TypeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0.0


def describe(name: str, m: ModelConfig, phases: Phases, free: float) -> str:
    """One line: the peak, and what makes it."""
    phase, parts = max(phases.items(), key=lambda x: sum(x[1].values()))
    what = ", ".join(f"{k} {v / 1e9:.2f}" for k, v in sorted(parts.items(), key=lambda x: -x[1]) if v > 1e7)
    return f"{name}: {parameters(m) / 1e6:.1f}M parameters, about {peak(phases) / 1e9:.2f} of {free / 1e9:.1f} GB, in {phase}: {what}"


def advice(stage: Stage, m: ModelConfig, free: float, cpu: bool, ranks: int, prompt: int) -> str:
    """What to change when it does not fit, the cheapest first."""
    if peak(plan(stage, m, cpu, ranks, prompt)) < free:
        return "lower evaluate.sample.max_rows"
    o = getattr(stage, "optim", None)
    changes = [("optim.micro_tokens", n) for n in (8192, 4096, 2048, 1024) if o and n < o.micro_tokens]
    changes += [("sample.max_rows", n) for n in (128, 32) if hasattr(stage, "sample") and n < stage.sample.max_rows]
    changes += [("optim.recompute", True)] if o else []
    changes += [("optim.offload", True)] if o and not cpu and ranks == 1 and not o.muon_lr else []
    changes += [("lora.rank", 16)] if hasattr(stage, "lora") else []
    said = {}
    for key, value in changes:                    # each with all that come before it
        part, _, name = key.partition(".")
        stage, said[key] = replace(stage, **{part: replace(getattr(stage, part), **{name: value})}), str(value).lower()
        if peak(plan(stage, m, cpu, ranks, prompt)) < free:
            return f"it would fit with {' '.join(f'{k}={v}' for k, v in said.items())} (of {stage.name})"
    return "no setting makes it fit on this device: take a smaller model, or more GPUs"
