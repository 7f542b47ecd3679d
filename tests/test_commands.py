"""What the scripts and the pipeline say and do when settings change, are wrong, or stand in another order."""
import json
import re
import shutil

import pytest
from test_pipeline import MINI, run, script  # noqa: F401  (a fixture)

from r1 import config, pipeline, ranks
from r1.types import UserError


def test_a_template_that_no_stage_uses_changes_nothing(run):
    file, out = run
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/*") if p.suffix != ".html"}
    pipeline.run(config.load(file, ["templates.other='Q: {prompt}'"]))
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_changed_evaluation_is_made_again_and_nothing_else(run, tmp_path):
    """The figures are those of the settings that the config names, on the models as they are."""
    file, out = run
    copy = shutil.copytree(out, tmp_path / "copy")
    made = {p: p.read_bytes() for p in copy.glob("*/model/*")}
    stages = ("base", "zero", "dev1", "dev2")
    for problems in (6, 6, 5):
        times = {s: (copy / s / "eval.json").stat().st_mtime_ns for s in stages}
        same = json.loads((copy / "base/eval.json").read_text())["settings"]["problems"] == problems
        pipeline.run(config.load(file, [f"out={copy}", f"evaluate.problems={problems}"]))
        assert all(((copy / s / "eval.json").stat().st_mtime_ns == times[s]) == same for s in stages)
        assert all(json.loads((copy / s / "eval.json").read_text())["reasoning"]["problems"] <= problems for s in stages)
        assert {s["eval"]["settings"]["problems"] for s in json.loads((copy / "results.json").read_text())["stages"] if "eval" in s} == {problems}
    assert {p: p.read_bytes() for p in copy.glob("*/model/*")} == made


@pytest.mark.parametrize("override, says", [
    ("dev2.reward={acuracy: 1}", "did you mean 'accuracy'"), ("dev2.reward={custom: 1}", "unknown reward weight 'custom'"),
    ("dev2.reward_function=nowhere.py:f", "there is no file 'nowhere.py'"), ("dev2.data={chian: 1}", "unknown data source 'chian'"),
    ("cold.others={chian: 1}", "unknown data source 'chian'"), ("dev1.data=[colt]", "'colt': no such file, and no stage; did you mean 'cold'"),
    ("dev2.init=dev", "'dev': no such folder or file, and no stage; did you mean 'dev"), ("base.model.hiden_size=3", "hiden_size"),
    ("dev2.data={human_eval: 1}", "human_eval"), ("evaluate.domains.general={chian: 1}", "unknown data source 'chian'")])
def test_what_a_later_stage_would_fail_on_is_said_before_the_first(tmp_path, override, says):
    file = tmp_path / "mini.yaml"
    file.write_text(MINI.format(out=tmp_path / "out"))
    with pytest.raises(UserError, match=re.escape(says)):
        pipeline.run(config.load(file, [override]))
    assert not (tmp_path / "out").exists()


def test_compiled_layers_are_refused_where_they_were_not_tried(tmp_path, monkeypatch):
    file = tmp_path / "mini.yaml"
    file.write_text(MINI.format(out=tmp_path / "out"))
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(UserError, match="dev2: optim.compile has not been tried under torchrun"):
        pipeline.run(config.load(file, ["dev2.optim.compile=true", "device=cpu"]))


@pytest.mark.slow
def test_layers_that_cannot_be_compiled_are_said_in_a_sentence_and_the_run_goes_on_without(run, tmp_path):
    file, out = run
    shutil.copytree(out, copy := tmp_path / "copy")
    shutil.rmtree(copy / "dev2")
    again = ["train.py", str(file), f"out={copy}", "--only", "dev2"]
    done = script(*again, "dev2.optim.compile=true", CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 2 and "dev2: the layers cannot be compiled here" in done.stderr and "no-such-compiler" in done.stderr and "Traceback" not in done.stderr
    assert script(*again).returncode == 0 and (copy / "dev2/model").is_dir()


def test_overrides_stand_on_either_side_of_the_flags(run):
    file, out = run
    for args in ((file, "--only", "base", f"out={out}"), ("--only=base", file, f"out={out}"), (file, f"out={out}", "--list")):
        done = script("train.py", *map(str, args))
        assert done.returncode == 0, done.stderr


def test_distill_takes_a_teacher_and_a_student(run, tmp_path):
    """From folders, and with a student that a config makes; what is missing is said in one sentence."""
    file, out = run
    teacher, student = str(out / "dev1/model"), str(out / "base/model")
    args = ["--data", "chain", "evaluate.problems=2", "evaluate.k=1", "evaluate.sample.max_new_tokens=4", "traces.problems=3", "traces.group=1",
            "traces.sample.max_new_tokens=4", "traces.others={fact: 1}", "traces.others_problems=4", "distilled.epochs=1"]
    done = script("distill.py", "--teacher", teacher, "--student", student, *args, f"out={tmp_path}/a")
    assert done.returncode == 0 and (tmp_path / "a/distilled/model/config.json").is_file(), done.stderr
    small = tmp_path / "small.yaml"
    small.write_text(f"stages:\n  - {{name: small, kind: pretrain, init: {student}, steps: 1, rows: 1, row_tokens: 32, model: "
                     "{hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1}}\n")
    done = script("distill.py", "--teacher", teacher, "--student", str(small), *args, f"out={tmp_path}/b")
    assert done.returncode == 0 and (tmp_path / "b/distilled/model/config.json").is_file(), done.stderr
    for bad in ([], ["--teacher", teacher, "--student", student], ["out=x"], [str(file), "--teacher", teacher]):
        done = script("distill.py", *bad)
        assert done.returncode == 2 and "name either a config, or --teacher, --student and --data" in done.stderr


@pytest.mark.parametrize("option", [["--top-p", "0"], ["--temperature", "-1"], ["--temperature", "nan"], ["--max-new-tokens", "0"], ["-k", "0"],
                                    ["--json", "nowhere/figures.json"]])
def test_sample_refuses_what_cannot_be_before_it_starts(run, option):
    done = script("sample.py", str(run[1] / "dev1/model"), "--data", "chain", *option)
    assert done.returncode == 2 and option[0] in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_help_list_and_errors_need_no_torch(tmp_path):
    """Where importing torch fails, all three still work."""
    import subprocess
    import sys
    from pathlib import Path
    root = Path(__file__).parents[1]
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    (tmp_path / "wrong.yaml").write_text("stages: [{name: base, kind: pretrian}]\n")
    for words, code, says in ((["--help"], 0, "usage:"), (["configs/tiny.yaml", "--list"], 0, "student_rl"), ([str(tmp_path / "wrong.yaml")], 2, "did you mean")):
        done = subprocess.run([sys.executable, "train.py", *words], cwd=root, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == code and says in done.stdout + done.stderr
