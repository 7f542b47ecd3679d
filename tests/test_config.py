"""The config is strict: every mistake is one sentence with the file, the key and what was probably meant."""
import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r1 import config, pipeline
from r1.config import GRPO, SFT, Config, Evaluate, Optim, Pretrain, Reject, Sample
from r1.types import UserError

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
BASE = """
out: runs/x
templates: {zero: "User: {prompt}\\nAssistant:"}
evaluate: {domains: {reasoning: {chain: 1}}}
stages:
  - {name: base, kind: pretrain, model: &shape {hidden_size: 64}}
  - &rl {name: zero, kind: grpo, init: base, data: &mix {chain: 1, word: 2}, problems: 8, optim: &optim {lr: 1e-4}}
  - {name: cold, kind: reject, init: zero, data: *mix}
  - {name: dev1, kind: sft, init: base, data: [cold], optim: *optim}
  - {<<: *rl, name: dev2, init: dev1, template: chat}
  - {name: small, kind: pretrain, model: *shape}
"""


def load(folder: Path, *overrides: str, text: str = BASE, **others: str) -> Config:
    """The config of a file c.yaml, beside which there may be other files."""
    for name, content in {"c": text, **others}.items():
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return config.load(folder / "c.yaml", list(overrides))


def refused(folder: Path, *overrides: str, **texts: str) -> str:
    with pytest.raises(UserError) as e:
        load(folder, *overrides, **texts)
    assert "\n" not in str(e.value)
    return str(e.value)


def changed(a: Config, b: Config) -> dict:
    """The keys that differ, as {dotted key: new value}."""
    flat = lambda t, head="": {head: t} if not isinstance(t, (dict, list)) or not t else {  # noqa: E731
        k: v for key, x in (t.items() if isinstance(t, dict) else enumerate(t)) for k, v in flat(x, f"{head}.{key}".strip(".")).items()}
    old, new = flat(config.to_dict(a)), flat(config.to_dict(b))
    return {k: new.get(k) for k in old.keys() | new.keys() if old.get(k) != new.get(k)}


# ---- what is read ------------------------------------------------------------------------------

def test_a_file_by_hand(tmp_path):
    rl = GRPO("zero", "grpo", "base", data={"chain": 1.0, "word": 2.0}, problems=8, optim=Optim(lr=1e-4))
    assert load(tmp_path) == Config(
        out="runs/x", templates={"zero": "User: {prompt}\nAssistant:"}, evaluate=Evaluate({"reasoning": {"chain": 1.0}}),
        stages=[Pretrain("base", "pretrain", model={"hidden_size": 64}), rl,
                Reject("cold", "reject", "zero", data={"chain": 1.0, "word": 2.0}),
                SFT("dev1", "sft", "base", data=["cold"], optim=Optim(lr=1e-4)),
                dataclasses.replace(rl, name="dev2", init="dev1", template="chat"),
                Pretrain("small", "pretrain", model={"hidden_size": 64})])


@pytest.mark.parametrize("written, number", [
    ("1e-6", 1e-6), ("'1e-6'", 1e-6), ("1.0e-6", 1e-6), ("1E-06", 1e-6), ("3", 3.0), (".5", 0.5), ("0", 0.0)])
def test_a_float_in_any_spelling(tmp_path, written, number):
    """YAML 1.1 takes 1e-6 for a text; every spelling is the same float, from the file and from the command line."""
    first = load(tmp_path, text=BASE.replace("lr: 1e-4", f"lr: {written}")).stages[1].optim.lr
    second = load(tmp_path, f"zero.optim.lr={written}").stages[1].optim.lr
    assert first == second == number and type(first) is type(second) is float


def test_an_integer_stays_one_and_a_flag_is_a_flag(tmp_path):
    cfg = load(tmp_path, "seed=7", "zero.std=no", "zero.sample.top_k=0")
    assert (cfg.seed, cfg.stages[1].std) == (7, False) and type(cfg.seed) is int


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_load_and_come_back(path, tmp_path):
    """What is saved with a run, the resolved config, is the same config when it is read again."""
    cfg = config.load(path)
    assert cfg.stages and Path(cfg.out).parts[0] == "runs"
    raw = config.to_dict(cfg)
    assert config.parse(copy.deepcopy(raw), "again") == cfg
    assert config.parse(json.loads(json.dumps(raw)), "again") == cfg
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert config.load(tmp_path / "again.yaml") == cfg


def test_smoke_is_tiny_with_other_sizes():
    """`extends` + `set`: every stage of tiny.yaml, and nothing differs but the keys that smoke.yaml names."""
    tiny, smoke = (config.load(ROOT / f"configs/{name}.yaml") for name in ("tiny", "smoke"))
    assert [(s.name, s.kind, s.init) for s in tiny.stages] == [(s.name, s.kind, s.init) for s in smoke.stages]
    place = {s.name: f"stages.{i}" for i, s in enumerate(tiny.stages)}
    named = yaml.safe_load((ROOT / "configs/smoke.yaml").read_text())["set"]
    allowed = [".".join([place.get(head, head), *rest]) for head, *rest in (key.split(".") for key in named)]
    assert all(any(f"{k}.".startswith(f"{a}.") for a in allowed) for k in changed(tiny, smoke))


def test_what_a_part_does_not_name_stays_the_protocols(tmp_path):
    """Naming one key of evaluate.sample leaves the paper's temperature and top_p; RL's sample has its own defaults."""
    cfg = load(tmp_path, "evaluate.sample.max_new_tokens=9", "zero.sample.max_new_tokens=9")
    assert cfg.evaluate.sample == Sample(9, 0.6, 0.95) and cfg.stages[1].sample == Sample(9, 1.0, 1.0)


# ---- overrides ---------------------------------------------------------------------------------

@pytest.mark.parametrize("override, key, value", [
    ("out=runs/y", "out", "runs/y"), ("seed=3", "seed", 3), ("evaluate.k=4", "evaluate.k", 4), ("out=a=b", "out", "a=b"),
    ("zero.steps=7", "stages.1.steps", 7), ("zero.optim.lr=1e-3", "stages.1.optim.lr", 1e-3),
    ("zero.sample.max_new_tokens=9", "stages.1.sample.max_new_tokens", 9),       # a mapping that the file does not have
    ("dev1.optim.lr=1e-3", "stages.3.optim.lr", 1e-3), ("zero.data.word=5", "stages.1.data.word", 5.0),
    ("cold.data.word=5", "stages.2.data.word", 5.0), ("small.model.hidden_size=32", "stages.5.model.hidden_size", 32),
    ("base.model.hidden_size=32", "stages.0.model.hidden_size", 32), ("templates.zero={prompt}?", None, None)])
def test_an_override_changes_one_key_alone(tmp_path, override, key, value):
    """Also where an anchor shares the mapping between stages: YAML hands out one object for all of them."""
    if key is None:                                          # `{` begins a mapping in YAML
        assert "command line: templates.zero: not valid YAML" in refused(tmp_path, override)
    else:
        assert changed(load(tmp_path), load(tmp_path, override)) == {key: value}


def test_later_overrides_win_and_defaults_come_last(tmp_path):
    cfg = load(tmp_path, "zero.optim={lr: 1e-2, warmup: 3}", "zero.optim.lr=1e-3", "zero.optim.lr=2e-3")
    assert cfg.stages[1].optim == Optim(lr=2e-3, warmup=3)
    assert cfg.stages[3].optim == Optim(lr=1e-4)


@pytest.mark.parametrize("override, says", [
    ("steps", "no override: write key=value"), ("zero=3", "command line: 'zero' is a stage; name one of its keys"),
    ("sed=3", "command line: unknown key 'sed'; did you mean 'seed'?"), ("zreo.steps=1", "command line: unknown key 'zreo.steps'; did you mean 'zero'?"),
    ("=3", "command line: unknown key ''"), ("zero.steps=[", "command line: zero.steps: not valid YAML"),
    ("out=2024-13-45", "command line: out: not valid YAML"), ("zero.data={chain: 1, chain: 2}", "the key 'chain' stands twice"),
    ("seed.x=1", "'seed.x' goes into 'seed', which is not a mapping"), ("stages.zero.steps=1", "goes into 'stages', which is not a mapping")])
def test_a_bad_override(tmp_path, override, says):
    text = BASE + "seed: 1\n"
    assert says in refused(tmp_path, override, text=text)


# ---- extends -----------------------------------------------------------------------------------

def test_extends_and_set(tmp_path):
    """Default < extended < set < the file's own keys < command line."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    (tmp_path / "sub/mid.yaml").write_text("extends: ../base.yaml\nseed: 1\nset: {zero.steps: 5, dev2.steps: 6, out: runs/mid}\n")
    text = "extends: sub/mid.yaml\nset: {zero.steps: 8, threads: 1}\nthreads: 2\n"
    assert changed(load(tmp_path, text=BASE), load(tmp_path, text=text)) == {
        "seed": 1, "threads": 2, "out": "runs/mid", "stages.1.steps": 8, "stages.4.steps": 6}
    assert load(tmp_path, "zero.steps=9", "out=o", text=text).stages[1].steps == 9


@pytest.mark.parametrize("c, b, says", [
    ("extends: c.yaml\n", "", "c.yaml: `extends` goes in a circle"),
    ("extends: b.yaml\n", "extends: ./c.yaml\n", "c.yaml: `extends` goes in a circle"),
    ("extends: bb.yaml\n", BASE, "bb.yaml: no such config; did you mean"),
    ("extends: b.yaml\nset: [zero.steps]\n", BASE, "c.yaml: set must be a mapping"),
    ("extends: b.yaml\nset:\n", BASE, "c.yaml: set must be a mapping"),
    ("extends: b.yaml\nset: {zreo.steps: 1}\n", BASE, "c.yaml: unknown key 'zreo.steps'; did you mean 'zero'?"),
    ("extends: b.yaml\nset: {zero.stepz: 1}\n", BASE, "c.yaml: unknown key 'zero.stepz'; did you mean 'steps'?"),
    ("extends: b.yaml\n", "stages: [", "b.yaml: not valid YAML"),
    ("set: {seed: 1}\n" + BASE, "", "c.yaml: unknown key 'set'"), ("extends: .\n", "", "cannot be read"), ("extends:\n", "", "no such config")])
def test_bad_extends(tmp_path, c, b, says):
    assert says in refused(tmp_path, text=c, b=b)


# ---- unknown keys, wrong types -----------------------------------------------------------------

@pytest.mark.parametrize("override, key, near", [
    ("evaluate.problem=3", "evaluate.problem", "problems"), ("evaluate.sample.topp=1", "evaluate.sample.topp", "top_p"),
    ("base.row=3", "base.row", "rows"), ("zero.stepz=3", "zero.stepz", "steps"), ("zero.optim.lrr=3", "zero.optim.lrr", "lr"),
    ("zero.sample.temprature=1", "zero.sample.temprature", "temperature"), ("cold.kep=1", "cold.kep", "keep"),
    ("dev1.epoch=1", "dev1.epoch", "epochs"), ("dev1.group=1", "dev1.group", None), ("zero.tempreature=1", "zero.tempreature", "template")])
def test_an_unknown_key_names_file_key_and_nearest(tmp_path, override, key, near):
    """On every level; where no name is near all of them are told."""
    said = refused(tmp_path, override)
    assert said.startswith(f"{tmp_path}/c.yaml: unknown key {key!r}")
    assert said.endswith(f"did you mean {near!r}?" if near else "data, template, epochs, batch, limit, lora, optim)")
    name, *rest = key.split(".")
    assert refused(tmp_path, text=BASE + "sed: 1\n").endswith("c.yaml: unknown key 'sed'; did you mean 'seed'?")


@pytest.mark.parametrize("override, key, want", [
    ("seed=x", "seed", "a whole number"), ("seed=1.0", "seed", "a whole number"), ("seed='1'", "seed", "a whole number"), ("seed=", "seed", "a whole number"),
    ("seed=true", "seed", "a whole number"), ("out=3", "out", "text"), ("out=[a]", "out", "text"), ("templates=x", "templates", "a mapping"),
    ("templates.zero=3", "templates.zero", "text"), ("evaluate=3", "evaluate", "a mapping"), ("stages=3", "stages", "a list"),
    ("stages={a: b}", "stages", "a list"), ("zero.std=1", "zero.std", "true or false"), ("zero.std=maybe", "zero.std", "true or false"),
    ("zero.optim=1e-4", "zero.optim", "a mapping"), ("zero.optim.lr=fast", "zero.optim.lr", "a number"), ("zero.optim.lr=true", "zero.optim.lr", "a number"),
    ("zero.optim.lr=[1]", "zero.optim.lr", "a number"), ("zero.optim.lr=1" + "0" * 400, "zero.optim.lr", "a number"),
    ("zero.optim.betas=0.9", "zero.optim.betas", "a list"), ("zero.optim.betas=[a, b]", "zero.optim.betas[0]", "a number"),
    ("zero.data=chain", "zero.data", "a mapping"), ("zero.data=[chain]", "zero.data", "a mapping"), ("zero.data.chain=much", "zero.data.chain", "a number"),
    ("dev1.data=cold", "dev1.data", "a list"), ("dev1.data={cold: 1}", "dev1.data", "a list"), ("base.model=big", "base.model", "a mapping"),
    ("evaluate.domains.x=3", "evaluate.domains.x", "a mapping")])
def test_a_wrong_type_names_file_key_and_type(tmp_path, override, key, want):
    said = refused(tmp_path, override)
    assert said.startswith(f"{tmp_path}/c.yaml: {key} must be {want}, found ")


@pytest.mark.parametrize("stage, says", [
    ("7", "stages[1] has the kind 'None'"), ("{name: a, kind: grop}", "a has the kind 'grop'; did you mean 'grpo'?"),
    ("{name: a, kind: []}", "a has the kind '[]'"), ("{name: a}", "a has the kind 'None' (valid: pretrain, sft, grpo, reject, evaluate)"),
    ("{kind: pretrain}", "stages[1] lacks the key 'name'"), ("{name: 1, kind: pretrain}", "1.name must be text, found 1"),
    ("{name: a, kind: pretrain, data: {}}", "unknown key 'a.data'"), ("{name: [a], kind: pretrain}", "must be text, found ['a']")])
def test_a_bad_stage(tmp_path, stage, says):
    text = f"stages:\n  - {{name: base, kind: pretrain}}\n  - {stage}\n"
    assert says in refused(tmp_path, text=text)
    assert says in refused(tmp_path, "base.steps=3", text=text)


@pytest.mark.parametrize("text, says", [
    ("", "is a mapping of keys to values, found NoneType"), ("- a\n", "found list"), ("a: [\n", "not valid YAML"), ("a:\t- b\n", "not valid YAML"),
    ("seed: 1\nseed: 2\n", "the key 'seed' stands twice"), (BASE + "out: y\n", "the key 'out' stands twice"), ("seed: 1\n", "no `stages`"),
    ("stages: []\n", "no `stages`"), ("out: 2024-13-45\n", "not valid YAML"), ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ("a: *b\n", "not valid YAML"), ("a: " + "[" * 3000 + "]" * 3000, "not valid YAML")])
def test_a_file_that_is_no_config(tmp_path, text, says):
    said = refused(tmp_path, text=text)
    assert said.startswith(f"{tmp_path}/c.yaml: ") and says in said


def test_a_key_may_stand_beside_the_mapping_that_is_merged_under_it(tmp_path):
    """`<<` and the same key again is no doubling, also where the merged mapping is itself merged deeper down."""
    text = ("stages:\n  - &a {name: x, kind: pretrain, optim: &o {<<: &p {lr: 1e-3, clip: 2}, lr: 2e-3}}\n"
            "  - {<<: *a, name: y, optim: {<<: *o, lr: 3e-3}}\n")
    x, y = load(tmp_path, text=text).stages
    assert (x.name, x.optim) == ("x", Optim(lr=2e-3, clip=2.0)) and (y.name, y.optim) == ("y", Optim(lr=3e-3, clip=2.0))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "tiny.yaml").write_text(BASE)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, says in (("tny.yaml", f"tny.yaml: no such config; did you mean {tmp_path}/tiny.yaml?"), ("zzz", "zzz: no such config"),
                       ("no/tiny.yaml", "tiny.yaml: no such config"), ("bytes.yaml", "bytes.yaml: cannot be read"), (".", "cannot be read")):
        with pytest.raises(UserError) as e:
            config.load(tmp_path / name)
        assert says in str(e.value)


# ---- combinations and ranges -------------------------------------------------------------------

@pytest.mark.parametrize("override, says", [
    ("zero.init=zero", "zero starts from 'zero', which is not before it"), ("zero.init=dev2", "zero starts from 'dev2', which is not before it"),
    ("base.init=small", "base starts from 'small', which is not before it"),
    ("dev1.init=cold", "dev1 starts from 'cold', a stage that makes no model"),
    ("zero.init=''", "zero needs `init`: an earlier stage (base) or a model folder"), ("cold.init=''", "earlier stage (base, zero)"),
    ("dev1.data=[dev2]", "dev1 takes data from 'dev2'"), ("dev1.data=[zero]", "dev1 takes data from 'zero', which is no stage of kind reject before it"),
    ("dev1.data=[dev1]", "dev1 takes data from 'dev1'"), ("dev1.data=[]", "dev1 needs `data`"),
    ("zero.data={}", "zero.data must be a mapping of sources to weights"), ("cold.data={chain: 0}", "cold.data must be"),
    ("cold.data={chain: -1, word: 3}", "cold.data must be"), ("zero.data={chain: .nan}", "zero.data must be"), ("zero.data={chain: .inf}", "zero.data must be"),
    ("evaluate.domains.general={}", "evaluate.domains.general must be a mapping of sources to weights"),
    ("cold.others_problems=5", "cold.others must be a mapping of sources to weights"),
    ("small.name=base", "'base': a stage needs a name of its own"), ("small.name=''", "a name of its own"), ("small.name=a/b", "a name of its own"),
    ("small.name=..", "a name of its own"),
    ("zero.template=zoro", "zero uses the template 'zoro'; did you mean 'zero'?"), ("dev1.template=plain", "(valid: chat, zero)"),
    ("templates={chat: 'x {prompt}', zero: '{prompt}'}", "templates.chat must be a text with one {prompt} in it, under a name other than chat"),
    ("templates.zero=User", "templates.zero must be a text with one {prompt}"), ("templates.zero='{prompt} {prompt}'", "templates.zero must be"),
    ("zero.sample.top_p=0.9", "remove sample.top_p and sample.top_k"), ("dev2.sample.top_k=5", "remove sample.top_p and sample.top_k"),
    ("zero.sample.temperature=0", "above 0"), ("zero.minibatches=3", "problems (8) must be a multiple of minibatches (3)"),
    ("zero.minibatches=0", "zero.minibatches must be at least 1, found 0"), ("zero.problems=0", "zero.problems must be at least 1"),
    ("zero.group=0", "zero.group must be at least 1"), ("zero.steps=-1", "zero.steps must be at least 0"), ("base.save_every=0", "save_every must be at least 1"),
    ("zero.ref_every=0", "ref_every must be at least 1"), ("zero.optim.micro_tokens=0", "zero.optim.micro_tokens must be at least 1"),
    ("dev1.batch=0", "dev1.batch must be at least 1"), ("evaluate.k=0", "evaluate.k must be at least 1"), ("zero.optim.lr=-1", "zero.optim.lr must be at least 0"),
    ("zero.optim.lr=.nan", "zero.optim.lr must be at least 0, found nan"), ("zero.optim.lr=nan", "zero.optim.lr must be at least 0, found nan"),
    ("zero.sample.max_new_tokens=0", "max_new_tokens must be at least 1"), ("evaluate.sample.top_p=0", "evaluate.sample.top_p must be above 0 and at most 1"),
    ("cold.sample.top_p=1.5", "cold.sample.top_p must be above 0 and at most 1"), ("cold.sample.temperature=-1", "cold.sample.temperature must be at least 0"),
    ("zero.optim.betas=[0.9]", "betas must be two numbers"), ("zero.optim.betas=[0.9, 1.0]", "betas must be two numbers"),
    ("zero.optim.schedule=cosin", "zero.optim.schedule is 'cosin'; did you mean 'cosine'?"),
    ("timeout=0", "timeout must be above 0 seconds, found 0"), ("threads=-3", "threads must be at least 0, found -3"),
    ("zero.init=dev2/step5", "zero starts from 'dev2/step5', which is not before it"), ("zero.optim={offload: true, muon_lr: 0.1}", "optim.offload is for AdamW alone"),
    ("zero.aggregate=tokens", "zero.aggregate is 'tokens'; did you mean 'token'?"), ("zero.truncated=leave", "(valid: keep, drop)")])
def test_impossible_combinations(tmp_path, override, says):
    load(tmp_path)
    said = refused(tmp_path, override)
    assert says in said and said.startswith(f"{tmp_path}/c.yaml: ")


@pytest.mark.parametrize("override", [
    "zero.init=some/folder", "zero.init=package:llm", "zero.init=model.gguf", "dev1.data=[cold, mine.jsonl]", "cold.sample.top_p=0.9", "cold.sample.top_k=5",
    "evaluate.sample.temperature=0", "zero.minibatches=4", "zero.clip_high=.inf", "zero.steps=0", "cold.others={fact: 1}", "small.init=base", "seed=-1",
    "zero.data={'jsonl:a.b.jsonl': 1, chain: 0}", "evaluate.domains={}", "dev1.optim.schedule=cosine", "zero.optim.betas=[0, 0.999]"])
def test_what_only_looks_odd_is_taken(tmp_path, override):
    load(tmp_path, override)


# ---- a changed config --------------------------------------------------------------------------

RUN = """
out: {out}
templates: {{zero: "{{prompt}}"}}
evaluate: {{domains: {{}}}}
stages:
  - {{name: base, kind: pretrain, vocab_size: 400, steps: 4, rows: 2, row_tokens: 32, save_every: 2,
     model: {{hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1}}}}
  - {{name: cold, kind: reject, init: base, data: {{chain: 1}}, problems: 1, group: 1, others: {{fact: 1}}, others_problems: 4, sample: {{max_new_tokens: 4}}}}
  - {{name: tuned, kind: sft, init: base, data: [cold], epochs: 1, batch: 4}}
"""
CHANGES = {"optim.lr": "base.optim.lr=1e-5", "steps": "base.steps=5", "model.hidden_size": "base.model.hidden_size=32", "seed": "seed=1",
           "templates.zero": "templates.zero='{prompt}!'", "thinks": "base.thinks=0.2", "optim.betas": "base.optim.betas=[0.9, 0.99]"}


def contents(root: Path) -> dict:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run whose first stage is done and whose second was broken off in its middle."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "run.yaml").write_text(RUN.format(out=folder / "out"))
    pipeline.run(config.load(folder / "run.yaml"), "base")
    patch = pytest.MonkeyPatch()
    patch.setitem(pipeline.STAGES, "reject", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with patch.context(), pytest.raises(KeyboardInterrupt):
        pipeline.run(config.load(folder / "run.yaml"))
    patch.undo()
    return folder


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_config_is_refused_and_nothing_is_overwritten(half, key):
    before = contents(half / "out")
    assert "base/done.json" in before and "cold/config.yaml" in before and "cold/done.json" not in before
    with pytest.raises(UserError) as e:
        pipeline.run(config.load(half / "run.yaml", [CHANGES[key]]))
    stage = "cold" if key == "templates.zero" else "base"        # the base knows no template
    assert f"out/{stage} was made with another config: {key} (" in str(e.value) and str(e.value).count(" -> ") == 1
    assert contents(half / "out") == before


def test_a_half_done_stage_keeps_its_config_too(half):
    before = contents(half / "out")
    with pytest.raises(UserError, match=r"out/cold was made with another config: group \(1 -> 2\), others.fact \(1.0 -> None\), others.word \(None -> 2.0\);"):
        pipeline.run(config.load(half / "run.yaml", ["cold.group=2", "cold.others={word: 2}"]))
    with pytest.raises(UserError, match=r"out/cold .* init \('base' -> ''\)"):      # another stage under the same name
        pipeline.run(config.load(half / "run.yaml", ["stages=[{name: cold, kind: pretrain}]"]))
    assert contents(half / "out") == before


def test_what_changes_only_the_cost_or_is_not_begun_is_free(half, tmp_path):
    import shutil
    shutil.copytree(half / "out", tmp_path / "out")
    free = ["base.save_every=1", "base.optim.micro_tokens=64", "cold.sample.max_rows=1", "tuned.epochs=2", "threads=1", f"out={tmp_path / 'out'}"]
    pipeline.run(config.load(half / "run.yaml", free))
    assert {p.parent.name for p in (tmp_path / "out").glob("*/done.json")} == {"base", "cold", "tuned"}
    assert contents(half / "out/base") == contents(tmp_path / "out/base")


# ---- the scripts -------------------------------------------------------------------------------

@pytest.mark.parametrize("command, says", [
    (["train.py", "{d}/c.yaml", "zero.optim.lrr=1"], "unknown key 'zero.optim.lrr'; did you mean 'lr'?"),
    (["train.py", "{d}/c.yaml", "zero.sample.top_p=0.9"], "remove sample.top_p"),
    (["train.py", "{d}/c.yaml", "zero.minibatches=0"], "zero.minibatches must be at least 1"),
    (["train.py", "{d}/c.yaml", "zero=3"], "'zero' is a stage"),
    (["train.py", "{d}/twice.yaml"], "the key 'seed' stands twice"),
    (["train.py", "{d}/list.yaml"], "set must be a mapping"),
    (["train.py", "{d}"], "cannot be read"),
    (["distill.py", "{d}/c.yaml", "dev1.epoch=3"], "did you mean 'epochs'"),
    (["distill.py", "--teacher", "{d}/t", "--student={d}/s", "traces.kep=1", "--data", "chain"], "did you mean 'keep'"),
    (["train.py", "{d}/run.yaml", "base.steps=5"], "steps (4 -> 5)")])
def test_the_scripts_say_it_in_one_sentence(half, tmp_path, command, says):
    """Exit code 2, one line on stderr, nothing on stdout, no traceback, nothing written."""
    (tmp_path / "c.yaml").write_text(BASE)
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (tmp_path / "list.yaml").write_text("extends: c.yaml\nset: [zero.steps]\n")
    (tmp_path / "run.yaml").write_text((half / "run.yaml").read_text())
    before = contents(half) | contents(tmp_path)
    done = subprocess.run([sys.executable, ROOT / command[0], *(a.format(d=tmp_path) for a in command[1:])], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and says in done.stderr
    assert contents(half) | contents(tmp_path) == before


def test_stages_of_the_file_below_and_stages_like_them(tmp_path):
    """By name as they are, `like` with other keys; the same config written out is the same."""
    top = """
extends: c.yaml
stages: [base, zero, {name: other, like: zero, problems: 4}, {name: third, like: other, init: other, group: 2}]
"""
    (tmp_path / "top.yaml").write_text(top, encoding="utf-8")
    below = load(tmp_path)
    found = config.load(_at(tmp_path, "top.yaml", top))
    base, zero = below.stages[:2]
    assert found.stages == [base, zero, dataclasses.replace(zero, name="other", problems=4),
                            dataclasses.replace(zero, name="third", problems=4, init="other", group=2)]
    assert "zeri" in refused(tmp_path, text="extends: d.yaml\nstages: [base, zeri]\n", d=BASE)


def _at(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_seeds_are_runs_of_their_own(tmp_path):
    cfg = load(tmp_path, "seeds=[3, 5]")
    assert [(c.seed, c.out, c.seeds) for c in config.each_seed(cfg)] == [(3, "runs/x/seed3", []), (5, "runs/x/seed5", [])]
    assert config.each_seed(load(tmp_path)) == [load(tmp_path)]
