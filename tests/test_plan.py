"""What `--plan` says, against the memory that the stages take."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1 import checkpoint, config, plan
from r1.model import ModelConfig, Transformer

ROOT = Path(__file__).parent.parent
SHAPE = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 2048}
WIDE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2}


def test_parameters_are_counted():
    for more in ({}, {"attention_bias": True}, {"qk_norm": True, "head_dim": 32}, {"tie_word_embeddings": False}):
        m = ModelConfig(vocab_size=700, **{**WIDE, **more})
        assert plan.parameters(m) == sum(p.numel() for p in Transformer(m).parameters())


def test_adapters_are_counted(make_model):
    from r1 import lora
    model = lora.adapt(make_model(), config.LoRA(rank=3), 0)
    assert plan.lora_parameters(model.cfg, config.LoRA(rank=3)) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_advice_fits():
    """What is advised is below the limit, and what comes before it is not; a model too large for anything is said to be so."""
    m, stage = ModelConfig(vocab_size=700, **WIDE), config.GRPO("x", "grpo", "m", kl_coef=0.0)
    whole = plan.peak(plan.plan(stage, m))
    said = plan.advice(stage, m, whole * 0.7, True, 1, plan.DEFAULT_PROMPT)
    assert said.startswith("it would fit with optim.micro_tokens=")
    n = int(said.split("=")[1].split()[0])
    fits = lambda n: plan.peak(plan.plan(replace(stage, optim=replace(stage.optim, micro_tokens=n)), m)) < whole * 0.7  # noqa: E731
    assert fits(n) and not fits(2 * n)
    assert "no setting" in plan.advice(stage, m, 1e6, True, 1, plan.DEFAULT_PROMPT)
    offloaded = replace(stage, optim=replace(stage.optim, offload=True))         # eight bytes a weight less on a GPU, none on a CPU
    assert plan.plan(stage, m, False)["update"]["optimiser"] == 8 * plan.parameters(m) and plan.plan(offloaded, m, False)["update"]["optimiser"] == 0
    assert plan.peak(plan.plan(offloaded, m, True)) == whole
    wide = config.Evaluate({"x": {"chain": 1}}, sample=config.Sample(max_new_tokens=8192))
    assert plan.peak(plan.plan(stage, m, evaluate=wide)) > whole and "evaluate" in plan.advice(stage, m, whole * 1.1, True, 1, plan.DEFAULT_PROMPT)


def test_without_instructions_for_bfloat16_the_plan_is_that_of_float32(monkeypatch):
    cfg, m = config.load(Path(__file__).parents[1] / "configs/tiny.yaml"), ModelConfig()
    monkeypatch.setattr(plan, "fast_bf16", lambda device: False)
    for s in cfg.stages:
        change = lambda to: {"optim": replace(s.optim, bf16=to)} if hasattr(s, "optim") else {"bf16": to}  # noqa: B023,E731
        asked, plain = (plan.plan(replace(s, **change(to)), m, evaluate=replace(cfg.evaluate, bf16=to)) for to in (True, False))
        assert asked == plain, s.name


def test_a_gpu_is_planned_as_it_was_measured():
    """What docs/results/performance/cuda.json says that an H100 took."""
    sys.path.insert(0, str(ROOT / "tests/benchmarks"))
    import bench
    runs = json.loads((ROOT / "docs/results/performance/cuda.json").read_text())["runs"]
    rows = [[cell.strip().replace(",", "") for cell in line.split("|")[1:-1]] for line in bench.cuda_table(runs).splitlines()]
    pairs = {row[0]: (float(row[-1]), float(row[-2])) for row in rows if row and row[-1].isdigit()}
    assert len(pairs) == 12
    for name, (planned, taken) in pairs.items():
        assert 0.85 < planned / taken < 1.15, name


# name -> shape, stage; completions of a random model are as long as they may be
CASES = {"pretrain": (SHAPE, {"kind": "pretrain", "rows": 16, "row_tokens": 256}),
         "pretrain bf16": (SHAPE, {"kind": "pretrain", "rows": 16, "row_tokens": 256, "optim": {"bf16": True}}),
         "pretrain recompute": (SHAPE, {"kind": "pretrain", "rows": 32, "row_tokens": 256, "optim": {"recompute": True, "micro_tokens": 8192}}),
         "long rows": (SHAPE, {"kind": "pretrain", "rows": 4, "row_tokens": 1024}),
         "grpo": (WIDE, {"kind": "grpo", "kl_coef": 0.01, "problems": 4, "group": 8, "sample": {"max_new_tokens": 128}, "optim": {"micro_tokens": 4096}}),
         "grpo bf16": (WIDE, {"kind": "grpo", "kl_coef": 0.0, "problems": 4, "group": 8, "sample": {"max_new_tokens": 128}, "optim": {"micro_tokens": 4096, "bf16": True}}),
         "grpo lora": (WIDE, {"kind": "grpo", "kl_coef": 0.01, "problems": 4, "group": 8, "sample": {"max_new_tokens": 128}, "optim": {"micro_tokens": 4096}, "lora": {"rank": 8}}),
         "reject": (WIDE, {"kind": "reject", "problems": 16, "group": 16, "sample": {"max_new_tokens": 200}, "others": {"fact": 1}, "others_problems": 3})}
TASTE = "def taste(problem, text):\n    return len(text) % 7\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process")
@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_near_the_peak(tmp_path, tokenizer, name):
    """Within 15%."""
    shape, stage = CASES[name]
    stage = {"name": "x", "steps": 2, **stage} if stage["kind"] != "reject" else {"name": "x", **stage}
    if stage["kind"] == "pretrain":
        stage |= {"model": shape, "vocab_size": 4096}
    else:
        model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, tie_word_embeddings=False, **shape)).init_weights(0)
        with torch.no_grad():                       # it never ends a completion: all of it has one direction, and the EOS points the other way
            model.embed_tokens.weight += 5
            model.lm_head.weight[tokenizer.eos_id] = -5
        checkpoint.save_model(tmp_path / "m", model, tokenizer, [tokenizer.eos_id])
        (tmp_path / "taste.py").write_text(TASTE)
        stage |= {"init": str(tmp_path / "m"), "template": "plain", "data": {"chain": 1}}
        if stage["kind"] == "grpo":
            stage |= {"reward_function": f"{tmp_path}/taste.py:taste", "reward": {"custom": 1.0}}
    raw = {"out": str(tmp_path / "out"), "sandbox": "unprotected", "templates": {"plain": "User: {prompt}\nAssistant:"}, "stages": [stage]}
    (tmp_path / "c.yaml").write_text(json.dumps(raw))
    code = ("import re, sys, pathlib\nfrom r1 import config, pipeline\npipeline.run(config.load(sys.argv[1]))\n"
            "print('PEAK', re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c.yaml")], cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("x: ") and "about" in x)
    said, took = float(line.split("about ")[1].split()[0]), int(done.stdout.split("PEAK ")[1]) * 1024 / 1e9
    print(f"{name}: said {said:.2f} GB, took {took:.2f} GB, {said / took:.2f}")
    assert said == pytest.approx(took, rel=0.15), line
