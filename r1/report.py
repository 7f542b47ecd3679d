"""A run's figures, curves and samples -> report.md and one report.html that needs no network.

Everything is read from the run's folder, and whatever is not there yet is left out, so a report can be written at
any moment of a run. Completions are text by a model: they are escaped and cut, never trusted.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from r1.files import load_json, write_text
from r1.page import CONTROL, STYLE, cut, facts, gold, h, html_table, is_right, line_chart, number, parts_of, percent, sample_html, shown

# AIME 2024 pass@1 of the paper's checkpoints (R1 v1 figure 2 and tables 2 and 6, v2 table 3).
PAPER = {"base": "15.6", "zero": "71.0 / 77.9", "dev1": "59.0", "dev2": "74.0", "dev3": "78.1", "r1": "79.8",
         "student": "72.6", "student_rl": "47.0"}
PAPER_NOTE = ("The last column, for orientation only, is AIME 2024 pass@1 of the paper's checkpoint in that role: another model, "
              "another task. R1-Zero starts at 15.6 and ends at 71.0 (paper v1) or 77.9 (v2), 86.7 by majority of 64; "
              "the students are Distill-Qwen-32B and Qwen-32B-Zero.")
STEPS = [("base", "zero", "R1-Zero: RL straight on the base"), ("base", "dev1", "cold start: SFT on R1-Zero's traces"),
         ("dev1", "dev2", "RL with the language reward"), ("dev2", "dev3", "base again: SFT on the curated set"),
         ("dev3", "r1", "RL on all scenarios"), ("student_rl", "student", "the small model: distillation instead of RL straight on it")]
CHARTS = [("Reward parts", "share", {"accuracy": "accuracy", "format": "format", "language": "language"}),
          ("Penalties and own reward", "", {"overlong": "overlong", "repetition": "repetition", "custom": "custom"}),
          ("Length", "tokens", {"length": "all", "length_right": "right", "length_wrong": "wrong"}),
          ("Entropy", "nats per token", {"entropy": "entropy"}), ("KL to the reference", "nats per token", {"kl": "KL"}),
          ("Sampler against trainer", "|Δ log p|", {"gap": "gap"}),
          ("Nothing to learn, or cut off", "share", {"flat_groups": "flat groups", "truncated": "truncated"}),
          ("Loss", "nats per token", {"loss": "loss"}), ("Gradient norm", "", {"grad_norm": "gradient norm"})]
COUNTS = ("problems", "sampled", "right", "readable_right", "kept", "others")
COUNTS_HEAD = ["stage", "sampled from", *(c.replace("_", " and ") for c in COUNTS)]


def write_report(root: Path) -> None:
    """Write `root`/report.md and `root`/report.html from what lies in `root`."""
    run = read_run(root)
    write_text(root / "report.md", markdown(root, run))
    write_text(root / "report.html", page(root, run))


def read_lines(file: Path) -> Iterator[dict]:
    """The objects of a JSONL file, one at a time; lines that do not parse are skipped."""
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as f:
            for line in f:
                with suppress(ValueError):
                    if isinstance(row := json.loads(line), dict):
                        yield row


def read_run(root: Path) -> dict:
    """results.json brought up to date with the stage folders, those of unfinished stages included."""
    run = load_json(root / "results.json")
    order = [s["name"] for s in run.get("stages", [])]
    marks = ("config.yaml", "metrics.jsonl", "done.json", "eval.json")
    started = {f.parent.name: f.stat().st_mtime for mark in reversed(marks) for f in root.glob(f"*/{mark}")}
    stages = []
    for name in dict.fromkeys([*order, *sorted(started, key=started.get)]):
        config = root / name / "config.yaml"
        text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
        stages.append({"name": name, "kind": "", "init": "", **dict(re.findall(r"^(kind|init): *'?([^'\n]*)", text, re.M)),
                       **{key: load_json(root / name / f"{key}.json") for key in ("done", "eval")}})
    return {**run, "title": f"r1 report: {root.resolve().name}", "stages": stages}


def domains(stage: dict) -> dict[str, dict]:
    """The parts of an evaluation that hold figures."""
    return {k: v for k, v in stage.get("eval", {}).items() if isinstance(v, dict) and "pass@1" in v}


def all_domains(run: dict) -> list[str]:
    return list(dict.fromkeys(d for s in run.get("stages", []) for d in domains(s)))


def figures(row: dict, k) -> list[str]:
    """pass@1 with its standard error, cons@k, pass@k, format, language, length."""
    error = "" if math.isnan(number(row.get("se"))) else f" ± {percent(row['se'])}"
    return [percent(row.get("pass@1")) + error,
            *(percent(row.get(key)) for key in (f"cons@{k}", f"pass@{k}", "format", "language")), shown(row.get("length"))]


def minutes(stage: dict) -> str:
    return shown(number((stage.get("done") or {}).get("seconds")) / 60)


def samples_k(run: dict) -> str:
    """The k of cons@k, if all evaluations share it."""
    ks = {str(s["eval"].get("k", "k")) for s in run.get("stages", []) if domains(s)}
    return ks.pop() if len(ks) == 1 else "k"


def in_paper(run: dict) -> bool:
    """Whether a stage has the role of a checkpoint of the paper's; without one there is no column for those."""
    return any(s["name"] in PAPER for s in run.get("stages", []))


def stage_rows(run: dict, join=list) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of evaluated stages; `join` may put columns of a domain together."""
    k, names, compared = samples_k(run), all_domains(run), in_paper(run)
    head = join(["pass@1 ± se", f"cons@{k}", f"pass@{k}", "format", "language", "length"]) * len(names)
    rows = [[s["name"], *(cell for n in names for cell in join(figures(domains(s).get(n, {}), s["eval"].get("k")))),
             minutes(s), *[PAPER.get(s["name"], "")] * compared] for s in run.get("stages", []) if domains(s)]
    return ["stage", *head, "minutes", *["paper (AIME 2024)"] * compared], rows


def stage_table(results: dict) -> str:
    """The evaluated stages of a results.json as a Markdown table; figures in percent, lengths in tokens."""
    head, rows = stage_rows(results, lambda f: [f[0], f"{f[1]} / {f[2]}", f"{f[3]} / {f[4]}", f[5]])
    for i, name in enumerate(all_domains(results)):
        head[1 + 4 * i] = f"{name}: {head[1 + 4 * i]}"
    return markdown_table(head, [[f"`{name}`", *cells] for name, *cells in rows])


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    line = lambda cells: "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"  # noqa: E731
    return "\n".join([line(head), line(["---", *["---:"] * (len(head) - 1)]), *map(line, rows)])


def counts_rows(root: Path, run: dict) -> list[list[str]]:
    """What each rejection sampling stage kept."""
    return [[s["name"], s["init"], *(f"{m[c]:,}" if isinstance(m.get(c), int) else "–" for c in COUNTS)]
            for s in run["stages"] for m in read_lines(root / s["name"] / "metrics.jsonl") if "readable_right" in m]


def headlines(run: dict) -> list[str]:
    """What changed from checkpoint to checkpoint, one sentence each."""
    by_name, out = {s["name"]: domains(s) for s in run["stages"]}, []
    for a, b, role in STEPS:
        old, new = by_name.get(a, {}), by_name.get(b, {})
        parts = [f"{d} {percent(x['pass@1'])} → {percent(y['pass@1'])}, language {percent(x.get('language'))} → "
                 f"{percent(y.get('language'))}, length {number(x.get('length')):.0f} → {number(y.get('length')):.0f}"
                 for d, y in new.items() if (x := old.get(d))]
        if parts:
            out.append(f"{a} → {b} ({role}): {'; '.join(parts)}")
    return out


def curve(rows: list[dict], key: str) -> list[tuple[float, float]]:
    """One metric over steps; NaN where a step lacks it."""
    none = key in ("length_right", "length_wrong")                       # 0 there says that there was no such completion
    return [(number(m.get("step")), math.nan if none and not m.get(key) else number(m.get(key)))
            for m in rows if math.isfinite(number(m.get("step")))]


def evaluated(folder: Path) -> list[dict]:
    """The first right and the first wrong sample of each task of an evaluation, in the order of the file."""
    found: dict[tuple, dict[bool, dict]] = {}
    for row in read_lines(folder / "eval_samples.jsonl"):
        found.setdefault((str(row.get("domain")), str(row.get("task"))), {}).setdefault(is_right(row), row)
    return [row for pair in found.values() for row in pair.values()]


def trained(folder: Path) -> list[dict]:
    """The samples of the first and of the last step of a training stage."""
    first, last = [], deque(maxlen=4)
    for row in read_lines(folder / "samples.jsonl"):
        if len(first) < 4 and (not first or row.get("step") == first[0].get("step")):
            first.append(row)
        else:
            last.append(row)
    return first + [row for row in last if row.get("step") == last[-1].get("step")]


def about(run: dict) -> str:
    """One line on the run: seed, machine, time, what is not finished."""
    hw = run.get("hardware") if isinstance(run.get("hardware"), dict) else {}
    total = sum(x for s in run["stages"] if math.isfinite(x := number((s["done"] or {}).get("seconds"))))
    open_stages = [s["name"] for s in run["stages"] if not s["done"]]
    cpus = f"{hw.get('cpus', '?')} CPU cores, {hw.get('threads', '?')} threads"
    said = [f"seed {run['seed']}"] if "seed" in run else []
    said += [str(hw.get("gpu") or cpus), f"PyTorch {hw.get('torch', '?')}", str(hw.get("date", ""))] if hw else []
    said += [f"{total / 60:.1f} minutes in all stages"] if total else []
    said += [f"not finished: {', '.join(open_stages)}"] if open_stages else []
    return " · ".join(filter(None, said)) or "Nothing has been run here yet."


def markdown(root: Path, run: dict) -> str:
    out = [f"# {run['title']}", about(run)]
    if all_domains(run):
        out += ["## Stages", "Percent; lengths in tokens.", stage_table(run), *[PAPER_NOTE] * in_paper(run)]
    if lines := headlines(run):
        out += ["## What changed", "\n".join(f"- {line}" for line in lines)]
    if rows := counts_rows(root, run):
        out += ["## Rejection sampling", markdown_table(COUNTS_HEAD, rows)]
    found = {s["name"]: rows[0] for s in run["stages"] if (rows := evaluated(root / s["name"]))}
    out += ["## Samples"] if found else []
    for name in sorted(found, key=lambda n: n not in ("base", "zero", "r1"))[:3]:
        row, (above, below) = found[name], facts(found[name])
        text = f"{cut(row.get('prompt', ''), 1500)}\n\n" + "\n".join(p for p in parts_of(row) if p)
        text = f"{text}\n\ngold: {gold(row)}".translate(CONTROL)
        fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
        out += [f"**{name}**, {'right' if is_right(row) else 'wrong'}: {above} · {below}", f"{fence}text\n{text}\n{fence}"]
    return "\n\n".join(out) + "\n"


def page(root: Path, run: dict) -> str:
    """The whole report as one HTML document."""
    counts = counts_rows(root, run)
    made = [("stages", "Stages", stages_html(run)), ("zero", "R1-Zero", zero_html(root)),
            ("tasks", "By task", tasks_html(run)), ("sampling", "Rejection sampling", counts and html_table(COUNTS_HEAD, counts)),
            ("curves", "Curves", curves_html(root, run)), ("samples", "Samples", samples_html(root, run))]
    made = [m for m in made if m[2]]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in made)
    body = "".join(f'<section id="{key}"><h2>{name}</h2>{text}</section>' for key, name, text in made)
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{h(run['title'])}</title><style>{STYLE}</style></head><body><header><h1>{h(run['title'])}</h1>"
            f"<p>{h(about(run))}</p><nav>{links}</nav></header><main>{body}</main></body></html>")


def stages_html(run: dict) -> str:
    names, (head, rows) = all_domains(run), stage_rows(run)
    if not rows:
        return ""
    last = "<th></th>" * (len(head) - 1 - 6 * len(names))
    groups = "<tr><th></th>" + "".join(f'<th colspan="6">{h(n)}</th>' for n in names) + last + "</tr>"
    changes = "".join(f"<li>{h(line)}</li>" for line in headlines(run))
    return (html_table(head, rows, groups, tuple(range(1, 1 + 6 * len(names), 6)))
            + f'<p class="note">Percent; lengths in tokens. pass@1 is the mean over {h(samples_k(run))} samples per problem, ± its standard '
            f"error over problems. {h(PAPER_NOTE) if in_paper(run) else ''}</p>" + (f'<ul class="note">{changes}</ul>' if changes else ""))


def zero_html(root: Path) -> str:
    """The picture of the paper: accuracy and length over the steps of R1-Zero."""
    rows = list(read_lines(root / "zero" / "metrics.jsonl"))
    both = [("accuracy", "Accuracy", "share of right samples"), ("length", "Mean response length", "tokens")]
    drawn = "".join(line_chart({key: curve(rows, key)}, title, unit) for key, title, unit in both)
    return f'<div class="pair">{drawn}</div>' if any("accuracy" in m for m in rows) else ""


def tasks_html(run: dict) -> str:
    """pass@1 of every stage by task and level, then all figures of each stage."""
    table: dict[str, dict[str, str]] = {}
    every, names = [], [s["name"] for s in run["stages"] if domains(s)]
    for s in run["stages"]:
        rows, k = [], s["eval"].get("k")
        for name, domain in domains(s).items():
            for part in ("by_task", "by_level", "by_lang"):
                for key, row in (domain.get(part) or {}).items():
                    if part == "by_level" and key.endswith(":0"):        # ungraded: the row of its task again
                        continue
                    words = {"by_task": key, "by_level": ", level ".join(key.rsplit(":", 1)), "by_lang": f"in {key}"}
                    label = f"{name}: {words[part]}"
                    table.setdefault(label, {})[s["name"]] = percent(row.get("pass@1"))
                    rows.append([label, str(row.get("problems", "–")), *figures(row, k), percent(row.get("truncated"))])
        if rows:
            head = ["", "problems", "pass@1 ± se", f"cons@{k}", f"pass@{k}", "format", "language", "length", "cut off"]
            every.append(f"<details><summary>{h(s['name'])}: all figures</summary>{html_table(head, rows, bars=(2,))}</details>")
    if not table:
        return ""
    both = [[label, *(cells.get(n, "–") for n in names)] for label, cells in table.items()]
    return html_table(["pass@1", *names], both, bars=tuple(range(1, len(names) + 1))) + "".join(every)


def curves_html(root: Path, run: dict) -> str:
    """Every chart for which a stage has figures; KL stays 0 where there is no reference."""
    out = []
    for s in run["stages"]:
        rows, drawn = list(read_lines(root / s["name"] / "metrics.jsonl")), []
        rl = any("accuracy" in m for m in rows)
        for title, unit, keys in [c for c in CHARTS if c[0] != "Loss"] if rl else CHARTS[-2:]:
            series = {name: curve(rows, key) for key, name in keys.items()}
            series = {name: c for name, c in series.items() if any(math.isfinite(y) for _, y in c)}
            if series and ("kl" not in keys or any(number(m.get("kl")) > 0 for m in rows)):
                drawn.append(line_chart(series, title, unit))
        if drawn:
            words = f"{s['kind']}{' from ' + s['init'] if s['init'] else ''}, {len(rows)} steps"
            words += f", {minutes(s)} minutes" if s["done"] else ", not finished"
            out.append(f'<h3>{h(s["name"])} <small>{h(words)}</small></h3><div class="charts">{"".join(drawn)}</div>')
    return "".join(out)


def samples_html(root: Path, run: dict) -> str:
    """Samples of each stage, within a budget of bytes."""
    out, budget = [], 1_000_000 // max(1, len(run["stages"]))             # for all of them together a megabyte
    for s in run["stages"]:
        left, folder = budget, root / s["name"]
        stage_words = "kept" if s["kind"] == "reject" else "training, first and last steps"
        for words, rows in (("evaluation", evaluated(folder)), (stage_words, trained(folder))):
            cards = []
            for card in map(sample_html, rows):
                left -= len(card.encode("utf-8", "replace"))
                cards += [card] if left > 0 else []
            if cards:
                out.append(f'<details><summary>{h(s["name"])}: {words}</summary><div class="cards">{"".join(cards)}</div></details>')
    return "".join(out)
