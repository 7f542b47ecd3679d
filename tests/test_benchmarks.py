"""Sources that people measure on, from small files in their own formats, without a network."""
import json
import random

import pytest

from r1 import benchmarks, hub, tasks
from r1.accuracy import accuracy
from r1.types import UserError

# One row each as the source writes it; the question's text is not theirs.
ROWS = {
    "gsm8k": {"question": "Ada has 1,000 pins and buys 250 more. How many has she?", "answer": "1000+250=<<1000+250=1250>>1250\n#### 1,250"},
    "math": {"problem": "Find $x$ with $2x=1$.", "solution": "...", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2, "unique_id": "train/a/1.json"},
    "math500": {"problem": "Find $x$ with $x+1=3$.", "solution": "...", "answer": "2", "subject": "Algebra", "level": 1, "unique_id": "test/a/2.json"},
    "aime24": {"id": 61, "problem": "Find $m+n$.", "solution": "...", "answer": "033", "url": "...", "year": "2024"},
    "amc": {"id": 0, "problem": "How many are there?", "answer": 142.0, "url": "..."},
    "mbpp": {"task_id": 11, "text": "Write a function to add two numbers.", "code": "...", "test_setup_code": "", "challenge_test_list": [],
             "test_list": ["assert add(1, 2) == 3", "assert add(-1, [][:0] or 1) == 0"]}}
RIGHT = {"gsm8k": "1250", "math": "0.5", "math500": "2", "aime24": "33", "amc": "142", "mbpp": "def add(a, b): return a + b"}


def folder(tmp_path, name, *rows, side="test"):
    (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return f"{name}:{tmp_path}"


@pytest.mark.parametrize("name", benchmarks.WHERE)
def test_each_source_in_its_own_format(tmp_path, name):
    row = dict(ROWS[name])
    if name == "mbpp":
        row["test_list"] = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
    source = tasks.open_source(folder(tmp_path, name, row))
    p = source(random.Random(0), True)
    assert p.task == name and accuracy(p, f"<answer>{RIGHT[name]}</answer>") == (True, "ok")
    assert not accuracy(p, "<answer>7</answer>")[0]
    with pytest.raises(UserError, match="no problem on the training side"):
        source(random.Random(0), False)


def test_a_training_side_of_its_own(tmp_path):
    folder(tmp_path, "gsm8k", ROWS["gsm8k"])
    other = {"question": "Two and two?", "answer": "#### 4"}
    source = tasks.open_source(folder(tmp_path, "gsm8k", other, side="train"))
    assert source(random.Random(0), False).answer == "4" and source(random.Random(0), True).answer == "1250"


def test_parquet_is_read_as_jsonl_is(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist([ROWS["gsm8k"]] * 2), tmp_path / "test-00000-of-00001.parquet")
    assert [p.answer for p in benchmarks.load("gsm8k", str(tmp_path), True)] == ["1250"] * 2
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="cannot be read"):
        benchmarks.load("gsm8k", str(tmp_path), True)


@pytest.mark.parametrize("test, left", [("assert f(1) == 2", 1), ("assert set(f(1)) == {2}", 0), ("assert f(1) == g(2)", 0), ("assert f(1)", 0),
                                        ("assert math.isclose(f(1), 2)", 0), ("assert f(x=1) == 2", 0)])
def test_mbpp_keeps_what_can_be_judged_outside_of_the_sandbox(tmp_path, test, left):
    rows = {**ROWS["mbpp"], "test_list": [test]}, {**ROWS["mbpp"], "test_list": ["assert add(1, 2) == 3"]}
    folder(tmp_path, "mbpp", *rows)
    assert len(benchmarks.load("mbpp", str(tmp_path), True)) == left + 1


def test_a_row_of_another_format_is_named(tmp_path):
    with pytest.raises(UserError, match=r"test.jsonl:1: not a row of gsm8k: KeyError 'question'; it has the fields prompt, answer"):
        tasks.open_source(folder(tmp_path, "gsm8k", {"prompt": "1+1?", "answer": "2"}))
    with pytest.raises(UserError, match="no .parquet or .jsonl"):
        tasks.open_source(f"math:{tmp_path / 'nowhere'}" if (tmp_path / "nowhere").mkdir() is None else "")


def test_gold_answers_that_cannot_be_read_are_left_out_aloud(tmp_path, capsys):
    name = folder(tmp_path, "math500", ROWS["math500"], {**ROWS["math500"], "answer": "", "unique_id": "b"})
    assert tasks.open_source(name)(random.Random(0), True).answer == "2"
    assert "1 of 2 gold answers cannot be read" in capsys.readouterr().err


def test_what_is_evaluated_is_not_trained_on(tmp_path, capsys):
    """Ten words in a row, whatever the case and the punctuation between them; nine are nothing."""
    ten = "one two three four five six seven eight nine ten"
    evaluated = {"question": f"Say: {ten}!", "answer": "#### 1"}
    folder(tmp_path, "gsm8k", evaluated)
    near = {"question": f"{ten.title().replace(' ', ', ')} eleven", "answer": "#### 2"}, {"question": f"{ten[:-4]} and more of it", "answer": "#### 3"}
    name = folder(tmp_path, "gsm8k", *near, side="train")
    source = tasks.open_source(name, tasks.evaluated([{name: 1.0, "chain": 1.0}]))
    assert {source(random.Random(i), False).answer for i in range(20)} == {"3"}
    assert "1 of 2 training problems" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [3, 4, 5, 6])
def test_countdown_can_be_solved_and_its_rule_holds(numbers):
    source = tasks.open_source(f"countdown:numbers={numbers}")
    for seed in range(30):
        p = source(random.Random(seed), bool(seed % 2))
        assert len(p.answer["numbers"]) == numbers == p.level and 1 <= p.answer["target"] <= 1000
        assert all(str(n) in p.prompt for n in [*p.answer["numbers"], p.answer["target"]])
        assert not accuracy(p, f"<answer>{p.answer['target']}</answer>")[0]
        if numbers == 3:
            assert any(accuracy(p, f"<answer>{e}</answer>")[0] for e in solutions(p.answer["numbers"])), p
    with pytest.raises(UserError, match="from 3 to 6"):
        tasks.open_source("countdown:numbers=7")


def solutions(given):
    """Every expression over three numbers."""
    import itertools
    for a, b, c in itertools.permutations(given):
        for f, g in itertools.product("+-*/", repeat=2):
            yield from (f"({a}{f}{b}){g}{c}", f"{a}{f}({b}{g}{c})")


@pytest.mark.parametrize("error, says", [
    ("GatedRepoError", "accepted its terms"), ("RepositoryNotFoundError", "HF_TOKEN does not open it"), ("RevisionNotFoundError", "no revision 'x'"),
    ("LocalEntryNotFoundError", "name a folder on disk instead"), ("ConnectionError", "name a folder on disk instead")])
def test_what_the_hub_refuses_is_one_sentence(monkeypatch, error, says):
    import huggingface_hub
    from huggingface_hub import errors
    made = getattr(errors, error, ConnectionError)

    def refuse(*args, **kwargs):
        e = made.__new__(made)
        OSError.__init__(e, "no route\nto host")
        raise e

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as e:
        hub.fetch_model("some/model@x")
    assert says in str(e.value) and "\n" not in str(e.value)


def test_ids_are_told_from_paths():
    assert hub.is_id("Qwen/Qwen2.5-0.5B") and hub.is_id("a/b@main")
    assert not any(map(hub.is_id, ("runs/tiny/r1/model", "base", "zero/step20", "/abs/x", "a/b c", "./x/y", "")))


def test_a_file_of_ones_own_on_the_hub(tmp_path, monkeypatch):
    """As it stands there, and asked for by that address alone: a mistyped path on disk goes to no network."""
    asked = []

    def snapshot(repo, **how):
        asked.append((repo, how["repo_type"], how["revision"], how["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/mine.jsonl").write_text("".join(f'{{"prompt": "{i}+1?", "answer": {i + 1}}}\n' for i in range(40)))
    tasks.sides_of.cache_clear()
    p = tasks.draw(tasks.open_sources({"jsonl:hf://datasets/me/sums@v1/deep/mine.jsonl": 1}), 1, "x")[0]
    assert p.answer == int(p.prompt.split("+")[0]) + 1 and asked == [("me/sums", "dataset", "v1", ["deep/mine.jsonl"])]
    for wrong in ("jsonl:me/sums/deep/mine.jsonl", "jsonl:hf://datasets/me/mine.jsonl"):
        with pytest.raises(UserError):
            tasks.open_source(wrong)
    assert len(asked) == 1
