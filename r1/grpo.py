"""Stage grpo: the reinforcement learning of R1-Zero and of R1 (paper sections 2.2 and 2.3; DeepSeekMath algorithm 1).

    for each step:
        draw Q problems                                  tasks.draw
        sample G completions of each from pi_old         rollout.roll_out
        score them by rules                              rewards.score
        A = (r - mean r) / std r within each group       losses.advantages
        maximise the clipped objective - beta KL         losses.grpo_loss
        every N steps: reference <- policy

Where this differs from the paper, and the switch that restores it:
 1. One update per rollout phase; the paper shuffles a phase's outputs into 16     -> minibatches: 16
 2. eps = 0.2 on both sides; the paper's clip ratio is 10                          -> clip_low: 10, clip_high: 10
 3. With kl_coef 0 no reference model is loaded; the paper's beta is 0.001         -> kl_coef: 0.001 (the default)
 4. pi_old is what the sampler computed while sampling, not a second forward; the gap is logged every step.
 5. Completions whose advantage is 0 are not run through the model when there is no KL: their gradient is 0.
 6. The ratio is a token's, and a response is the mean of its tokens (DeepSeekMath eq. 3); R1's eq. 1 has the ratio of whole responses.
"""

import random
import time

import torch

from r1 import checkpoint, lora, ranks
from r1.config import GRPO
from r1.losses import advantages, grpo_loss, token_weight
from r1.hf_config import eos_ids
from r1.model import Transformer
from r1.optim import lr_at, make_optimizer, optimise, supervised_logprobs
from r1.rewards import load_reward, reflections
from r1.rollout import Scored, judged, roll_out
from r1.runtime import Folder
from r1.tasks import draw, open_sources
from r1.tokenizer import Tokenizer
from r1.types import Batch, Example


def grpo(cfg: GRPO, folder: Folder) -> None:
    """A model and problems that rules can check -> the model after RL."""
    start = folder.find_model(cfg.init)
    o, tokenizer, eos = cfg.optim, Tokenizer.load(start).with_template(folder.template(cfg.template)), eos_ids(start)
    bf16 = folder.bf16(o.bf16)
    policy = ranks.shard(lora.adapt(checkpoint.load_model(start, folder.device), cfg.lora, folder.seed), bf16, o.recompute, o.compile)
    reference = None if not cfg.kl_coef else policy if cfg.lora.rank else ranks.shard(checkpoint.load_model(start, folder.device), bf16, compiled=o.compile)
    if reference is not None:
        reference.words = tokenizer.vocab_size
    sources = open_sources(cfg.data, folder.evaluated)
    extra = load_reward(cfg.reward_function) if cfg.reward_function else None
    optimizer = make_optimizer(policy, o.lr, tuple(o.betas), o.weight_decay, o.muon_lr, o.offload)
    done = folder.resume(policy, optimizer, None if reference is policy else reference)

    for step in folder.steps(cfg, done, cfg.steps):
        optimizer.zero_grad(set_to_none=True)                  # sampling needs the memory

        def sample(round: int):
            problems = draw(sources, cfg.problems, f"{folder.seed}/{folder.name}/{step}/{round}")
            return roll_out(policy, tokenizer, problems, cfg.sample, cfg.group, hash_seed(folder.seed, step, round), cfg.reward, eos, extra)

        sampled, seconds = collect(sample, cfg.dynamic)
        groups = judged(sampled, f"step {step} of {cfg.name}")
        rewards = torch.tensor([[s.score.total for s in g] for g in groups], dtype=torch.float64)        # (Q, G)
        adv = advantages(rewards, cfg.std, cfg.leave_one_out)                                            # (Q, G)
        began = time.perf_counter()
        update = learn(policy, reference, optimizer, make_examples(groups, adv), cfg,
                       lr_at(step, cfg.steps, o.lr, o.warmup, o.final, o.schedule), f"{folder.seed}/{step}")
        if reference and reference is not policy and (step + 1) % cfg.ref_every == 0:
            reference.load_state_dict(policy.state_dict())
        metrics = {**describe(groups, adv), **update, **seconds, "time_update": time.perf_counter() - began,
                   "unjudged_groups": len(sampled) - len(groups)}
        folder.log(step=step, **metrics)
        folder.log_samples([{"step": step, "advantage": round(float(adv[q, g]), 4), **groups[q][g].record()}
                            for q in range(min(2, len(groups))) for g in range(min(2, cfg.group))])
        folder.bar.set_postfix_str(f"accuracy {metrics['accuracy']:.2f} length {metrics['length']:.0f}")
        if cfg.snapshots and (step + 1) % cfg.snapshots == 0 and step + 1 < cfg.steps:
            folder.snapshot(step + 1).save_model(policy, tokenizer, eos)
    folder.save_model(policy, tokenizer, eos)


def hash_seed(seed: int, step: int, round: int) -> int:
    """The sampler's seed of one rollout phase, from counters alone."""
    return random.Random(f"rollout/{seed}/{step}/{round}").getrandbits(63)


def collect(sample, dynamic: int) -> tuple[list[list[Scored]], dict[str, float]]:
    """One rollout phase; with `dynamic` up to so many more, whose mixed groups replace those in which all
    completions have the same score, or could not be judged, and nothing can be learned (DAPO's dynamic sampling)."""
    teaches = lambda g: bool(judged([g])) and len({s.score.total for s in g}) > 1  # noqa: E731
    groups, seconds = sample(0)
    for round in range(1, dynamic + 1):
        flat = [q for q, g in enumerate(groups) if not teaches(g)]
        if not flat:
            break
        more, spent = sample(round)
        seconds = {k: seconds[k] + spent[k] for k in seconds}
        for q, g in zip(flat, filter(teaches, more), strict=False):
            groups[q] = g
    return groups, seconds


def make_examples(groups: list[list[Scored]], adv: torch.Tensor) -> list[Example]:
    """Every completion with its advantage and the log-probs it was sampled with; the sampled ids, never re-encoded."""
    rollouts = [s.rollout for g in groups for s in g]
    return [Example(r.prompt_ids + r.ids, [0] * len(r.prompt_ids) + [1] * len(r.ids), a, float(r.finish != "length"), r.logp)
            for r, a in zip(rollouts, adv.flatten().tolist(), strict=True)]          # w for now: 1 if it ended by itself


def learn(policy: Transformer, reference: Transformer | None, optimizer: torch.optim.Optimizer,
          examples: list[Example], cfg: GRPO, lr: float, seed: str) -> dict[str, float]:
    """Inner epochs and mini-batches of one rollout phase; returns metrics averaged over their steps."""
    on_policy = cfg.minibatches * cfg.inner_epochs == 1

    def loss_fn(b: Batch):
        logp, entropy = supervised_logprobs(policy, b, cfg.sample.temperature)
        if reference:
            with torch.no_grad(), lora.off(reference):
                b.ref_logp, _ = supervised_logprobs(reference, b, cfg.sample.temperature)
        loss, sums = grpo_loss(logp, None if on_policy else b.old_logp, b.adv, b.mask, b.w, cfg.clip_low,
                               cfg.clip_high, b.ref_logp, cfg.kl_coef)
        return loss, {**sums, "entropy": entropy.sum(), "gap": ((logp.detach() - b.old_logp).abs() * b.mask).sum(), "trained_tokens": b.mask.sum()}

    steps = []
    for epoch in range(cfg.inner_epochs):
        order = random.Random(f"{seed}/{epoch}").sample(range(len(examples)), len(examples))
        for m in range(cfg.minibatches):
            chosen = weigh([examples[i] for i in order[m::cfg.minibatches]], cfg)
            if not reference:
                chosen = [e for e in chosen if e.adv]
            if chosen:
                steps.append(optimise(policy, optimizer, chosen, loss_fn, lr, cfg.optim.micro_tokens, cfg.optim.clip))
    if not steps:
        return {"loss": 0.0, "grad_norm": 0.0, "lr": lr, "skipped": 0, "trained_tokens": 0.0}
    out = {k: sum(s[k] for s in steps) / len(steps) for k in steps[0]}
    tokens = max(1.0, out["trained_tokens"])
    return {**out, **{k: out[k] / tokens for k in ("clip_fraction", "kl", "entropy")}, "gap": steps[0]["gap"] / max(1.0, steps[0]["trained_tokens"])}


def weigh(examples: list[Example], cfg: GRPO) -> list[Example]:
    """Token weights from the counts of the whole mini-batch, before it is split."""
    lengths = [sum(e.mask) if e.w or cfg.truncated == "keep" else 0 for e in examples]
    weights = token_weight(lengths, cfg.aggregate, cfg.sample.max_new_tokens)
    return [Example(e.ids, e.mask, e.adv, w, e.old_logp) for e, w in zip(examples, weights, strict=True)]


def describe(groups: list[list[Scored]], adv: torch.Tensor) -> dict[str, float]:
    """What the log says of a rollout phase."""
    flat = [s for g in groups for s in g]
    mean = lambda values: sum(values) / len(values) if values else 0.0  # noqa: E731
    length = lambda right: mean([len(s.rollout.ids) for s in flat if s.score.parts["accuracy"] == right])  # noqa: E731
    return {"reward": mean([s.score.total for s in flat]),
            **{part: mean([s.score.parts[part] for s in flat]) for part in flat[0].score.parts},
            "length": mean([len(s.rollout.ids) for s in flat]), "length_right": length(1.0), "length_wrong": length(0.0),
            "reflections": mean([reflections(s.text) for s in flat]), "truncated": mean([s.rollout.finish == "length" for s in flat]),
            "flat_groups": float((adv == 0).all(dim=1).double().mean()), "advantage": float(adv.abs().mean()),
            "sampled_tokens": sum(len(s.rollout.ids) for s in flat),
            **{f"reason/{reason}": mean([s.score.reason == reason for s in flat]) for reason in sorted({s.score.reason for s in flat})}}
