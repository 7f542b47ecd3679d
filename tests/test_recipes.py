"""The recipes for large models: each stage is begun and stepped once, with random models of the family's kind and files in the sources' formats."""
import json
from pathlib import Path

import pytest
import test_benchmarks

from r1 import benchmarks, checkpoint, config, hub, pipeline, tasks

ROOT = Path(__file__).parent.parent
RECIPES = sorted(f.name for f in (ROOT / "configs").glob("*.yaml") if "Qwen" in f.read_text())
FILES = {data: (name, train, test) for name, (data, train, test) in benchmarks.WHERE.items()}


def test_there_are_recipes():
    assert len(RECIPES) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_takes_a_step(tmp_path, monkeypatch, tokenizer, make_model, name):
    def model(id):
        assert hub.is_id(id)
        folder = tmp_path / "hub" / id.replace("/", "--")
        if not folder.is_dir():      # Qwen2.5 and what is distilled into it: biases on q, k, v; the small ones tie their embeddings
            small = make_model(vocab_size=tokenizer.vocab_size, attention_bias=True, num_key_value_heads=1, max_position_embeddings=4096,
                               tie_word_embeddings="7B" not in id)
            checkpoint.save_model(folder, small, tokenizer, [tokenizer.eos_id])
        return folder

    def data(id, pattern):
        source, train, test = FILES[id]
        file = tmp_path / "hub" / f"{source}-{'test' if pattern == test else 'train'}.jsonl"
        file.parent.mkdir(exist_ok=True)
        row = test_benchmarks.ROWS[source] | {"test_list": ["assert add(1, 2) == 3" if pattern != test else "assert other([4]) == 5"]}
        if pattern == test:          # another question, or what is evaluated would be left out of the training
            row |= {key: "Another one?" for key in ("question", "problem", "text") if key in row}
        file.write_text(json.dumps(row | {"unique_id": pattern}) + "\n")
        return [file]

    monkeypatch.setattr(hub, "fetch_model", model)
    monkeypatch.setattr(hub, "fetch_data", data)
    tasks.sides_of.cache_clear()
    (tmp_path / "general.jsonl").write_text('{"prompt": "Hello?", "completion": "<think>A greeting.</think>Hello."}\n' * 2)
    monkeypatch.chdir(tmp_path)
    first = config.load(ROOT / "configs" / name)
    small = [f"out={tmp_path / 'out'}", "sandbox=unprotected", "evaluate.problems=1", "evaluate.k=1", "evaluate.sample.max_new_tokens=4"]
    for s in first.stages:
        small += {"grpo": [f"{s.name}.{x}" for x in ("steps=1", "problems=4", "group=2", "sample.max_new_tokens=4", "optim.warmup=0", "snapshots=0")],
                  "reject": [f"{s.name}.{x}" for x in ("problems=1", "group=1", "sample.max_new_tokens=4", "others={fact: 1}", "others_problems=3")],
                  "sft": [f"{s.name}.{x}" for x in ("epochs=1", "batch=2")]}[s.kind]
    cfg = config.load(ROOT / "configs" / name, small)
    pipeline.run(cfg)
    for s in cfg.stages:
        assert (tmp_path / "out" / s.name / "done.json").is_file(), s.name
        if s.kind != "reject":
            assert set(json.loads((tmp_path / "out" / s.name / "eval.json").read_text())) >= set(cfg.evaluate.domains)
    tasks.sides_of.cache_clear()
