"""The report: its figures are those of the files, its text is harmless, and it can be written at any moment of a run."""
import json
import math
import random
from html.parser import HTMLParser

import pytest

from r1.page import line_chart, ticks
from r1.report import stage_table, write_report

HOSTILE = '<think>1+1 <script>alert(1)</script>\x00</details></article> 是的，答案</think><answer>2"\'`</answer>\n```\n| x'
K = 4


def figures(p: float, more: dict | None = None) -> dict:
    return {"problems": 20, "pass@1": p, "se": 0.0123, f"cons@{K}": p + 0.01, f"pass@{K}": p + 0.02, "format": 0.914,
            "language": 0.815, "length": 54.25, "truncated": 0.03, **(more or {})}


def evaluation(p: float) -> dict:
    split = {"by_task": {"chain": figures(p), "word": figures(p)}, "by_level": {"chain:3": figures(p - 0.1)},
             "by_lang": {"en": figures(p), "zh": figures(p)}}
    hardware = {"cpus": 2, "threads": 1, "gpu": None, "torch": "2.9.0", "date": "2026-01-01"}
    return {"k": K, "hardware": hardware, "seed": 0, "reasoning": figures(p, split), "general": figures(p / 2, split)}


def record(text: str, right: bool, **more) -> dict:
    return {**more, "task": "chain", "id": "chain/3", "lang": "zh", "level": 3, "prompt": "What is 1 + 1?", "answer": 2,
            "completion": text, "finish": "eos", "length": 12, "total": float(right),
            "parts": {"accuracy": float(right), "format": 1.0, "language": 0.5}, "reason": "ok" if right else "wrong"}


def step_metrics(step: int) -> dict:
    r = random.Random(step)
    p = 1 - math.exp(-(step + 3) / 12) + r.gauss(0, 0.02)
    return {"step": step, "reward": p, "accuracy": p, "format": min(1.0, p + 0.1), "language": 0.9, "length": 12 + 40 * p,
            "length_right": 0.0 if step < 2 else 50.0, "length_wrong": 30 + r.random() * 9, "truncated": 0.01, "flat_groups": p / 2,
            "advantage": 0.8, "sampled_tokens": 4000, "reason/ok": p, "loss": -0.01, "clip_fraction": 0.0, "kl": 0.0,
            "entropy": math.nan if step == 7 else 0.6 - p / 3, "gap": 1.2e-7, "grad_norm": r.random(), "lr": 3e-4, "skipped": 0}


def write_lines(file, rows) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def add_stage(root, name: str, kind: str, init: str, p: float) -> dict:
    """A finished stage as the pipeline leaves it; returns its entry in results.json."""
    folder = root / name
    folder.mkdir()
    (folder / "config.yaml").write_text(f"name: {name}\nkind: {kind}\ninit: {init}\nseed: 0\n")
    entry = {"name": name, "kind": kind, "init": init, "done": {"seconds": 90.0, **evaluation(p)["hardware"]}}
    (folder / "done.json").write_text(json.dumps(entry["done"]))
    if kind == "reject":
        counts = {"sampled": 1600, "problems": 400, "right": 1301, "readable_right": 1207, "kept": 777, "others": 60}
        write_lines(folder / "metrics.jsonl", [{"step": 0, **counts, "time_sample": 3.5, "time_reward": 0.1}])
        return entry
    if kind == "grpo":
        write_lines(folder / "metrics.jsonl", [step_metrics(i) for i in range(40)])
        rows = [record(f"step {i} {HOSTILE}", i % 2, step=i, advantage=0.5) for i in range(40)]
        write_lines(folder / "samples.jsonl", rows)
    else:
        losses = [{"step": i, "loss": 6 * math.exp(-i / 200), "grad_norm": 0.3, "lr": 1e-3} for i in range(1000)]
        write_lines(folder / "metrics.jsonl", losses)
    write_lines(folder / "eval_samples.jsonl", [record(HOSTILE, i % 2, domain="reasoning") for i in range(8)])
    entry["eval"] = evaluation(p)
    (folder / "eval.json").write_text(json.dumps(entry["eval"]))
    return entry


def make_run(root) -> dict:
    stages = [("base", "pretrain", "", 0.201), ("zero", "grpo", "base", 0.8772), ("cold", "reject", "zero", 0),
              ("dev1", "sft", "base", 0.702), ("dev2", "grpo", "dev1", 0.803), ("curated", "reject", "dev2", 0),
              ("dev3", "sft", "base", 0.846), ("r1", "grpo", "dev3", 0.912), ("student", "sft", "student_base", 0.65),
              ("student_rl", "grpo", "student_base", 0.43)]
    results = {"seed": 0, "hardware": evaluation(0)["hardware"], "stages": [add_stage(root, *s) for s in stages]}
    (root / "results.json").write_text(json.dumps(results))
    return results


class Page(HTMLParser):
    """Collects text and attributes; fails on a tag that closes what is not open."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    make_run(root)
    write_report(root)
    return root, (root / "report.html").read_text(encoding="utf-8"), (root / "report.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_evaluation(report):
    root, html, md = report
    for text in (html, md):
        for figure in ("87.7 ± 1.2", "88.7", "89.7", "91.4", "81.5", "54.2", "43.9", "1.5", "71.0 / 77.9", "72.6"):
            assert figure in text, figure
    row = next(line for line in md.splitlines() if line.startswith("| `zero`"))
    assert row.split(" | ")[1:5] == ["87.7 ± 1.2", "88.7 / 89.7", "91.4 / 81.5", "54.2"]
    assert stage_table(json.loads((root / "results.json").read_text())) in md
    assert "1,207" in html and "1,207" in md and "777" in md
    assert md.count("\n| `") == 8                                     # one row per evaluated stage


def test_every_section_is_there(report):
    html = report[1]
    for key in ("stages", "zero", "tasks", "sampling", "curves", "samples"):
        assert f'<section id="{key}">' in html
    assert "15.0 minutes in all stages" in html and "seed 0" in html
    assert html.count("<svg") == 2 + 4 * 7 + 4 * 2 - 4                # four grpo stages without their all-zero KL
    assert "chain, level 3" in html and "in zh" in html and "step 39" in html and "step 0 " in html
    assert "是的，答案" in html and 'lang="zh"' in html


def test_text_of_the_model_is_harmless(report):
    root, html, md = report
    page = Page(html)
    assert "script" not in page.tags and "<script" not in html
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert "\x00" not in html and "␀" in html
    fences = [line for line in md.splitlines() if line.startswith("````")]
    assert len(fences) == 6                                           # longer than the fence inside the sample


def test_nothing_is_loaded_from_elsewhere(report):
    page = Page(report[1])
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("#")
    assert not {"link", "img", "iframe", "object", "script"} & set(page.tags)
    assert "@import" not in report[1] and "url(" not in report[1]
    assert str(report[0].parent) not in report[1] + report[2]


def test_an_empty_folder(tmp_path):
    write_report(tmp_path)
    Page((tmp_path / "report.html").read_text())
    assert "Nothing has been run" in (tmp_path / "report.md").read_text()


def test_a_half_done_run(tmp_path):
    """No results.json, a broken eval.json, half-written last lines, odd values, no end."""
    entry = add_stage(tmp_path, "base", "pretrain", "", 0.2)
    add_stage(tmp_path, "zero", "grpo", "base", 0.5)
    zero = tmp_path / "zero"
    (zero / "done.json").unlink()
    (zero / "eval.json").write_text(json.dumps(entry["eval"])[:50])
    with (zero / "metrics.jsonl").open("a") as f:
        f.write('{"step": 40, "accuracy": null, "length": "x"}\n[1]\n{"step": 41, "accur')
    with (zero / "samples.jsonl").open("a") as f:
        f.write('{"step": 40, "completion": "\\ud800", "parts": null}\n{"step": 41, "compl')
    write_report(tmp_path)
    html, md = (tmp_path / "report.html").read_text(encoding="utf-8"), (tmp_path / "report.md").read_text()
    Page(html)
    assert "not finished: zero" in html and "grpo from base" in html
    assert "| `base` | 20.0 ± 1.2" in md and "`zero`" not in md


def test_the_page_stays_small(tmp_path):
    for name in ("base", "zero", "r1"):
        add_stage(tmp_path, name, "grpo", "base", 0.5)
        rows = [record("<&" * 20_000, i % 2, domain="general") | {"task": f"task{i}"} for i in range(60)]
        write_lines(tmp_path / name / "eval_samples.jsonl", rows)
    write_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_line_chart():
    gap = line_chart({"a": [(0, 1.0), (1, math.nan), (2, 3.0), (3, 4.0)], "<b>": [(0, 2.0)]}, "T & t", "unit")
    Page(gap)
    path = gap.split('fill="none"')[0].rsplit('d="', 1)[1]
    assert path.count("M") == 2 and path.count("h0") == 1 and "nan" not in gap
    assert "&lt;b&gt;" in gap and "T &amp; t" in gap and "currentColor" in gap
    for empty in ({}, {"a": []}, {"a": [(0, math.nan)]}, {"a": [(5, 0.0)]}, {"a": [(0, -2.0), (1, -1.0)]}, {"a": [(0, 1e-9)]}):
        Page(line_chart(empty, "x"))
    long = line_chart({"a": [(i, float(i)) for i in range(10_000)]}, "x")
    assert len(long) < 6_000


@pytest.mark.parametrize("low, high", [(0, 1), (0, 0), (0, 1e-7), (-3, 12345), (0, 0.3), (2, 2), (0, 97)])
def test_ticks_cover_the_range(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and found[-1] > found[0] and 2 <= len(found) <= 8
