"""The whole recipe in miniature, and what a user meets: running again, stopping, changing, mistyping."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r1 import config, pipeline
from r1.supervised import shape
from r1.types import UserError

ROOT = Path(__file__).parent.parent
MINI = """
out: {out}
templates: {{zero: "Think in <think></think>, answer in <answer></answer>.\\nUser: {{prompt}}\\nAssistant:"}}
evaluate: {{domains: {{reasoning: {{chain: 1, word: 1}}, general: {{fact: 1}}}}, problems: 4, k: 2, sample: {{temperature: 0.6, top_p: 0.95, max_new_tokens: 8}}}}
stages:
  - name: base
    kind: pretrain
    vocab_size: 512
    model: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1}}
    steps: 6
    rows: 4
    row_tokens: 64
    save_every: 2
    optim: {{lr: 1e-3, muon_lr: 0.02}}
  - &rl
    name: zero
    kind: grpo
    init: base
    data: &mix {{chain: 1, word: 1}}
    steps: 4
    problems: 2
    group: 3
    save_every: 2
    reward: {{accuracy: 1, format: 1, language: 0.5}}
    sample: {{max_new_tokens: 8}}
    optim: {{lr: 1e-3}}
    kl_coef: 0.01
    ref_every: 3
  - {{name: cold, kind: reject, init: zero, data: *mix, problems: 4, group: 2, others: {{fact: 1}}, others_problems: 20, sample: {{max_new_tokens: 8}}}}
  - {{name: dev1, kind: sft, init: base, data: [cold], batch: 8, save_every: 2, optim: {{lr: 1e-3}}}}
  - {{<<: *rl, name: dev2, init: dev1, template: chat, minibatches: 2, inner_epochs: 2, steps: 2}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An undisturbed miniature run."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "mini.yaml"
    file.write_text(MINI.format(out=folder / "straight"))
    pipeline.run(config.load(file))
    return file, folder / "straight"


def script(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", **env})


def test_a_cpu_without_bfloat16_runs_in_float32_and_says_so(tmp_path, monkeypatch, capsys):
    """To the same bits as a config that does not ask for it, Muon included."""
    from r1 import optim, runtime
    for module in (pipeline, runtime, optim):
        monkeypatch.setattr(module, "fast_bf16", lambda device: False)
    (tmp_path / "mini.yaml").write_text(MINI.format(out=tmp_path))
    asks = ["cold.bf16=true", "evaluate.bf16=true", *(f"{s}.optim.bf16=true" for s in ("base", "zero", "dev1", "dev2"))]
    for name, more, said in (("plain", [], 0), ("asks", asks, 1)):
        pipeline.run(config.load(tmp_path / "mini.yaml", [f"out={tmp_path / name}", *more]))
        assert capsys.readouterr().err.count("note: bf16 is left out") == said
    for file in ("base/model/model.safetensors", "zero/model/model.safetensors", "cold/examples.jsonl", "dev1/model/model.safetensors", "dev2/model/model.safetensors"):
        assert (tmp_path / "asks" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes(), file


@pytest.mark.parametrize("can, able", [({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, False), ({"architecture": "x86_64"}, False),
                                       ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True), ({"architecture": "x86_64", "amx_bf16": True}, True)])
def test_who_has_bfloat16(monkeypatch, can, able):
    """A laptop, a CPU that torch cannot ask, an EPYC, a Xeon."""
    from r1.model import fast_bf16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert fast_bf16.__wrapped__("cpu") == able and fast_bf16.__wrapped__("cuda")


def test_a_run_leaves_what_the_readme_promises(run):
    _, out = run
    for stage in ("base", "zero", "cold", "dev1", "dev2"):
        assert (out / stage / "done.json").is_file() and (out / stage / "config.yaml").is_file(), stage
        assert (out / stage / "metrics.jsonl").is_file(), stage
    for stage in ("base", "zero", "dev1", "dev2"):
        for file in ("model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/generation_config.json", "eval.json"):
            assert (out / stage / file).is_file(), (stage, file)
    assert {s["name"] for s in json.loads((out / "results.json").read_text())["stages"]} == {"base", "zero", "cold", "dev1", "dev2"}
    assert (out / "report.md").is_file() and (out / "report.html").is_file()
    steps = [json.loads(line)["step"] for line in (out / "zero/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3]
    assert max(json.loads(line)["gap"] for line in (out / "zero/metrics.jsonl").read_text().splitlines()) < 1e-4


def test_running_again_does_nothing(run):
    file, out = run
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/model/*")}
    pipeline.run(config.load(file))
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/model/*")} == before


def test_a_changed_config_is_refused_by_the_names_of_its_keys(run):
    file, out = run
    with pytest.raises(UserError, match=r"optim\.lr"):
        pipeline.run(config.load(file, ["zero.optim.lr=2e-3"]))
    pipeline.run(config.load(file, ["zero.save_every=1"]))      # costs nothing of the result: allowed


BAD = [
    ("no such config", lambda d: ["train.py", "configs/tny.yaml"], "did you mean"),
    ("unknown key", lambda d: ["train.py", "configs/tiny.yaml", "zero.stepz=3"], "did you mean 'steps'"),
    ("wrong type", lambda d: ["train.py", "configs/tiny.yaml", "zero.steps=many"], "whole number"),
    ("unknown stage", lambda d: ["train.py", "configs/tiny.yaml", f"out={d}/o", "--only", "zeero"], "no stage"),
    ("unknown source", lambda d: ["train.py", d / "rl.yaml", "zero.data={chian: 1}"], "unknown data source"),
    ("missing data", lambda d: ["train.py", d / "rl.yaml", "zero.data={'jsonl:nowhere.jsonl': 1}"], "no such file"),
    ("broken line", lambda d: ["train.py", d / "rl.yaml", f"zero.data={{'jsonl:{d}/broken.jsonl': 1}}"], "broken.jsonl:2"),
    ("empty data", lambda d: ["train.py", d / "rl.yaml", f"zero.data={{'jsonl:{d}/empty.jsonl': 1}}"], "no problems"),
    ("long prompt", lambda d: ["train.py", d / "rl.yaml", f"zero.data={{'jsonl:{d}/long.jsonl': 1}}"], "context"),
    ("no model", lambda d: ["train.py", d / "rl.yaml", "zero.init=nowhere"], "no such folder"),
    ("no tokenizer", lambda d: ["train.py", d / "rl.yaml", f"zero.init={d}/notok"], "tokenizer.json"),
    ("damaged weights", lambda d: ["train.py", d / "rl.yaml", f"zero.init={d}/damaged"], "safetensors"),
    ("unknown architecture", lambda d: ["train.py", d / "rl.yaml", f"zero.init={d}/foreign"], "LlamaForCausalLM"),
    ("sample: no model", lambda d: ["sample.py", "nowhere", "hello"], "nowhere"),
    ("sample: no source", lambda d: ["sample.py", d / "model", "--data", "chian"], "unknown data source"),
]


@pytest.fixture(scope="module")
def bad(run, tmp_path_factory):
    """A folder of things that are wrong, around one good model."""
    import shutil
    d, model = tmp_path_factory.mktemp("bad"), run[1] / "base/model"
    for name in ("model", "notok", "damaged", "foreign"):
        shutil.copytree(model, d / name)
    (d / "notok/tokenizer.json").unlink()
    whole = (d / "damaged/model.safetensors").read_bytes()
    (d / "damaged/model.safetensors").write_bytes(whole[:len(whole) // 2])
    raw = json.loads((d / "foreign/config.json").read_text())
    (d / "foreign/config.json").write_text(json.dumps({**raw, "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}))
    (d / "broken.jsonl").write_text('{"prompt": "1+1?", "answer": 2}\n{"prompt": \n')
    (d / "empty.jsonl").write_text("\n")
    (d / "long.jsonl").write_text("".join(json.dumps({"prompt": f"{i} " * 600, "answer": i}) + "\n" for i in range(60)))
    (d / "rl.yaml").write_text(
        f"out: {d}/out\ntemplates: {{zero: 'User: {{prompt}}'}}\nstages:\n"
        f"  - {{name: zero, kind: grpo, init: {d}/model, data: {{chain: 1}}, steps: 1, problems: 1, group: 2, sample: {{max_new_tokens: 4}}}}\n")
    return d


@pytest.mark.parametrize("name, command, says", BAD, ids=[b[0] for b in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(bad, name, command, says):
    out = script(*map(str, command(bad)))
    assert out.returncode == 2, out.stderr
    said = [line for line in out.stderr.splitlines() if line.strip()]
    assert len(said) == 1 and said[0].startswith("error: ") and says in said[0], out.stderr
    assert not list(bad.glob("out/*/model")), "something was written"
    import shutil
    shutil.rmtree(bad / "out", ignore_errors=True)


def test_help_needs_no_model_and_names_the_commands():
    for name in ("train.py", "sample.py", "distill.py"):
        out = script(name, "--help")
        assert out.returncode == 0 and f"python {name}" in out.stdout


def test_sample_and_distill_run(run, tmp_path):
    _, root = run
    model = str(root / "dev1/model")
    assert script("sample.py", model, "What is 1+1?", "--max-new-tokens", "4").returncode == 0
    voted = script("sample.py", model, "What is 1+1?", "-n", "2", "--vote", "--max-new-tokens", "4")
    assert voted.returncode == 0 and "votes:" in voted.stdout
    figures = tmp_path / "figures.json"
    out = script("sample.py", model, "--data", "chain,fact", "-k", "2", "--problems", "3", "--max-new-tokens", "4", "--json", str(figures))
    assert out.returncode == 0 and set(json.loads(figures.read_text())) >= {"chain", "fact"}
    assert re.search(r"chain\s+3", out.stdout)


def test_grpo_learns_what_a_users_own_reward_asks_for(tmp_path):
    """From random weights, in seconds: the share of digits in the text goes from a quarter to most."""
    (tmp_path / "mine.py").write_text("def digits(problem, completion):\n"
                                      "    return sum(c.isdigit() for c in completion) / max(1, len(completion))\n")
    file = tmp_path / "learn.yaml"
    file.write_text(MINI.format(out=tmp_path / "out").split("  - &rl")[0].replace("steps: 6", "steps: 1").replace("evaluate:", "#") + f"""
  - {{name: zero, kind: grpo, init: base, data: {{chain: 1}}, steps: 60, problems: 4, group: 8, kl_coef: 0.0, save_every: 100,
      reward: {{custom: 1.0}}, reward_function: '{tmp_path}/mine.py:digits', sample: {{max_new_tokens: 8}}, optim: {{lr: 5e-3}}}}
""")
    pipeline.run(config.load(file))
    reward = [json.loads(line)["custom"] for line in (tmp_path / "out/zero/metrics.jsonl").read_text().splitlines()]
    assert sum(reward[:3]) / 3 < 0.5 and sum(reward[-5:]) / 5 > 0.75


def test_weights_that_are_not_as_the_stage_wrote_them_are_refused(run, tmp_path):
    """One byte of a finished model changed: what starts from it does not."""
    _, straight = run
    shutil.copytree(straight, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/zero")
    weights = tmp_path / "out/base/model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    (tmp_path / "mini.yaml").write_text(MINI.format(out=tmp_path / "out"))
    with pytest.raises(UserError, match="base/model/model.safetensors is not as the stage base wrote it"):
        pipeline.run(config.load(tmp_path / "mini.yaml"))


def test_snapshots_and_another_look(run, tmp_path):
    """A snapshot is the model of that step, evaluated; a forbidden token is never drawn, and the model stays as it was."""
    file, out = run
    shutil.copytree(out / "base", tmp_path / "x/base")
    answer = "</answer>"
    text = MINI.format(out=tmp_path / "x").split("  - {name: cold")[0] + f"""
  - {{name: longer, <<: *rl, steps: 6, snapshots: 4}}
  - {{name: voted, kind: evaluate, init: longer, template: zero, k: 3, domains: [reasoning]}}
  - {{name: mute, kind: evaluate, init: longer, template: zero, forbid: ["{answer}", "<think>"]}}
"""
    (tmp_path / "c.yaml").write_text(text)
    pipeline.run(config.load(tmp_path / "c.yaml"))
    at = lambda name: json.loads((tmp_path / "x" / name / "eval.json").read_text())  # noqa: E731
    assert list(at("longer/step4")["reasoning"]["each"].values()) and "general" not in at("longer/step4")
    assert not (tmp_path / "x/longer/step6").exists() and not (tmp_path / "x/longer/step4/state").exists()
    assert at("voted")["k"] == 3 and "cons@3" in at("voted")["reasoning"] and "general" not in at("voted")
    said = [json.loads(line)["completion"] for line in (tmp_path / "x/mute/eval_samples.jsonl").read_text().splitlines()]
    assert said and not any(answer in s or "<think>" in s for s in said)
    assert not (tmp_path / "x/voted/model").exists() and "voted" in (tmp_path / "x/report.md").read_text()


@pytest.mark.parametrize("heads", [{"num_attention_heads": 0}, {"num_key_value_heads": 0}])
def test_a_model_without_heads_is_a_sentence(heads):
    with pytest.raises(UserError, match="base.model: num_attention_heads and num_key_value_heads must be at least 1"):
        shape(config.Pretrain("base", "pretrain", model=heads), 300)


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(UserError, match="look has nothing to evaluate: name `evaluate.domains`"):
        config.parse({"stages": [{"name": "look", "kind": "evaluate", "init": "some/model"}]}, "c.yaml")
